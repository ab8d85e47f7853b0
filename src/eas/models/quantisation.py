"""Bases whose language model has blocks of 4 or 8 bits. Everything else keeps its precision, as in LaVIN-lite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from eas.hf.api import no_init_weights
from eas.models.anatomy import Anatomy, auto_class, paths
from eas.models.folder import model_config


def quantisation(base: Any, bits: int, compute_dtype: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """For ``quantization_config`` of ``eas.load`` and ``from_pretrained``; bitsandbytes must be installed.

    Args:
        base: folder, Hub id or configuration of a decoder of any family.
        bits: 4 (NF4, with its scales quantised again) or 8.
        compute_dtype: of the products with 4-bit weights.

    Raises:
        ValueError: other bits.
        UnsupportedModelError: the family is not supported.

    Example:
        >>> from eas.demo.tiny import TINY_DIR
        >>> quantisation(TINY_DIR, bits=4).llm_int8_skip_modules
        ['lm_head', 'model.vision_tower', 'model.multi_modal_projector']
    """
    if bits not in (4, 8):
        raise ValueError(f"bits = {bits}: a language model is quantised to 4 or 8")
    config = model_config(str(base)) if isinstance(base, str | Path) else base
    with torch.device("meta"), no_init_weights():
        model = auto_class(config.model_type).from_config(config)
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=_beside(model, f"{paths(model)[0]}.{Anatomy.of(model).built.sides[0]}"),
    )


def _beside(model: nn.Module, path: str) -> list[str]:
    """The names of all modules with linear maps that the path passes by: head, vision tower, projector."""
    first, _, rest = path.partition(".")
    others = [(name, module) for name, module in model.named_children() if name != first]
    names = [name for name, module in others if any(isinstance(part, nn.Linear) for part in module.modules())]
    below = _beside(model.get_submodule(first), rest) if rest else []
    return names + [f"{first}.{name}" for name in below]


def is_quantised(module: nn.Module) -> bool:
    """Whether it is a linear map with int8 or 4-bit weights."""
    if not isinstance(module, nn.Linear):
        return False
    origins = type(module).__module__, type(module.weight).__module__
    return any(origin.startswith(("torchao.", "bitsandbytes.")) for origin in origins)


def four_bit(model: nn.Module) -> Iterator[Any]:
    """bitsandbytes' linear maps with 4-bit weights."""
    for layer in model.modules():
        if type(layer).__module__.startswith("bitsandbytes.") and type(layer).__name__ == "Linear4bit":
            yield layer


def unpack(model: nn.Module) -> None:
    """Undoes how bitsandbytes packs 4-bit weights when they first evaluate on a CPU with AVX512-BF16.

    Its own ``state_dict`` unpacks the weights, but leaves their scales packed where these are not quantised again.
    """
    for layer in four_bit(model):
        layer.state_dict()
        if (state := layer.weight.quant_state) is not None and state.absmax.ndim == 2:
            state.absmax = state.absmax.T.reshape(-1).float()
