"""Successive halving of skip sets: tune all finalists a little, keep the better half, repeat until one is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eas.searching.base import SkipSet


@dataclass(frozen=True)
class Rung:
    """The number of tuning steps so far, the sets with that many steps, and their held-out losses."""

    steps: int
    skip_sets: list[SkipSet]
    losses: list[float]


def successive_halving(
    skip_sets: Sequence[SkipSet], interval: int, tuned_loss: Callable[[SkipSet, int], float]
) -> tuple[SkipSet, list[Rung]]:
    """The set that is best after the last rung, and all rungs (Jamieson and Talwalkar, AISTATS 2016).

    Args:
        skip_sets: the finalists, the most trusted first: it stays where losses are equal.
        interval: steps of tuning in a rung.
        tuned_loss: held-out loss of a set after so many steps in all.

    Raises:
        ValueError: there are no finalists, or a loss is not a number.
    """
    if not skip_sets:
        raise ValueError("there are no finalists")
    left, rungs = list(skip_sets), list[Rung]()
    while len(left) > 1:
        steps = interval * (len(rungs) + 1)
        losses = [tuned_loss(skip_set, steps) for skip_set in left]
        if any(loss != loss for loss in losses):
            raise ValueError(f"losses {losses} of the finalists {left} after {steps} steps must be numbers")
        rungs.append(Rung(steps, left, losses))
        best = sorted(range(len(left)), key=losses.__getitem__)[: len(left) // 2]
        left = [left[i] for i in best]
    return left[0], rungs
