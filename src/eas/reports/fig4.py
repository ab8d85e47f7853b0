"""Fig. 4 of the paper, accuracy against latency, with its figures and ours; from ``fig4.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from eas.reports.figures import BLUE, INK, ORANGE, STYLE, svg
from eas.reports.findings import at
from eas.reports.tradeoff import write_names

LINES: dict[str, dict[str, Any]] = {
    "DAS": {"color": ORANGE, "marker": "s", "linestyle": "--"},
    "EAS": {"color": BLUE, "marker": "o", "linestyle": "-"},
}


class Point(NamedTuple):
    """A row at some latency, the standard deviation of its seeds if it has several."""

    name: str
    time: float
    accuracy: float
    sd: float | None = None


def write_fig4(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes ``fig4.png`` and ``fig4.svg``, and returns their paths."""
    paths = [folder / f"fig4.{kind}" for kind in ("png", "svg")]
    with matplotlib.rc_context(STYLE):
        figure = fig4(result)
        figure.savefig(paths[0], dpi=200)
    paths[1].write_text(svg(figure, "fig4"), encoding="utf-8")
    return paths


def fig4(result: Mapping[str, Any]) -> Figure:
    """On the left the paper's seconds per sample, on the right ours, where they were measured.

    Open markers have the paper's accuracy, full ones that of our training; they stand where both are known only.
    """
    rows, timing = result["rows"], result.get("timing")
    panels = [("the paper's seconds per sample", {row["name"]: row["paper"].get("time") for row in rows})]
    if timing:
        title = f"ours: prefill of {timing['prompt_tokens']} and {timing['new_tokens']} tokens, ms"
        panels.append((title, {row["name"]: _milliseconds(row, timing["new_tokens"]) for row in rows}))
    figure = Figure(figsize=(4.6 * len(panels), 4.0), dpi=160, facecolor="white")
    canvas, drawn = FigureCanvasAgg(figure), []
    for axes, (title, times) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        printed = [Point(r["name"], t, r["paper"]["avg"]) for r in rows if (t := times[r["name"]]) is not None]
        trained = [
            Point(r["name"], t, r["ours"]["avg"], at(r, "spread", "avg"))
            for r in rows
            if "avg" in r["ours"] and (t := times[r["name"]]) is not None
        ]
        _draw(axes, printed, "the paper's accuracy", {"markerfacecolor": "white"})
        _draw(axes, trained, "ours", {})
        axes.grid(color=INK, alpha=0.1, linewidth=0.8)
        axes.margins(x=0.14, y=0.12)
        axes.set_xlabel(title)
        drawn.append((axes, [*printed, *trained]))
    drawn[0][0].set_ylabel("ScienceQA, average accuracy, %")
    handles, names = drawn[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2 * len(panels), fontsize=8.5)
    canvas.draw()  # lays out, so that names can be placed by pixels
    for axes, points in drawn:
        write_names(axes, [(p.name, to_rgb(INK), p.time, p.accuracy) for p in points])
    figure.set_layout_engine("none")  # they stay where they were found to fit
    return figure


def _draw(axes: Axes, points: Sequence[Point], whose: str, look: Mapping[str, Any]) -> None:
    for method, line in LINES.items():
        group = [p for p in points if p.name.startswith(method)]
        if group:
            axes.errorbar(
                [p.time for p in group],
                [p.accuracy for p in group],
                yerr=[p.sd or 0.0 for p in group],
                label=f"{method}, {whose}",
                markersize=7,
                linewidth=1.4,
                elinewidth=1.0,
                capsize=2.5,
                **line,
                **look,
            )


def _milliseconds(row: Mapping[str, Any], new_tokens: int) -> float | None:
    """Of a request: the prompt read, and so many tokens decoded; None where it was not measured."""
    prefill, decode = (at(row, "latency", key, "median") for key in ("prefill_ms", "decode_ms"))
    return None if prefill is None or decode is None else float(prefill + new_tokens * decode)
