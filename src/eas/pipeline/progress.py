"""The progress of a training phase, with the loss beside it."""

from __future__ import annotations

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
