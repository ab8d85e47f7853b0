"""The norms of transformers' blocks without their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UnitNorm(nn.Module):
    """``x / rms(x)``, rounded as the family's norm rounds before it multiplies by its weight.

    Args:
        eps: the norm's epsilon.
        wide: whether the norm multiplies in float32 (Gemma), so that nothing is rounded; else it is Llama's.

    Example:
        >>> from transformers.models.llama.modeling_llama import LlamaRMSNorm
        >>> norm, x = LlamaRMSNorm(8), torch.randn(2, 8)
        >>> norm.weight.data.uniform_(0.1, 0.4).shape
        torch.Size([8])
        >>> (norm.weight * UnitNorm(norm.variance_epsilon)(x)).equal(norm(x))
        True
    """

    def __init__(self, eps: float, wide: bool = False) -> None:
        super().__init__()
        self.eps, self.wide = eps, wide

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, d)`` to the same, in its dtype or in float32."""
        wide = x.to(torch.float32)
        unit = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return unit if self.wide else unit.to(x.dtype)
