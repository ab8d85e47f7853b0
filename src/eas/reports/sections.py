"""The sections of a page in the form that its template reads: a run, a comparison, several runs together."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eas.metrics.exact import exact_match
from eas.reports.certainty import between, percent, spread_text
from eas.reports.comparison import cells, notes
from eas.reports.curves import Curve, curve, importances_plot, losses_plot
from eas.reports.figures import Plot, plots
from eas.reports.findings import at
from eas.reports.front import COSTS, front_plot
from eas.reports.frontier import frontier_figure
from eas.reports.pattern import of_comparison, of_frontier
from eas.reports.places import without_places
from eas.reports.sources import DAMAGE, RESULT_FILE, ReportError, image_uri, read_json
from eas.reports.summary import about_stand_in, headline, remarks, summary_rows

ANSWERS = (("before", "base"), ("after", "tuned"))
Section = dict[str, Any]


def run_section(
    result: Mapping[str, Any], frontier: Mapping[str, Plot | None], folder: Path, prefix: str, most: int | None = None
) -> Section:
    """One run: before and after, figures, those of its frontier among them, answers, how it was made.

    Args:
        result: of the run.
        frontier: the figures of its frontier.
        folder: of the run.
        prefix: of ids.
        most: samples at most, all without it.
    """
    shown = [_sample(folder, result, sample) for sample in result["samples"][:most]]
    result = without_places({**result, "samples": []})
    return {
        "kind": "run",
        "file": str(folder / RESULT_FILE),
        "id": f"{prefix}run",
        "prefix": prefix,
        "name": folder.name or folder.resolve().name,
        "title": headline(result),
        "remarks": remarks(result),
        "stand_in": about_stand_in(result),
        "result": result,
        "rows": summary_rows(result),
        "plots": {f"{prefix}{name}": plot for name, plot in {**plots(result), **frontier}.items()},
        "first": _typical(shown),
        "samples": shown,
        "filters": _filters(shown),
        "categories": _categories(result),
        "config": json.dumps(result["config"], indent=2),
    }


def comparison_section(result: Mapping[str, Any], path: Path, out: Path, prefix: str) -> Section:
    """One comparison: its table, whose cells lead to configuration and seed, and its figures."""
    runs, curves, problems = [], list[Curve](), list[str]()
    for i, row in enumerate(result["rows"]):
        for seed, score in zip(row["seeds"], at(row, "test", "values") or (), strict=False):
            folder, problem = _folder(row, seed, path)
            problems += [problem] if problem else []
            curves += [] if folder is None else _curve(row["row"], seed, folder, problems)
            sets = dict(zip(row["seeds"], row.get("skip_sets") or (), strict=False))
            runs.append(
                {
                    "id": f"{prefix}row{i}-seed{seed}",
                    "row": row["row"],
                    "seed": seed,
                    "test": percent(score),
                    "skip_set": " ".join(map(str, sets.get(seed) or ())),
                    "rate": row.get("learning_rate"),
                    "settings": _settings(result, row["label"]),
                    "folder": None if folder is None else folder.name,
                    "href": None if folder is None else _link(folder / "run.yaml", out),
                }
            )
    result = without_places(result)
    task, rows = at(result, "task", "data"), [row for row in result["rows"] if row["method"] is not None]
    return {
        "kind": "comparison",
        "file": str(path),
        "id": f"{prefix}comparison",
        "name": path.resolve().parent.name if path.name == "comparison.json" else path.name,
        "title": f"{len(rows)} ways to tune for {task or 'a task'}: accuracy and cost",
        "table": _table(result, lambda i, j: f"#{prefix}row{i}-seed{result['rows'][i]['seeds'][j]}"),
        "notes": notes(result),
        "plots": _comparison_plots(result, curves, prefix),
        "runs": runs,
        "gone": sum(run["folder"] is None for run in runs),
        "shared": json.dumps(at(result, "config", "run") or {}, indent=2),
        "result": result,
        "problems": problems,
    }


def together_section(group: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], prefix: str) -> Section:
    """The runs of one task, in the form of a comparison; cells lead to the runs' own sections.

    Args:
        group: what `together` made of them.
        results: of all runs of the page by folder, in its order.
        prefix: of ids.
    """
    folders, group = list(results), {**without_places({**group, "rows": []}), "rows": _named_rows(group["rows"])}
    curves = [
        curve(row["row"], seed, results[folder]["search"], results[folder]["training"])
        for row in group["rows"]
        for seed, folder in zip(row["seeds"], row["folders"], strict=True)
    ]

    def link(i: int, j: int) -> str:
        return f"#run{folders.index(group['rows'][i]['folders'][j]) + 1}-settings"

    return {
        "kind": "together",
        "file": f"one of {', '.join(folders)}",
        "id": f"{prefix}together",
        "name": f"all runs on {group['task']['data']}",
        "title": f"All runs on {group['task']['data']}",
        "table": _table(group, link),
        "notes": notes(group),
        "plots": _comparison_plots(group, curves, prefix),
        "result": group,
    }


def _comparison_plots(result: Mapping[str, Any], curves: Sequence[Curve], prefix: str) -> dict[str, Plot | None]:
    drawn = {key.removesuffix("_ms"): front_plot(result, key) for key in COSTS}
    drawn |= {"pattern": of_comparison(result), "losses": losses_plot(curves)}
    return {f"{prefix}{name}": plot for name, plot in {**drawn, "importances": importances_plot(curves)}.items()}


def _curve(row: str, seed: Any, folder: Path, problems: list[str]) -> list[Curve]:
    """What the steps of a comparison's run left, none of it where a file is broken."""
    try:
        search, tune = (read_json(p) if (p := folder / f"{name}.json").is_file() else {} for name in ("search", "tune"))
        return [curve(row, seed, search, {"search": search.get("log"), "tune": tune.get("log")})]
    except ReportError as error:
        problems.append(str(error))
    except DAMAGE as error:
        problems.append(f"{folder}: search.json or tune.json is damaged ({error!r})")
    return []


