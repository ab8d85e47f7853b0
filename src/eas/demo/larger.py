"""A wide model with random weights, to time a skip set at a width where matrices take the time, not overhead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from eas.attachment.attach import fold
from eas.attachment.sharing import attached_copy
from eas.config import MethodConfig
from eas.methods.eas import EASConfig

WIDTH, PROMPT_TOKENS = 1024, 256
"""Of the model, and of its prompt."""


def larger_base(hidden_size: int, prompt_tokens: int) -> tuple[LlamaForCausalLM, dict[str, Tensor], str]:
    """A twelve-layer Llama of LLaVA's proportions, inputs of one prompt, and a name that says what it is."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 11 // 4,
            num_hidden_layers=12,
            num_attention_heads=hidden_size // 64,
            vocab_size=1024,
        )
    ).eval()
    ids = torch.randint(10, 1024, (1, prompt_tokens))
    name = f"Llama shape, d = {hidden_size}, 12 layers, random weights, prompt {prompt_tokens}"
    return base, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, name


def larger_tuned(
    base: LlamaForCausalLM, skip_set: Sequence[int], config: MethodConfig, fold_mode: str | None
) -> LlamaForCausalLM:
    """The base with an untrained method attached and a skip set pruned, folded where a mode is given.

    It shares the base's weights.
    """
    tuned: LlamaForCausalLM = attached_copy(base, config, skip_set)
    if fold_mode is not None:
        fold(tuned, fold_mode)
    return tuned


def larger_pair(
    skip_set: tuple[int, ...], config: EASConfig, fold_mode: Any
) -> tuple[LlamaForCausalLM, LlamaForCausalLM, dict[str, Tensor], str]:
    """The base, and the base with the skip set folded and ranks scaled to its width.

    Returns:
        base, folded model, inputs of one prompt, and a name that says what it is.
    """
    base, inputs, name = larger_base(WIDTH, PROMPT_TOKENS)
    ranks = {"skip_rank": 256, "adapt_rank": 128, "train_projector": False}  # LLaVA's, at the paper's width
    config = EASConfig.from_dict({**config.to_dict(), **ranks}).rescaled(WIDTH)
    name += f", ranks {config.skip_rank} and {config.adapt_rank} (LLaVA's share of d)"
    return base, larger_tuned(base, skip_set, config, fold_mode), inputs, name
