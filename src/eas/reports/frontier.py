"""The frontier of a search: its table and its figure, from ``frontier.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from eas.reports.certainty import percent
from eas.reports.figures import BLUE, GREY, INK, ORANGE, STYLE, WIDTH, svg
from eas.reports.summary import number, size


def write_frontier(result: Mapping[str, Any], folder: Path) -> None:
    """``frontier.png`` and ``frontier.svg``."""
    with matplotlib.rc_context(STYLE):
        figure = frontier_figure(result)
        figure.savefig(folder / "frontier.png", dpi=200)
    (folder / "frontier.svg").write_text(svg(figure, "frontier"))


def frontier_figure(result: Mapping[str, Any]) -> Figure:
    """Above: held-out loss by k, predicted with two standard errors, and measured. Below: the share of each cost."""
    rows = result["rows"]
    ks, predicted = [row["k"] for row in rows], [row["predicted"] for row in rows]
    figure = Figure(figsize=(WIDTH, 4.6), facecolor="white")
    loss, cost = figure.subplots(2, 1, sharex=True)
    low, high = ([p + sign * 2 * r["standard_error"] for p, r in zip(predicted, rows, strict=True)] for sign in (-1, 1))
    loss.fill_between(ks, low, high, color=BLUE, alpha=0.2, linewidth=0)
    loss.plot(ks, predicted, color=BLUE, linewidth=1.6, label="predicted, ± 2 s.e.")
    measured = [row for row in rows if row["measured"] is not None]
    points = {"color": ORANGE, "marker": "o", "markersize": 6, "markeredgecolor": INK, "markeredgewidth": 0.6}
    loss.plot([r["k"] for r in measured], [r["measured"] for r in measured], linestyle="", label="measured", **points)
    loss.set_ylabel("held-out loss")
    for key, label, colour, style in (
        ("macs_share", "MACs, prefill", GREY, "-"),
        ("kv_share", "KV cache", BLUE, "--"),
        ("read_share", "bytes, decode", ORANGE, ":"),
    ):
        if key == "kv_share" and not result["base"]["kv_bytes_per_token"]:
            continue
        shares = [1 / row["decode_bound"] if key == "read_share" else row[key] for row in rows]
        cost.plot(ks, [100 * share for share in shares], color=colour, linestyle=style, linewidth=1.8, label=label)
    cost.set_ylabel("of the base, %")
    cost.set_xlabel("k, skipped")
    cost.set_ylim(bottom=0)
    cost.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    if (chosen := result["recommended"]) is not None:
        for axes in (loss, cost):
            axes.axvline(chosen, color=INK, linestyle="--", linewidth=1.0, zorder=0)
    loss.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0, columnspacing=1.2)
    cost.legend(loc="lower left")
    return figure


def frontier_table(result: Mapping[str, Any]) -> Table:
    """One row for every k."""
    note = f"loss on {result['examples']} validation examples with the searched weights, not tuned to the set; "
    note += f"prompt of {result['prompt_tokens']} tokens; bound: decode speed-up that fewer bytes read allow"
    if result["k"] in result["anchors"]:
        note += f"; the search compared sets of {result['k']} only: far from it the losses say little"
    table = Table(title="Frontier", caption=note)
    for name in ("k", "predicted loss", "measured", "MACs", "KV/token", "weights", "bound"):
        table.add_column(name, justify="right")
    table.add_column("skip set", overflow="fold")
    for row in result["rows"]:
        error = f" ± {row['standard_error']:.3f}" if row["standard_error"] > 0 else ""
        table.add_row(
            str(row["k"]),
            f"{row['predicted']:.3f}{error}",
            "" if row["measured"] is None else f"{row['measured']:.3f}",
            f"{number(row['macs'])} ({percent(row['macs_share'])})",
            size(row["kv_bytes_per_token"]),
            size(row["weight_bytes"]),
            f"{row['decode_bound']:.2f}x",
            " ".join(map(str, row["skip_set"])),
            style="bold" if row["k"] == result["recommended"] else None,
        )
    return table


def recommendation(result: Mapping[str, Any]) -> str:
    """Which k meets the budget, by which measured loss; or that none does."""
    k, rows = result["recommended"], [row for row in result["rows"] if row["measured"] is not None]
    tried = f"; measured for the budget: k = {', '.join(map(str, result['tried']))}" if result["tried"] else ""
    if k is None:
        left = "" if result["budget"]["max_loss_increase"] is None else "; --measure 2,4,6 measures the k that you name"
        return f"no k meets the budget{tried}{left}"
    lowest = min(rows, key=lambda row: float(row["measured"]))
    loss = result["rows"][k]["measured"]
    above = f"{loss - lowest['measured']:.3f} above the lowest measured, that of k = {lowest['k']}"
    return f"recommended: k = {k}, measured loss {loss:.3f}, {above}{tried}"
