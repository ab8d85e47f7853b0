"""The progress of a training phase, with the loss beside it, and the time it took."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from eas.progress import Bar


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """Shows how far a phase is; see `eas.progress`."""

    def __init__(self, title: str) -> None:
        self.title, self.losses = title, ""
        self.bar: Bar | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar = Bar(self.title, state.max_steps, state.global_step).__enter__()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        shown = {"loss": "loss", "held_out_loss": "held-out"}
        self.losses = "  ".join(
            f"{shown[key]} {float(value):.3f}" for key, value in (logs or {}).items() if key in shown
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.say(self.losses)
            self.bar.advance(state.global_step)

    def close(self) -> None:
        """Ends it, also where training failed."""
        if self.bar is not None:
            self.bar.__exit__()
            self.bar = None


class Clock(TrainerCallback):  # type: ignore[misc]
    """The time of a phase over all its sessions: each entry of the log holds it, and so does each checkpoint."""

    def __init__(self) -> None:
        self.start, self.first_step = time.perf_counter(), 0
        self.earlier: float | None = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.first_step = state.global_step
        if state.log_history:
            self.earlier = state.log_history[-1].get("seconds")

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (seconds := self.seconds(state)) is not None:
            state.log_history[-1]["seconds"] = seconds

    def seconds(self, state: Any) -> float | None:
        """So far; None after a checkpoint of an older version, which does not say."""
        if self.earlier is None or state.global_step == self.first_step:  # or nothing is trained now
            return self.earlier
        return self.earlier + time.perf_counter() - self.start
