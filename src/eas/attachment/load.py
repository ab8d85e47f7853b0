"""Reads adapters from disk: ``load`` onto a base, ``load_into`` an attached model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file, extract_commit_hash

from eas.attachment.attach import attach, prune, select
from eas.attachment.save import (
    CONFIG_FILE,
    FINGERPRINT,
    RECORD,
    REMEDY,
    WEIGHTS_FILE,
    CheckpointError,
    adapter_state,
)
from eas.attachment.several import add, require_agreement
from eas.attachment.state import SAMPLED, attached, attachment, base_fingerprint, differ
from eas.config import ConfigError
from eas.distributed import is_main, sharded_as
from eas.hf.api import no_init_weights
from eas.hf.classes import unmixed
from eas.methods import recorded_method
from eas.models.anatomy import Anatomy, auto_class
from eas.models.bases import base_folder
from eas.models.folder import adapter_folder, model_config
from eas.models.visual_tokens import hook, keep_visual_tokens, kept_tokens
from eas.records import AdapterRecord, parse_record, raised_as
from eas.weights import Safetensors, require_finite

RESIZED = "; if you resized its embeddings, the base is what you save after that (save_pretrained)"


def load(
    model_or_id: nn.Module | str | Path,
    folder: str | Path | None = None,
    *,
    revision: str | None = None,
    base_revision: str | None = None,
    name: str | None = None,
    **from_pretrained: Any,
) -> Any:
    """Attaches a saved adapter to its base, in place, with its skip set; pruned if it was saved pruned.

    Args:
        model_or_id: the base, as a freshly loaded model, a folder or a Hub id; or a folder that ``save_standalone``
            wrote; or, with a name, a model that has adapters.
        folder: what ``save`` wrote, or the Hub id of what ``push_to_hub`` uploaded, of which no code is run; None for a
            standalone folder.
        revision: commit, branch or tag, on the Hub, of the adapter or the standalone folder.
        base_revision: of the base, where it is loaded here.
        name: of the adapter, on a base that gets several of them. The base is not pruned. The first adapter is active;
            ``eas.set_adapter`` changes that.
        from_pretrained: passed on where the base is loaded here (``dtype``, ``device_map``, ...).

    Returns:
        The attached model, in evaluation mode where it was loaded here.

    Raises:
        CheckpointError: the folder is damaged or incomplete, or the base is not the one it was trained on; or
            ``save_pretrained`` wrote it with weights that were trained beside the method.
        ValueError: the adapter cannot stand beside those that the model has.

    Example:
        >>> import eas
        >>> from tempfile import mkdtemp
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        >>> folder = mkdtemp()
        >>> eas.save(model, folder)
        >>> eas.load("tiny", folder).eas.config.num_skip
        2
    """
    if folder is None:
        if name is not None:
            raise CheckpointError(f"name = {name!r} is that of an adapter; pass its folder too")
        if not isinstance(model_or_id, str | Path):
            raise CheckpointError(
                f"eas.load of a {type(model_or_id).__name__} needs an adapter's folder too: eas.load(base, folder)"
            )
        if (Path(str(model_or_id)) / WEIGHTS_FILE).is_file():
            raise CheckpointError(f"{model_or_id} holds an adapter without its base; use eas.load(base, {model_or_id})")
        if base_revision is not None:
            raise CheckpointError(f"base_revision = {base_revision!r}: {model_or_id} has no base; use revision")
        opened = load_base(str(model_or_id), revision=revision, **from_pretrained)
        if not attached(opened):
            raise CheckpointError(f"{model_or_id} was not written by eas.save_standalone; pass an adapter too")
        return opened
    with raised_as(CheckpointError):
        folder = adapter_folder(folder, revision, (WEIGHTS_FILE, CONFIG_FILE))
        record, file = _read(folder)
    model: Any = model_or_id
    if not isinstance(model, nn.Module):
        with raised_as(CheckpointError):
            model_config(base_folder(str(model)), base_revision, as_base=True)
        model = load_base(str(model), revision=base_revision, **from_pretrained)
    config = recorded_method(record["config"])
    if attached(model) and name is not None:
        require_agreement(model, name, config)
    elif attached(model):
        raise CheckpointError(
            "the base given to load is attached already; pass a freshly loaded model, or give the adapter a name"
        )
    _check_base(model, record, folder)
    expected = _without_storage(model, record, folder)
    tensors = _tensors(file, adapter_state(expected), folder)
    _check_fingerprint(model, tensors.pop(FINGERPRINT), file, record, folder)
    _check_whole_weights(model, attachment(expected).trained, folder)
    if attached(model) and name is not None:
        add(model, name, config, record["skip_set"], tensors)
        return model
    if (tokens := record.get("visual_tokens")) is not None:
        with fitting(folder):
            keep_visual_tokens(model, **tokens)
    attach(model, config)
    select(model, record["skip_set"])
    if name is not None:
        attachment(model).active = name
        tensors = {**adapter_state(model), **tensors}  # a pruned one has nothing for what it does not use
    elif record["pruned"]:
        prune(model)
    load_adapter_state(model, tensors)
    return model


def load_into(model: PreTrainedModel, folder: str | Path) -> None:
    """Copies a saved adapter into a model attached with the same configuration, as resumed training does.

    Raises:
        CheckpointError: the folder is damaged, or was saved under another configuration.
    """
    folder, state = Path(folder), attachment(model)
    with raised_as(CheckpointError):
        record, file = _read(folder)
    # as configurations, where a field that came later has its default
    if recorded_method(record["config"]) != state.config or record["pruned"] != state.pruned:
        raise CheckpointError(
            f"{folder} was saved with another configuration; resume with that configuration, or start over"
        )
    tensors = _tensors(file, adapter_state(model), folder)
    _check_fingerprint(model, tensors.pop(FINGERPRINT), file, record, folder)
    if not state.pruned:
        with fitting(folder):
            select(model, record["skip_set"])
    load_adapter_state(model, tensors)


def load_base(id_or_folder: str, **from_pretrained: Any) -> Any:
    """Loads a model with its head by the Auto class of its kind (image-text or text only), in its own dtype.

    The commit it came from, if it came from the Hub, stays on ``model.config`` for ``save`` to record.

    Raises:
        CheckpointError: config.json or a file of weights is damaged, or weights are missing.
        OSError: there is no such model.
    """
    id_or_folder = base_folder(id_or_folder)
    revision, own = from_pretrained.get("revision"), "attn_implementation" not in from_pretrained
    with raised_as(CheckpointError):
        auto = auto_class(model_config(id_or_folder, revision, own_attention=own).model_type)
    try:
        options = {"trust_remote_code": False, **from_pretrained, "output_loading_info": True}
        model, info = auto.from_pretrained(id_or_folder, **options)
    except (pickle.UnpicklingError, EOFError):  # torch's own words advise to load it unsafely
        raise CheckpointError(
            f"{id_or_folder}: its weights are damaged, or its file holds more than weights; {REMEDY}"
        ) from None
    _refuse_random_weights(model, info["missing_keys"], id_or_folder)
    model.config._commit_hash = extract_commit_hash(cached_file(id_or_folder, "config.json", revision=revision), None)
    hook(model)
    return model


def _refuse_random_weights(model: PreTrainedModel, missing: Iterable[str], source: str) -> None:
    """transformers fills weights that are missing at random, and only warns; a task's head may be new (METER)."""
    if not missing:
        return
    anatomy = Anatomy.of(model)
    head = anatomy.head if anatomy.form == "coattention" else ()
    new = tuple(f"{name}." for name, module in model.named_modules() if module in head)
    if lost := sorted(name for name in missing if not name.startswith(new)):
        raise CheckpointError(
            f"{source} has no weights for {lost[0]} and {len(lost) - 1} others, which would be random; {REMEDY}, or "
            "convert the original checkpoint again if it is of another version of eas"
        )


