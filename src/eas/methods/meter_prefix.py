"""Prefix tuning and Mix-and-Match on METER: keys and values in front of those of every attention, self and cross."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.config import ConfigError
from eas.hf.classes import become
from eas.methods.mam import MAMConfig
from eas.methods.meter_adapters import ParallelOutput, put
from eas.methods.prefix import PrefixConfig
from eas.models.anatomy import Anatomy


class MeterPrefix(nn.Module):
    """``table`` ``(2, m, d)``: the keys and the values of one attention, normal (0, 0.02)."""

    def __init__(self, num_tokens: int, size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(0.02 * torch.randn(2, num_tokens, size))


class PrefixedAttention(nn.Module):
    """An attention of METER that sees its prefix in front of the tokens, which no mask hides."""

    prefix: MeterPrefix
    output: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Any:
        tokens, bias = hidden_states, attention_mask
        if encoder_hidden_states is not None:
            tokens, bias = encoder_hidden_states, encoder_attention_mask
        maps: Any = self.get_submodule("self")
        first, size = self.prefix.table.to(hidden_states.dtype), maps.attention_head_size

        def heads(rows: Tensor) -> Tensor:
            return rows.view(*rows.shape[:-1], -1, size).transpose(1, 2)

        keys, values = (
            heads(torch.cat([row.expand(len(tokens), -1, -1), part(tokens)], 1))
            for row, part in zip(first, (maps.key, maps.value), strict=True)
        )
        bias = None if bias is None else F.pad(bias, (first.shape[1], 0))
        dropout = maps.dropout.p if self.training else 0.0
        seen = F.scaled_dot_product_attention(heads(maps.query(hidden_states)), keys, values, bias, dropout)
        return self.output(seen.transpose(1, 2).flatten(2), hidden_states), None


def attach_prefix(model: PreTrainedModel, config: PrefixConfig) -> None:
    """A prefix at all attentions; untrained it does change the model, a key of zeros takes part in the softmax too.

    Raises:
        ConfigError: an MLP is to make it.
    """
    if config.reparameterise is not None:
        raise ConfigError("PrefixConfig.reparameterise: on METER keys and values are trained directly; leave it out")
    _add_prefix(model, config.num_tokens)


def attach_mam(model: PreTrainedModel, config: MAMConfig) -> None:
    """A prefix at all attentions, and a scaled parallel adapter beside every FFN."""
    if config.num_tokens > 0:
        _add_prefix(model, config.num_tokens)
    for layer in Anatomy.of(model).layers:
        put(layer.output, ParallelOutput, config.rank, scale=config.scale, dropout=config.dropout)


def _add_prefix(model: PreTrainedModel, num_tokens: int) -> None:
    for attention in Anatomy.of(model).attentions:
        weight = attention.output.dense.weight
        attention.prefix = MeterPrefix(num_tokens, weight.shape[0]).to(weight.device)
        become(attention, PrefixedAttention)
