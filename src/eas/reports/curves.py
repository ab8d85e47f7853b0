"""The curves of several runs: one small panel for each row or run, all with the same axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from eas.reports.figures import BLUE, GREY, INK, PHASES, WIDTH, Plot, short

MOST_PANELS = 24
POINTS = 60
"""The most points of a line, so that the page stays small."""


class Curve(NamedTuple):
    """The training curves of one run.

    Args:
        row: of the table.
        seed: of the run.
        losses: phase -> its log of "step" and "loss".
        rounds: of the search, each with "step" and "importances".
        skip_set: the skipped attentions.
    """

    row: str
    seed: Any
    losses: Mapping[str, Sequence[Mapping[str, float]]]
    rounds: Sequence[Mapping[str, Any]]
    skip_set: Sequence[int]


def curve(row: str, seed: Any, search: Mapping[str, Any], logs: Mapping[str, Any]) -> Curve:
    """From what the search found and the logs of both phases; either may be empty.

    Raises:
        LookupError, TypeError, ValueError: an entry is not what a run writes.
    """
    rounds = [
        {"step": float(r["step"]), "importances": [float(value) for value in r["importances"]]}
        for r in search.get("rounds") or ()
        if r["importances"]
    ]
    losses = {
        phase: [{"step": float(e["step"]), "loss": float(e["loss"])} for e in log]
        for phase in PHASES
        if (log := logs.get(phase))
    }
    return Curve(row, seed, losses, rounds, [int(i) for i in search.get("skip_set") or ()])


def losses_plot(curves: Sequence[Curve]) -> Plot | None:
    """Training loss of search and tune, one after the other: a panel per row, a line per seed."""
    rows: dict[str, list[Curve]] = {}
    for one in curves:
        if one.losses:
            rows.setdefault(one.row, []).append(one)
    if not rows:
        return None
    shown = dict(list(rows.items())[:MOST_PANELS])
    figure, panels = _panels(list(shown))
    for axes, group in zip(panels, shown.values(), strict=True):
        for one in group:
            start = 0.0
            for phase, log in one.losses.items():
                kept = _thinned(log)
                axes.plot([start + e["step"] for e in kept], [e["loss"] for e in kept], linewidth=1.1, **PHASES[phase])
                start += log[-1]["step"]
    panels[0].set_yscale("log")  # of all: they share it
    panels[0].yaxis.set_major_locator(LogLocator(numticks=8))
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].yaxis.set_minor_formatter(NullFormatter())
    present = [phase for phase in PHASES if any(phase in one.losses for group in shown.values() for one in group)]
    _finish(figure, [Line2D([], [], label=phase, **PHASES[phase]) for phase in present], "training step", "loss")
    said = "; ".join(
        f"{row}: {', '.join(f'seed {one.seed} ends at {_last(one):.3f}' for one in group)}"
        for row, group in rows.items()
    )
    return Plot("Training loss of every run", f"Training loss. {said}.", figure, _note(len(rows), "rows"))


def importances_plot(curves: Sequence[Curve]) -> Plot | None:
    """Importance of every candidate over the search: a panel per run."""
    searched = [one for one in curves if one.rounds]
    if not searched:
        return None
    shown = searched[:MOST_PANELS]
    figure, panels = _panels([f"{short(one.row, 11)}, s{one.seed}" for one in shown])
    for axes, one in zip(panels, shown, strict=True):
        kept, skipped = _thinned(one.rounds), set(one.skip_set)
        for i in sorted(range(len(kept[0]["importances"])), key=skipped.__contains__):  # the skipped ones above
            look: dict[str, Any] = (
                {"color": BLUE, "linestyle": "-"} if i in skipped else {"color": GREY, "linestyle": "--"}
            )
            axes.plot([r["step"] for r in kept], [r["importances"][i] for r in kept], linewidth=1.0, **look)
    handles = [Line2D([], [], color=BLUE, label="skipped"), Line2D([], [], color=GREY, linestyle="--", label="kept")]
    _finish(figure, handles, "training step", "importance")
    said = "; ".join(f"{one.row}, seed {one.seed}: skipped {' '.join(map(str, one.skip_set))}" for one in searched)
    note = _note(len(searched), "runs")
    return Plot("Importance during every search", f"Importance of the candidates. {said}.", figure, note)


def _panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    columns = 2 if len(titles) <= 12 else 3
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(WIDTH, 1.0 + 1.15 * lines))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel().tolist()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(short(title, 50 // columns), fontsize=8.5 if columns == 2 else 7.5, loc="left")
        axes.tick_params(labelsize=8)
        axes.grid(color=INK, alpha=0.1, linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axes in grid[len(titles) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(titles) - columns) : len(titles)]:  # above a place that stays empty, too
        axes.tick_params(labelbottom=True)
    return figure, grid[: len(titles)]


def _finish(figure: Figure, handles: Sequence[Line2D], x: str, y: str) -> None:
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    figure.legend(handles=handles, loc="outside upper right", ncols=2, columnspacing=1.2)


def _thinned(points: Sequence[Any]) -> list[Any]:
    """Evenly spread ones, the first and the last among them."""
    if len(points) <= POINTS:
        return list(points)
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def _last(one: Curve) -> float:
    *_, log = one.losses.values()
    return log[-1]["loss"]


def _note(number: int, what: str) -> str:
    return f"The first {MOST_PANELS} of {number} {what}." if number > MOST_PANELS else ""
