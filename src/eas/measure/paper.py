"""How the paper counts, so that figures can be set beside its tables.

1 "FLOP" is one multiply-accumulate, with two exceptions: vision tower and projector count at 2 per MAC, and whatever
can be folded or merged is free, the fold itself and the prompt's statistics too. So EAS_k is the base less k
attentions (4 d^2 n + 2 d n^2 each), and LoRA costs nothing; adapters that stay count in full.
"""

from __future__ import annotations

import dataclasses

from eas.measure.modules import Counts

PAPER_FOLDS = {"eas": "per_example", "lora": "merged", "drop": "merged"}
"""Method -> the fold that the paper takes for granted. LaVIN's adapter, which could be folded, is counted unfolded."""


def as_the_paper_counts(counts: Counts) -> Counts:
    """An honest count of a folded model, in the paper's convention; only MACs differ."""
    return dataclasses.replace(
        counts,
        macs=counts.macs + counts.vision_macs - counts.statistics_macs,
        vision_macs=2 * counts.vision_macs,
        statistics_macs=0,
        fold_macs=0,
    )
