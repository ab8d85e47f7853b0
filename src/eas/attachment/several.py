"""Several adapters on one attached base: they share its modules, one is active, and the others wait as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from eas.attachment.attach import select
from eas.attachment.save import adapter_state
from eas.attachment.state import Adapter, Attachment, attachment, skip_set
from eas.config import MethodConfig


def set_adapter(model: PreTrainedModel, name: str) -> None:
    """Makes another adapter of the model the active one: its weights, its skip set. The former keeps its own.

    Args:
        model: has adapters that ``eas.load(model, folder, name=...)`` gave it. One that ``attach`` made is "default".
        name: of the adapter.

    Raises:
        ValueError: the model has no such adapter, or is folded, pruned or sharded.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> for folder, skipped in (("a", [2, 5]), ("b", [3, 8])):
        ...     trained = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        ...     eas.select(trained, skipped)
        ...     eas.save(trained, folder)
        >>> model = eas.load(load_tiny()[0], "a", name="a")
        >>> model = eas.load(model, "b", name="b")
        >>> eas.set_adapter(model, "b")
        >>> eas.skip_set(model)
        (3, 8)
    """
    state = attachment(model)
    if name not in (known := names(state)):
        raise ValueError(f"the model has no adapter {name!r}; it has {', '.join(known)}")
    _require_whole(model, state)
    if name == state.active:
        return
    own, chosen = adapter_state(model), state.adapters.pop(name)
    state.adapters[state.active] = Adapter(
        state.config, skip_set(model), {key: tensor.detach().clone() for key, tensor in own.items()}
    )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(chosen.tensors[key])
    state.active, state.config = name, chosen.config
    select(model, chosen.skip_set)


def names(state: Attachment) -> list[str]:
    """The adapters of a model, the active one first."""
    return [state.active, *state.adapters]


def require_agreement(model: PreTrainedModel, name: str, config: MethodConfig) -> None:
    """Refuses an adapter that cannot stand beside those of an attached model.

    Raises:
        ValueError: the name is taken, the configuration is another one, or the base is not whole.
    """
    state = attachment(model)
    if name in names(state):
        raise ValueError(f"the model has an adapter {name!r} already; give this one another name")
    _require_whole(model, state)
    mine, other = state.config.to_dict(), config.to_dict()
    if wrong := [key for key in mine.keys() | other.keys() if key != "num_skip" and mine.get(key) != other.get(key)]:
        shown = ", ".join(f"{key} = {other.get(key)!r} (the model: {mine.get(key)!r})" for key in sorted(wrong))
        raise ValueError(f"adapters of one model share their configuration, but this one has {shown}; load it alone")


def add(
    model: PreTrainedModel, name: str, config: MethodConfig, skipped: Sequence[int], tensors: Mapping[str, Tensor]
) -> None:
    """Gives an attached model one more adapter, which is not active yet.

    Args:
        model: ``require_agreement`` has passed.
        name, config, skipped: of the adapter.
        tensors: its weights; a pruned one has none for the modules that its skip set does not use.
    """
    own = adapter_state(model)
    whole = {key: tensors[key].to(tensor) if key in tensors else tensor.detach().clone() for key, tensor in own.items()}
    attachment(model).adapters[name] = Adapter(config, tuple(skipped), whole)


def _require_whole(model: PreTrainedModel, state: Attachment) -> None:
    if state.fold_mode is not None:
        raise ValueError("the model is folded; call unfold(model) first")
    if state.pruned:
        raise ValueError(
            "the model is pruned and has no place for other skip sets; load every adapter with a name, "
            "eas.load(base, folder, name=...): the base stays whole"
        )
    if isinstance(model, FSDPModule):
        raise ValueError("FSDP2 has sharded the model; change adapters before training")
