"""Adds behaviour to a module: its class becomes a subclass of the same name, with a mix-in in front.

Class-level wrappers (gradient checkpointing), sharding rules that go by class name, ``isinstance`` checks and
signatures all keep working. Such a module can be copied and pickled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from torch import nn
from transformers.utils import output_capturing

CAPTURES = output_capturing.__name__


def become(module: Any, mixin: type) -> None:
    """Puts a mix-in before a module's class, in place."""
    become_again(module, same_name_subclass(mixin, module.__class__))


def is_mixed(module: Any) -> bool:
    """Whether ``become`` was used on a module."""
    return "base" in vars(type(module))


def revert(module: Any) -> type:
    """Takes all mix-ins off a module, and returns the class that ``become_again`` puts back."""
    mixed = type(module)
    become_again(module, unmixed(mixed)[0])
    return mixed


def unmixed(cls: type) -> tuple[type, list[type]]:
    """A class without its mix-ins, and the mix-ins in the order in which they were put before it."""
    mixins: list[type] = []
    while "base" in vars(cls):
        mixins.insert(0, vars(cls)["mixin"])
        cls = vars(cls)["base"]
    return cls, mixins


def become_again(module: Any, cls: type) -> None:
    """Gives a module another class of the same layout."""
    module.__class__ = cls
    if "_old_forward" in vars(module):  # a device_map over several devices: accelerate calls what was forward then
        module._old_forward = MethodType(module.__class__.forward, module)


def has_device_hook(module: nn.Module) -> bool:
    """Whether accelerate moves the module's inputs, or its weights, between devices."""
    return "_hf_hook" in vars(module)


@functools.cache
def same_name_subclass(mixin: type, base: type) -> type:
    """The class of a module of class ``base`` that ``mixin`` was put before: same name, same signatures."""

    def keep_signature(name: str) -> Callable[..., Any]:
        # a plain function per class, so that inspect.signature shows the original parameters
        method = getattr(mixin, name)

        @functools.wraps(getattr(base, name))
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            return method(self, *args, **kwargs)

        return call

    methods = ("forward", "prepare_inputs_for_generation", "generate")  # generate reads the second's signature
    wrapped = {name: keep_signature(name) for name in methods if name in vars(mixin)}
    names = {"__module__": base.__module__, "__doc__": base.__doc__, "base": base, "mixin": mixin}
    return type(base.__name__, (mixin, base), {**wrapped, **names, "__reduce_ex__": _reduce})


def _reduce(module: Any, protocol: int) -> tuple[Any, ...]:
    """How to pickle a module whose class pickle cannot find by name: by the class below, and the mix-ins."""
    _release_captures(module)
    return _rebuild, unmixed(type(module)), module.__dict__


def _release_captures(module: nn.Module) -> None:
    """Takes off the hooks by which transformers records hidden states, as they cannot be pickled.

    It puts them on in a forward pass, and again in the next one.
    """
    for part in module.modules():
        for key, hook in [*part._forward_hooks.items()]:
            if isinstance(hook, FunctionType) and hook.__module__ == CAPTURES:
                del part._forward_hooks[key]
        vars(part).pop("_output_capturing_hooks_installed", None)


def _rebuild(base: type, mixins: list[type]) -> Any:
    cls: Any = functools.reduce(lambda cls, mixin: same_name_subclass(mixin, cls), mixins, base)
    return cls.__new__(cls)
