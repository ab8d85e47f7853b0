"""LaVIN-lite: the blocks of the language model in 4 or 8 bits, everything else unchanged."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig

FULL = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]
"""What stays in full precision, as in the original."""


def quantisation(bits: int, compute_dtype: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """For ``quantization_config`` of ``eas.load`` and ``from_pretrained``; bitsandbytes must be installed.

    Args:
        bits: 4 (NF4, with its scales quantised again, as in the original) or 8.
        compute_dtype: of the products with 4-bit weights.

    Raises:
        ValueError: other bits.
    """
    if bits not in (4, 8):
        raise ValueError(f"bits = {bits}: a language model is quantised to 4 or 8")
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=FULL,
    )