def _table(result: Mapping[str, Any], link: Callable[[int, int], str]) -> Section:
    """Head and lines of the table; each seed's score links to its configuration."""
    head, *lines = cells(result, spread_text)
    return {
        "head": head,
        "lines": [
            {
                "cells": line,
                "seeds": [
                    {"text": f"{100 * score:.1f}", "seed": seed, "href": link(i, j)}
                    for j, (seed, score) in enumerate(zip(row["seeds"], at(row, "test", "values") or (), strict=False))
                ],
            }
            for i, (row, line) in enumerate(zip(result["rows"], lines, strict=True))
        ],
    }


def _folder(row: Mapping[str, Any], seed: Any, path: Path) -> tuple[Path | None, str | None]:
    """The folder of one seed's run, None if it is gone or its result is broken, and then what is wrong with it."""
    named = next((Path(f) for f in row.get("folders") or () if f.endswith(f"-s{seed}")), None)
    for folder in () if named is None else (path.parent / "runs" / named.name, named):  # first where it was moved to
        if (folder / RESULT_FILE).is_file():
            try:
                read_json(folder / RESULT_FILE)
            except ReportError as error:
                return None, str(error)
            return folder, None
    return None, None


def _named_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with their folders as they are, by which runs are found, and no absolute path in any name."""
    return [{**without_places(row), "folders": row["folders"]} for row in rows]


def _link(path: Path, out: Path) -> str | None:
    """The way from the page to a file; None where it would lead over the root of the disk."""
    path, out = path.resolve(), out.resolve()
    if os.path.commonpath([path, out]) == path.anchor:
        return None
    return Path(os.path.relpath(path, out)).as_posix()


def _settings(result: Mapping[str, Any], label: str) -> str:
    entries = at(result, "config", "entries") or ()
    entry: Mapping[str, Any] = next((entry for entry in entries if entry["label"] == label), {})
    return json.dumps(entry.get("run") or {})


def frontier_plots(frontier: Mapping[str, Any]) -> dict[str, Plot | None]:
    """What `eas frontier` found: loss and cost of every k, and its skip set."""
    measured = [row for row in frontier["rows"] if row["measured"] is not None]
    said = "; ".join(f"k = {row['k']}: {row['measured']:.3f}" for row in measured)
    loss = Plot("Loss and cost of every k", f"Held-out loss measured at {said}.", frontier_figure(frontier))
    return {"frontier": loss, "pattern": of_frontier(frontier)}


def _categories(result: Mapping[str, Any]) -> list[tuple[str, int | None, list[str]]]:
    """Every number of the metric, how many examples it is of, and it before and after with its interval, where there is
    more than one."""
    reports = [result["categories"].get(key) or {} for key in ("zero_shot", "tuned", "folded")]
    names, of = (
        list(dict.fromkeys(name for numbers in reports for name in numbers)),
        at(result, "categories", "examples"),
    )
    rows = [(name, at(of, name), [_number(numbers.get(name), at(of, name)) for numbers in reports]) for name in names]
    return rows if len(rows) > 1 else []


def _number(value: float | None, examples: int | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" + (f" ({between(value / 100, examples)})" if examples and 0 <= value <= 100 else "")


def typical_sample(folder: Path, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sample that a run's page shows first, in the form of the page, None where no sample has a picture."""
    return _typical([_sample(folder, result, sample) for sample in result["samples"]])


def _sample(folder: Path, result: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Any]:
    marked = (
        at(result, "task", "metric") == "exact"
    )  # where no scores were recorded, only plain equality is judged here

    def right(key: str) -> bool | None:
        if (score := sample.get(f"{key}_score")) is not None:
            return float(score) >= 0.5
        answer = sample.get(key)
        return exact_match(answer, sample["target"]) == 1.0 if marked and answer is not None else None

    answers = [
        {"name": name, "text": sample.get(key), "right": right(key), "read_as": sample.get(f"{key}_read_as")}
        for name, key in ANSWERS
    ]
    return {
        "question": sample["question"],
        "turns": sample.get("turns") or [],
        "target": sample["target"],
        "answers": answers,
        "became": _became(right("base"), right("tuned")),
        "categories": sample.get("categories") or {},
        "images": [image_uri(folder, name) for name in sample.get("images") or ()],
    }


def _typical(shown: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first sample with a picture of those whose answers became what most became."""
    pictured = [sample for sample in shown if any(sample["images"])]
    usual = Counter(sample["became"] for sample in pictured).most_common(1)
    return next((sample for sample in pictured if sample["became"] == usual[0][0]), None)


def _became(before: bool | None, after: bool | None) -> str:
    """What tuning made of an answer, in the words of the page's filter."""
    if before is None or after is None:
        return ""
    names = {(True, True): "stayed right", (False, False): "stayed wrong", (False, True): "became right"}
    return names.get((before, after), "became wrong")


def _filters(shown: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """By what samples may be filtered: what became of the answers, and every category with several values."""
    values: dict[str, list[str]] = {"answers": sorted({sample["became"] for sample in shown} - {""})}
    for sample in shown:
        for key, value in sample["categories"].items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: sorted(each) for key, each in values.items() if len(each) > 1}
