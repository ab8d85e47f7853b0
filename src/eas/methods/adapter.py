"""Bottleneck adapters: sequential after attention and FFN (Houlsby et al. 2019; VL-Adapter, Sung et al. 2022), and the
scaled parallel adapter beside the FFN (He et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.config import MethodConfig, method_name, option
from eas.hf.classes import become
from eas.models.anatomy import Anatomy


class Bottleneck(nn.Module):
    """``scale * Wu relu(Wd x + bd) + bu``, float32; starts at zero (He et al.: Wd as a linear map's, Wu zero).

    Args:
        hidden_size: d.
        rank: r, the bottleneck.
        scale: factor on the output.
        dropout: on the bottleneck while training.
    """

    def __init__(self, hidden_size: int, rank: int, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden_size, rank), nn.Linear(rank, hidden_size)
        self.dropout, self.scale = nn.Dropout(dropout), scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, d)`` in the dtype of x."""
        h = self.dropout(F.relu(self.down(x.to(self.down.weight.dtype))))
        output: Tensor = self.scale * self.up(h)
        return output.to(x.dtype)


class AdaptedAttention(nn.Module):
    """An attention followed by an adapter, inside the residual branch."""

    adapter: Bottleneck

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        attended, *rest = super().forward(*args, **kwargs)
        return attended + self.adapter(attended), *rest


class ParallelAttention(nn.Module):
    """An attention with an adapter beside it; the adapter reads the input of the queries."""

    adapter: Bottleneck

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        attended, *rest = super().forward(hidden_states, *args, **kwargs)
        return attended + self.adapter(hidden_states), *rest


class AdaptedInput(nn.Module):
    """An attention that reads its normalised input through an adapter."""

    adapter: Bottleneck

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(hidden_states + self.adapter(hidden_states), *args, **kwargs)


class AdaptedFFN(nn.Module):
    """An FFN followed by an adapter, inside the residual branch."""

    adapter: Bottleneck

    def forward(self, x: Tensor) -> Any:
        return _plus(super().forward(x), self.adapter)


class ParallelFFN(nn.Module):
    """An FFN with an adapter beside it that reads the same input."""

    adapter: Bottleneck

    def forward(self, x: Tensor) -> Any:
        return _plus(super().forward(x), lambda y: self.adapter(x).view_as(y))


def _plus(output: Any, more: Callable[[Tensor], Tensor]) -> Any:
    """An FFN's output with something added; Llama 4's experts give rows of tokens, and the router's scores beside."""
    if isinstance(output, tuple):
        return output[0] + more(output[0]), *output[1:]
    return output + more(output)


AFTER = {"mha": AdaptedAttention, "ffn": AdaptedFFN}
BESIDE = {"mha": ParallelAttention, "ffn": ParallelFFN}
PLACEMENTS = {"ffn": ("ffn",), "attention": ("mha",), "both": ("mha", "ffn")}


@dataclass
class AdapterConfig(MethodConfig):
    """Sequential adapters; the paper's LLaVA rows have rank 128 after the FFN (32 layers x 2 d 128 per token).

    Example:
        >>> import eas
        >>> eas.AdapterConfig(rank=64, placement="both").rank
        64
    """

    name: str = method_name("adapter")
    rank: int = option(128, "r: size of the bottleneck")
    placement: Literal["ffn", "attention", "both"] = option(
        "ffn", "place of the adapters: after the 'ffn', after the 'attention', or after 'both' (Houlsby)"
    )
    dropout: float = option(0.0, "dropout on the bottleneck in training")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("rank", self.rank >= 1, "must be at least 1")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")


def attach(model: PreTrainedModel, config: AdapterConfig) -> None:
    """Adds an adapter after the FFN, the attention or both of every block; untrained they change nothing."""
    put_at(model, config.placement, AFTER, config.rank, dropout=config.dropout)


@dataclass
class ParallelAdapterConfig(MethodConfig):
    """Scaled parallel adapter; He et al. use rank 512 and scale 4.

    Example:
        >>> import eas
        >>> eas.ParallelAdapterConfig(rank=64).scale
        4.0
    """

    name: str = method_name("parallel_adapter")
    rank: int = option(512, "r: size of the bottleneck")
    placement: Literal["ffn", "attention", "both"] = option(
        "ffn", "place of the adapters: beside the 'ffn', beside the 'attention', or beside 'both'"
    )
    scale: float = option(4.0, "factor on the adapter's output")
    dropout: float = option(0.0, "dropout on the bottleneck in training")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("rank", self.rank >= 1, "must be at least 1")
        self._require("scale", self.scale > 0, "must be above 0")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")


def attach_parallel(model: PreTrainedModel, config: ParallelAdapterConfig) -> None:
    """Adds an adapter beside the FFN, the attention or both of every block; untrained they change nothing."""
    put_at(model, config.placement, BESIDE, config.rank, scale=config.scale, dropout=config.dropout)


def put_at(model: PreTrainedModel, placement: str, mixins: Mapping[str, type], rank: int, **options: float) -> None:
    """Gives the attentions, FFNs or both of every block their adapters."""
    for part, body, norm in Anatomy.of(model).bodies():
        if part in PLACEMENTS[placement]:
            put(body, mixins[part], norm, rank, **options)


def put(module: Any, mixin: type, norm: Any, rank: int, **options: float) -> None:
    """Gives an attention or FFN, whose norm is given, its adapter, and the mix-in that applies it."""
    module.adapter = bottleneck(norm, rank, module.training, **options)
    become(module, mixin)


def bottleneck(norm: Any, rank: int, training: bool, **options: float) -> Bottleneck:
    """An adapter as wide as a norm, on its device."""
    return Bottleneck(len(norm.weight), rank, **options).to(norm.weight.device).train(training)
