"""A model's folder: its config.json and the headers of its weights are checked before anything is built.

An adapter's folder: here, or downloaded from the Hub.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from eas.card import on_hub
from eas.records import AdapterRecord, GenerationRecord, ModelRecord, RecordError, read_record
from eas.weights import Safetensors

REMEDY = "copy or download the folder again"
ADAPTER_FILE = "eas_config.json"
"""What ``eas.save`` writes beside an adapter's weights."""
TINY_DIR = Path(__file__).parents[1] / "demo" / "tiny-llava"
"""The embedded model."""
BLOCKS = ("num_hidden_layers", "num_layers", "depth")
COUNTS = {**dict.fromkeys(BLOCKS, 1000), "num_labels": 10**6}
"""Numbers of a configuration that a model is built by one at a time, and the most of each; every block has weights."""
WIDTHS, WIDEST = re.compile(r"(hidden|intermediate|vocab)_size|(embed|projection)_dim|num_(\w+_)?heads"), 10**7
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")


def model_config(
    id_or_folder: str, revision: str | None = None, own_attention: bool = True, as_base: bool = False
) -> Any:
    """The configuration of a model in a folder or on the Hub; no code that comes with it is run.

    Args:
        id_or_folder: of the model.
        revision: commit, branch or tag on the Hub.
        own_attention: whether the model would compute attention as the file says; a caller who names another way asks
            for that one, and the file's counts for nothing.
        as_base: whether a method is to be attached to the model.

    Raises:
        RecordError: config.json is damaged, names sizes that no model has, or code of the Hub; a file of weights is
            truncated; the folder is that of an adapter or a run; or a base is a standalone model.
        OSError: there is none, or the Hub cannot be reached.
    """
    local = Path(id_or_folder) / "config.json"
    try:
        path = local if local.parent.is_dir() else Path(cached_file(id_or_folder, "config.json", revision=revision))
    except OSError as error:
        if isinstance(error.__cause__, HFValidationError):
            raise OSError(f"{id_or_folder}: there is no such folder; a Hub id has the form owner/name") from error
        raise OSError(f"{id_or_folder}: {' '.join(str(error).split())}") from error
    if path == local and not local.is_file():
        _refuse_other_folder(local.parent)
    record = read_record(path, ModelRecord, REMEDY)
    if as_base and record["model_type"].startswith("eas_"):
        raise RecordError(
            f"{id_or_folder} is a standalone model: it has its method, and lacks attentions already; name its base, "
            "which it was tuned from"
        )
    if (generation := path.with_name("generation_config.json")).is_file():  # transformers passes over a damaged one
        read_record(generation, GenerationRecord, REMEDY)
    files = sorted(path.parent.glob("model*.safetensors"))
    weights = sum(len(Safetensors([file], REMEDY)) for file in files)
    for name, value in _numbers(record, ""):
        key = name.rpartition(".")[2]
        if isinstance(value, float) and not math.isfinite(value):
            raise RecordError(f"{path}: {name} = {value} must be finite; {REMEDY}")
        if key in KERNELS and own_attention and "/" in str(value):
            raise RecordError(
                f"{path}: {name} = {value!r} would run code of the Hub; take it out of the file, or pass "
                "attn_implementation to eas.load if you trust that code"
            )
        counted = key in COUNTS or WIDTHS.fullmatch(key) is not None
        most = min(COUNTS[key], weights) if key in BLOCKS and weights else COUNTS.get(key, WIDEST)
        if counted and not (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most):
            raise RecordError(f"{path}: {name} = {value} must be a whole number up to {most}; {REMEDY}")
    try:
        return AutoConfig.from_pretrained(id_or_folder, revision=revision, trust_remote_code=False)
    except OSError:
        raise
    except Exception as error:  # whatever a configuration's own checks raise
        raise RecordError(
            f"{path} is no configuration of a model ({' '.join(str(error).split())}); {REMEDY}"
        ) from error


def _refuse_other_folder(folder: Path) -> None:
    """Says what a folder without a model is, where it is one of ours."""
    if (folder / ADAPTER_FILE).is_file():
        base = read_record(folder / ADAPTER_FILE, AdapterRecord, REMEDY)["base"]["id"]
        raise RecordError(f"{folder} holds an adapter and no model; name its base ({base or 'which it does not name'})")
    if (folder / "run.yaml").is_file():
        raise RecordError(f"{folder} is the folder of a run and no model; name its base, the model in its run.yaml")


def adapter_folder(name: str | Path, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of an adapter; one that lies on the Hub is downloaded, its own files alone.

    Args:
        name: a folder, or an id on the Hub ("user/adapter"). A folder of that name comes first.
        revision: commit, branch or tag on the Hub.
        files: that an adapter consists of.

    Raises:
        RecordError: there is no such adapter, a file of it is missing, or a folder is given with a revision.
    """
    if isinstance(name, Path) or on_hub(name) is None:
        if revision is not None:
            raise RecordError(
                f"{name} is a folder and has no revision {revision!r}; base_revision is the base's, leave revision out"
            )
        return Path(name)
    where = f"{name} (revision {revision or 'main'})"
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # of the Hub's many kinds, and of the network's
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RecordError(
            f"{name} is no folder here, and {where} cannot be read from the Hub ({why}); check the name, the network "
            "and, for a private one, `hf auth login`"
        ) from error
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise RecordError(
            f"{where} on the Hub has no {' and no '.join(missing)}; name an adapter that eas.push_to_hub uploaded"
        )
    return folder


def _numbers(values: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every plain value of nested mappings and lists, with its dotted name."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        name = f"{where}.{key}".lstrip(".")
        if isinstance(value, dict | list):
            yield from _numbers(value, name)
        elif value is not None:
            yield name, value
