"""Writes adapters to disk: ``save``, and ``save_pretrained`` of an attached model.

A folder holds ``adapter.safetensors``: the trained weights and a fingerprint of the base. Its metadata hold the
record (configuration, skip set, base). ``eas_config.json`` repeats the record for people; both must agree. Keys are
relative to the language model and the projector, so they survive renames of the modules around these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from eas.attachment.state import attachment, base_fingerprint, overwritten, refuse_beside, skip_set, unfrozen
from eas.card import adapter_card, write
from eas.distributed import full, is_main
from eas.files import WriteError, writing
from eas.models.anatomy import paths
from eas.models.folder import ADAPTER_FILE
from eas.models.quantisation import unpack
from eas.models.visual_tokens import kept_tokens
from eas.weights import is_finite

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_FILE, "adapter.safetensors"
FINGERPRINT, RECORD = "base_fingerprint", "eas"
REMEDY = "copy or save it again"


class CheckpointError(ValueError):
    """A folder that is damaged, incomplete or made for another base; the message names the file and the remedy.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> try:
        ...     eas.load(load_tiny()[0], "/nowhere")
        ... except eas.CheckpointError as error:
        ...     print(error)
        /nowhere has no adapter.safetensors; name a folder written by eas.save (or `eas run`)
    """


def save(model: PreTrainedModel, folder: str | Path) -> None:
    """Writes the adapter of an attached model, complete or not at all, and a model card (``README.md``) beside it.

    Of several processes all must call it, as FSDP2 may have sharded the model; the main one writes.

    Args:
        model: an attached model, searched or not, pruned or not.
        folder: is created; an adapter in it is replaced, and its card, if it is not one of your own.

    Raises:
        ValueError: the model is not attached; what was trained holds NaN or infinite numbers; or weights of the base,
            which are not written, were trained beside the method or have other shapes than at ``attach``.
        WriteError: the folder cannot be written; an adapter in it is intact.

    Example:
        >>> import eas
        >>> from tempfile import mkdtemp
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        >>> folder = mkdtemp()
        >>> eas.save(model, folder)
        >>> eas.attached(eas.load(load_tiny()[0], folder))
        True
    """
    state, folder = attachment(model), Path(folder)
    text_config = model.config.get_text_config()
    _refuse_resized(model, folder)
    refuse_beside(model, unfrozen(model) or overwritten(model), f"{folder} is not written")
    record = {
        "config": state.config.to_dict(),
        "skip_set": list(skip_set(model)),
        "pruned": state.pruned,
        "visual_tokens": kept_tokens(model),
        "base": {
            "id": model.config.name_or_path,
            "revision": vars(model.config).get("_commit_hash"),
            "class": type(model).__name__,
            "hidden_size": text_config.hidden_size,
            "num_hidden_layers": text_config.num_hidden_layers,
            "vocab_size": text_config.vocab_size,
        },
        "versions": library_versions(),
    }
    tensors = {key: full(tensor.detach()).contiguous() for key, tensor in adapter_state(model).items()}
    fingerprint = base_fingerprint(model) if state.fingerprint is None else state.fingerprint
    tensors[FINGERPRINT] = torch.stack([*fingerprint.values()]) if fingerprint else torch.empty(0)
    refuse_non_finite(tensors, folder)
    if not is_main():
        return
    text, new = json.dumps(record, indent=2) + "\n", not folder.exists()
    # both written aside, then renamed, each with the record: a killed process leaves the old adapter or the new one
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_file(
                tensors,
                folder / f"{WEIGHTS_FILE}.partial",
                metadata={RECORD: text, FINGERPRINT: "\n".join(fingerprint)},
            )
            (folder / f"{CONFIG_FILE}.partial").write_text(text)
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                os.replace(folder / f"{name}.partial", folder / name)
            write(folder, adapter_card(record))
    except WriteError:
        if (folder / f"{WEIGHTS_FILE}.partial").exists():  # nothing was renamed; later the record aside is needed
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                (folder / f"{name}.partial").unlink(missing_ok=True)
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def _refuse_resized(model: PreTrainedModel, folder: Path) -> None:
    """Refuses embeddings and a head of other shapes than at ``attach``: no adapter holds them, and no base has them."""
    shapes, names = attachment(model).shapes, {id(parameter): name for name, parameter in model.named_parameters()}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for parameter in () if module is None else module.parameters():
            before = shapes.get(name := names[id(parameter)], parameter.shape)
            if parameter.is_floating_point() and parameter.shape != before:
                raise ValueError(
                    f"{folder} is not written: {name} has shape {tuple(parameter.shape)}, and had {tuple(before)} at "
                    "eas.attach; an adapter holds no weights of its base. Write the whole model: eas.prune, then "
                    "eas.save_standalone. Or resize the base first, save it, and attach to that"
                )


def refuse_non_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuses to write NaN or infinite numbers.

    Raises:
        ValueError: naming the tensors.
    """
    if wrong := [key for key, tensor in tensors.items() if not is_finite(tensor)]:
        raise ValueError(
            f"{folder} is not written: {len(wrong)} of {len(tensors)} tensors hold NaN or infinite numbers "
            f"({', '.join(wrong[:3])}); lower the learning rate or train in float32, and check the data"
        )


