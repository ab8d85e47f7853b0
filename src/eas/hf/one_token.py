"""Operations on one new token, written so that a CPU compiler makes loops and fuses them with the code around.

torch's fused attention is made for many queries; with one it takes several times as long as reading the keys and values
does. The call of a matrix kernel takes longer than reading the few weights of a thin product. A frozen head copies its
weight where it is given a slice.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from eas.hf.api import AttentionInterface, sdpa_attention_forward

NAME = "eas_decode"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: sdpa's, but for one query per sequence in a compiled graph.

    Args:
        query: ``(batch, heads, queries, head size)``.
        key, value: ``(batch, key-value heads, tokens, head size)``.
        attention_mask: bool, ``(batch or 1, 1, queries, tokens)``, or None.
    """
    if query.shape[2] > 1 or not torch.compiler.is_compiling():
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    return attend_one(query, key, value, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def attend_one(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """One query per sequence; ``(batch, 1, heads, head size)``."""
    batch, heads, _, size = query.shape
    kept = key.shape[1]
    # the queries that share keys; they are made first, or the loop over the keys would turn them anew for each
    grouped = made(query).view(batch, kept, heads // kept, 1, size)
    scores = scaling * (grouped.float() * key[:, :, None].float()).sum(-1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)  # (batch, 1, 1, tokens)
    weights = scores.softmax(-1)
    output = (weights[..., None] * value[:, :, None].float()).sum(-2)
    return output.to(query.dtype).view(batch, 1, heads, size)


def made(x: Tensor) -> Tensor:
    """The same values; a compiler computes them before what reads them, not within its loops."""
    x = x.contiguous()
    return x.as_strided(x.shape, x.stride())  # strides need memory


def narrow(x: Tensor, weight: Tensor) -> Tensor:
    """``F.linear`` of one row ``(1, 1, in)``, for few outputs."""
    return (x[..., None, :] * weight).sum(-1, dtype=torch.float32).to(x.dtype)


def wide(x: Tensor, weight: Tensor) -> Tensor:
    """``F.linear`` of one row ``(1, 1, in)``, for many outputs of few inputs; freezing lays out the tiles."""
    tiles = torch.unflatten(weight, 0, (-1, gcd(len(weight), 32))).mT.contiguous()  # (tiles, in, 32)
    return (x[..., None, :, None] * tiles).sum(-2, dtype=torch.float32).flatten(-2).to(x.dtype)


def read_rows(head: nn.Module) -> None:
    """Lets a head read the last states of prompts as a tensor of their own. Given a slice of the prompts, torch's
    linear map on a CPU copies its whole weight first, for every sequence, if the weight is frozen."""
    if _rows not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_rows)


def _rows(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(states.flatten(0, -2).contiguous().view(states.shape) for states in args)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
