"""The common part of all prompt methods: a trained prompt beside the blocks, and its fold.

The attentions see it through ``eas.hf.prompt_attention``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from eas.config import ConfigError, MethodConfig
from eas.costed import Costed
from eas.hf.api import attention_implementation
from eas.hf.classes import become
from eas.hf.prompt_attention import REMEDY, SDPA, PromptKeyValues, SoftPromptTextModel, SoftPromptTrunk, see_prompt
from eas.models.anatomy import Anatomy, attentions


class StoredStates(nn.Module):
    """A prompt at one attention, computed once; no checkpoint holds it."""

    def __init__(self, states: PromptKeyValues) -> None:
        super().__init__()
        for name, tensor in states._asdict().items():
            self.register_buffer(name, tensor, persistent=False)

    def states(self) -> PromptKeyValues:
        """As they were given, on the module's device."""
        return PromptKeyValues(**self._buffers)  # type: ignore[arg-type]


class SoftPrompt(Costed):
    """The trained part of a prompt method; it is the language model's attribute ``prompt``, beside the blocks.

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

    def compute(self, text_model: Any) -> list[PromptKeyValues | None]:
        """The prompt at every attention of the language model, None for an attention without one."""
        raise NotImplementedError

    def states(self, text_model: Any) -> list[PromptKeyValues | None]:
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


def add_prompt(model: PreTrainedModel, config: MethodConfig, prompt: SoftPrompt) -> None:
    """Puts a prompt into a model, in place.

    Raises:
        ConfigError: the model's attention implementation knows no prompt.
    """
    text_model: Any = Anatomy.of(model).text_model
    if (own := attention_implementation(text_model.config)) not in SDPA:
        raise ConfigError(f"{type(config).__name__}: the model attends with {own!r}; {REMEDY}")
    text_model.prompt = prompt.to(text_model.get_input_embeddings().weight.device).train(text_model.training)
    for attention, _ in attentions(text_model):
        see_prompt(attention)
    become(text_model, SoftPromptTextModel if model.can_generate() else SoftPromptTrunk)


@torch.no_grad()
def fold(model: PreTrainedModel, mode: str) -> None:
    """Computes the prompt's keys and values once and stores them, ``mode`` "precomputed"."""
    text_model = Anatomy.of(model).text_model
    states = text_model.prompt.compute(text_model)
    stored: list[Any] = [None if one is None else StoredStates(one) for one in states]
    text_model.prompt.stored = nn.ModuleList(stored)


def unfold(model: PreTrainedModel) -> None:
    """Removes the states that ``fold`` stored."""
    Anatomy.of(model).text_model.prompt.stored = None
