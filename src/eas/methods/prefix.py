"""Prefix tuning (Li and Liang 2021, arXiv 2101.00190): trained keys and values in front of those of every attention.

The sequence keeps its positions, 0 onwards. PEFT counts the prefix as past tokens and starts the sequence at m; as the
prefix carries no rotary position, that is the same family of models with every key turned by m positions back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from eas.config import MethodConfig, method_name, option
from eas.hf.prompt_attention import PromptKeyValues
from eas.methods.soft_prompt import SoftPrompt, add_prompt
from eas.models.anatomy import Anatomy


@dataclass
class PrefixConfig(MethodConfig):
    """How many prefix tokens, and whether an MLP makes them.

    Raises:
        ConfigError: a value is impossible; the message names the field.
    """

    name: str = method_name("prefix")
    num_tokens: int = option(30, "m: keys and values in front of every attention's own")
    reparameterise: int | None = option(
        None, "hidden size of an MLP that makes all of them from one embedding per token; not given: trained directly"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_tokens", self.num_tokens >= 1, "must be at least 1")
        self._require("reparameterise", self.reparameterise is None or self.reparameterise >= 1, "must be at least 1")


class Prefix(SoftPrompt):
    """``table``: ``(m, layers x 2 x key heads x head size)``, normal (0, 0.02); or, standard normal, the
    ``(m, hidden size)`` input of ``mlp``, which gives them."""

    def __init__(self, layers: list[Any], num_tokens: int, hidden_size: int, reparameterise: int | None) -> None:
        size = sum(layer.self_attn.k_proj.out_features + layer.self_attn.v_proj.out_features for layer in layers)
        mlp = None
        if reparameterise is not None:
            mlp = nn.Sequential(nn.Linear(hidden_size, reparameterise), nn.Tanh(), nn.Linear(reparameterise, size))
        super().__init__(layers, num_tokens, [], num_tokens * (hidden_size + size) * (reparameterise or 0))
        self.mlp = mlp
        self.table = nn.Parameter(
            0.02 * torch.randn(num_tokens, size) if mlp is None else torch.randn(num_tokens, hidden_size)
        )

    def compute(self, text_model: Any) -> list[PromptKeyValues | None]:
        rows = self.table if self.mlp is None else self.mlp(self.table)
        head_size = text_model.layers[0].self_attn.head_dim
        pairs = rows.view(self.num_tokens, len(text_model.layers), 2, -1, head_size).permute(1, 2, 3, 0, 4)
        weights = [layer.input_layernorm.weight for layer in text_model.layers]
        return [PromptKeyValues(*pair[:, None].to(weight)) for pair, weight in zip(pairs, weights, strict=True)]


def attach(model: PreTrainedModel, config: PrefixConfig) -> None:
    """Untrained it does change the model: a key of zeros takes part in the softmax too."""
    layers, size = list(Anatomy.of(model).layers), model.config.get_text_config().hidden_size
    add_prompt(model, config, Prefix(layers, config.num_tokens, size, config.reparameterise))
