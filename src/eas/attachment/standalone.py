"""Standalone folders: a pruned, tuned model that opens without its base.

``save_standalone`` writes them; ``eas.load(folder)`` or, after ``import eas.attachment.standalone``,
``AutoModel....from_pretrained(folder)`` opens them. Their model type (``eas_llava``, ...) and their weight files
(``model.eas.safetensors``) have names of their own: the stock class would fill the skipped attentions with random
weights and only warn, so it must find neither.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Size, nn
from transformers import AutoConfig, PreTrainedModel

from eas.attachment.attach import attach, prune, select
from eas.attachment.save import CheckpointError, refuse_non_finite
from eas.attachment.state import attachment, candidates, skip_set
from eas.files import writing
from eas.hf.api import no_init_weights
from eas.methods import recorded_method
from eas.models.anatomy import COATTENTION, FAMILIES, auto_class, model_class
from eas.models.folder import REMEDY, model_config
from eas.models.quantisation import is_quantised
from eas.records import IndexRecord, RecordError, StandaloneRecord, raised_as, read_record
from eas.weights import Safetensors, require_finite

VARIANT = "eas"
WEIGHTS_FILE = f"model.{VARIANT}.safetensors"
INDEX_FILE = f"model.safetensors.index.{VARIANT}.json"
FLOAT32 = ["skip_pia", "adapt_pia", "ffn_pia", "adapter", "skip_adapter", "lora_A", "lora_B", "prompt"]
FLOAT32 += ["modality_token", "prefix"]
"""Modules that methods add, which stay float32 whatever dtype the folder is opened in."""


def save_standalone(model: PreTrainedModel, folder: str | Path) -> None:
    """Writes the pruned model with its PIAs as one self-describing folder; the model itself is left as it is.

    The files are written aside (in ``partial``) and then moved; a standalone model in the folder is replaced.

    Raises:
        WriteError: the folder cannot be written; a standalone model in it is intact.
        ValueError: the model is not attached, not pruned (``prune`` it first), folded (``unfold`` it first), has a
            quantised base, or holds NaN or infinite numbers.

    Example:
        >>> import eas
        >>> from tempfile import mkdtemp
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        >>> eas.select(model, [2, 5])
        >>> eas.prune(model)
        >>> folder = mkdtemp()
        >>> eas.save_standalone(model, folder)
        >>> eas.skip_set(eas.load(folder))
        (2, 5)
    """
    state = attachment(model)
    if candidates(model) and not state.pruned:
        raise ValueError("prune(model) first: a standalone folder holds no skipped attention")
    if state.fold_mode is not None:
        raise ValueError(
            "unfold(model) first: a standalone folder holds the PIAs themselves; fold the model after loading"
        )
    if vars(model.config).get("quantization_config") is not None or any(map(is_quantised, model.modules())):
        raise ValueError(
            "the base is quantised, and a standalone folder holds plain weights: eas.save(model, adapter), then "
            "eas.load(base, adapter) of the unquantised base"
        )
    refuse_non_finite(dict(model.named_parameters()), Path(folder))
    config = STANDALONE[type(model).__name__].config_class.from_dict(model.config.to_dict())
    config.eas = {"config": state.config.to_dict(), "skip_set": list(skip_set(model))}
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    if model.can_generate():
        names = {"mha": "attention", "ffn": "mlp"}
        skipped = {block.index: sorted(names[part] for part in block.skipped_parts()) for block, _ in candidates(model)}
        text = config.get_text_config()
        if "per_layer_config" not in type(text)().to_dict():  # Gemma 4 reads it: its layers of one type must be alike
            text.per_layer_config = {i: {"skip": parts} for i, parts in skipped.items() if parts}
    folder = Path(folder)
    aside, new = folder / "partial", not folder.exists()
    try:
        with writing(folder):
            # the family's own key renames do not apply to eas_ types
            PreTrainedModel.save_pretrained(model, aside, variant=VARIANT, save_original_format=False)
            config.save_pretrained(aside)
            _move(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _move(aside: Path, folder: Path) -> None:
    """Puts the files in the place of another standalone model's; until all are there, no config.json opens them."""
    (folder / "config.json").unlink(missing_ok=True)
    for old in [*folder.glob(f"model.{VARIANT}*.safetensors"), folder / INDEX_FILE]:
        old.unlink(missing_ok=True)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
        os.replace(path, folder / path.name)


