"""A table of the paper beside ours: for the terminal, and as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from eas.files import write_text
from eas.reports.certainty import decimals, median_text, rounded
from eas.reports.fig4 import write_fig4
from eas.reports.findings import FEWEST, at
from eas.reports.summary import size

MARKS = {"reproduced": "", "differs": " (!)", "unexplained": " (*)"}
LEGEND = "difference is ours - paper; (*) no consistent counting gives the paper's figure; (!) ours differs"
UNITS = {"params": "%", "params_M": "M", "time": "s"}


def write_reproduction(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes ``TABLE.json``, ``.md`` and ``.csv`` into a folder, of Fig. 4 the figure too, and returns their paths."""
    paths = [folder / f"{result['table']}.{suffix}" for suffix in ("json", "md", "csv")]
    write_text(paths[0], json.dumps(result, indent=1) + "\n")
    write_text(paths[1], markdown(result))
    with paths[2].open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(values(result))
    return paths + (write_fig4(result, folder) if result["table"] == "fig4" else [])


def reproduction_table(result: Mapping[str, Any]) -> Table:
    """For the terminal: one figure a line, as a table of the paper is too wide for it."""
    table = Table(title=Text(result["title"]), caption=Text("\n".join(notes(result))), box=box.SIMPLE_HEAD)
    for i, name in enumerate(("", "figure", "paper", "ours", "difference")):
        table.add_column(name, justify="right" if i > 1 else "left")
    for row in result["rows"]:
        named = False
        for _, _, column, paper, ours, difference, verdict, _ in _lines(result["table"], row):
            if paper is None and column in row["ours"]:
                continue  # counted, but not in the paper's table
            digits = places(column)
            gap = "" if difference is None else _signed(difference, digits) + MARKS.get(verdict, "")
            unit = UNITS.get(column, "G" if column in row["ours"] and column not in result["accuracy"] else "")
            shown = _ours(row, column) or _figure(ours, digits)
            table.add_row(*map(Text, ("" if named else row["name"], f"{column} {unit}", _figure(paper), shown, gap)))
            named = True
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """Title, table and notes."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in cells(result)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"# {result['title']}\n\n{table}\n\n" + "\n".join(f"- {note}" for note in notes(result)) + "\n"


def cells(result: Mapping[str, Any]) -> list[list[str]]:
    """Head and rows as text. A column of the paper that ours has as well becomes three; of the others, only those of
    accuracy and time are shown."""
    columns = list(dict.fromkeys(c for row in result["rows"] for c in row["paper"]))
    both = [c for c in columns if any(c in row["difference"] for row in result["rows"])]
    printed = [c for c in columns if c not in both and (c in result["accuracy"] or c == "time")]
    timed = any("latency" in row for row in result["rows"])
    scored = any(row.get("trained") for row in result["rows"])
    units = {**UNITS, **dict.fromkeys(result["accuracy"], "")}
    head = [""] + [
        f"{c} {units.get(c, 'G')} {w}".replace("  ", " ") for c in both for w in ("paper", "ours", "difference")
    ]
    head += [f"{c}{' s' if c == 'time' else ''} paper" for c in printed]
    head += ["prefill ms", "decode ms", "prefill x", "decode x"] * timed + ["score of ours"] * scored
    rows = []
    for row in result["rows"]:
        line = [row["name"]]
        for column in both:
            mark = MARKS[row["verdict"][column]] if column in row["verdict"] else ""
            difference = row["difference"].get(column)
            line += [_figure(row["paper"].get(column)), _ours(row, column)]
            line.append("" if difference is None else _signed(difference, places(column)) + mark)
        line += [_figure(row["paper"].get(column)) for column in printed]
        if timed:
            line += _times(row.get("latency"))
        if scored:
            line.append("; ".join(f"{name}: {_scores(found)}" for name, found in (row.get("trained") or {}).items()))
        rows.append(line)
    return [head, *rows]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What the figures are, and why some differ."""
    said = [LEGEND, *result["notes"]]
    for row in result["rows"]:
        said += [f"{row['name']}: {row['note']}"] if row["note"] else []
        said += [f"{row['name']}, {column} (*): {why}" for column, why in row["unexplained"].items()]
    if timing := result.get("timing"):
        where = at(timing, "hardware", "gpu") or at(timing, "hardware", "cpu")
        said.append(
            f"times: medians of {timing['repeats']} repeats on {where}, {timing['dtype']}, random weights, "
            f"{timing['prompt_tokens']} prompt tokens; x: how much faster than the base, alternated with it. The "
            "paper's times are seconds per sample on an A100, its answers generated"
        )
        if timing["repeats"] < FEWEST:
            said.append(f"times: {timing['repeats']} repeat(s) tell no spread: no speed-up follows")
        if shared := timing.get("block_bytes_shared"):
            said.append(f"times: all blocks held one block's weights ({size(shared)}) to save memory; depth is full")
    return [*said, *result.get("training_notes", [])]


def values(result: Mapping[str, Any]) -> list[list[Any]]:
    """Head and rows for programs: one line per figure."""
    head = ["table", "row", "column", "paper", "ours", "difference", "verdict", "why"]
    return [head, *(line for row in result["rows"] for line in _lines(result["table"], row))]


def _lines(table: str, row: Mapping[str, Any]) -> list[list[Any]]:
    lines: list[list[Any]] = []
    for column in dict.fromkeys([*row["paper"], *row["ours"]]):
        ours = row["ours"].get(column)
        shown = " ".join(map(str, ours)) if isinstance(ours, list) else ours
        compared = [row[key].get(column) for key in ("difference", "verdict", "unexplained")]
        lines.append([table, row["name"], column, row["paper"].get(column), shown, *compared])
    found = {column: spread["median"] for column, spread in (row.get("latency") or {}).items()}
    for name, trained in (row.get("trained") or {}).items():
        found |= {f"score {name} seed {s}": v for s, v in zip(trained["seeds"], trained["scores"], strict=True)}
    return lines + [[table, row["name"], column, None, value, None, None, None] for column, value in found.items()]


def places(column: str) -> int:
    """Digits behind the point of our figures: one more than the paper prints."""
    return 3 if column in ("params",) or "delta_" in column else 2


def _figure(value: Any, digits: int | None = None) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " to ".join(_figure(v, digits) for v in value)
    return f"{value}" if digits is None else f"{value:.{digits}f}"


def _ours(row: Mapping[str, Any], column: str) -> str:
    """Ours, with the standard deviation of its seeds."""
    sd, shown = at(row, "spread", column), _figure(row["ours"].get(column), places(column))
    return shown if sd is None else f"{shown} ± {sd:.2f}"


def _scores(trained: Mapping[str, Any]) -> str:
    """Every seed's score in percent."""
    seeds = zip(trained["seeds"], trained["scores"], strict=True)
    return ", ".join(f"{100 * score:.1f} (seed {seed})" for seed, score in seeds)


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def _times(latency: Mapping[str, Any] | None) -> list[str]:
    """Medians and speed-ups, with the digits that their spreads support."""
    if latency is None:
        return [""] * 4
    keys = ("prefill_ms", "decode_ms")
    ratios = []
    for key in keys:
        base, row = latency[f"base_{key}"], latency[key]
        width = base["high"] / row["low"] - base["low"] / row["high"]
        ratios.append(rounded(ratio := base["median"] / row["median"], max(1, min(3, decimals(ratio, width)))))
    return [median_text(latency[key]) for key in keys] + ratios
