"""The dtype that a base's weights are loaded in where nobody named one."""

from __future__ import annotations

from typing import Any

import torch

IN_SOFTWARE = ("NO AVX", "AVX2")
"""What torch calls x86 CPUs without instructions for products of 16 bits; others, such as ARM's, were not measured."""


def chosen_dtype(dtype: str) -> str:
    """A dtype's name; "auto" (as saved) becomes float32 where the CPU would compute 16 bits in software.

    In bfloat16 a map of 576 to 1,536 took eight times as long there as in float32 (AMD EPYC with AVX2, 800 tokens).

    Example:
        >>> chosen_dtype("bfloat16")
        'bfloat16'
    """
    slow = not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() in IN_SOFTWARE
    return "float32" if dtype == "auto" and slow else dtype


def loaded_dtype(dtype: str, config: Any) -> torch.dtype:
    """What a base with this configuration is loaded in under ``dtype``."""
    named = config.dtype if dtype == "auto" else dtype
    loaded: torch.dtype = getattr(torch, str(named or "float32").removeprefix("torch."))
    return loaded
