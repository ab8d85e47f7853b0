"""Metrics: one score in [0, 1] per prediction and example; a result is their mean."""

from __future__ import annotations

from collections.abc import Callable

from eas.example import Example
from eas.metrics.exact import choice, contains, exact_match, ranked
from eas.metrics.vqa import vqa

RANKING = "ranking"
"""The metric for which nothing is generated: the likeliest of an example's choices is the answer."""
METRICS: dict[str, Callable[[str, Example], float]] = {
    "exact": lambda prediction, example: exact_match(prediction, example.target),
    "contains": lambda prediction, example: contains(prediction, example.target),
    "choice": choice,
    "vqa": vqa,
    RANKING: ranked,
}
LOSS_ONLY = "none"
"""The name for no metric: nothing is generated; the target's probability is the score (`eas.tasks.evaluation`)."""
