"""Accuracy against cost, with the rows that no other row beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from eas.reports.certainty import percent
from eas.reports.comparison import variant
from eas.reports.figures import GREY, INK, WIDTH, Plot, short
from eas.reports.findings import FEWEST, at
from eas.reports.summary import number, size
from eas.reports.tradeoff import COLOURS, MARKERS, reach, write_names


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.2g} ms"


COSTS = {
    "prefill_ms": ("prefill", _time),
    "decode_ms": ("decode, per token", _time),
    "macs": ("MACs of a prefill", number),
    "kv_bytes_per_token": ("KV cache per token", size),
}


class Point(NamedTuple):
    """A row that was tuned and whose cost is known.

    ``reach``: how far its error bar goes down and up, in points.
    """

    name: str
    label: str
    k: int
    accuracy: float
    sd: float | None
    cost: float
    reach: tuple[float, float] = (0.0, 0.0)


def front_plot(result: Mapping[str, Any], key: str) -> Plot | None:
    """Mean test accuracy with the standard deviation of its seeds against one cost; lines join the k of one entry.

    Args:
        result: a ``comparison.json``.
        key: one of ``COSTS``.

    Returns:
        The figure, or None where fewer than two rows have both numbers.
    """
    points, (title, form) = points_of(result, key), COSTS[key]
    if len(points) < 2:
        return None
    labels = list(dict.fromkeys(p.label for p in points))
    style = {label: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}
    columns = 2 if max(len(p.name) for p in points) <= 22 else 1
    figure = Figure(figsize=(WIDTH, 3.3 + 0.19 * -(-(len(points) + 1) // columns)), dpi=160)
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    axes.grid(color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.14, y=0.14)
    for label in labels:
        group = sorted((p for p in points if p.label == label), key=lambda p: p.k)
        colour, marker = style[label]
        axes.errorbar(
            [p.cost for p in group],
            [100 * p.accuracy for p in group],
            yerr=[*zip(*(p.reach for p in group), strict=True)],
            color=colour,
            marker=marker,
            markersize=10 if marker == "*" else 7,
            markeredgecolor=INK,
            markeredgewidth=0.6,
            linewidth=1.4,
            elinewidth=1.0,
            capsize=2.5,
        )
    best = pareto(points)
    stairs = [(p.cost, 100 * p.accuracy) for p in best]
    (line,) = axes.step(*zip(*stairs, strict=True), where="post", color=INK, linestyle=":", linewidth=1.3, zorder=1)
    base = _cost(result, key, next((row for row in result["rows"] if row["method"] is None), None))
    if base is not None:
        axes.axvline(base, color=GREY, linestyle="--", linewidth=1.3, zorder=1)
        axes.text(base, 1.01, "base", transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if form is size:  # bytes come in powers of two
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(MultipleLocator(2.0 ** math.ceil(math.log2((high - low) / 5))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axes.tick_params(axis="x", labelsize=8.5)
    axes.set_xlabel(title)
    axes.set_ylabel("test accuracy, %")
    handles = [_handle(*style[p.label], f"{i} {short(p.name, 22 * (3 - columns))}") for i, p in enumerate(points, 1)]
    line.set_label("Pareto front")
    figure.legend(handles=[*handles, line], loc="outside lower center", ncols=columns, fontsize=8.5, columnspacing=1.0)
    canvas.draw()  # lays out, so that numbers can be placed by pixels
    write_names(axes, [(str(i), to_rgb(INK), p.cost, 100 * p.accuracy) for i, p in enumerate(points, 1)])
    figure.set_layout_engine("none")  # they stay where they were found to fit
    said = "; ".join(f"{p.name} {percent(p.accuracy)} at {form(p.cost)}" for p in points)
    unbeaten = "; ".join(f"{points.index(p) + 1} {p.name}" for p in best)
    note = f"By the means, nothing is both better and cheaper than {unbeaten}."
    if key.endswith("_ms"):
        repeats = at(result, "latency", "settings", "repeats") or at(result, "latency", "repeats")
        note += " Timed too few times to tell." if repeats is not None and repeats < FEWEST else ""
    if key.endswith("_ms") and (timed := at(result, "latency", "wide", "name")):
        note += f" Timed in: {timed}."
    return Plot(f"Accuracy against {title}", f"{said}. {note}", figure, note)


def points_of(result: Mapping[str, Any], key: str) -> list[Point]:
    """The tuned rows whose accuracy and cost are known, in the order of the table."""
    points = []
    for row in result["rows"]:
        cost = _cost(result, key, row)
        if row["method"] is not None and row.get("test") and cost is not None:
            test = row["test"]
            error = reach(test, at(result, "task", "examples"))
            points.append(Point(row["row"], row["label"], int(row["k"]), test["mean"], test["sd"], cost, error))
    return points


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points than which none is at least as accurate and as cheap, and better in one; from cheap to dear."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def _cost(result: Mapping[str, Any], key: str, row: Mapping[str, Any] | None) -> float | None:
    if row is None:
        return None
    timing = at(result, "latency", "wide") or at(result, "latency")
    timed = at(timing, "variants", variant(row), key, "median")
    cost: float | None = timed if key.endswith("_ms") else at(row, "counts", key)
    return cost


def _handle(colour: str, marker: str, label: str) -> Line2D:
    return Line2D(
        [], [], label=label, color=colour, marker=marker, markeredgecolor=INK, markeredgewidth=0.6, linestyle=""
    )
