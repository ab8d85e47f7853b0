"""AID's overall accuracy, as the EAS authors compute it (LLaVA-EAS, eval_kzx_closed.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eas.example import Example
from eas.metrics.report import Report
from eas.metrics.vqa import normalise_word, percent


def score_aid(examples: Sequence[Example], predictions: Mapping[str, str]) -> Report:
    """The share of predictions that equal the class, both in lower case and normalised as in VQA."""
    scores = {
        e.id: float(normalise_word(predictions[e.id].lower()) == normalise_word(e.target.lower())) for e in examples
    }
    return Report(sum(scores.values()) / len(scores), {"accuracy": percent(list(scores.values()))}, scores)
