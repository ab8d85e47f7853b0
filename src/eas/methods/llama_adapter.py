"""LLaMA-Adapter (Zhang et al. 2023, arXiv 2303.16199): adaption prompts behind a gate that starts at zero.

In the topmost blocks every query also attends to m trained tokens, whose keys and values are the attention's own maps
of them, without norm or position; that attention has a softmax of its own, and its output, times the tanh of a number
per head, is added before the output projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from eas.config import ConfigError, MethodConfig, method_name, option
from eas.hf.prompt_attention import PromptKeyValues, project
from eas.methods.soft_prompt import SoftPrompt, add_prompt
from eas.models.anatomy import Anatomy


@dataclass
class LlamaAdapterConfig(MethodConfig):
    """The number of adaption prompts, and their blocks.

    Raises:
        ConfigError: a value is impossible; the message names the field.

    Example:
        >>> import eas
        >>> eas.LlamaAdapterConfig(num_tokens=10).num_tokens
        10
    """

    name: str = method_name("llama_adapter")
    num_tokens: int = option(10, "m: adaption prompts at each of the topmost blocks")
    num_layers: int | None = option(None, "number of topmost blocks with prompts; null: all but the first two")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_tokens", self.num_tokens >= 1, "must be at least 1")
        self._require("num_layers", self.num_layers is None or self.num_layers >= 1, "must be at least 1")


class AdaptionPrompts(SoftPrompt):
    """``tokens`` ``(layers, m, hidden size)``, standard normal, and ``gate`` ``(layers, query heads)``, zero."""

    def __init__(self, layers: list[Any], num_tokens: int, hidden_size: int) -> None:
        attentions = [layer.self_attn for layer in layers]
        super().__init__(attentions, num_tokens, [m for a in attentions for m in (a.k_proj, a.v_proj)])
        self.tokens = nn.Parameter(torch.randn(len(layers), num_tokens, hidden_size))
        self.gate = nn.Parameter(torch.zeros(len(layers), attentions[0].q_proj.out_features // attentions[0].head_dim))

    def compute(self, text_model: Any) -> list[PromptKeyValues | None]:
        first = len(text_model.layers) - len(self.tokens)
        states: list[PromptKeyValues | None] = [None] * first
        for layer, tokens, gate in zip(text_model.layers[first:], self.tokens, self.gate, strict=True):
            own = project(layer.self_attn, tokens[None].to(layer.input_layernorm.weight))
            states.append(own._replace(gate=gate.tanh()))
        return states


def attach(model: PreTrainedModel, config: LlamaAdapterConfig) -> None:
    """Untrained, it changes nothing: the gates are zero."""
    layers = list(Anatomy.of(model).layers)
    count = max(len(layers) - 2, 1) if config.num_layers is None else config.num_layers
    if count > len(layers):
        raise ConfigError(f"LlamaAdapterConfig.num_layers = {count}: the model has {len(layers)}")
    size = model.config.get_text_config().hidden_size
    add_prompt(model, config, AdaptionPrompts(layers[-count:], config.num_tokens, size))
