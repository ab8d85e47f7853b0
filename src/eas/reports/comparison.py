"""The reports of a comparison, made from its comparison.json: tables for people and for programs, and a figure."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
from rich import box
from rich.table import Table
from rich.text import Text

from eas.reports.certainty import between, median_text, percent, spread_text
from eas.reports.figures import STYLE
from eas.reports.findings import FEWEST, at, blind_answers, compared
from eas.reports.sources import read_comparison
from eas.reports.summary import number, numbers_told, size
from eas.reports.tradeoff import tradeoff


def write_comparison(path: Path) -> None:
    """Writes ``comparison.md``, ``.csv`` and, where there are times to draw, ``.png`` and ``.svg`` beside it.

    Raises:
        ReportError: the file is missing or damaged.
    """
    result = read_comparison(path)
    path.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(values(result))
    with matplotlib.rc_context({**STYLE, "savefig.dpi": "figure", "svg.hashsalt": "comparison"}):
        timing = at(result, "latency", "wide") or at(result, "latency") or {}
        figure = tradeoff(result["rows"], timing, at(result, "task", "examples"))
        if figure is not None:
            figure.savefig(path.with_suffix(".png"))
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def comparison_table(result: Mapping[str, Any]) -> Table:
    """The rows for the terminal; of the times only the medians, and only the wide ones where there are some."""
    if wide := at(result, "latency", "wide"):
        result = {**result, "latency": {**result["latency"], "variants": {}, "wide": wide}}
    head, *rows = cells(result, median_text)
    title = Text(f"{at(result, 'task', 'data')}, {at(result, 'task', 'metric')}")
    table = Table(title=title, caption=Text(notes(result)), box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=name == "test")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def markdown(result: Mapping[str, Any]) -> str:
    """The same table in Markdown with the spread of the times, its notes below."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in cells(result, spread_text)]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{notes(result)}\n"


def cells(result: Mapping[str, Any], time: Callable[[Mapping[str, float]], str]) -> list[list[str]]:
    """Head and rows of the table as text; a column that no row fills is left out."""
    times = {"": at(result, "latency", "variants"), "wide ": at(result, "latency", "wide", "variants")}
    columns = ["", "k", "test", "trained", "MACs", "KV/token"]
    columns += [f"{prefix}{name}" for prefix in times for name in ("prefill", "decode")] + ["lr", "notes"]
    rows = []
    for row in result["rows"]:
        counts = row.get("counts") or {}
        shown = [row["row"], str(row["k"]), _accuracy(row, at(result, "task", "examples"))]
        for key, form in (("params_trained", number), ("macs", number), ("kv_bytes_per_token", size)):
            shown.append(form(counts[key]) if key in counts else "")
        for variants in times.values():
            timed = at(variants, variant(row))
            shown += [time(timed[key]) if timed and timed[key] else "" for key in ("prefill_ms", "decode_ms")]
        rate = row.get("learning_rate")
        rows.append([*shown, "" if rate is None else f"{rate:g}", _remarks(row)])
    kept = [i for i, name in enumerate(columns) if not name or any(row[i] for row in rows)]
    return [[line[i] for i in kept] for line in [columns, *rows]]


def values(result: Mapping[str, Any]) -> list[list[Any]]:
    """Head and rows for programs: plain numbers, one column each."""
    seconds, counts = ("search", "tune", "evaluate"), ("params_trained", "macs", "kv_bytes_per_token", "weight_bytes")
    places = {"": ("latency", "variants"), "wide_": ("latency", "wide", "variants")}
    spreads = [(p, key, s) for p in places for key in ("prefill_ms", "decode_ms") for s in ("median", "low", "high")]
    head = ["row", "label", "method", "k", "runs", "failed", "learning_rate", "test_mean", "test_sd", "test_values"]
    head += ["validation_mean", *counts, *(f"{s}_seconds" for s in seconds)]
    table: list[list[Any]] = [[*head, *(f"{prefix}{key}_{s}" for prefix, key, s in spreads)]]
    for row in result["rows"]:
        line = [row["row"], row["label"], row["method"], row["k"], len(row["seeds"]), row["failed"]]
        line += [row.get("learning_rate"), at(row, "test", "mean"), at(row, "test", "sd")]
        line += [" ".join(map(str, at(row, "test", "values") or ())), at(row, "validation", "mean")]
        line += [at(row, "counts", key) for key in counts] + [at(row, "seconds", key) for key in seconds]
        table.append(line + [at(result, *places[prefix], variant(row), key, s) for prefix, key, s in spreads])
    return table


