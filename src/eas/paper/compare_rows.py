"""The table of a comparison: one row per entry and k, of every seed's result."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from eas.config import ConfigError
from eas.paper.compare_config import Job
from eas.pipeline.records import ComparedRun, TrialRun
from eas.pipeline.run import Run
from eas.records import misfit


def result_of(job: Job) -> dict[str, Any] | None:
    result = Run(job.config).record("result")
    if result is None:
        return None
    if wrong := misfit(result, TrialRun if job.trial else ComparedRun, ""):
        path = job.folder / "result.json"
        raise ConfigError(f"{path} is no record of a comparison ({wrong}); remove {job.folder}")
    return result


def rows_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """One row per entry and k: every seed's values, and what they come to."""
    rows: dict[str, list[Job]] = {}
    for job in jobs:
        rows.setdefault(job.row, []).append(job)
    return [_row(name, group) for name, group in rows.items()]


def _row(name: str, jobs: Sequence[Job]) -> dict[str, Any]:
    found = [result for job in jobs if (result := result_of(job)) is not None]
    row: dict[str, Any] = {
        "row": name,
        "label": jobs[0].entry,
        "method": None if jobs[0].evaluate_only else jobs[0].config.method.name,
        "k": 0 if jobs[0].evaluate_only else jobs[0].config.num_skip,
        "seeds": [result["seed"] for result in found],
        "failed": len(jobs) - len(found),
    }
    if not found:
        return row
    counts = [result["counts"] for result in found]
    return row | {
        "learning_rate": found[0]["learning_rate"],
        "test": _spread([result["score"]["test"] for result in found]),
        "validation": _spread([result["score"]["validation"] for result in found]),
        "report": _numbers([result.get("report", {}) for result in found]),
        "counts": {key: round(statistics.mean(c[key] for c in counts)) for key in counts[0]},
        "skip_sets": [result["skip_set"] for result in found],
        "candidate_layers": found[0].get("candidate_layers"),
        "comparable": found[0].get("comparable"),
        "fold_keeps_answers": None
        if found[0]["fold_keeps_answers"] is None
        else all(result["fold_keeps_answers"] for result in found),
        "seconds": {key: statistics.mean(r["seconds"][key] for r in found) for key in found[0]["seconds"]},
        "folders": [str(job.folder) for job in jobs],
    }


def _numbers(reports: Sequence[dict[str, float]]) -> dict[str, Any]:
    """The numbers of a metric's report that every seed has: of a benchmark's kinds of questions, or the loss."""
    shared = [name for name in reports[0] if all(name in report for report in reports)]
    return {name: _spread([report[name] for report in reports]) for name in shared}


def _spread(values: list[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.mean(values), "sd": sd}


def summary_of(job: Job) -> dict[str, Any]:
    result = result_of(job) or {}
    rate = job.config.train.learning_rate
    return {"learning_rate": rate, "validation": result.get("score", {}).get("validation"), "folder": str(job.folder)}
