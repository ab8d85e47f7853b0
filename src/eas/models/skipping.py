"""What skipping needs of a model: flags on its blocks, and a cache that keeps nothing for a skipped attention.

Behaviour is added by putting a mix-in before a module's own class, in a subclass of the same name: class-level wrappers
(gradient checkpointing), sharding rules that go by class name, ``isinstance`` checks and signatures all go on working.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from eas.models.prompt_cache import prepare_cache


class SkippableBlock(nn.Module):
    """A decoder block whose parts may be skipped; what stands in for them is the method's ``forward``."""

    index: int
    skip_mha: bool
    skip_ffn: bool
    self_attn: Any
    mlp: Any
    input_layernorm: Any
    post_attention_layernorm: Any

    def skipped_parts(self) -> set[str]:
        """Of "mha" and "ffn" those that are skipped."""
        return {part for part, skipped in (("mha", self.skip_mha), ("ffn", self.skip_ffn)) if skipped}

    def stand_ins(self) -> Sequence[nn.Module]:
        """The method's own modules in this block that the skip set puts to use."""
        return []


class SkippingTextModel(nn.Module):
    """The language model: makes the cache fit the skip set before the blocks see it."""

    layers: nn.ModuleList
    config: Any

    def forward(
        self, *args: Any, past_key_values: Cache | None = None, use_cache: bool | None = None, **kw: Any
    ) -> Any:
        wants_cache = self.config.use_cache if use_cache is None else use_cache
        if past_key_values is None and wants_cache:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None:
            without = tuple(i for i, layer in enumerate(self.layers) if layer.skip_mha)
            prepare_cache(past_key_values, len(self.layers), without)
        return super().forward(*args, past_key_values=past_key_values, use_cache=use_cache, **kw)


def become(module: Any, mixin: type) -> None:
    """Puts a mix-in before a module's class, in place."""
    become_again(module, same_name_subclass(mixin, module.__class__))


def is_mixed(module: Any) -> bool:
    """Whether ``become`` was used on a module."""
    return "base" in vars(type(module))


def revert(module: Any) -> type:
    """Takes all mix-ins off a module, and returns the class that ``become_again`` puts back."""
    mixed = cls = type(module)
    while "base" in vars(cls):
        cls = vars(cls)["base"]
    become_again(module, cls)
    return mixed


def become_again(module: Any, cls: type) -> None:
    """Gives a module another class of the same layout."""
    module.__class__ = cls
    if "_old_forward" in vars(module):  # a device_map over several devices: accelerate calls what was forward then
        module._old_forward = MethodType(module.__class__.forward, module)


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
    names = {"__module__": base.__module__, "__doc__": base.__doc__, "base": base}
    return type(base.__name__, (mixin, base), {**wrapped, **names})
