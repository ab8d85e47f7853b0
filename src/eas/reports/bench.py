"""The report of `eas bench`, from its JSON: a table for the terminal and for Markdown, and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from eas.reports.certainty import decimals, rounded
from eas.reports.figures import BLUE, GREY, INK, ORANGE, STYLE, svg
from eas.reports.findings import FEWEST
from eas.reports.summary import number, size

COSTS = ["k", "MACs", "read/token", "KV/token", "memory", "fold ms"]
TIMES = ["prefill ms", "x (bound)", "decode ms", "x (bound)", "of bound"]
HEAD = ["variant", *COSTS, *TIMES]
ABOVE = "!"


def bench_tables(result: Mapping[str, Any]) -> list[Table]:
    """Per batch size one of what the variants cost and one of the times, each as wide as a terminal."""
    tables = []
    for batch in result["config"]["batch_sizes"]:
        title, caption = f"{heading(result)}, batch {batch}", Text(notes(result, batch))
        first = 1 + len(COSTS)
        costs = Table(title=Text(title), box=box.SIMPLE_HEAD, pad_edge=False)
        times = Table(caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
        for table, shown in ((costs, slice(1, first)), (times, slice(first, None))):
            table.add_column("variant", no_wrap=True)
            for name in HEAD[shown]:
                table.add_column(name, justify="right", no_wrap=True)
            for row in cells(result, batch):
                table.add_row(row[0], *map(Text, row[shown]))
        tables += [costs, times]
    return tables


def markdown(result: Mapping[str, Any], batch: int) -> str:
    """The same table in Markdown, with its notes below."""
    lines = [HEAD, ["---", *["---:"] * (len(HEAD) - 1)], *cells(result, batch)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{notes(result, batch)}\n"


def heading(result: Mapping[str, Any]) -> str:
    """What was measured."""
    config = result["config"]
    what = f"{config['model']}, {config['dtype']}, {config['device']}, {config['decode']} decoding"
    if config.get("quantise"):  # files written before there was the option do not have it
        what += f", {config['quantise']} weights"
    return f"{what}, prompt {config['prompt_tokens']}, {config['new_tokens']} new tokens"


def cells(result: Mapping[str, Any], batch: int) -> list[list[str]]:
    """The rows of one batch size as text."""
    return [_cells(row) for row in result["rows"] if row["batch"] == batch]


def _cells(row: Mapping[str, Any]) -> list[str]:
    def ratio(key: str) -> str:
        mark = ABOVE if row[f"{key}_above_bound"] else ""
        return f"{_spread(row[f'{key}_speedup'], 2, mark)} ({row[f'{key}_speedup_bound']:.2f})"

    fold = "" if row["fold_ms"] is None else f"{row['fold_ms']:.0f}{' per request' if row['fold_per_request'] else ''}"
    return [
        row["variant"],
        str(row["skipped"]),
        number(row["macs"]),
        size(row["decode_bytes"]),
        size(row["kv_bytes_per_token"]),
        size(row["memory_bytes"]) + ("" if row["peak_measured"] else "+"),
        fold,
        _spread(row["prefill_ms"], 1),
        ratio("prefill"),
        _spread(row["decode_ms"], 1),
        ratio("decode"),
        f"{100 * row['prefill_of_bound']:.0f} / {100 * row['decode_of_bound']:.0f} %",
    ]


def _spread(spread: Mapping[str, float], digits: int, mark: str = "", scale: float = 1.0) -> str:
    """The median, at most so many digits behind the point, and half the distance of the outer tenths, in percent."""
    width = spread["high"] - spread["low"]
    shown = rounded(spread["median"] / scale, min(digits, decimals(spread["median"] / scale, width / scale)))
    return f"{shown}{mark}" + (f" ±{50 * width / spread['median']:.0f} %" if width else "")


def notes(result: Mapping[str, Any], batch: int) -> str:
    """What the numbers mean, what the machine can do, and what calls for attention."""
    rates, config, rows = result["rates"], result["config"], result["rows"]
    parts = [
        f"{result['hardware']['gpu'] if config['device'] == 'cuda' else result['hardware']['cpu']}, "
        f"{result['hardware']['threads']} threads: {_spread(rates['macs_per_second'], 0, scale=1e9)} GMAC/s, "
        f"{_spread(rates['bytes_per_second'], 1, scale=1e9)} GB/s read",
        f"medians of {config['repeats']} alternated repeats; x: speed-up over the base in the same repeat, in brackets "
        "the one that MACs and bytes allow; of bound: prefill / decode at these rates",
    ]
    if config["repeats"] < FEWEST:
        parts.append(f"{config['repeats']} repeat(s) tell no spread: no speed-up follows")
    here = [row for row in rows if row["batch"] == batch]
    if flagged := [r["variant"] for r in here if r["prefill_above_bound"] or r["decode_above_bound"]]:
        parts.append(f"{ABOVE} {', '.join(flagged)}: faster than the bound allows, so the base was slow, not this fast")
    for row in here:
        if row["variant"].startswith("eas_") and "decode_over_drop" in row:
            prefill, decode = (_spread(row[f"{key}_over_drop"], 2) for key in ("prefill", "decode"))
            parts.append(f"{row['variant']} takes {prefill} of drop's prefill and {decode} of its decoding")
        if "pays_after_tokens" in row:
            after = row["pays_after_tokens"]
            pays = "never pays" if after is None else f"pays after {after} tokens"
            parts.append(f"{row['variant']} {pays}, compared with the better of eas and eas_shared")
    parts += [f"{name} left out: {reason}" for name, reason in result["left_out"].items()]
    return "; ".join(parts)


def write_bench(result: Mapping[str, Any], path: Path) -> None:
    """The figure beside a JSON file, as ``.png`` and ``.svg``."""
    with matplotlib.rc_context(STYLE):
        figure = bench_figure(result)
        figure.savefig(path.with_suffix(".png"), dpi=160, facecolor="white")
    path.with_suffix(".svg").write_text(svg(figure, "bench"))


def bench_figure(result: Mapping[str, Any]) -> Figure:
    """Speed-up over the base, prefill to the left and decode to the right; ticks: what MACs and bytes allow."""
    batches, rows = result["config"]["batch_sizes"], result["rows"]
    figure = Figure(figsize=(7.6, 0.6 + 0.27 * len(rows) + 0.5 * len(batches)))
    for line, axes_row in enumerate(figure.subplots(len(batches), 2, squeeze=False, sharey="row")):
        here = [row for row in rows if row["batch"] == batches[line]]
        for axes, key in zip(axes_row, ("prefill", "decode"), strict=True):
            spreads = [row[f"{key}_speedup"] for row in here]
            speed = [spread["median"] for spread in spreads]
            error = [[s["median"] - s["low"] for s in spreads], [s["high"] - s["median"] for s in spreads]]
            colours = [BLUE if row["variant"].startswith("eas") else GREY for row in here]
            axes.barh(range(len(here)), speed, color=colours, height=0.62, xerr=error, error_kw={"elinewidth": 0.8})
            for i, row in enumerate(here):
                bound = row[f"{key}_speedup_bound"]
                axes.plot([bound, bound], [i - 0.4, i + 0.4], color=ORANGE, linewidth=2)
                sure = min(2, decimals(speed[i], spreads[i]["high"] - spreads[i]["low"]))
                text = f"{rounded(speed[i], sure)}{ABOVE if row[f'{key}_above_bound'] else ''}"
                axes.annotate(
                    text, (max(spreads[i]["high"], bound), i), xytext=(5, 0), textcoords="offset points", va="center"
                )
            axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
            axes.set_xlim(0, 1.25 * max(*(s["high"] for s in spreads), *(row[f"{key}_speedup_bound"] for row in here)))
            axes.set_title(f"{key}, batch {batches[line]}")
            axes.set_yticks(range(len(here)), [row["variant"] for row in here])
        axes_row[0].invert_yaxis()
    figure.supxlabel("speed-up over the base, and its spread; orange: what MACs and bytes allow", fontsize=10)
    return figure
