"""MACs and bytes of a module's linear maps, convolutions and experts."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from eas.costed import Costed


def module_macs(module: nn.Module, n: int) -> int:
    """MACs of all linear maps of a module for n tokens; by their features, because quantised weights are packed."""
    if isinstance(module, Costed):
        return module.macs(n)
    if isinstance(module, nn.Linear):
        return n * module.in_features * module.out_features
    if isinstance(module, nn.Conv1d):
        return n * module.weight.numel()
    if isinstance(module, BaseTunerLayer) and module.merged:
        return module_macs(module.get_base_layer(), n)
    total = sum(module_macs(child, n) for child in module.children())
    if (router := _router(module)) is not None:
        own = 0 if isinstance(router, nn.Linear) else router.weight.numel()
        total += n * (own + sum(p.numel() for p in _experts(module)) * router.top_k // router.num_experts)
    return total


def _router(module: nn.Module) -> Any:
    """What chooses the experts of an FFN; None in an ordinary one."""
    if "experts" not in module._modules:
        return None
    return module._modules["gate" if "gate" in module._modules else "router"]


def _experts(module: Any) -> list[Tensor]:
    """The weights of all experts of an FFN."""
    return list(module.experts.parameters())


def module_bytes(module: nn.Module) -> int:
    """Weights of a module that a decode step reads."""
    if isinstance(module, Costed):
        return module.decode_bytes()
    if isinstance(module, BaseTunerLayer) and module.merged:
        return module_bytes(module.get_base_layer())
    own = sum(stored_bytes(p) for p in module.parameters(recurse=False))
    total = own + sum(module_bytes(child) for child in module.children())
    if (router := _router(module)) is not None:  # one token reads the experts that it is routed to
        experts = sum(stored_bytes(p) for p in _experts(module))
        total -= experts - experts * router.top_k // router.num_experts
    return total


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor; of torchao's those of the parts that are stored: ``nbytes`` is of what they stand for."""
    if not is_traceable_wrapper_subclass(tensor):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)
