"""Names that change between releases of transformers: the cache's argument and output, and others that eas reads.

From 5.24 the key-value cache is the argument ``cache`` of layers and models, and the field ``cache`` of their outputs;
before, both were called ``past_key_values``. Which one it is, is read off the installed code, not off its version.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import AttentionInterface, LlamaModel
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer, DynamicCache, StaticCache, StaticLayer
from transformers.initialization import no_init_weights
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT_TYPES
from transformers.models.llama.modeling_llama import rotate_half

from eas.hf.versions import TransformersChangedError

__all__ = [
    "CACHE_NAME",
    "IMAGE_TEXT_TYPES",
    "AttentionInterface",
    "Cache",
    "CacheLayerMixin",
    "DummyLayer",
    "DynamicCache",
    "StaticCache",
    "StaticLayer",
    "attention_implementation",
    "cache_of",
    "cached",
    "no_init_weights",
    "output_cache",
    "require_cache_argument",
    "rotate_half",
    "sdpa_attention_forward",
    "set_attention_implementation",
    "without_cache",
]

FORMER_CACHE_NAME = "past_key_values"
CACHE_NAME = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else FORMER_CACHE_NAME
"""The name of the cache in calls and outputs of the installed release."""


def cache_of(kwargs: Mapping[str, Any]) -> Cache | None:
    """The cache among the keyword arguments of a call, under the installed name or the one before.

    Example:
        >>> cache_of({"input_ids": None}) is None
        True
    """
    cache = kwargs.get(CACHE_NAME)
    return kwargs.get(FORMER_CACHE_NAME) if cache is None else cache


def without_cache(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call but the cache."""
    return {name: value for name, value in kwargs.items() if name not in (CACHE_NAME, FORMER_CACHE_NAME)}


def cached(cache: Cache | None) -> dict[str, Cache | None]:
    """The keyword argument that hands a cache to a model, a layer or ``generate``."""
    return {CACHE_NAME: cache}


def output_cache(output: Mapping[str, Any]) -> Cache | None:
    """The cache in a model's output."""
    return output.get(CACHE_NAME)


def require_cache_argument(*modules: nn.Module) -> None:
    """Refuses modules whose forward does not name the cache as the installed release does.

    Raises:
        TransformersChangedError: the message names the class.
    """
    for module in modules:
        if CACHE_NAME not in inspect.signature(type(module).forward).parameters:
            raise TransformersChangedError(f"{type(module).__name__}.forward has no argument {CACHE_NAME!r}")


def attention_implementation(config: Any) -> str:
    """Which attention function a configuration selects: "sdpa", "eager", ..."""
    name: str = config._attn_implementation
    return name


def set_attention_implementation(config: Any, name: str) -> None:
    """Selects an attention function for what reads this configuration."""
    config._attn_implementation = name
