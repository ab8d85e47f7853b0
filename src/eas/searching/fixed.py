"""Rankings that need no losses; a search must beat them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eas.searching.base import shuffled


def random_ranking(num_candidates: int, num_skip: int, seed: int) -> list[int]:
    """A uniformly random order."""
    return shuffled(num_candidates, seed)


def last_ranking(num_candidates: int, num_skip: int, seed: int) -> list[int]:
    """From the last candidate to the first: the last k are skipped."""
    return list(range(num_candidates))[::-1]


def every_other_ranking(num_candidates: int, num_skip: int, seed: int) -> list[int]:
    """Every second candidate from the last one backwards, then those between, also backwards."""
    backwards = last_ranking(num_candidates, num_skip, seed)
    return backwards[::2] + backwards[1::2]


def similarity_ranking(cosines: Sequence[float]) -> list[int]:
    """The highest cosine between what goes into a block and what comes out first: that block changes least.

    Raises:
        ValueError: a cosine is not finite.
    """
    if not np.isfinite(cosines).all():
        raise ValueError(f"cosines {list(cosines)} must be finite; leave out examples without tokens")
    return [int(i) for i in np.argsort(-np.asarray(cosines, dtype=float), kind="stable")]


FIXED: dict[str, Callable[[int, int, int], list[int]]] = {
    "random": random_ranking,
    "last": last_ranking,
    "every_other": every_other_ranking,
}