def load_adapter_state(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors, of which names and shapes were checked, into an attached model of the same structure."""
    with torch.no_grad():
        for key, tensor in adapter_state(model).items():
            tensor.copy_(sharded_as(tensors[key], tensor))


def read_adapter_record(folder: Path) -> AdapterRecord:
    """What an adapter says about itself; its weights are not read.

    Raises:
        RecordError: the folder is damaged or incomplete.
    """
    return _read(folder)[0]


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The weights of an adapter, whatever base it is for.

    Raises:
        RecordError: the folder is damaged or incomplete.
    """
    return _read(folder)[1].loaded()


def _read(folder: Path) -> tuple[AdapterRecord, Safetensors]:
    """The record of an adapter, and its weights, which are still to be read."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}; name a folder written by eas.save (or `eas run`)")
    file = Safetensors([path], REMEDY)
    if RECORD not in file.metadata or FINGERPRINT not in file:
        raise CheckpointError(f"{path} was not written by eas.save; name a folder that eas.save wrote")
    text = file.metadata[RECORD]
    record = parse_record(text, AdapterRecord, str(path), REMEDY)
    # a save that was killed between its two renames left the second file beside its place
    configs = [folder / CONFIG_FILE, folder / f"{CONFIG_FILE}.partial"]
    if text not in [config.read_text(errors="replace") for config in configs if config.is_file()]:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} is missing or does not belong to {WEIGHTS_FILE} (edited, damaged, or of "
            "another save); copy or save the adapter again"
        )
    try:
        recorded_method(record["config"])
    except ConfigError as error:
        version = record["versions"].get("eas", "of another version")
        raise CheckpointError(f"{path}: {error}; open it with eas {version}, which wrote it") from error
    file.require_floating()
    return record, file


def _without_storage(model: PreTrainedModel, record: AdapterRecord, folder: Path) -> PreTrainedModel:
    """The model as the record wants it, on the meta device: whatever sizes that names, nothing is allocated."""
    with torch.device("meta"), no_init_weights(), fitting(folder):
        twin = unmixed(type(model))[0](copy.deepcopy(model.config))
        twin.tie_weights()  # on the meta device transformers leaves that out
        attach(twin, recorded_method(record["config"]))
        select(twin, record["skip_set"])
        if record["pruned"]:
            prune(twin)
    return twin


@contextmanager
def fitting(folder: Path) -> Iterator[None]:
    """Within it the record's method and skip set are put on a model; what does not fit is refused in the file's name.

    Raises:
        CheckpointError: naming file and field.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:  # the last of sizes that no tensor has
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: its record does not fit the model: {error}; {REMEDY}"
        ) from error


