"""The paper's counting convention, for comparisons with its tables.

1 "FLOP" is one multiply-accumulate, with two exceptions: vision tower and projector count at 2 per MAC, and whatever
can be folded or merged is free, the fold itself and the prompt's statistics too. So EAS_k is the base less k
attentions (4 d^2 n + 2 d n^2 each), and LoRA costs nothing; adapters that stay count in full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eas.measure.modules import Counts

PAPER_FOLDS = {"eas": "per_example", "lora": "merged", "drop": "merged"}
"""Method -> the fold that the paper takes for granted. LaVIN's adapter, which could be folded, is counted unfolded."""


def as_the_paper_counts(counts: Counts) -> Counts:
    """An honest count of a folded model, in the paper's convention; only MACs differ."""
    return dataclasses.replace(
        counts,
        macs=counts.macs + counts.vision_macs - counts.statistics_macs - counts.fold_macs,
        vision_macs=2 * counts.vision_macs,
        statistics_macs=0,
        fold_macs=0,
    )


def _linear_projector(config: Any) -> int:
    """LLaVA v1's. The paper counts no more in Table 3 either, though LLaVA-1.5's projector has two layers."""
    projector: int = (config.vision_config.hidden_size + 1) * config.get_text_config().hidden_size
    return projector


def _visual_input(config: Any) -> int:
    """CLIP ViT-L's first token through a bottleneck of 128 to the width of the language model."""
    width: int = config.get_text_config().hidden_size
    return (1024 + 1) * 128 + (128 + 1) * width


def _lavin(config: Any) -> int:
    """What LaVIN trains around its language model: routed adapters of rank 8, with two grouped up paths, in CLIP
    ViT-L's 24 blocks, the visual input, and two modality embeddings."""
    adapter = (1024 + 1) * 8 + 2 * (8 * 1024 // 2 + 1024) + (1024 + 1) * 2
    width: int = config.get_text_config().hidden_size
    return 24 * adapter + _visual_input(config) + 2 * width


BESIDE: dict[str, Callable[[Any], int]] = {
    "linear_projector": _linear_projector,
    "visual_input": _visual_input,
    "lavin": _lavin,
}
"""What is trained beside the method in the paper's tables, in parameters, of the shape's configuration."""


@dataclass(frozen=True)
class Meter:
    """The co-attention layers of METER-base (Dou et al. 2022), each with self- and cross-attention for both modalities.

    Args:
        image_tokens: patches and the class token: 577 at 384 pixels, 325 at 288.
        text_tokens: 40 in METER.
        width: d.
        layers: co-attention layers.
    """

    image_tokens: int
    text_tokens: int = 40
    width: int = 768
    layers: int = 6

    def attentions(self) -> list[int]:
        """MACs of every candidate, projections included: self- and cross-attentions of both modalities."""
        d, i, t = self.width, self.image_tokens, self.text_tokens
        own = [4 * d * d * n + 2 * d * n * n for n in (i, t)]
        cross = 2 * d * d * (i + t) + 2 * d * i * t  # the same either way: one gives queries, the other keys and values
        return [*own, cross, cross] * self.layers

    def savings(self, k: int) -> tuple[int, int]:
        """The least and the most that skipping k attentions can save."""
        costs = sorted(self.attentions())
        return sum(costs[:k]), sum(costs[len(costs) - k :])
