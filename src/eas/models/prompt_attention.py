"""Prompt methods' one seam: extra keys and values at the attentions, the same for every sequence.

The language model computes them once per forward pass and hands them down as a keyword argument; the attention puts
them in front of the sequence's own after the cache was updated. So caches, lengths, positions and masks of
``transformers`` stay what they are: padding, static caches, beams and assisted decoding go on working. The prompt is
visible to every token, also where a sliding window has left the sequence's first tokens behind.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import rotate_half

from eas.config import ConfigError, MethodConfig
from eas.models.anatomy import Anatomy, attentions
from eas.models.costed import Costed
from eas.models.skipping import become

PROMPT_ATTENTION = "eas_prompt"
REMEDY = 'prompts need attn_implementation="sdpa"; load the model with it, or call set_attn_implementation("sdpa")'


class PromptStates(NamedTuple):
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


class StoredStates(nn.Module):
    """A prompt at one attention, computed once; no checkpoint holds it."""

    def __init__(self, states: PromptStates) -> None:
        super().__init__()
        for name, tensor in states._asdict().items():
            self.register_buffer(name, tensor, persistent=False)

    def states(self) -> PromptStates:
        """As they were given, on the module's device."""
        return PromptStates(**self._buffers)  # type: ignore[arg-type]


class Prompt(Costed):
    """What a prompt method trains; it lies beside the blocks, as ``prompt`` of the language model.

    Args:
        attentions: those that see the prompt.
        num_tokens: m, prompt tokens at each of them.
        maps: modules of the base through which every prompt token goes to become keys and values.
        own_macs: multiply-accumulates of making keys and values, besides those of the maps.
    """

    def __init__(
        self, attentions: Iterable[Any], num_tokens: int, maps: Iterable[nn.Module], own_macs: int = 0
    ) -> None:
        super().__init__()
        linear: list[Any] = [m for module in maps for m in module.modules() if isinstance(m, nn.Linear)]
        self.num_tokens = num_tokens
        self.query_width: int = sum(attention.q_proj.out_features for attention in attentions)
        self.making_macs: int = own_macs + num_tokens * sum(m.in_features * m.out_features for m in linear)
        self.making_bytes: int = sum(p.nbytes for m in linear for p in m.parameters())
        self.stored: nn.ModuleList | None = None

    def compute(self, text_model: Any) -> list[PromptStates | None]:
        """The prompt at every attention of the language model, None where there is none."""
        raise NotImplementedError

    def states(self, text_model: Any) -> list[PromptStates | None]:
        """``compute``, or what a fold stored of it."""
        if self.stored is None:
            return self.compute(text_model)
        return [None if stored is None else stored.states() for stored in self.stored]  # type: ignore[operator]

    def macs(self, tokens: int) -> int:
        """Every query meets m more keys and values; unfolded, each forward pass makes them anew."""
        return 2 * self.query_width * tokens * self.num_tokens + (self.making_macs if self.stored is None else 0)

    def decode_bytes(self) -> int:
        """Folded, the stored keys and values; unfolded, a step reads the base's maps once more, for the prompt."""
        if self.stored is None:
            return super().decode_bytes() + self.making_bytes
        return sum(buffer.nbytes for buffer in self.stored.buffers())


class PromptAttention(nn.Module):
    """An attention that sees the prompt: its configuration names ``prompt_attention`` as the implementation."""

    prompt_config: Any

    @property
    def config(self) -> Any:
        """What the attention reads; the model's own decides about masks, and stays as it is."""
        if vars(self)["config"]._attn_implementation != "sdpa":
            raise ValueError(REMEDY)
        return self.prompt_config


class PromptTextModel(nn.Module):
    """A language model that hands the prompt's keys and values to its attentions."""

    prompt: Prompt

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
            input_ids, attention_mask, position_ids, *args, inputs_embeds=inputs_embeds, prompt_states=states, **kw
        )


class PromptTrunk(nn.Module):
    """METER, which hands the prompt's keys and values to its co-attention layers."""

    prompt: Prompt

    def fuse(self, text: Any, image: Any, **kwargs: Any) -> Any:
        return super().fuse(text, image, prompt_states=self.prompt.states(self), **kwargs)  # type: ignore[misc]


def add_prompt(model: PreTrainedModel, config: MethodConfig, prompt: Prompt) -> None:
    """Puts a prompt into a model, in place.

    Raises:
        ConfigError: the model's attention implementation knows no prompt.
    """
    text_model: Any = Anatomy.of(model).text_model
    if (own := text_model.config._attn_implementation) != "sdpa":
        raise ConfigError(f"{type(config).__name__}: the model attends with {own!r}; {REMEDY}")
    text_model.prompt = prompt.to(text_model.get_input_embeddings().weight.device).train(text_model.training)
    for attention, _ in attentions(text_model):
        attention.prompt_config = copy.copy(attention.config)
        attention.prompt_config._attn_implementation = PROMPT_ATTENTION
        become(attention, PromptAttention)
    become(text_model, PromptTextModel if model.can_generate() else PromptTrunk)


@torch.no_grad()
def fold(model: PreTrainedModel, mode: str) -> None:
    """Computes the prompt's keys and values once and stores them, ``mode`` "precomputed"."""
    text_model = Anatomy.of(model).text_model
    states = text_model.prompt.compute(text_model)
    stored: list[Any] = [None if one is None else StoredStates(one) for one in states]
    text_model.prompt.stored = nn.ModuleList(stored)


def unfold(model: PreTrainedModel) -> None:
    """Drops what ``fold`` stored."""
    Anatomy.of(model).text_model.prompt.stored = None


def prompt_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prompt_states: list[PromptStates | None],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``sdpa_attention_forward`` with the prompt of this layer in front of, or beside, the sequence's keys."""
    prompt, tokens = prompt_states[module.layer_idx], query.shape[2]
    if prompt is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    keys, values = (states.to(key).expand(len(key), -1, -1, -1) for states in prompt[:2])
    if prompt.gate is not None:
        own, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        kwargs |= {"is_causal": False, "dropout": 0.0}
        seen, _ = sdpa_attention_forward(module, query, keys, values, None, **kwargs)
        return own + (prompt.gate.to(own.device)[:, None] * seen).to(own), None
    if (
        attention_mask is None and tokens > 1 and module.is_causal
    ):  # which torch would align with the prompt's first token
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


def project(attention: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> PromptStates:
    """The attention's own keys and values of ``hidden``, ``(1, m, hidden size)``."""
    return PromptStates(heads(attention, attention.k_proj(hidden), rotary), heads(attention, attention.v_proj(hidden)))