def adapter_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The trained tensors by stable keys: ``layers.I.skip_pia...`` (the language model's), ``projector...``, others."""
    text_path, *projector_paths = paths(model)
    trained = attachment(model).trained
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name in trained:
            key = name.removeprefix(f"{text_path}.")
            for number, path in enumerate(projector_paths):  # projector.., projector1..
                if name.startswith(f"{path}."):
                    key = f"projector{number or ''}{name.removeprefix(path)}"
            tensors[key] = parameter
    return tensors


def library_versions() -> dict[str, str]:
    """The versions that made a result."""
    return {"eas": metadata.version("eas"), "torch": torch.__version__, "transformers": transformers.__version__}


FIELDS = ("hidden_size", "num_hidden_layers", "text_config", "vision_config")
OPEN = "this folder holds an adapter beside the weights; open it by eas.load(base, folder)"
"""What stands in ``config.json`` in place of sizes: every stock class refuses it, and repeats it."""


class AttachedModel(nn.Module):
    """A model with its head and an attached method.

    ``from_pretrained`` of the stock class would drop the method, give random weights to removed attentions, and only
    warn. So ``config.json`` makes it refuse the folder, and the adapter lies beside the weights.
    """

    config: Any
    generation_config: Any

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes what ``transformers.Trainer`` resumes from (``model.safetensors``), and the adapter (``eas.load``).

        Args:
            save_directory: is created.
            kwargs: of ``PreTrainedModel.save_pretrained``; ``state_dict`` and ``is_main_process`` are used.

        Raises:
            ValueError: the model is sharded, or is to be pushed to the Hub.
        """
        if self.config.model_type.startswith("eas_"):  # a standalone folder's class knows how
            super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
            return
        if isinstance(self, FSDPModule):
            raise ValueError("save_pretrained cannot gather a sharded model; train it with EASTrainer, or use eas.save")
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained(push_to_hub=True): call model.push_to_hub(...) instead")
        if not kwargs.get("is_main_process", True):
            return
        folder = Path(save_directory)
        save(self, folder)
        # without a configuration, transformers would build the class in its default size
        (folder / "config.json").write_text(json.dumps({"model_type": "eas_attached", **dict.fromkeys(FIELDS, OPEN)}))
        unpack(self)
        state = kwargs.get("state_dict") or self.state_dict()
        save_torch_state_dict(state, folder, max_shard_size=kwargs.get("max_shard_size", "50GB"))
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)


class InnerModel(nn.Module):
    """A model inside an attached one, for example its language model: the stock class would open it alone."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Is refused.

        Raises:
            ValueError: always; the message says what to save.
        """
        raise ValueError(
            f"{save_directory} is not written: this {type(self).__name__} is a part of an attached model, and the "
            "stock class would open it without the method; save the whole model (eas.save), or eas.detach(model) first"
        )
