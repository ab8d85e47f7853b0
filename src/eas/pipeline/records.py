"""The records that the steps of a run, and of a comparison, read from each other."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from eas.data.digest import Digest
from eas.searching.records import RoundRecord


class LossRecord(TypedDict):
    """The training loss at a step."""

    step: int
    loss: float


class SearchRecord(TypedDict):
    """search.json."""

    skip_set: list[int]
    searched: bool
    ranking: NotRequired[list[int]]
    importances: NotRequired[list[float]]
    rounds: NotRequired[list[RoundRecord]]
    cosines: NotRequired[list[float] | None]
    log: NotRequired[list[LossRecord]]
    seconds: NotRequired[float]
    data: NotRequired[dict[str, Digest]]


class TuneRecord(TypedDict):
    """tune.json."""

    log: list[LossRecord]
    seconds: NotRequired[float]
    data: NotRequired[dict[str, Digest]]
    made: NotRequired[dict[str, Any]]


class FoldRecord(TypedDict):
    """fold.json."""

    mode: str | None


class EvalRecord(TypedDict):
    """eval.json."""

    score: dict[str, float]
    answers: dict[str, dict[str, str]]
    examples: NotRequired[int]
    report: NotRequired[dict[str, dict[str, Any]]]
    examples_of: NotRequired[dict[str, int]]
    blind: NotRequired[dict[str, Any]]
    scores: NotRequired[dict[str, dict[str, float]]]
    zero_shot: NotRequired[dict[str, Any]]
    seconds: NotRequired[float]
    data: NotRequired[dict[str, Digest]]


class MeasureRecord(TypedDict):
    """measure.json."""

    counts: dict[str, dict[str, Any]]
    layers: NotRequired[dict[str, list[dict[str, Any]]]]
    latency: dict[str, Any]
    made: NotRequired[dict[str, Any]]
    images_left_out: NotRequired[bool]


STEP_RECORDS: dict[str, Any] = {
    "search": SearchRecord,
    "tune": TuneRecord,
    "fold": FoldRecord,
    "eval": EvalRecord,
    "measure": MeasureRecord,
}
"""By step; other records are mappings of any kind."""


class TrialRun(TypedDict):
    """result.json of a comparison's trial; a trial that diverged has no score."""

    seed: int
    score: dict[str, float | None]
    data: NotRequired[dict[str, Digest]]


class ComparedRun(TypedDict):
    """result.json of a comparison's run."""

    seed: int
    score: dict[str, float]
    skip_set: list[int]
    fold_mode: str | None
    fold_keeps_answers: bool | None
    learning_rate: float | None
    counts: dict[str, float]
    seconds: dict[str, float]
    data: NotRequired[dict[str, Digest]]
    report: NotRequired[dict[str, float]]


class TimingRecord(TypedDict):
    """The times of a comparison."""

    settings: dict[str, Any]
    skip_sets: dict[str, list[int]]
    variants: dict[str, Any]


class ComparisonRecord(TypedDict):
    """The part of comparison.json that a later comparison in the same folder uses."""

    latency: NotRequired[TimingRecord | None]
