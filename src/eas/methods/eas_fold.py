"""The modules that read a PIA's output, with the PIA folded into them (paper Eq. 8-13).

``eas.pia.fold_weights`` computes W' and b'. This file puts them into an FFN (skip PIA) or an attention (adapt PIA).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eas.costed import Costed
from eas.models.structure import Branch
from eas.pia import PIA, fold_weights


class FoldedLinear(Costed, nn.Linear):
    """A linear map with computed weights. They are buffers, so no checkpoint and no optimizer includes them."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        del self.weight, self.bias
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def macs(self, tokens: int) -> int:
        return tokens * self.in_features * self.out_features

    def decode_bytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)


class FoldedFFN(nn.Module):
    """A gated FFN that reads n; the original reads ``g * (n + p)``. Gate and up are one map.

    Args:
        mlp: the original; the fold shares its down projection.
        branch: the names of its parts.
        gate_up: W' of gate and up, ``(2 ff, d)``; with b' if c is part of b'.
        offset: b' without c, ``(2 ff,)``, if every sequence has its own c.
        from_c: the change of b' for each number of c, ``(2 ff, r)``, if every sequence has its own c.
    """

    offset: Tensor | None
    from_c: Tensor | None

    def __init__(
        self,
        mlp: Any,
        branch: Branch,
        gate_up: FoldedLinear,
        offset: Tensor | None = None,
        from_c: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.gate_up, self.down_proj = gate_up, getattr(mlp, branch.output)
        self.act_fn = F.silu if branch.activation is None else getattr(mlp, branch.activation)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("from_c", from_c, persistent=False)

    def keep(self, c: Tensor) -> Tensor:
        """b', the bias of gate and up, from c: ``(batch, 1 or tokens, r)`` to ``(batch, 1 or tokens, 2 ff)``."""
        assert self.from_c is not None
        return F.linear(c.to(self.from_c.dtype), self.from_c, self.offset)

    def forward(self, n: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(batch, tokens, d)`` to the same; ``bias`` is the result of ``keep``, if c was not folded in."""
        both = self.gate_up(n)
        if bias is not None:
            both.add_(bias)
        gate, up = both.chunk(2, -1)
        out: Tensor = self.down_proj(self.act_fn(gate) * up)
        return out


class Aside(nn.Module):
    """Holds a module that a fold made from other modules; no checkpoint includes it."""

    body: Any

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        return {} if destination is None else destination


def fold_ffn(
    mlp: Any,
    branch: Branch,
    pia: PIA,
    alpha: Tensor,
    norm_weight: Tensor | None,
    c: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> FoldedFFN:
    """An FFN whose gate and up have the skip PIA folded in (Eq. 8-13); arguments as in ``fold_weights``."""
    weight, bias, from_c = fold_weights(
        [getattr(mlp, name) for name in branch.inputs], pia, alpha, norm_weight, c, dtype
    )
    if c is None and pia.down2 is not None:
        return FoldedFFN(mlp, branch, FoldedLinear(weight, None), bias, from_c)
    return FoldedFFN(mlp, branch, FoldedLinear(weight, bias))


def fold_attention(
    attention: Any, names: Sequence[str], pia: PIA, alpha: Tensor, dtype: torch.dtype | None = None
) -> nn.Module:
    """A shallow copy of an attention whose maps of these names, q, k and v, have the adapt PIA folded in (Eq. 8-13 with
    g = 1 and c = 0)."""
    maps = [getattr(attention, name) for name in names]
    weight, bias, _ = fold_weights(maps, pia, alpha, None, dtype=dtype)
    sizes = [linear.out_features for linear in maps]
    folded = [FoldedLinear(w, b) for w, b in zip(torch.split(weight, sizes), torch.split(bias, sizes), strict=True)]
    clone: nn.Module = copy.copy(attention)
    clone._modules = {**attention._modules, **dict(zip(names, folded, strict=True))}
    vars(clone).pop("forward", None)  # accelerate's forward, which would call the original
    return clone
