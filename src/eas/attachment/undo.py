"""The base of an attached model given back: for a while (``disabled``), or for good (``detach``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from eas.attachment.state import Attachment, attachment, overwritten, unfrozen
from eas.hf.changes import undo
from eas.hf.classes import become_again, has_device_hook, is_mixed, revert

MIXED_PRECISION = ("forward", "_original_forward")
"""What a trainer leaves on a model that it trained in bfloat16 or float16: its forward, bound to the method's class."""


@contextmanager
def disabled(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model computes what its base computes, bit for bit (as a reference policy needs, say).

    What is about the method (``save``, ``fold``, ``select``, ``detach``, ...) waits until after it.

    Raises:
        ValueError: the base is not there any more: pruned, folded, sharded, or its own weights are what is trained; or
            the model is disabled already.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model, processor = load_tiny()
        >>> inputs = processor(text="question : what is this ? answer :", return_tensors="pt")
        >>> base = model(**inputs).logits
        >>> model = eas.attach(model, eas.DeepPromptConfig(num_tokens=4))
        >>> with eas.disabled(model):
        ...     print(model(**inputs).logits.equal(base))
        True
    """
    state = attachment(model)
    _require_base(model, state)
    mixed = [(module, revert(module)) for module in model.modules() if is_mixed(module)]
    precision = _take_precision(model)
    tuners = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for tuner in tuners:
        tuner.enable_adapters(False)
    state.disabled = True
    try:
        yield
    finally:
        state.disabled = False
        for module, cls in mixed:
            become_again(module, cls)
        vars(model).update(precision)
        for tuner in tuners:
            tuner.enable_adapters(True)


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Takes the method off a model, in place, and gives the base back: its classes, modules and weights, bit for bit.

    Only where a method was merged and unfolded (LoRA), the maps that it was merged into keep the rounding of it.

    Returns:
        The same object, which is not attached any more; exactly what required gradients before ``attach`` does again.

    Raises:
        ValueError: the model is not attached, or its base is not there any more: pruned, folded, sharded, compiled, or
            its own weights are what is trained, or were trained beside the method.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.LoRAConfig(rank=8))
        >>> eas.attached(eas.detach(model))
        False
    """
    state = attachment(model)
    _require_base(model, state)
    _refuse_trained(overwritten(model))
    precision = _take_precision(model)
    if replaced := [m for m in model.modules() if "forward" in vars(m) and not has_device_hook(m)]:
        vars(model).update(precision)
        name = type(replaced[0]).__name__
        raise ValueError(f"{name}.forward was replaced on this instance (compiled, say); load the base a second time")
    del model.eas
    undo(model, state.changes, state.trained_before)
    return model


def _require_base(model: PreTrainedModel, state: Attachment) -> None:
    """Refuses a model whose base is not there any more."""
    if isinstance(model, FSDPModule):
        raise ValueError("the base cannot be given back, FSDP2 has sharded the model; load it a second time instead")
    if state.pruned or state.fold_mode is not None or state.overwrites:
        why = "pruned" if state.pruned else "folded" if state.fold_mode is not None else "trained itself"
        raise ValueError(f"the base cannot be given back, it was {why}; load it a second time instead")
    _refuse_trained(unfrozen(model))


def _refuse_trained(names: list[str]) -> None:
    if names:
        raise ValueError(
            f"the base cannot be given back, {names[0]} ({len(names)} in all) was trained beside the method; load it a "
            "second time instead, or freeze (requires_grad_(False)) what was not trained"
        )


def _take_precision(model: PreTrainedModel) -> dict[str, Any]:
    """Takes a trainer's mixed precision off a model."""
    own = vars(model)
    return {name: own.pop(name) for name in MIXED_PRECISION if "_original_forward" in own and name in own}
