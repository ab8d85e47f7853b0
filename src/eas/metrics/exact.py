"""String comparisons between an answer and its target."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from eas.example import DataError, Example

START, END = r"(?<!\w)(?!(?<=\d[.,])\d)(?!(?<=-)(?<!\w-)\d)", r"(?!\w)(?!(?<=\d)[.,]\d)"
"""Where a word or a number begins and ends."""


def exact_match(prediction: str, target: str) -> float:
    """1.0 if both are equal up to case, white space and a final period, else 0.0."""
    return float(normalise(prediction) == normalise(target))


def contains(prediction: str, target: str) -> float:
    """1.0 if the prediction holds the target as whole words or numbers, else 0.0.

    "no" is not in "normal", and "3" is neither in "3.5" nor in "-3". An empty target is in an empty prediction only.
    """
    words, said = normalise(target), normalise(prediction)
    return float(re.search(rf"{START}{re.escape(words)}{END}", said) is not None if words else not said)


def choice(prediction: str, example: Example) -> float:
    """1.0 if the prediction begins with one of the example's choices and that choice is the target, else 0.0.

    Case, white space and a final period do not count, unless two choices differ in nothing else.

    Raises:
        DataError: the example has no choices.
    """
    if not example.choices:
        raise DataError(f"example {example.id} has no choices; use the metric `exact` or `contains`")
    form = form_for(example.choices)
    words = form(prediction)
    # The longest first, so that "red square" is not taken for "red".
    choices = sorted(map(form, example.choices), key=len, reverse=True)
    leading = next((option for option in choices if re.match(rf"{re.escape(option)}{END}", words)), None)
    return float(leading == form(example.target))


def ranked(prediction: str, example: Example) -> float:
    """1.0 if the choice that the model finds likeliest is the target, else 0.0; texts are compared as in `choice`.

    Raises:
        DataError: the example has no choices.
    """
    if not example.choices:
        raise DataError(f"example {example.id} has no choices to rank; use the metric `exact` or `contains`")
    form = form_for(example.choices)
    return float(form(prediction) == form(example.target))


def form_for(choices: Iterable[str]) -> Callable[[str], str]:
    """How choices are compared: `normalise`, or without a change where that makes one of two."""
    different = set(choices)
    return normalise if len(set(map(normalise, different))) == len(different) else str.strip


def normalise(text: str) -> str:
    """Lower case, single spaces, no final period; of a period alone nothing is taken off."""
    words = " ".join(text.lower().split())
    return words.removesuffix(".").rstrip() or words