def _tensors(file: Safetensors, own: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights and the fingerprint of an adapter; names and shapes are compared before anything is read.

    Args:
        file: the adapter's.
        own: what its model trains.
        folder: of the file.

    Raises:
        CheckpointError: something is missing, left over, of another shape, or not finite.
    """
    source, found = folder / WEIGHTS_FILE, file.shapes.keys() - {FINGERPRINT}
    missing, unexpected = sorted(own.keys() - found), sorted(found - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"{source} does not fit its record: missing {missing[:3]} ({len(missing)}), "
            f"unexpected {unexpected[:3]} ({len(unexpected)}); save the adapter again"
        )
    for key, tensor in own.items():
        if tensor.shape != file.shapes[key]:
            raise CheckpointError(
                f"{source}: {key} has shape {tuple(file.shapes[key])}, not {tuple(tensor.shape)}; {REMEDY}"
            )
    with raised_as(CheckpointError):
        tensors = file.loaded()
        require_finite(tensors.items(), source, REMEDY)
    return tensors


def _check_base(model: PreTrainedModel, record: AdapterRecord, folder: Path) -> None:
    base, text_config = cast("dict[str, Any]", record["base"]), model.config.get_text_config()
    mine = {
        "class": type(model).__name__,
        "hidden_size": text_config.hidden_size,
        "num_hidden_layers": text_config.num_hidden_layers,
        "vocab_size": text_config.vocab_size,
    }
    for key, value in mine.items():
        if base.get(key, value) != value:  # what was written before has no vocab_size
            raise CheckpointError(
                f"{folder} was trained on {base['id'] or 'a base'} with {key} = {base[key]}, this model has {value}; "
                f"load it onto its own base{RESIZED if key == 'vocab_size' else ''}"
            )
    said, found = record.get("visual_tokens"), kept_tokens(model)
    if said != found and (found is not None or attached(model)):
        raise CheckpointError(
            f"{folder} was trained with visual_tokens = {said}, this model has {found}; load it onto a fresh base"
        )


def _check_fingerprint(
    model: PreTrainedModel, sampled: Tensor, file: Safetensors, record: AdapterRecord, folder: Path
) -> None:
    """Compares the fingerprint of the base that an adapter was trained on with this base's.

    Raises:
        CheckpointError: it is another base; or the fingerprint is none.
    """
    if not is_main():  # FSDP may load the base's weights in the main process only
        return
    mine = attachment(model).fingerprint if attached(model) else None  # of before training
    mine = base_fingerprint(model) if mine is None else mine
    text = file.metadata.get(FINGERPRINT)
    names = _ffns(model) if text is None else text.splitlines()
    if sampled.shape == (0,):  # how quantised bases were at first
        return
    if sampled.ndim != 2 or len(sampled) != len(names) or sampled.shape[1] not in (SAMPLED, 2 * SAMPLED):
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: {FINGERPRINT} has shape {tuple(sampled.shape)}, not {len(names)} rows of "
            f"{2 * SAMPLED}; {REMEDY}"
        )
    pairs = zip(names, sampled, strict=True)
    other = [name for name, theirs in pairs if name in mine and theirs.any() and differ(mine[name], theirs)]
    if other:
        base = record["base"]
        raise CheckpointError(
            f"this model's weights are not those that the adapter was trained on: {base['id'] or 'unnamed base'} "
            f"(revision {base['revision']}); {len(other)} of {len(names)} parameters differ, first {other[0]}; load "
            "the adapter onto that base"
        )


def _check_whole_weights(model: PreTrainedModel, trained: Collection[str], folder: Path) -> None:
    """Compares the weights that ``save_pretrained`` wrote beside an adapter, and ``load`` does not take.

    Raises:
        CheckpointError: some differ, though the adapter does not hold them.
    """
    if not is_main():
        return
    with raised_as(CheckpointError):
        weights = Safetensors(sorted(folder.glob("model*.safetensors")), REMEDY)
    known = base_fingerprint(model).keys() & weights.keys() - trained
    other = []
    for name in sorted(known):
        mine, theirs = model.get_parameter(name), weights[name]
        mine = mine.detach().to(theirs.device)
        if not (mine.equal(theirs.to(mine.dtype)) or theirs.equal(mine.to(theirs.dtype))):
            other.append(name)
    if other:
        raise CheckpointError(
            f"{folder} holds whole weights beside its adapter, and {len(other)} of them are neither this base's nor "
            f"the adapter's, first {other[0]}: trained beside the method, or of another base. Load them all into a "
            "model that is attached alike (load_state_dict), and write it: eas.prune, then eas.save_standalone. If you "
            f"want the adapter alone, copy {CONFIG_FILE} and {WEIGHTS_FILE} into a folder of their own"
        )


def _ffns(model: PreTrainedModel) -> list[str]:
    """The names of the FFNs' last weights, by layer: their first rows were the whole fingerprint once. "" where a
    layer has none."""
    anatomy, ffn = Anatomy.of(model), Anatomy.of(model).branches[-1]
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    bodies = [layer._modules.get(ffn.body) for layer in anatomy.layers]
    maps = [None if body is None else body._modules.get(ffn.output) for body in bodies]
    return ["" if last is None else known.get(id(last.weight), "") for last in maps]