def variant(row: Mapping[str, Any]) -> str:
    """The name under which a row was timed."""
    return "base" if row["method"] is None else str(row["row"])


def notes(result: Mapping[str, Any]) -> str:
    """What the numbers are."""
    latency, seeds, task = at(result, "latency"), at(result, "config", "seeds") or [], at(result, "task") or {}
    said = [f"test in %, mean ± standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else "test in %, one seed"]
    if result.get("apart"):
        said = ["test in %, mean ± standard deviation of a row's seeds"]
    if examples := at(task, "examples"):
        said.append(f"in brackets its 95 % interval on {examples} examples")
    held = [numbers_told("candidates", layers) for row in result["rows"] if (layers := row.get("candidate_layers"))]
    said += [told[:-1] for told in dict.fromkeys(held)]
    said += [f"{name} gives {percent(score)}" for name, score in blind_answers(task).items()]
    if latency:
        repeats = at(latency, "settings", "repeats") or at(latency, "repeats")
        others = [f"{row}: {tokens}" for row, tokens in (latency.get("own_prompt_tokens") or {}).items()]
        prompt = f"prompt of {latency['prompt_tokens']} tokens" + (f" ({', '.join(others)})" if others else "")
        said.append(f"{prompt}; times in ms, medians (10th–90th percentile)")
        said[-1] += f" of {repeats} repeats" if repeats else ""
        said += _no_gains(result, repeats)
        said += ["each run timed by itself, so compare it with its own base"] if result.get("apart") else []
        said += [f"wide: {name}"] if (name := at(latency, "wide", "name")) else []
        said.append(f"timed on {at(latency, 'hardware', 'gpu') or at(latency, 'hardware', 'cpu')}")
    return "; ".join(said)


def _no_gains(result: Mapping[str, Any], repeats: int | None) -> list[str]:
    """Rows whose times may not be taken as a speed-up over the base, and why."""
    if repeats is not None and repeats < FEWEST:
        return [f"timed {'once' if repeats == 1 else 'twice'}, which tells no spread: no speed-up follows"]
    base: Mapping[str, Any] = next((row for row in result["rows"] if row["method"] is None and row.get("counts")), {})
    variants, said = at(result, "latency", "variants") or {}, list[str]()
    for row in result["rows"]:
        if not base or row is base or not row.get("counts"):
            continue
        tokens = at(result, "latency", "prompt_tokens")
        own = at(result, "latency", "own_prompt_tokens", row["row"]) or tokens
        allowed = _bounds(base["counts"], row["counts"], (tokens, own))
        for key, bound in allowed.items():
            before, after = at(variants, "base", key), at(variants, variant(row), key)
            found = compared(before, after, bound, repeats) if before and after else None
            if found is not None and found.change > 0 and "allow" in found.why_not:
                said.append(f"{row['row']} {key.partition('_')[0]} {found.told}")
    return said


def _bounds(base: Mapping[str, float], row: Mapping[str, float], tokens: tuple[int, int]) -> dict[str, float]:
    """As a run's ``bounds``, from the counts of the rows; of what they hold."""
    found = {"prefill_ms": base["macs"] / row["macs"]} if base.get("macs") and row.get("macs") else {}
    if base.get("weight_bytes") and row.get("weight_bytes"):
        counts = zip((base, row), tokens, strict=True)
        read = [c["weight_bytes"] + n * (c.get("kv_bytes_per_token") or 0) for c, n in counts]
        found["decode_ms"] = read[0] / read[1]
    return found


def _accuracy(row: Mapping[str, Any], examples: int | None) -> str:
    """The mean with the deviation of the seeds, and the interval of the examples."""
    test = row.get("test")
    if test is None:
        return ""
    shown = f"{100 * test['mean']:.1f}" + ("" if test["sd"] is None else f" ± {100 * test['sd']:.1f}")
    return shown + (f" ({between(test['mean'], examples)})" if examples else "")


def _remarks(row: Mapping[str, Any]) -> str:
    said = [f"failed: {row['failed']}"] if row["failed"] else []
    said += ["folding changes answers"] if row.get("fold_keeps_answers") is False else []
    said += ["not comparable: it answers in other words"] if row.get("comparable") is False else []
    return ", ".join(said)
