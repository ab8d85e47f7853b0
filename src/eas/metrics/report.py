"""The report of an official metric on a set of predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MISSING = "\0"
"""What stands for a missing prediction, and is right nowhere. An empty text is, where an answer is normalised away."""


@dataclass(frozen=True)
class Report:
    """Numbers of one evaluation.

    Args:
        score: the headline, in [0, 1] and not rounded: what a run's tables and its search budget show.
        numbers: every named number in percent, rounded and ordered as the official tool does; the headline among them.
        scores: per example, by id, in [0, 1]; empty where the metric has none (recall from a score matrix).
        counts: how many examples stand behind a number, under the same name, where they differ from all.
    """

    score: float
    numbers: Mapping[str, float]
    scores: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)
