"""The figures of a report, one function each; a figure without its numbers is None.

Drawn at the width of a phone, so that the type stays readable there; grey, blue and orange stay apart for colour-blind
eyes. Ink is one colour, which the page replaces by its own text colour.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator

from eas.reports.certainty import interval, percent, share
from eas.reports.findings import at, blind_answers
from eas.reports.summary import about_stand_in, decodes, importance_words, milliseconds, number, size

INK, GREY, BLUE, ORANGE, GREEN = "#24292f", "#8c96a0", "#0072b2", "#d55e00", "#009e73"  # colours of Okabe and Ito
WIDTH = 3.8  # inches; 365 CSS pixels
MOST_CATEGORIES = 24
MOST_NAMED = 16
"""Curves up to which all are named at their ends; of more, only those that are skipped."""
PHASES: dict[str, Any] = {"search": {"color": ORANGE, "linestyle": "--"}, "tune": {"color": BLUE}}
PARTS = {"mha": ("attention", GREY, None), "ffn": ("FFN", BLUE, "//"), "other": ("PIA, adapters", ORANGE, "..")}
STYLE = {
    "axes.edgecolor": INK,
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": INK,
    "xtick.labelsize": 9.5,
    "ytick.color": INK,
    "ytick.labelsize": 10,
}


class Plot(NamedTuple):
    """A figure with its title, a description for readers who cannot see it, and a note for all readers."""

    title: str
    alt: str
    figure: Figure
    note: str = ""


def plots(result: Mapping[str, Any]) -> dict[str, Plot | None]:
    """All figures by file name, in the order of the page."""
    with matplotlib.rc_context(STYLE):
        return {
            "accuracy": accuracy(result),
            "latency": latency(result),
            "decode": decode(result),
            "importance": importance(result),
            "loss": loss(result),
            "categories": categories(result),
            "layers": layers(result),
        }


def svg(figure: Figure, name: str) -> str:
    """The figure as transparent SVG, the same text every time; the name keeps ids apart where several share a page."""
    text = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def accuracy(result: Mapping[str, Any]) -> Plot | None:
    """Zero-shot, tuned and folded accuracy with their 95 % intervals, and what blind answers give."""
    names, examples = {"zero_shot": "zero-shot", "tuned": "tuned", "folded": "folded"}, at(result, "task", "examples")
    scores = {label: s for key, label in names.items() if (s := at(result, "accuracy", key)) is not None}
    if not scores:
        return None
    figure, (axes,) = _canvas(0.45 * len(scores) + 0.8)
    blind = blind_answers(at(result, "task") or {})
    ends = [interval(s, examples) if examples else (s, s) for s in scores.values()]
    spreads = [{"low": 100 * low, "high": 100 * high} for low, high in ends]
    labels, values = [percent(s) for s in scores.values()], [100 * s for s in scores.values()]
    _bars(axes, list(scores), values, labels, spreads, lines=[100 * score for score in blind.values()])
    axes.set_xlim(0, 120)  # room for the number of a bar of 100 %
    axes.set_xticks(range(0, 101, 25), [f"{p} %" for p in range(0, 101, 25)])
    axes.spines.bottom.set_visible(True)
    for (name, score), style in zip(blind.items(), ("--", ":"), strict=False):
        label = f"{short(name, 34)} {percent(score)}"
        axes.axvline(100 * score, color=ORANGE, linestyle=style, linewidth=1.5, label=label)
    if blind:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0, fontsize=8.5)
    said = ", ".join(f"{label} {share(s, examples)}" for label, s in scores.items())
    said += "".join(f"; {name} would give {percent(score)}" for name, score in blind.items())
    note = "Lines over the bars: 95 % intervals." if examples else ""
    if at(result, "task", "zero_shot", "comparable") is False:
        note += " Zero-shot is not comparable: the model answers in other words."
    return Plot("Accuracy", f"Accuracy: {said}.", figure, note.strip())


def latency(result: Mapping[str, Any]) -> Plot | None:
    """Prefill and decode times of all variants with their spread; a random stand-in, if there is one, comes first."""
    settings = {"stand-in: ": at(result, "latency", "larger"), "": at(result, "latency")}
    panels = [
        (f"{prefix}{title if at(values, 'new_tokens') != 0 else 'pass'}", at(values, "variants"), key)
        for prefix, values in settings.items()
        if at(values, "variants")
        for title, key in (("prefill", "prefill_ms"), ("decode, per token", "decode_ms"))
        if key == "prefill_ms" or at(values, "new_tokens") != 0
    ]
    if not panels:
        return None
    figure, rows = _canvas(len(panels), len(panels))
    said = []
    for axes, (title, variants, key) in zip(rows, panels, strict=True):
        spreads = {name: s for name in variants if (s := at(variants, name, key)) is not None}
        labels = [milliseconds(s) for s in spreads.values()]
        _bars(axes, list(spreads), [s["median"] for s in spreads.values()], labels, list(spreads.values()))
        axes.set_title(title)
        said.append(f"{title}: " + ", ".join(f"{name} {milliseconds(s)}" for name, s in spreads.items()))
    _make_room(figure, rows)
    stand_in = about_stand_in(result)
    return Plot("Latency", "; ".join(said) + ".", figure, f"{stand_in[:1].upper()}{stand_in[1:]}." if stand_in else "")


def decode(result: Mapping[str, Any]) -> Plot | None:
    """What a decode step reads: weights once, keys and values per token of context."""
    titles = {"weight_bytes": "weights", "kv_bytes_per_token": "keys and values, per token of context"}
    panels = {
        title: {name: v for name in ("base", "tuned") if (v := at(result, "counts", name, key)) is not None}
        for key, title in titles.items()
    }
    panels = {title: values for title, values in panels.items() if values}
    if not panels or not decodes(result):
        return None
    figure, rows = _canvas(1.0 * len(panels), len(panels))
    for axes, (title, values) in zip(rows, panels.items(), strict=True):
        _bars(axes, list(values), list(values.values()), [size(v) for v in values.values()])
        axes.set_title(title)
    said = (f"{title}: " + ", ".join(f"{n} {size(v)}" for n, v in values.items()) for title, values in panels.items())
    return Plot("What a decode step reads", "; ".join(said) + ".", figure)


def importance(result: Mapping[str, Any]) -> Plot | None:
    """Importance of every candidate at the end of the search, and over its rounds; the skipped ones marked."""
    final, skip_set = at(result, "search", "importances"), set(at(result, "search", "skip_set") or ())
    if not final:
        return None
    rounds = [r for r in at(result, "search", "rounds") or () if r.get("importances")]
    named = range(len(final)) if len(final) <= MOST_NAMED else sorted(skip_set)[:MOST_NAMED]
    figure, rows = _canvas(4.8 + 0.12 * max(0, len(named) - 10) if rounds else 2.5, 2 if rounds else 1)
    bars, (kind, counted) = rows[0], importance_words(result)
    for skipped, label, colour in ((False, "kept", GREY), (True, "skipped", BLUE)):
        chosen = [i for i in range(len(final)) if (i in skip_set) is skipped]
        heights = [final[i] for i in chosen]
        bars.bar(chosen, heights, color=colour, label=label, hatch="///" if skipped else None, edgecolor=INK, lw=0.6)
        for i in chosen if rounds else ():
            line = [r["importances"][i] for r in rounds]
            (drawn,) = rows[1].plot([r["step"] for r in rounds], line, color=colour, linewidth=1.4)
            drawn.set_linestyle("-" if skipped else "--")
            drawn.set_label(label if i == chosen[0] else "")
    bars.axhline(0, color=INK, linewidth=0.8)
    bars.set_xlabel(counted)
    bars.set_ylabel("importance")
    bars.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    bars.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
    if rounds:
        trains = at(result, "config", "search", "train") is not False and at(result, "search", "plan", "rounds") is None
        rows[1].set_xlabel("training step" if trains else "step of the search, which trained nothing")
        rows[1].set_ylabel("importance")
        rows[1].legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
        figure.set_layout_engine("constrained", rect=(0, 0, 0.94, 1))  # the numbers stand beside the axes
        figure.draw_without_rendering()
        _name_ends(rows[1], {i: rounds[-1]["importances"][i] for i in named})
    lowest = ", ".join(str(i) for i in sorted(skip_set)) or "none"
    note = (
        ""
        if not rounds or len(named) == len(final)
        else "Numbers at the ends: the skipped ones; the table below has all."
    )
    return Plot(f"Importance of the {kind}", f"Importance of {len(final)} {kind}; skipped: {lowest}.", figure, note)


def loss(result: Mapping[str, Any]) -> Plot | None:
    """Training loss of search and tune, one after the other."""
    phases = {name: log for name in ("search", "tune") if (log := at(result, "training", name))}
    if not phases:
        return None
    figure, (axes,) = _canvas(2.6)
    start, said = 0, []
    for name, log in phases.items():
        steps, losses = [start + entry["step"] for entry in log], [entry["loss"] for entry in log]
        axes.plot(steps, losses, linewidth=1.6, label=name, **PHASES[name])
        start = steps[-1]
        said.append(f"{name} from {losses[0]:.3f} to {losses[-1]:.3f} in {log[-1]['step']} steps")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_ylabel("loss")
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
    return Plot("Training loss", f"Training loss: {'; '.join(said)}.", figure)


def categories(result: Mapping[str, Any]) -> Plot | None:
    """Every share of the metric, before and after; None where it has only one."""
    before, after = at(result, "categories", "zero_shot") or {}, at(result, "categories", "folded")
    after = after or at(result, "categories", "tuned") or {}
    shares = [name for name in after if name in before and name != "loss"]
    names = shares[:MOST_CATEGORIES]
    if len(names) < 2:
        return None
    figure, (axes,) = _canvas(0.5 * len(names) + 0.8)
    counts = at(result, "categories", "examples")
    for offset, numbers, label, colour, hatch in (
        (-0.2, before, "base", GREY, None),
        (0.2, after, "tuned", BLUE, "//"),
    ):
        places, values = [i + offset for i in range(len(names))], [numbers[name] for name in names]
        axes.barh(places, values, height=0.38, color=colour, hatch=hatch, edgecolor=INK, linewidth=0.6, label=label)
        for name, place, value in zip(names, places, values, strict=True):
            low, high = _ends_of(value, at(counts, name))
            axes.plot([low, high], [place, place], color=INK, linewidth=1.0)
            axes.annotate(
                f"{value:.1f}", (high, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5
            )
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 25), [f"{p} %" for p in range(0, 101, 25)])
    axes.set_yticks(range(len(names)), [short(name, 18) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0)
    said = "; ".join(f"{name} from {before[name]:.1f} to {after[name]:.1f} %" for name in names)
    left = len(shares) - len(names)
    note = f"The first {len(names)} numbers; the table has {left} more. " if left else ""
    note += "Lines over the bars: 95 % intervals." if counts else ""
    return Plot("Accuracy by category", f"{said}.", figure, note)


def layers(result: Mapping[str, Any]) -> Plot | None:
    """MACs of every block, base above and tuned below, by what does them."""
    models = {name: blocks for name in ("base", "tuned") if (blocks := at(result, "layers", name))}
    if not models:
        return None
    figure, panels = _canvas(1.7 * len(models) + 0.7, len(models))
    beside = any(block["other"] for block in models.get("base", ()))  # the base has modules of its own there
    parts = {**PARTS, "other": ("other modules", *PARTS["other"][1:])} if beside else PARTS
    highest = max(sum(block[part] for part in PARTS) for blocks in models.values() for block in blocks)
    for axes, (name, blocks) in zip(panels, models.items(), strict=True):
        below = [0.0] * len(blocks)
        for part, (label, colour, hatch) in parts.items():
            heights = [block[part] for block in blocks]
            axes.bar(
                range(len(blocks)), heights, bottom=below, label=label, color=colour, hatch=hatch, edgecolor=INK, lw=0.5
            )
            below = [low + high for low, high in zip(below, heights, strict=True)]
        axes.set_title(name)
        axes.set_ylim(0, 1.05 * highest)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    panels[-1].set_xlabel("layer")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=3, columnspacing=1.2)
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{label} {number(sum(b[part] for b in blocks))}" for part, (label, *_) in parts.items())
        for name, blocks in models.items()
    )
    return Plot(
        f"MACs of a {'prefill' if decodes(result) else 'pass'} by layer", f"MACs of all blocks. {said}.", figure
    )


def _ends_of(value: float, examples: int | None) -> tuple[float, float]:
    """The 95 % interval of a number in percent; the number itself where its examples are not known."""
    if not examples or not 0 <= value <= 100:
        return value, value
    low, high = interval(value / 100, examples)
    return 100 * low, 100 * high


def short(name: str, most: int) -> str:
    """A name that fits."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _name_ends(axes: Axes, values: Mapping[int, float]) -> None:
    """A candidate's number beside the end of its line, moved apart where they would touch, joined to it by a hair."""
    low, high = axes.get_ylim()
    end, size = axes.get_xlim()[1], 7.0
    points = axes.get_window_extent().height * 72 / axes.figure.dpi
    order = sorted(values, key=values.__getitem__)
    places = spread_apart([values[i] for i in order], 1.15 * size * (high - low) / points, low, high)
    for i, place in zip(order, places, strict=True):
        axes.annotate(
            str(i),
            (end, values[i]),
            xytext=(14, (place - values[i]) * points / (high - low)),
            textcoords="offset points",
            va="center",
            fontsize=size,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0},
        )
    axes.set_xlim(right=end)


