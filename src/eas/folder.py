"""A model's folder: its config.json and the headers of its weights are checked before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils.hub import cached_file

from eas.records import ModelRecord, RecordError, read_record
from eas.weights import Safetensors

REMEDY = "copy or download the folder again"
BLOCKS = ("num_hidden_layers", "num_layers", "depth")
COUNTS = {**dict.fromkeys(BLOCKS, 1000), "num_labels": 10**6}
"""Numbers of a configuration that a model is built by one at a time, and the most of each; every block has weights."""


def model_config(id_or_folder: str, revision: str | None = None) -> Any:
    """The configuration of a model in a folder or on the Hub.

    Raises:
        RecordError: config.json is damaged, or names sizes that no model has, or a file of weights is truncated.
        OSError: there is none, or the Hub cannot be reached.
    """
    local = Path(id_or_folder) / "config.json"
    path = local if local.parent.is_dir() else Path(cached_file(id_or_folder, "config.json", revision=revision))
    record = read_record(path, ModelRecord, REMEDY)
    files = sorted(path.parent.glob("model*.safetensors"))
    weights = sum(len(Safetensors([file], REMEDY)) for file in files)
    for name, value in _numbers(record, ""):
        key = name.rpartition(".")[2]
        if isinstance(value, float) and not math.isfinite(value):
            raise RecordError(f"{path}: {name} = {value} must be finite; {REMEDY}")
        most = min(COUNTS[key], weights) if key in BLOCKS and weights else COUNTS.get(key, 0)
        if key in COUNTS and not (isinstance(value, int) and 0 <= value <= most):
            raise RecordError(f"{path}: {name} = {value} must be a whole number up to {most}; {REMEDY}")
    try:
        return AutoConfig.from_pretrained(id_or_folder, revision=revision)
    except OSError:
        raise
    except Exception as error:  # whatever a configuration's own checks raise
        raise RecordError(f"{path} is no configuration of a model ({error}); {REMEDY}") from error


def _numbers(values: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every plain value of nested mappings and lists, with its dotted name."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        name = f"{where}.{key}".lstrip(".")
        if isinstance(value, dict | list):
            yield from _numbers(value, name)
        elif value is not None:
            yield name, value
