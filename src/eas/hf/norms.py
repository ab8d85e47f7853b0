"""The norms of transformers' blocks without their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class UnitNorm(nn.Module):
    """``x / rms(x)``, rounded as Llama's norm rounds before it multiplies by its weight.

    Args:
        norm: the norm whose epsilon it takes.

    Example:
        >>> from transformers.models.llama.modeling_llama import LlamaRMSNorm
        >>> norm, x = LlamaRMSNorm(8), torch.randn(2, 8)
        >>> norm.weight.data.uniform_(0.1, 0.4).shape
        torch.Size([8])
        >>> (norm.weight * UnitNorm(norm)(x)).equal(norm(x))
        True
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.eps: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, d)`` to the same, in its dtype."""
        wide = x.to(torch.float32)
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)