def spread_apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending values moved as little as possible so that neighbours are a gap apart, within bounds if there is room.

    Neighbours that would touch are pooled, and each pool stands around the mean of its values.
    """
    pools: list[list[float]] = []  # of each: the mean place of its first member, and how many there are
    for value in values:
        pools.append([value, 1])
        while len(pools) > 1 and pools[-2][0] + gap * pools[-2][1] > pools[-1][0]:
            start, size = pools.pop()
            before, count = pools[-1]
            pools[-1] = [(count * before + size * (start - gap * count)) / (count + size), count + size]
    places = [start + gap * i for start, size in pools for i in range(int(size))]
    for i in range(len(places)):
        places[i] = max(places[i], low + gap * i)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], high - gap * (len(places) - 1 - i))
    return places


def _canvas(height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, below each other."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, list(figure.subplots(rows, 1, squeeze=False)[:, 0])


def _bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    labels: Sequence[str],
    spreads: Sequence[Mapping[str, float]] | None = None,
    lines: Sequence[float] = (),
) -> None:
    """Horizontal bars from top to bottom, each with its number to the right of it, clear of vertical lines.

    What EAS made is blue.
    """
    colours = [GREY if name in ("base", "zero-shot") else BLUE for name in names]
    axes.barh(range(len(names)), values, color=colours, height=0.62)
    ends = list(values)
    for i, spread in enumerate(spreads or ()):
        axes.plot([spread["low"], spread["high"]], [i, i], color=INK, linewidth=1.2, marker="|", markersize=7)
        ends[i] = max(ends[i], spread["high"])
    axes.set_xlim(0, (max(ends) or 1.0) * (1.35 if spreads is None else 2.1))  # room for the numbers
    for i, (end, label) in enumerate(zip(ends, labels, strict=True)):
        start = end
        for line in sorted(lines):
            start = line if start <= line < start + 15 else start
        axes.annotate(label, (start, i), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5)
    axes.set_yticks(range(len(names)), [short(name, 16) for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines.bottom.set_visible(False)


def _make_room(figure: Figure, rows: Sequence[Axes]) -> None:
    """Widens each axis until the number behind its longest bar is whole."""
    numbers = [[text for text in axes.texts if isinstance(text, Annotation)] for axes in rows]
    for text in (text for some in numbers for text in some):
        text.set_in_layout(False)
    figure.draw_without_rendering()
    for axes, some in zip(rows, numbers, strict=True):
        width = axes.get_window_extent().width
        taken = [(text.xy[0], text.get_window_extent().width + 10 * figure.dpi / 72) for text in some]
        axes.set_xlim(0, max(end * width / max(width - label, 0.1 * width) for end, label in taken) or 1.0)
