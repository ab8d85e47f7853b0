"""Long steps say how far they are: on a terminal, and once a minute without one."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from eas import progress
from eas.progress import Bar, duration, track

Said = Callable[[], list[str]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """What is written where there is no terminal, a "minute" being 30 ms long."""
    text = io.StringIO()
    monkeypatch.setattr(progress, "CONSOLE", Console(file=text, width=80))
    monkeypatch.setattr(progress, "EVERY", 0.03)
    return lambda: text.getvalue().splitlines()


def test_a_line_a_minute_without_a_terminal(said: Said) -> None:
    for _ in track(range(4), "timing [base]"):
        time.sleep(0.08)
    lines = said()
    assert lines
    assert all(line.startswith("timing [base]: ") for line in lines)
    assert lines[-1] in [f"timing [base]: {i} of 4, about 0 s left" for i in (1, 2, 3)]
    time.sleep(0.1)
    assert said() == lines  # it ended


def test_the_time_left_is_that_of_the_steps_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 30)
    monkeypatch.setattr(progress, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    with Bar("", 100, done=60) as bar:  # it starts at 0 s
        bar.done = 70
        bar.said = "loss 0.125"
        assert bar.line() == ": 70 of 100, about 90 s left  loss 0.125".replace("90 s", "2 min")  # 10 in 30 s
    assert [duration(s) for s in (0.4, 89, 91, 3600, 5400, 9000)] == [
        "0 s",
        "89 s",
        "2 min",
        "60 min",
        "1 h 30 min",
        "2 h 30 min",
    ]


def test_nothing_is_said_without_a_title_or_inside_another(said: Said) -> None:
    for _ in track(range(2), ""):
        time.sleep(0.05)
    assert said() == []
    with Bar("outer", 1):
        for _ in track(range(2), "inner"):
            time.sleep(0.05)
    assert said()
    assert all(line.startswith("outer") for line in said())


def test_a_failed_step_says_no_more(said: Said) -> None:
    with pytest.raises(ValueError, match="full"), Bar("work", 2):
        raise ValueError("full")
    time.sleep(0.1)
    assert said() == []
    assert not Bar.showing


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(progress, "CONSOLE", Console(file=text, width=100, force_terminal=True))
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    with Bar("timing", 3) as bar:
        for name in ("base", "folded"):
            bar.say(name)
            bar.advance()
    assert "timing  folded" in text.getvalue()
    assert "2/3" in text.getvalue()
    assert "0:00" in text.getvalue()  # the time left


def test_measuring_and_benchmarking_show_theirs(said: Said) -> None:
    from families import build, prompts

    from eas.measure.latency import benchmark

    model = build("LlamaForCausalLM")
    started = time.monotonic()
    slow = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.01)
        return slow(*args, **kwargs)

    model.forward = forward
    benchmark({"base": model}, prompts("LlamaForCausalLM", (5,)), new_tokens=2, repeats=3, title="timing base")
    assert time.monotonic() - started > 0.03
    assert any(line.startswith("timing base: ") and " of 4" in line for line in said())
