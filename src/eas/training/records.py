"""The fields that training reads from the files of a checkpoint."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class LogRecord(TypedDict):
    """One line of the log."""

    step: int
    loss: NotRequired[float]


class TrainerRecord(TypedDict):
    """trainer_state.json."""

    epoch: float | None
    global_step: int
    max_steps: int
    num_train_epochs: float
    logging_steps: float
    save_steps: float
    train_batch_size: int | None
    log_history: list[LogRecord]
    stateful_callbacks: dict[str, Any]


class OptimizerRecord(TypedDict):
    """optimizer.pt."""

    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class SchedulerRecord(TypedDict):
    """scheduler.pt."""

    last_epoch: int
    base_lrs: NotRequired[list[float]]
