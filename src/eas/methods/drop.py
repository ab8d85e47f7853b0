"""Attention dropping without replacement (LLM-Drop, He et al. 2024, arXiv 2406.15786), LoRA tunes the rest.

Which attentions go is up to ``SearchConfig(rule=...)``: "similarity" is LLM-Drop's own (the cosine of a module's input
and output on a few examples), "last" and "every_other" go by position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from eas.config import Candidates, SkipConfig, method_name, option
from eas.hf.classes import become
from eas.hf.skipping import SkippableBlock, SkippingModel, SkippingTextModel
from eas.methods.lora import MAPS, inject
from eas.models.anatomy import Anatomy
from eas.models.block import Block, become_blocks


@dataclass
class DropConfig(SkipConfig):
    """k attentions are dropped; LoRA tunes all maps of the rest.

    Example:
        >>> import eas
        >>> eas.DropConfig(num_skip=4, rank=8).candidates
        'mha'
    """

    name: str = method_name("drop")
    candidates: Candidates = option("mha", "modules that may be dropped: 'mha', 'ffn', 'either' or 'layer'")
    rank: int = option(16, "r: rank of LoRA")
    alpha: float | None = option(None, "LoRA's update is scaled by alpha / r; null: 2 r")
    dropout: float = option(0.0, "dropout on LoRA's input in training")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("rank", self.rank >= 1, "must be at least 1")
        self._require("alpha", self.alpha is None or self.alpha > 0, "must be above 0")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")

    @property
    def search_trains(self) -> bool:
        return False


class DropBlock(Block):
    """Without attention: ``x += FFN(Nf(x))``; without FFN: ``x += MHA(Na(x))``; without both: x."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.skip_mha and not self.skip_ffn:
            return super().forward(hidden_states, *args, **kwargs)
        x, mha, ffn = hidden_states, self.built.mha, self.built.ffn
        if not self.skip_mha:
            x = self.attend(x, self.normed(mha, x), getattr(self, mha.body), kwargs)
        if not self.skip_ffn:
            x = self.feed(x, self.normed(ffn, x), getattr(self, ffn.body))
        return self.end(x, args)


class DropAttention(SkippableBlock):
    """An attention that is dropped by itself (METER): its residual and norm go along, so that its layer hands on what
    came in."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (None, None) if self.skip_mha else super().forward(*args, **kwargs)


def attach(model: PreTrainedModel, config: DropConfig) -> None:
    """Adds LoRA to every map, and lets blocks drop parts; untrained and with nothing dropped, nothing changes."""
    anatomy = Anatomy.of(model)
    if anatomy.form == "decoder":
        become_blocks(anatomy.layers, anatomy.built, DropBlock)
        become(anatomy.text_model, SkippingTextModel)
        become(model, SkippingModel)
    else:
        for index, block in enumerate(anatomy.blocks(config.candidates)):
            block.index, block.skip_mha, block.skip_ffn, block.built = index, False, False, anatomy.built
            become(block, DropBlock if block in anatomy.layers else DropAttention)
    inject(model, config.rank, config.alpha, config.dropout, list(MAPS))


def prune(model: PreTrainedModel) -> None:
    """Removes the norms of dropped attentions (METER)."""
    anatomy = Anatomy.of(model)
    for layer in anatomy.layers:
        for branch in anatomy.branches:
            body = layer._modules.get(branch.body)
            if isinstance(body, DropAttention) and body.skip_mha:
                setattr(layer, branch.norm or "", None)
