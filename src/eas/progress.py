"""The progress of a long step: a bar with the time left on a terminal, one line a minute elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")
CONSOLE = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")  # of several processes one speaks
EVERY = 60.0
"""Seconds between two lines without a terminal."""
REFRESH = 0.1
"""Seconds between two drawings of a bar; no thread draws it, which timings would notice."""


class Bar:
    """Shows the progress of some work, inside a ``with`` block.

    Args:
        title: name of the work; without a title nothing is shown, nor inside another bar.
        total: steps of the work.
        done: steps that were done before.
    """

    showing: ClassVar[bool] = False

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done, self.said = title, total, done, ""
        self.first = done
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self.bar = Progress(*columns, TimeRemainingColumn(), console=CONSOLE, transient=True, auto_refresh=False)
        self.task = self.bar.add_task(title, total=total, completed=done)
        self.ended = threading.Event()

    def __enter__(self) -> Self:
        self.started = self.drawn = time.monotonic()
        self.shown = bool(self.title) and not Bar.showing and not CONSOLE.quiet
        if self.shown:
            Bar.showing = True
            if CONSOLE.is_terminal:
                self.bar.start()
            else:
                threading.Thread(target=self._speak, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            self.shown = Bar.showing = False
            self.ended.set()
            if self.bar.live.is_started:
                self.bar.stop()

    def say(self, said: str) -> None:
        """Sets what stands beside the title."""
        self.said = said
        self._draw()

    def advance(self, done: int | None = None) -> None:
        """One step more, or so many in all."""
        self.done = self.done + 1 if done is None else done
        self._draw()

    def _draw(self) -> None:
        if self.shown and (now := time.monotonic()) - self.drawn >= REFRESH:
            self.drawn, said = now, f"{self.title}  {self.said}".rstrip()
            self.bar.update(self.task, completed=self.done, description=said, refresh=True)

    def _speak(self) -> None:
        while not self.ended.wait(EVERY):
            CONSOLE.print(Text(self.line()), soft_wrap=True)

    def line(self) -> str:
        """What is said without a terminal."""
        new = self.done - self.first
        pace = (time.monotonic() - self.started) / new if new else None
        left = "" if pace is None else f", about {duration(pace * (self.total - self.done))} left"
        return f"{self.title}: {self.done} of {self.total}{left}  {self.said}".rstrip()


def track(items: Sequence[Item], title: str) -> Iterator[Item]:
    """The items one after the other, under a `Bar`."""
    with Bar(title, len(items)) as bar:
        for item in items:
            yield item
            bar.advance()


def duration(seconds: float) -> str:
    """As people say it: 40 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
