"""Slake's accuracies, as the EAS authors compute them, and in addition the recall of LLaVA-Med and plain equality.

Sources: LLaVA-EAS (eval_kzx.py); microsoft/LLaVA-Med (evaluate_metrics.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from eas.example import Example
from eas.metrics.report import Report
from eas.metrics.vqa import normalise_word, percent


def score_slake(examples: Sequence[Example], predictions: Mapping[str, str]) -> Report:
    """Accuracies by answer type; texts are compared in lower case and normalised as in VQA.

    - open, closed, overall (the headline): the answer is a substring of the prediction, also inside a word, as the
      authors have it: "no" is in "normal".
    - open_recall: share of the answer's words that the prediction has. The paper of LLaVA-Med gives this one.
    - open_exact_match: the authors' share of different words of the answer in the words of the prediction; a perfect
      prediction that repeats a word is below 1.
    - open_equal, closed_equal, overall_equal: prediction and answer are the same.

    A type without an example is left out.

    Args:
        examples: with "answer_type" (OPEN or CLOSED) in their metadata.
        predictions: a text per id.
    """
    scores: dict[str, float] = {}
    columns: dict[str, list[float]] = {}
    for example in examples:
        answer, given = normalise_word(example.target.lower()), normalise_word(predictions[example.id].lower())
        kind, contained, equal = example.metadata["answer_type"].lower(), float(answer in given), float(answer == given)
        found = {kind: contained, "overall": contained, f"{kind}_equal": equal, "overall_equal": equal}
        if kind == "open":
            found |= {"open_recall": recall(given, answer), "open_exact_match": exact_match(given, answer)}
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
        scores[example.id] = contained
    order = ("open", "closed", "overall", "open_recall", "open_exact_match")
    names = [name for name in (*order, "open_equal", "closed_equal", "overall_equal") if name in columns]
    return Report(
        score=sum(scores.values()) / len(scores),
        numbers={name: percent(columns[name]) for name in names},
        scores=scores,
        counts={name: len(columns[name]) for name in names},
    )


def recall(prediction: str, answer: str) -> float:
    """Words of the prediction that are the answer's, over them and the answer's words that are not in the prediction.

    A word that the prediction repeats counts each time, as in LLaVA-Med.
    """
    given, wanted = Counter(prediction.split()), Counter(answer.split())
    hits = sum(count for word, count in given.items() if word in wanted)
    misses = sum(count for word, count in wanted.items() if word not in given)
    return hits / (hits + misses) if hits else 0.0


def exact_match(prediction: str, answer: str) -> float:
    """Different words of the answer that are in the prediction, over the number of the prediction's words."""
    given = prediction.split()
    return len(set(answer.split()) & set(given)) / len(given) if given else 0.0
