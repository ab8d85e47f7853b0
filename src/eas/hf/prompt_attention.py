"""The part that all prompt methods share: extra keys and values at the attentions, the same for every sequence.

The language model computes them once per forward pass and hands them down as a keyword argument; the attention puts
them in front of the sequence's own after the cache was updated. So caches, lengths, positions and masks of
``transformers`` stay what they are: padding, static caches, beams and assisted decoding go on working. The prompt is
visible to every token, also where a sliding window has left the sequence's first tokens behind.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eas.hf import one_token
from eas.hf.api import (
    AttentionInterface,
    attention_implementation,
    rotate_half,
    sdpa_attention_forward,
    set_attention_implementation,
)
from eas.hf.classes import become

PROMPT_ATTENTION = "eas_prompt"
SDPA = ("sdpa", one_token.NAME)
"""Implementations that give the same; the second is that of ``eas.fast_decode``."""
REMEDY = 'prompts need attn_implementation="sdpa"; load the model with it, or call set_attn_implementation("sdpa")'


class PromptKeyValues(NamedTuple):
    """A prompt at one attention.

    Args:
        keys: ``(1, key heads, prompt tokens, head size)``.
        values: as keys.
        gate: ``(query heads,)``: the prompt has a softmax of its own, whose output is added times this; None where
            prompt and sequence share one softmax.
    """

    keys: Tensor
    values: Tensor
    gate: Tensor | None = None


class PromptAttention(nn.Module):
    """An attention that sees the prompt: its configuration names ``prompt_attention`` as the implementation."""

    prompt_config: Any

    @property
    def config(self) -> Any:
        """The attention's configuration; the model's own configuration decides about masks and does not change."""
        if attention_implementation(vars(self)["config"]) not in SDPA:
            raise ValueError(REMEDY)
        return self.prompt_config


class SoftPromptTextModel(nn.Module):
    """A language model that passes the prompt's keys and values to its attentions."""

    prompt: Any  # eas.methods.soft_prompt.SoftPrompt

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        *args: Any,
        inputs_embeds: Any = None,
        **kw: Any,
    ) -> Any:
        if self.training and self.prompt.stored is not None:
            raise ValueError("a folded model cannot be trained; call unfold(model) first")
        if position_ids is None and isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            # from a row's first token, as generate has them: padding must not come between prompt and sequence
            tokens = inputs_embeds if input_ids is None else input_ids
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        states = self.prompt.states(self)
        return super().forward(
            input_ids, attention_mask, position_ids, *args, inputs_embeds=inputs_embeds, prompt_key_values=states, **kw
        )


class SoftPromptTrunk(nn.Module):
    """METER, which passes the prompt's keys and values to its co-attention layers."""

    prompt: Any  # eas.methods.soft_prompt.SoftPrompt

    def fuse(self, text: Any, image: Any, **kwargs: Any) -> Any:
        return super().fuse(text, image, prompt_key_values=self.prompt.states(self), **kwargs)  # type: ignore[misc]


def see_prompt(attention: Any) -> None:
    """Lets an attention see the prompt, in place: its configuration is a copy that names ``prompt_attention``."""
    attention.prompt_config = copy.copy(attention.config)
    set_attention_implementation(attention.prompt_config, PROMPT_ATTENTION)
    become(attention, PromptAttention)


def prompt_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prompt_key_values: list[PromptKeyValues | None],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``sdpa_attention_forward`` with the prompt of this layer in front of, or beside, the sequence's keys."""
    prompt, tokens = prompt_key_values[module.layer_idx], query.shape[2]
    if prompt is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    keys, values = (states.to(key).expand(len(key), -1, -1, -1) for states in prompt[:2])
    if prompt.gate is not None:
        own, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        kwargs |= {"is_causal": False, "dropout": 0.0}
        seen, _ = sdpa_attention_forward(module, query, keys, values, None, **kwargs)
        return own + (prompt.gate.to(own.device)[:, None] * seen).to(own), None
    # a causal attention without a mask: torch would align it with the prompt's first token
    if attention_mask is None and tokens > 1 and module.is_causal:
        key, value = key[:, :, :tokens], value[:, :, :tokens]  # an empty static cache is longer
        attention_mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=key.device).tril()
    if attention_mask is not None:
        visible = 1.0 if attention_mask.dtype == torch.bool else 0.0
        attention_mask = F.pad(attention_mask, (keys.shape[2], 0), value=visible)
    key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]


AttentionInterface.register(PROMPT_ATTENTION, prompt_attention)


def prompt_positions(text_model: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary cosines and sines of m tokens that end where the sequence begins, at positions -m to -1."""
    positions = torch.arange(-hidden.shape[1], 0, device=hidden.device)[None]
    cos, sin = text_model.rotary_emb(hidden, positions)
    return cos, sin


def heads(attention: Any, states: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """``(1, m, heads x size)`` to ``(1, heads, m, size)``, rotated where positions are given."""
    states = states.view(*states.shape[:2], -1, attention.head_dim).transpose(1, 2)
    if rotary is None:
        return states
    cos, sin = (t.to(states.device) for t in rotary)
    rotated: Tensor = states * cos[:, None] + rotate_half(states) * sin[:, None]
    return rotated


def project(attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> PromptKeyValues:
    """The attention's own keys and values of ``hidden``, ``(1, m, hidden size)``."""
    return PromptKeyValues(
        heads(attention, attention.k_proj(hidden), rotary), heads(attention, attention.v_proj(hidden))
    )
