"""The records that a page shows, as far as it reads them: what a file holds otherwise is refused by its field."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class TimesRecord(TypedDict):
    """Milliseconds of one variant."""

    median: float
    low: float
    high: float


class LatencyRecord(TypedDict):
    """What was timed; ``larger`` is the stand-in beside the embedded model."""

    variants: NotRequired[dict[str, dict[str, TimesRecord | None]]]
    bounds: NotRequired[dict[str, float]]
    repeats: NotRequired[int | None]
    prompt_tokens: NotRequired[int | None]
    new_tokens: NotRequired[int | None]
    width: NotRequired[int | None]
    larger: NotRequired[LatencyRecord | None]


class PointRecord(TypedDict):
    """The training loss at a step."""

    step: int
    loss: float


class RoundPoint(TypedDict):
    """What a round of the search left."""

    step: int
    importances: list[float]


class FoundRecord(TypedDict):
    """What the search found."""

    skip_set: NotRequired[list[int]]
    ranking: NotRequired[list[int]]
    importances: NotRequired[list[float]]
    rounds: NotRequired[list[RoundPoint]]
    rungs: NotRequired[list[dict[str, Any]]]


class TrainingRecord(TypedDict):
    """The losses of both phases."""

    search: NotRequired[list[PointRecord] | None]
    tune: NotRequired[list[PointRecord] | None]
    seconds: NotRequired[dict[str, float | None] | None]


class BlockRecord(TypedDict):
    """MACs and bytes of one block."""

    mha: float
    ffn: float
    other: float
    kv_bytes: float


class SampleRecord(TypedDict):
    """One example with both models' answers."""

    question: str
    target: str
    turns: NotRequired[list[dict[str, str]] | None]
    base: NotRequired[str | None]
    tuned: NotRequired[str | None]
    base_score: NotRequired[float | None]
    tuned_score: NotRequired[float | None]
    categories: NotRequired[dict[str, str] | None]
    images: NotRequired[list[str] | None]


class ModelSection(TypedDict):
    """The model and its skip set."""

    layers: NotRequired[int | None]
    candidates: NotRequired[int | None]
    candidate_layers: NotRequired[list[int] | None]
    k: NotRequired[int | None]
    skip_set: NotRequired[list[int] | None]


class TaskSection(TypedDict):
    """What the model is scored on, and what blind answers score there."""

    examples: NotRequired[int | None]
    chance: NotRequired[float | None]
    majority: NotRequired[float | None]
    zero_shot: NotRequired[dict[str, Any] | None]


class ResultRecord(TypedDict):
    """result.json of a run."""

    versions: NotRequired[dict[str, Any] | None]
    hardware: NotRequired[dict[str, Any] | None]
    config: NotRequired[dict[str, Any] | None]
    model: NotRequired[ModelSection | None]
    task: NotRequired[TaskSection | None]
    accuracy: NotRequired[dict[str, float | None] | None]
    categories: NotRequired[dict[str, dict[str, float | None] | None] | None]
    counts: NotRequired[dict[str, dict[str, float | None] | None] | None]
    layers: NotRequired[dict[str, list[BlockRecord]] | None]
    latency: NotRequired[LatencyRecord | None]
    search: NotRequired[FoundRecord | None]
    training: NotRequired[TrainingRecord | None]
    samples: NotRequired[list[SampleRecord] | None]


class SeedsRecord(TypedDict):
    """One value per seed, and what they come to."""

    values: list[float]
    mean: float
    sd: float | None


class RowRecord(TypedDict):
    """A row of a comparison."""

    row: str
    label: str
    method: str | None
    k: int
    seeds: list[int]
    failed: int
    learning_rate: NotRequired[float | None]
    test: NotRequired[SeedsRecord | None]
    validation: NotRequired[SeedsRecord | None]
    counts: NotRequired[dict[str, float] | None]
    skip_sets: NotRequired[list[list[int]] | None]
    candidate_layers: NotRequired[list[int] | None]
    folders: NotRequired[list[str] | None]


class ShownComparison(TypedDict):
    """comparison.json."""

    rows: list[RowRecord]


class KRecord(TypedDict):
    """What a k costs and saves."""

    k: int
    skip_set: list[int]
    predicted: float
    standard_error: float
    measured: float | None
    macs_share: float
    kv_share: float
    decode_bound: float


class FrontierRecord(TypedDict):
    """frontier.json."""

    candidates: NotRequired[int]
    rows: list[KRecord]
    base: dict[str, Any]
    recommended: int | None
