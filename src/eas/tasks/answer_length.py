"""How many tokens an answer needs, so that no metric loses what a cut takes off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eas.example import Example
from eas.tasks.collate import Collator
from eas.tasks.evaluation import generated, score_answers

ENOUGH = 16
"""Tokens that hold most answers."""


@dataclass(frozen=True)
class Cut:
    """What a limit does to the answers of the data, given as if by a perfect model.

    Args:
        whole: their score.
        score: their score if they end at the limit.
        longest: tokens of the longest of them, the end token included.
    """

    whole: float
    score: float
    longest: int


def cut(
    examples: Sequence[Example], processor: Any, limit: int, metric: str, options: Mapping[str, Any] | None = None
) -> Cut:
    """Cuts the targets of some examples at a number of tokens; see ``evaluate`` for the arguments.

    Example:
        >>> from eas.demo.tiny import load_tiny
        >>> examples = [Example.ask("0", "what is this?", "a large red circle")]
        >>> cut(examples, load_tiny()[1], 2, "exact")
        Cut(whole=1.0, score=0.0, longest=5)
    """
    tokenizer = Collator(processor, training=False).tokenizer
    tokens = {e.id: tokenizer(e.target, add_special_tokens=False)["input_ids"] for e in examples}
    longest = max(map(len, tokens.values()), default=0) + 1
    if not generated(metric, examples, options):
        return Cut(1.0, 1.0, longest)

    def score(most: int) -> float:
        texts = {id: tokenizer.decode(own[:most], skip_special_tokens=True).strip() for id, own in tokens.items()}
        return score_answers(metric, examples, texts, options).score

    return Cut(score(longest), score(limit), longest)
