"""Prompt tuning: trained tokens in front of the sequence, at the input or at every block.

``shallow_prompt``: prompt tuning (Lester et al. 2021, arXiv 2104.08691), VPT-shallow. ``deep_prompt``: VPT-deep (Jia et
al. 2022, arXiv 2203.12119), new tokens at every block, whose outputs are discarded. In a causal decoder
earlier tokens do not depend on later ones. So the prompt runs alone, at positions -m to -1, and only its keys and
values reach the sequence. The positions of the sequence do not change. The result is that of prepended embeddings, with
two differences: the prompt has no logits, and a sliding window never excludes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.config import MethodConfig, method_name, option
from eas.hf.api import sdpa_attention_forward
from eas.hf.prompt_attention import PromptKeyValues, heads, project, prompt_positions
from eas.methods.soft_prompt import SoftPrompt, add_prompt
from eas.models.anatomy import Anatomy


@dataclass
class ShallowPromptConfig(MethodConfig):
    """The number of prompt tokens and their start values.

    Raises:
        ConfigError: a value is impossible; the message names the field.
    """

    name: str = method_name("shallow_prompt")
    num_tokens: int = option(20, "m: prompt tokens in front of the input")
    init: str = option("vocabulary", "start values: 'vocabulary' (embeddings of random tokens) or 'normal'")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_tokens", self.num_tokens >= 1, "must be at least 1")
        self._require("init", self.init in ("vocabulary", "normal"), "must be 'vocabulary' or 'normal'")


@dataclass
class DeepPromptConfig(MethodConfig):
    """The number of prompt tokens.

    Raises:
        ConfigError: a value is impossible; the message names the field.
    """

    name: str = method_name("deep_prompt")
    num_tokens: int = option(10, "m: prompt tokens in front of every block's input")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_tokens", self.num_tokens >= 1, "must be at least 1")


class ShallowPrompt(SoftPrompt):
    """``tokens`` ``(m, hidden size)``, which run through the blocks."""

    def __init__(self, layers: list[Any], tokens: Tensor) -> None:
        attentions = [layer.self_attn for layer in layers]
        pairs = 2 * sum(attention.q_proj.out_features for attention in attentions[:-1]) * len(tokens) ** 2
        last = attentions[-1]
        super().__init__(attentions, len(tokens), [*layers[:-1], last.k_proj, last.v_proj], pairs)
        self.tokens = nn.Parameter(tokens)

    def compute(self, text_model: Any) -> list[PromptKeyValues | None]:
        hidden = self.tokens[None].to(text_model.layers[0].input_layernorm.weight)
        rotary = prompt_positions(text_model, hidden)
        states: list[PromptKeyValues | None] = []
        for i, layer in enumerate(text_model.layers):
            # not the block's forward: gradient checkpointing would take away the cache that could keep its keys
            attention = layer.self_attn
            hidden = hidden.to(layer.input_layernorm.weight.device)
            normed = layer.input_layernorm(hidden)
            own = project(attention, normed, rotary)
            states.append(own)
            if i + 1 < len(text_model.layers):
                query = heads(attention, attention.q_proj(normed), rotary)
                seen, _ = sdpa_attention_forward(
                    attention, query, own.keys, own.values, None, scaling=attention.scaling
                )
                hidden = hidden + attention.o_proj(seen.flatten(2))
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return states


class DeepPrompt(SoftPrompt):
    """``tokens`` ``(layers, m, hidden size)``; as their outputs are discarded, only keys and values are computed."""

    def __init__(self, layers: list[Any], num_tokens: int, hidden_size: int) -> None:
        attentions = [layer.self_attn for layer in layers]
        super().__init__(attentions, num_tokens, [m for a in attentions for m in (a.k_proj, a.v_proj)])
        self.tokens = nn.Parameter(torch.empty(len(layers), num_tokens, hidden_size))
        for tokens in self.tokens:
            nn.init.xavier_uniform_(tokens)

    def compute(self, text_model: Any) -> list[PromptKeyValues | None]:
        rotary = prompt_positions(text_model, self.tokens[:1].to(text_model.layers[0].input_layernorm.weight))
        states: list[PromptKeyValues | None] = []
        for layer, tokens in zip(text_model.layers, self.tokens, strict=True):
            normed = layer.input_layernorm(tokens[None].to(layer.input_layernorm.weight))
            states.append(project(layer.self_attn, normed, rotary))
        return states


def attach_shallow(model: PreTrainedModel, config: ShallowPromptConfig) -> None:
    """Adds the prompt. Untrained it changes the model: the model reads the prompt from the start."""
    anatomy = Anatomy.of(model)
    embeddings = anatomy.text_model.get_input_embeddings().weight
    if config.init == "vocabulary":
        rows = torch.randint(len(embeddings), (config.num_tokens,))
        tokens = embeddings[rows.to(embeddings.device)].detach().float()
    else:
        tokens = 0.02 * torch.randn(config.num_tokens, embeddings.shape[1])
    add_prompt(model, config, ShallowPrompt(list(anatomy.layers), tokens))


def attach_deep(model: PreTrainedModel, config: DeepPromptConfig) -> None:
    """Adds the prompt. Untrained it changes the model: the model reads the prompt from the start."""
    size = model.config.get_text_config().hidden_size
    add_prompt(model, config, DeepPrompt(list(Anatomy.of(model).layers), config.num_tokens, size))
