"""The dtype that a base's weights are loaded in where nobody named one."""

from __future__ import annotations

from typing import Any

import torch

HARDWARE = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}
"""What torch calls an x86 CPU's instructions for products of 16 bits. Other CPUs, such as ARM's, were not measured."""


def in_software(dtype: str) -> bool:
    """Whether an x86 CPU has to compute products of this dtype in software.

    A map of 576 to 1,536 for 800 tokens took eight times as long in bfloat16 as in float32 on an AMD EPYC with AVX2.
    On an Intel Xeon with AVX-512 alone it took four times as long in bfloat16, and twelve times in float16.
    """
    found = torch.cpu.get_capabilities()
    return dtype in HARDWARE and found["architecture"] == "x86_64" and not any(map(found.get, HARDWARE[dtype]))


def chosen_dtype(dtype: str, config: Any) -> str:
    """A dtype's name; "auto" (as saved) becomes float32 where there is no GPU and the CPU computes it in software.

    It becomes float32, too, where the configuration names no dtype.

    Example:
        >>> from transformers import LlamaConfig
        >>> chosen_dtype("bfloat16", LlamaConfig())
        'bfloat16'
    """
    if dtype != "auto":
        return dtype
    if (saved := saved_dtype(config)) is None:
        return "float32"  # transformers would take that of some weight
    return "float32" if not torch.cuda.is_available() and in_software(saved) else dtype


def loaded_dtype(dtype: str, config: Any) -> torch.dtype:
    """What a base with this configuration is loaded in under ``dtype``."""
    loaded: torch.dtype = getattr(torch, (saved_dtype(config) if dtype == "auto" else dtype) or "float32")
    return loaded


def saved_dtype(config: Any) -> str | None:
    """The dtype that a base's configuration names, None where it names none."""
    return None if config.dtype is None else str(config.dtype).removeprefix("torch.")