def _standalone_class(name: str) -> Any:
    """The class that opens a standalone folder of one family: builds the base, then attaches, selects and prunes."""
    base = model_class(name)

    def __init__(self: Any, config: Any) -> None:
        base.__init__(self, config)
        attach(self, recorded_method(config.eas["config"]))
        select(self, config.eas["skip_set"])
        if candidates(self):
            prune(self)
        self.eas.fingerprint = None  # the weights are yet to come

    def from_pretrained(cls: Any, /, folder: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        if (local := Path(folder, kwargs.get("subfolder") or "")).is_dir():
            with raised_as(CheckpointError):
                _check(cls, local)
        load = super(STANDALONE[name], cls).from_pretrained
        model, info = load(
            folder, *args, variant=VARIANT, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        # transformers fills what is missing or does not fit with random values and only warns
        if wrong := {kind: keys for kind, keys in info.items() if keys}:
            raise CheckpointError(f"{folder} is not a complete standalone folder: {wrong}; write it again")
        with raised_as(CheckpointError):
            require_finite(model.named_parameters(), folder, REMEDY)
        for key, parameter in model.named_parameters():  # what was read requires gradients, all of it
            parameter.requires_grad_(key in model.eas.trained)
        return (model, info) if output_loading_info else model

    def save_pretrained(self: Any, folder: Any, **kwargs: Any) -> None:
        base.save_pretrained(self, folder, **{"variant": VARIANT, **kwargs})

    body = {
        "__init__": __init__,
        "from_pretrained": classmethod(from_pretrained),
        "save_pretrained": save_pretrained,
        "config_class": _config_class(base.config_class),
        "_keep_in_fp32_modules_strict": [*FLOAT32, *(base._keep_in_fp32_modules_strict or ())],
        "__module__": __name__,  # where pickle finds it
    }
    return type(name, (base,), body)


def _check(cls: Any, folder: Path) -> None:
    """Compares a folder's config.json with the headers of its weights, before anything is allocated.

    Raises:
        RecordError: naming the file, and the field or the weight.
    """
    path = folder / "config.json"
    read_record(path, StandaloneRecord, REMEDY)
    config = model_config(str(folder))
    files, index = [folder / WEIGHTS_FILE], folder / INDEX_FILE
    if index.is_file():
        if files[0].exists():
            raise RecordError(f"{folder} holds two sets of weights, {WEIGHTS_FILE} and {INDEX_FILE}; remove the older")
        names = {*read_record(index, IndexRecord, REMEDY)["weight_map"].values()}
        if strange := [name for name in names if Path(name).name != name]:
            raise RecordError(f"{index}: {strange[0]!r} is no file of the folder; {REMEDY}")
        files = [folder / name for name in sorted(names)]
    weights = Safetensors(files, REMEDY)
    try:
        with torch.device("meta"), no_init_weights():
            model = cls(config)
            model.tie_weights()
    except Exception as error:  # whatever a model raises that is built of impossible sizes
        raise RecordError(f"{path} is no configuration of {cls.__name__} ({error}); {REMEDY}") from error
    weights.require_floating({name for name, buffer in model.named_buffers() if not buffer.is_floating_point()})
    if wrong := _differences(model, weights.shapes):
        raise RecordError(f"{folder} is not a complete standalone folder: {wrong}; write it again")
    if (size := sum(buffer.nbytes for buffer in model.buffers())) > 2**30 + sum(p.nbytes for p in model.parameters()):
        raise RecordError(f"{path} names sizes that take {size} bytes of buffers; {REMEDY}")


def _differences(model: nn.Module, found: dict[str, Size]) -> dict[str, Any]:
    """What is missing, left over or of another shape; of tied weights one is there."""
    tied: dict[int, list[str]] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        tied.setdefault(id(tensor), []).append(name)
    missing = [names[0] for names in tied.values() if not found.keys() & set(names)]
    other = {name: tuple(shape) for name, shape in found.items() if name in state and state[name].shape != shape}
    wrong = {"missing": missing[:3], "left over": sorted(found.keys() - state.keys())[:3]}
    return {kind: keys for kind, keys in {**wrong, "of another shape": other}.items() if keys}


@cache
def _config_class(base: Any) -> Any:
    """One for all heads of a family."""
    return type(f"EAS{base.__name__}", (base,), {"model_type": f"eas_{base.model_type}", "__module__": __name__})


STANDALONE: dict[str, Any] = {}


def add_family(name: str) -> None:
    """Makes the standalone form of a family known to the Auto classes of transformers."""
    cls = STANDALONE[name] = _standalone_class(name)
    config = cls.config_class
    globals().update({cls.__name__: cls, config.__name__: config})
    AutoConfig.register(config.model_type, config, exist_ok=True)
    auto_class(config.model_type).register(config, cls)


for _name in (*FAMILIES, *COATTENTION):
    add_family(_name)
