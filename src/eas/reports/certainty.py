"""The certainty of a number: the interval of an accuracy, and the digits of a time that its spread supports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def interval(score: float, examples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many examples.

    Where an example may score between 0 and 1, the interval is a little too wide.
    """
    centre = score + Z**2 / (2 * examples)
    half = Z * math.sqrt(score * (1 - score) / examples + (Z / (2 * examples)) ** 2)
    scale = 1 + Z**2 / examples
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def share(score: float, examples: int | None) -> str:
    """An accuracy with its interval, where the number of examples is known: 44.0 % (37.3–50.9)."""
    return percent(score) + ("" if not examples else f" ({between(score, examples)})")


def between(score: float, examples: int) -> str:
    """The ends of the interval in percent: 37.3–50.9."""
    return "–".join(f"{100 * end:.1f}" for end in interval(score, examples))


def apart(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether two intervals do not overlap."""
    return a[1] < b[0] or b[1] < a[0]


def decimals(value: float, width: float) -> int:
    """Digits behind the point that a spread of this width supports, at most three; negative: tens, hundreds.

    The last digit is of the order of half the width, but the value keeps its first one: a spread that is far wider does
    not make it 0. A spread of nothing is a single measurement, of which two digits are kept.
    """
    if value == 0:
        return 0 if width <= 0 else min(3, -math.floor(math.log10(width / 2)))
    first = math.floor(math.log10(abs(value)))
    last = min(first, math.floor(math.log10(width / 2))) if width > 0 else first - 1
    return min(3, -last)


def rounded(value: float, digits: int) -> str:
    """A number with so many digits behind the point; negative: tens, hundreds."""
    return f"{round(value, digits):.{max(0, digits)}f}"


def spread_text(spread: Mapping[str, float]) -> str:
    """The median and, in brackets, the spread, with the digits that it supports: 2330 (2310–2390)."""
    median, low, high = (spread[key] for key in ("median", "low", "high"))
    digits = decimals(median, high - low)
    if high == low:
        return f"{rounded(median, digits)} (once)"
    return f"{rounded(median, digits)} ({rounded(low, digits)}–{rounded(high, digits)})"


def median_text(spread: Mapping[str, float]) -> str:
    """The median alone, with the digits that its spread supports."""
    return rounded(spread["median"], decimals(spread["median"], spread["high"] - spread["low"]))
