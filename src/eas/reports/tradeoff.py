"""The figure of a comparison: accuracy against measured latency, one marker per row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from eas.reports.certainty import interval
from eas.reports.figures import BLUE, GREY, INK, ORANGE
from eas.reports.findings import at

COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", GREY)  # of Okabe and Ito
MARKERS = "osD^vP*X<>"  # ten, so that colour and shape together repeat late
PANELS = {"prefill_ms": "prefill, ms", "decode_ms": "decode, ms per token"}
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
CROWDED = 10
"""Rows from which on numbers stand beside the markers, and the names in a key."""
DPI = 160
Colour = tuple[float, float, float]
Extents = tuple[float, float, float, float]


def tradeoff(
    rows: Sequence[Mapping[str, Any]], timing: Mapping[str, Any], examples: int | None = None
) -> Figure | None:
    """Mean test accuracy against prefill and decode; lines join the k of one entry.

    Its error bars are the standard deviation of the seeds; of one seed, the 95 % interval of the examples. Many rows
    have numbers beside their markers, and a key with their names.

    Args:
        rows: of ``comparison.json``.
        timing: its ``latency``, or the wide one, whose name is then written below.
        examples: of the test split.

    Returns:
        The figure, or None where no row was tuned and timed.
    """
    variants = timing.get("variants") or {}
    drawn = [row for row in rows if row.get("test") and row["method"] is not None and row["row"] in variants]
    if not drawn:
        return None
    crowded, labels = len(drawn) >= CROWDED, list(dict.fromkeys(row["label"] for row in drawn))
    looks = {label: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, label in enumerate(labels)}
    size = (11, max(4.4, 0.2 * len(drawn) + 0.6)) if crowded else (9, 4.4)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    base = next((row["test"]["mean"] for row in rows if row["method"] is None and row.get("test")), None)
    shown = {key: title for key, title in PANELS.items() if all(variants[row["row"]][key] for row in drawn)}
    panels: list[Axes] = list(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0])
    for axes, (key, title) in zip(panels, shown.items(), strict=True):
        axes.grid(color=INK, alpha=0.1, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(x=0.18, y=0.14)
        axes.set_xlabel(title)
        for label, (colour, marker) in looks.items():
            group = sorted((row for row in drawn if row["label"] == label), key=lambda row: int(row["k"]))
            axes.errorbar(
                [variants[row["row"]][key]["median"] for row in group],
                [100 * row["test"]["mean"] for row in group],
                yerr=[*zip(*(reach(row["test"], examples) for row in group), strict=True)],
                color=colour,
                marker=marker,
                markersize=10 if marker == "*" else 7,
                linewidth=1.4,
                elinewidth=1.0,
                capsize=2.5,
                markeredgecolor="white",
                markeredgewidth=0.6,
            )
        if (time := at(variants, "base", key, "median")) is not None:
            # a line, not a point: the accuracy of the untuned base would flatten the compared rows
            axes.axvline(time, color=GREY, linestyle="--", linewidth=1.3, zorder=1)
            name = "base" if base is None else f"base, {100 * base:.1f} %"
            axes.text(time, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8.5)
    panels[0].set_ylabel("test accuracy, %")
    if timing.get("name"):
        figure.supxlabel(f"timed in: {timing['name']}", fontsize=8.5)
    if crowded:
        marks = [
            Line2D([], [], color=colour, marker=marker, linestyle="None")
            for colour, marker in (looks[row["label"]] for row in drawn)
        ]
        names = [f"{i}  {row['row']}" for i, row in enumerate(drawn, 1)]
        figure.legend(marks, names, loc="outside right center", frameon=False, fontsize=8.5)
    canvas.draw()  # lays out, so that names can be placed by pixels
    for axes, key in zip(panels, shown, strict=True):
        write_names(
            axes,
            [
                (
                    str(i) if crowded else row["row"],
                    _dark(looks[row["label"]][0]),
                    variants[row["row"]][key]["median"],
                    100 * row["test"]["mean"],
                )
                for i, row in enumerate(drawn, 1)
            ],
        )
    figure.set_layout_engine("none")  # they stay where they were found to fit
    return figure


def reach(test: Mapping[str, Any], examples: int | None) -> tuple[float, float]:
    """How far an accuracy's error bar goes down and up, in points: a deviation of the seeds, or one seed's interval."""
    mean, sd = test["mean"], test["sd"]
    if sd or not examples:
        return 100 * (sd or 0.0), 100 * (sd or 0.0)
    low, high = interval(mean, examples)
    return 100 * (mean - low), 100 * (high - mean)


def write_names(axes: Axes, points: Sequence[tuple[str, Colour, float, float]]) -> None:
    """Writes names beside their points where each hides least: markers, lines, and the names that stand already."""
    frame, taken = np.array([axes.get_window_extent().extents]), []
    for line in axes.lines:  # markers and what joins them
        vertices = line.get_transform().transform(line.get_xydata())
        taken += [(x - 9, y - 9, x + 9, y + 9) for x, y in vertices if line.get_marker() in MARKERS]
        if line.get_linestyle() != "None":
            taken += [box for pair in pairwise(vertices) for box in _along(*pair)]
    for bars in axes.collections:  # error bars
        for path in bars.get_paths():
            taken += _along(*bars.get_transform().transform(path.vertices))
    for name, colour, x, y in points:
        text = axes.annotate(name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=8.5, color=colour)
        extent, (px, py) = text.get_window_extent(), axes.transData.transform((x, y))
        width, height = extent.width, extent.height
        places, others = [], np.array(taken).reshape(-1, 4)
        for distance in (16, 26, 40, 60, 85):
            for dx, dy in SIDES:
                left, bottom = px + dx * distance + (dx - 1) * width / 2, py + dy * distance + (dy - 1) * height / 2
                place = np.array([left, bottom, left + width, bottom + height])
                outside = width * height - _common(place, frame)
                cost = _common(place, others) + 3 * outside + 8 * distance  # near is clearer
                places.append((cost, left, bottom))
        _, left, bottom = min(places, key=lambda place: place[0])  # of equals the first: to the right
        text.set_position(((left - px) * 72 / DPI, (bottom - py) * 72 / DPI))
        taken.append((left - 4, bottom, left + width + 4, bottom + height))  # or 1 beside 5 reads as 15


def _dark(colour: str) -> Colour:
    """The colour of a marker, dark enough to be read as text."""
    red, green, blue = to_rgb(colour)
    return 0.65 * red, 0.65 * green, 0.65 * blue


def _along(start: Any, end: Any) -> Iterator[Extents]:
    """Small boxes along a line in pixels."""
    steps = max(1, int(max(abs(end - start)) / 6))
    for i in range(steps + 1):
        x, y = start + (end - start) * i / steps
        yield x - 3, y - 3, x + 3, y + 3


def _common(place: NDArray[Any], others: NDArray[Any]) -> float:
    """The area that a box shares with others; of each the left, lower, right and upper edge."""
    low, high = np.maximum(place[:2], others[:, :2]), np.minimum(place[2:], others[:, 2:])
    return float((high - low).clip(min=0).prod(axis=1).sum())
