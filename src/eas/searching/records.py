"""The stored records of a search."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class RoundRecord(TypedDict):
    """One round, as in `eas.searching.phase.Round`."""

    step: int
    skip_sets: list[list[int]]
    losses: list[float]
    importances: list[float]


class SearchState(TypedDict):
    """search_state.json, beside a checkpoint."""

    search: NotRequired[dict[str, Any]]
    rule: dict[str, Any]
    rounds: list[RoundRecord]
    round_seconds: float
    seconds: float


class RuleState(TypedDict):
    """The state of every rule."""

    importance: list[float]
    rounds: int
    unchanged: int
    rng: dict[str, Any]


class RegressionState(RuleState):
    """The additional state of the rules that fit a linear model."""

    gram: list[list[float]]
    moment: list[float]
    square: float
    degrees: int


class GuidedState(RegressionState):
    """The additional state of the rule that knows the similarity of every candidate."""

    cosines: list[float] | None
