"""The ranks of a preset, which are published for one width, at the width of another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eas.config import MethodConfig

RANKS = ("skip_rank", "adapt_rank")


def at_width(config: MethodConfig, preset: Mapping[str, Any], share: float, step: int) -> dict[str, int]:
    """The ranks that a configuration does not give: the same share of the width, in whole steps.

    Args:
        config: of the method.
        preset: the published values.
        share: of the published width, that of the model; at 1 the ranks are the published ones.
        step: ranks elsewhere are multiples of it.
    """
    left = {name: preset[name] for name in RANKS if vars(config)[name] is None}
    if share == 1:
        return left
    return {name: max(step, step * round(rank * share / step)) for name, rank in left.items()}
