"""Which candidates are skipped at which k: one line of dots for every skip set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from eas.reports.figures import BLUE, GREY, INK, WIDTH, Plot, short

Lines = Sequence[tuple[str, Sequence[Sequence[int]]]]


def pattern(lines: Lines, candidates: int) -> Plot | None:
    """One line per name; the area of a dot is the share of the line's skip sets that hold the candidate.

    Args:
        lines: name and the skip sets of its seeds; lines without one are left out.
        candidates: how many may be skipped.
    """
    lines = [(name, sets) for name, sets in lines if any(sets)]
    if not lines:
        return None
    shares = [[sum(i in s for s in sets) / len(sets) for i in range(candidates)] for _, sets in lines]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.24 * len(lines)))
    axes, largest = figure.subplots(), min(70.0, 1700.0 / candidates)  # points²; a dot never reaches its neighbour
    dots = [(i, y, share) for y, line in enumerate(shares) for i, share in enumerate(line)]
    kept, skipped = [d for d in dots if d[2] == 0], [d for d in dots if d[2] > 0]
    axes.scatter([d[0] for d in kept], [d[1] for d in kept], s=largest / 14, color=GREY, linewidths=0)
    axes.scatter(
        [d[0] for d in skipped],
        [d[1] for d in skipped],
        s=[largest * d[2] for d in skipped],
        color=BLUE,
        edgecolors=INK,
        linewidths=0.5,
    )
    axes.set_yticks(range(len(lines)), [short(name, 20) for name, _ in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(-0.7, candidates - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.set_xlabel("candidate")
    axes.tick_params(axis="y", length=0)
    axes.spines.left.set_visible(False)
    several = any(len(sets) > 1 for _, sets in lines)
    names = {0: "kept", largest: "skipped by all seeds" if several else "skipped"}
    names |= {largest / 2: "by half of them"} if several else {}
    handles = [_dot(area, name, largest) for area, name in names.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=8.5, columnspacing=1.0, handletextpad=0)
    said = "; ".join(f"{name}: {' / '.join(' '.join(map(str, s)) for s in sets)}" for name, sets in lines)
    return Plot("What is skipped", f"Skipped candidates. {said}.", figure)


def of_frontier(frontier: Mapping[str, Any]) -> Plot | None:
    """The set of every k that one search recommends."""
    return _pattern([(f"k = {row['k']}", [row["skip_set"]]) for row in frontier["rows"]], frontier.get("candidates"))


def of_comparison(result: Mapping[str, Any], candidates: int | None = None) -> Plot | None:
    """The sets of all rows."""
    lines = [(row["row"], [s for s in row.get("skip_sets") or () if s]) for row in result["rows"] if row["k"]]
    return _pattern(lines, candidates)


def _pattern(lines: Lines, candidates: int | None) -> Plot | None:
    """Without their number, candidates are drawn up to the last one that any set holds."""
    highest = max((i for _, sets in lines for s in sets for i in s), default=-1)
    return pattern(lines, max(candidates or 0, highest + 1))


def _dot(area: float, name: str, largest: float) -> Line2D:
    size = (area or largest / 14) ** 0.5
    colour, edge = (BLUE, INK) if area else (GREY, GREY)
    return Line2D([], [], label=name, marker="o", linestyle="", markersize=size, color=colour, markeredgecolor=edge)
