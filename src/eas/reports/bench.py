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

from eas.reports.figures import BLUE, GREY, INK, ORANGE, STYLE, svg
from eas.reports.summary import number, size

HEAD = ["variant", "k", "MACs", "read/token", "KV/token", "prefill ms", "x (bound)", "decode ms", "x (bound)"]
HEAD += ["of bound", "fold ms", "memory"]
ABOVE = "!"


def bench_tables(result: Mapping[str, Any]) -> list[Table]:
    """One table per batch size."""
    tables = []
    for batch in result["config"]["batch_sizes"]:
        title, caption = f"{heading(result)}, batch {batch}", Text(notes(result, batch))
        table = Table(title=Text(title), caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(HEAD):
            table.add_column(name, justify="right" if i else "left", no_wrap=True)
        for row in cells(result, batch):
            table.add_row(*map(Text, row))
        tables.append(table)
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
        return f"{row[f'{key}_speedup']:.2f}{mark} ({row[f'{key}_speedup_bound']:.2f})"

    fold = "" if row["fold_ms"] is None else f"{row['fold_ms']:.0f}{' per request' if row['fold_per_request'] else ''}"
    return [
        row["variant"],
        str(row["skipped"]),
        number(row["macs"]),
        size(row["decode_bytes"]),
        size(row["kv_bytes_per_token"]),
        _time(row["prefill_ms"]),
        ratio("prefill"),
        _time(row["decode_ms"]),
        ratio("decode"),
        f"{100 * row['prefill_of_bound']:.0f} / {100 * row['decode_of_bound']:.0f} %",
        fold,
        size(row["memory_bytes"]) + ("" if row["peak_measured"] else "+"),
    ]


def _time(spread: Mapping[str, float]) -> str:
    """The median, and how far the outer tenths are apart, in percent of it."""
    return f"{spread['median']:.1f} ±{50 * (spread['high'] - spread['low']) / spread['median']:.0f} %"


def notes(result: Mapping[str, Any], batch: int) -> str:
    """What the numbers mean, what the machine can do, and what calls for attention."""
    rates, config, rows = result["rates"], result["config"], result["rows"]
    parts = [
        f"{result['hardware']['gpu'] if config['device'] == 'cuda' else result['hardware']['cpu']}, "
        f"{result['hardware']['threads']} threads: {number(rates['macs_per_second'])}MAC/s, "
        f"{number(rates['bytes_per_second'])}B/s read",
        f"medians of {config['repeats']} alternated repeats; x: speed-up over the base, in brackets the one that MACs "
        "and bytes allow; of bound: prefill / decode at these rates",
    ]
    here = [row for row in rows if row["batch"] == batch]
    if flagged := [r["variant"] for r in here if r["prefill_above_bound"] or r["decode_above_bound"]]:
        parts.append(f"{ABOVE} {', '.join(flagged)}: faster than the bound allows, so the base was slow, not this fast")
    for row in here:
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
            speed = [row[f"{key}_speedup"] for row in here]
            colours = [BLUE if row["variant"].startswith("eas") else GREY for row in here]
            axes.barh(range(len(here)), speed, color=colours, height=0.62)
            for i, row in enumerate(here):
                bound = row[f"{key}_speedup_bound"]
                axes.plot([bound, bound], [i - 0.4, i + 0.4], color=ORANGE, linewidth=2)
                text = f"{speed[i]:.2f}{ABOVE if row[f'{key}_above_bound'] else ''}"
                axes.annotate(text, (max(speed[i], bound), i), xytext=(5, 0), textcoords="offset points", va="center")
            axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
            axes.set_xlim(0, 1.25 * max(*speed, *(row[f"{key}_speedup_bound"] for row in here)))
            axes.set_title(f"{key}, batch {batches[line]}")
            axes.set_yticks(range(len(here)), [row["variant"] for row in here])
        axes_row[0].invert_yaxis()
    figure.supxlabel("speed-up over the base; orange: what MACs and bytes allow", fontsize=10)
    return figure
