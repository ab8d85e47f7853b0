"""Checkpoints to resume from: training reads a whole checkpoint before it uses any part."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerState

from eas.attachment.load import read_adapter
from eas.attachment.save import WEIGHTS_FILE
from eas.hf.trainer import (
    OPTIMIZER_NAME,
    PREFIX_CHECKPOINT_DIR,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
    random_states,
)
from eas.records import RecordError, misfit, read_record
from eas.searching.phase import STATE_FILE
from eas.searching.records import SearchState
from eas.training.records import OptimizerRecord, SchedulerRecord, TrainerRecord
from eas.weights import read_torch, require_finite

PARTIAL = "partial"
"""Folder, beside the checkpoints, of the one that is being written."""
REMEDY = "resume from the checkpoint before it, or start over"


def last_checkpoint(folder: str | Path, searching: bool = False) -> str | None:
    """The newest whole checkpoint in a trainer's output folder; a broken one is passed over with a note.

    Args:
        folder: the trainer's output folder.
        searching: whether it must hold the state of a search.
    """
    for path in Path(folder).glob(f"{PARTIAL}/*"):
        print(f"passing over {path}: it was not written to its end")
    found = [path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path) is not None]
    for path in sorted(found, key=lambda path: _step(path) or 0, reverse=True):
        try:
            check_checkpoint(path, searching)
            return os.fspath(path)
        except ValueError as error:
            print(f"passing over {path}: {error}")
    return None


def _step(path: Path) -> int | None:
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
    return int(match[1]) if match else None


def check_checkpoint(folder: Path, searching: bool = False) -> None:
    """Reads all of a checkpoint.

    Args:
        folder: what a trainer wrote.
        searching: whether it must hold the state of a search.

    Raises:
        RecordError: a file is missing, truncated, damaged or of something else.
        CheckpointError: the adapter is not one of ``eas.save``.
    """
    path = folder / TRAINER_STATE_NAME  # which the trainer writes last
    state = read_record(path, TrainerRecord, REMEDY)
    try:
        TrainerState(**state)
    except TypeError as error:  # a key that it does not know
        raise RecordError(f"{path} is no state of a trainer ({error}); {REMEDY}") from error
    if _step(folder) not in (None, state["global_step"]):
        raise RecordError(f"{path}: global_step = {state['global_step']} is not that of the folder's name; {REMEDY}")
    tensors = read_adapter(folder)
    require_finite(tensors.items(), folder / WEIGHTS_FILE, REMEDY)
    if not [*folder.glob("global_step*")]:  # DeepSpeed's own
        _check_optimizer(folder / OPTIMIZER_NAME, Counter(tensor.shape for tensor in tensors.values()))
    _read(folder / SCHEDULER_NAME, SchedulerRecord)
    for path in sorted(folder.glob("rng_state*.pth")) or [folder / "rng_state.pth"]:  # one a process
        _check_random(path)
    if searching or (folder / STATE_FILE).exists():
        read_record(folder / STATE_FILE, SearchState, REMEDY)


def _read(path: Path, kind: Any) -> Any:
    content = read_torch(path, REMEDY, whole=True)
    if wrong := misfit(content, kind, ""):
        raise RecordError(f"{path}: {wrong}; {REMEDY}")
    return content


def _check_optimizer(path: Path, trained: Counter[torch.Size]) -> None:
    state = _read(path, OptimizerRecord)["state"]
    tensors = {
        f"{i}.{key}": value for i, one in state.items() for key, value in one.items() if isinstance(value, Tensor)
    }
    require_finite(tensors.items(), path, REMEDY)
    if strange := Counter(t.shape for name, t in tensors.items() if name.endswith(".exp_avg")) - trained:
        raise RecordError(f"{path}: an average of shape {tuple(next(iter(strange)))} is of no weight trained; {REMEDY}")


def _check_random(path: Path) -> None:
    """Sets generators of no other use to the states."""
    with random_states():
        states = read_torch(path, REMEDY, whole=True)
    try:
        random.Random().setstate(states["python"])
        np.random.RandomState().set_state(states["numpy"])
        torch.Generator().set_state(states["cpu"])
    except Exception as error:  # whatever they raise that are given something else
        raise RecordError(f"{path} holds no states of random generators ({error}); {REMEDY}") from error
