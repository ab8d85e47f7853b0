"""The common part of all search rules: distinct proposals, checked losses, a ranking, a stopping rule, a state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eas.records import RecordError, misfit
from eas.searching.records import RuleState

SkipSet = tuple[int, ...]
Array = NDArray[np.floating[Any]]
TRIES = 20  # draws per wanted set, before uniform ones fill the round
PATIENCE = 30  # a search is settled if the skip set has not changed for so many rounds, and for half of all rounds


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below ``count`` in random order."""
    return [int(i) for i in np.random.default_rng(seed).permutation(count)]


class RuleBase:
    """A rule without its two ideas: ``draw`` samples a set, ``update`` turns losses into importances.

    Args:
        num_candidates: n.
        num_skip: k, at least 1 and below n.
        seed: of the draws.

    Raises:
        ValueError: k does not fit n.
    """

    STATE: type = RuleState

    def __init__(self, num_candidates: int, num_skip: int, seed: int) -> None:
        if not 1 <= num_skip < num_candidates:
            raise ValueError(f"num_skip = {num_skip} must be at least 1 and below the {num_candidates} candidates")
        self.num_candidates, self.num_skip = num_candidates, num_skip
        self.importance: Array = np.zeros(num_candidates)
        self.rounds = self.unchanged = 0
        self.rng = np.random.default_rng(seed)

    def draw(self, taken: Sequence[SkipSet]) -> Array:
        """A score for every candidate, ``(n,)``; the k lowest are proposed. ``taken``: the round's sets so far."""
        raise NotImplementedError

    def update(self, skipped: Array, losses: Array) -> None:
        """Learns from one round: ``skipped`` ``(m, n)`` is 1 if a set skips a candidate, ``losses`` ``(m,)``."""
        raise NotImplementedError

    def propose(self, m: int, sizes: tuple[int, int] | None = None) -> list[SkipSet]:
        low, high = sizes or (self.num_skip, self.num_skip)
        total = sum(comb(self.num_candidates, size) for size in range(low, high + 1))
        sets: list[SkipSet] = []
        for attempt in range(TRIES * m):
            if len(sets) == min(m, total):
                return sets
            # the last tries are uniform: a sharp policy may hardly offer m different sets
            scores = self.draw(sets) if attempt < TRIES * m // 2 else self.rng.random(self.num_candidates)
            proposal = self._lowest(scores, low if low == high else int(self.rng.integers(low, high + 1)))
            if proposal not in sets:
                sets.append(proposal)
        # only where hardly more than m sets exist at all, so that they are few enough to list
        everything = chain(*(combinations(range(self.num_candidates), size) for size in range(low, high + 1)))
        rest = [s for s in everything if s not in sets]
        return sets + [rest[i] for i in self.rng.permutation(len(rest))[: m - len(sets)]]

    def observe(self, skip_sets: Sequence[SkipSet], losses: Sequence[float]) -> None:
        values = np.asarray(losses, dtype=float)
        if len(values) != len(skip_sets) or not np.isfinite(values).all():
            raise ValueError(f"losses {list(losses)} must be finite, one for each of the {len(skip_sets)} skip sets")
        skipped = np.zeros((len(skip_sets), self.num_candidates))
        for row, skip_set in zip(skipped, skip_sets, strict=True):
            row[list(skip_set)] = 1.0
        before = self._lowest(self.importance)
        self.update(skipped, values)
        self.rounds += 1
        self.unchanged = self.unchanged + 1 if self._lowest(self.importance) == before else 0

    def ranking(self) -> list[int]:
        return [int(i) for i in np.argsort(self.importance, kind="stable")]

    def importances(self) -> list[float]:
        return [float(value) for value in self.importance]

    def standard_errors(self) -> list[float | None]:
        return [None] * self.num_candidates

    def settled(self) -> bool:
        return self.unchanged >= max(PATIENCE, self.rounds / 2)

    def state_dict(self) -> dict[str, Any]:
        counts = {"rounds": self.rounds, "unchanged": self.unchanged}
        return {"importance": self.importances(), **counts, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if wrong := misfit(state, self.STATE, "rule"):
            raise RecordError(wrong)
        self.importance = self._array(state, "importance")
        self.rounds, self.unchanged = state["rounds"], state["unchanged"]
        try:
            self.rng.bit_generator.state = state["rng"]
        except Exception as error:  # whatever NumPy raises that is given something else
            raise RecordError(f"rule.rng is no state of a random generator ({error})") from error

    def _array(self, state: dict[str, Any], key: str, dimensions: int = 1) -> Array:
        """What a state holds for every candidate, or every two."""
        size = self.num_candidates
        if any(len(row) != size for row in [state[key], *(state[key] if dimensions == 2 else [])]):
            raise RecordError(f"rule.{key} is not of {size} candidates")
        return np.asarray(state[key], dtype=float)

    def _lowest(self, scores: Array, size: int | None = None) -> SkipSet:
        size = self.num_skip if size is None else size
        return tuple(sorted(np.argsort(scores, kind="stable")[:size].tolist()))
