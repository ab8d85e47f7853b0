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
from eas.models.anatomy import Anatomy, attentions


@dataclass
class PrefixConfig(MethodConfig):
    """The number of prefix tokens, and whether an MLP makes them.

    Raises:
        ConfigError: a value is impossible; the message names the field.
    """

    name: str = method_name("prefix")
    num_tokens: int = option(30, "m: keys and values in front of every attention's own")
    reparameterise: int | None = option(
        None, "hidden size of an MLP that makes keys and values from one embedding per token; null: no MLP"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_tokens", self.num_tokens >= 1, "must be at least 1")
        self._require("reparameterise", self.reparameterise is None or self.reparameterise >= 1, "must be at least 1")


class Prefix(SoftPrompt):
    """``table``: ``(m, attentions x 2 x key heads x head size)``, normal (0, 0.02); or, standard normal, the
    ``(m, hidden size)`` input of ``mlp``, which gives them."""

    def __init__(self, text_model: Any, num_tokens: int, reparameterise: int | None) -> None:
        seeing = [attention for attention, _ in attentions(text_model)]
        hidden_size = seeing[0].q_proj.in_features
        size = sum(attention.k_proj.out_features + attention.v_proj.out_features for attention in seeing)
        mlp = None
        if reparameterise is not None:
            mlp = nn.Sequential(nn.Linear(hidden_size, reparameterise), nn.Tanh(), nn.Linear(reparameterise, size))
        super().__init__(seeing, num_tokens, [], num_tokens * (hidden_size + size) * (reparameterise or 0))
        self.mlp = mlp
        self.table = nn.Parameter(
            0.02 * torch.randn(num_tokens, size) if mlp is None else torch.randn(num_tokens, hidden_size)
        )

    def compute(self, text_model: Any) -> list[PromptKeyValues | None]:
        rows = self.table if self.mlp is None else self.mlp(self.table)
        seeing = attentions(text_model)
        pairs = rows.view(self.num_tokens, len(seeing), 2, -1, seeing[0][0].head_dim).permute(1, 2, 3, 0, 4)
        return [PromptKeyValues(*pair[:, None].to(norm.weight)) for pair, (_, norm) in zip(pairs, seeing, strict=True)]


def attach(model: PreTrainedModel, config: PrefixConfig) -> None:
    """Adds the prefix. Untrained it changes the model: even a key of zeros takes part in the softmax."""
    add_prompt(model, config, Prefix(Anatomy.of(model).text_model, config.num_tokens, config.reparameterise))
