"""Several runs together: runs of one task become a comparison, in the form of comparison.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eas.reports.findings import at
from eas.reports.summary import final_accuracy

TIMES = ("prefill_ms", "decode_ms")
TASK = (("model", "id"), ("model", "dtype"), ("task", "data"), ("task", "metric"), ("task", "examples"))
SHARED = ("revision", "bits", "visual_tokens", "visual_choice", "data_options", "test_limit")
"""Settings that decide the base and the test examples."""
SEEDS = ("seed", "output_dir", "search.seed")  # runs that differ in these only are seeds of one row


def together(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One comparison for every task (base, data, metric) that several of the runs share, on the same examples.

    Args:
        results: ``result.json`` by the folder of the run.

    Returns:
        Mappings in the form of ``comparison.json``: task, rows and latency; "apart" says that each was timed by itself.
    """
    tasks: dict[str, dict[str, Mapping[str, Any]]] = {}
    for folder, result in results.items():
        task = json.dumps([at(result, *keys) for keys in (*TASK, *(("config", key) for key in SHARED))])
        tasks.setdefault(task, {})[folder] = result
    groups = [runs for runs in tasks.values() if len(runs) > 1]
    return [_comparison(runs) for runs in groups if at(next(iter(runs.values())), "task", "data") is not None]


def _comparison(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for folder, result in runs.items():
        groups.setdefault(json.dumps(_setting(result), sort_keys=True), {})[folder] = result
    names = _names([_setting(next(iter(group.values()))) for group in groups.values()], list(groups.values()))
    everyone = list(runs.values())
    by_row = {name: list(group.values()) for name, group in zip(names, groups.values(), strict=True)}
    rows = [_base_row(everyone), *map(_row, names, groups.values())]
    latency: dict[str, Any] = {"variants": _variants(by_row, everyone, "latency")}
    larger = {at(result, "latency", "larger", "name") for result in everyone}
    if len(larger) == 1 and None not in larger:  # all were timed in the same larger model
        latency["wide"] = {"name": larger.pop(), "variants": _variants(by_row, everyone, "latency", "larger")}
    machines = {str(at(r, "hardware", "gpu") or at(r, "hardware", "cpu")) for r in everyone}
    return {
        "task": everyone[0]["task"],
        "apart": True,
        "rows": rows,
        "latency": {
            **latency,
            "prompt_tokens": at(everyone[0], "latency", "prompt_tokens"),
            "repeats": min((r for result in everyone if (r := at(result, "latency", "repeats"))), default=None),
            "hardware": {"cpu": ", ".join(sorted(machines))},
        }
        if latency["variants"]
        else None,
    }


def _setting(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _flat(result["config"]).items() if key not in SEEDS}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _names(settings: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Method and k, and what tells a row from the others of the same method and k."""
    plain = [_method_and_k(next(iter(group.values()))) for group in groups]
    names = []
    for name, setting, group in zip(plain, settings, groups, strict=True):
        same = [other for other, its in zip(settings, plain, strict=True) if its == name]
        keys = [key for key in setting if any(other.get(key) != setting[key] for other in same)]
        told = [f"{key.rpartition('.')[2]} {setting[key]}" for key in keys[:2]]
        names.append(", ".join([name, *told]) if len(same) > 1 else name)
        if names.count(names[-1]) > 1:  # two settings are not enough: the folder tells
            names[-1] += f" ({next(iter(group))})"
    return names


def _method_and_k(result: Mapping[str, Any]) -> str:
    method, k = at(result, "model", "method") or "run", at(result, "model", "k")
    return f"{method}_{k}" if k else str(method)


def _row(name: str, runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    first = next(iter(runs.values()))
    scored = {folder: s for folder, result in runs.items() if (s := final_accuracy(result)) is not None}
    results = [runs[folder] for folder in scored]
    folded = [(at(r, "accuracy", "folded"), at(r, "accuracy", "tuned")) for r in results]
    return {
        "row": name,
        "label": name.replace(_method_and_k(first), str(at(first, "model", "method") or "run"), 1),
        "method": at(first, "model", "method") or "run",
        "k": at(first, "model", "k") or 0,
        "seeds": [result.get("seed") for result in results],
        "failed": 0,
        "learning_rate": at(first, "config", "train", "learning_rate"),
        "test": _spread(list(scored.values())),
        "counts": at(first, "counts", "tuned"),
        "skip_sets": [s for result in results if (s := at(result, "model", "skip_set"))],
        "candidate_layers": at(first, "model", "candidate_layers"),
        "fold_keeps_answers": False if any(f is not None and f != t for f, t in folded) else None,
        "folders": list(scored),
    }


def _base_row(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    zero = [s for result in results if (s := at(result, "accuracy", "zero_shot")) is not None]
    counts = at(results[0], "counts", "base")
    counts = None if counts is None else {**counts, "params_trained": 0}
    comparable = at(results[0], "task", "zero_shot", "comparable")
    row: dict[str, Any] = {
        "comparable": comparable,
        "row": "base",
        "label": "base",
        "method": None,
        "k": 0,
        "seeds": [],
        "failed": 0,
    }
    return row | {"test": _spread(zero[:1]), "counts": counts, "skip_sets": [], "folders": []}


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"values": list(values), "mean": statistics.mean(values), "sd": sd}


def _variants(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], everyone: Sequence[Mapping[str, Any]], *keys: str
) -> dict[str, Any]:
    found = {"base": _times(everyone, *keys, "variants", "base")}
    for name, results in rows.items():
        found[name] = _times(results, *keys, "variants", "folded") or _times(results, *keys, "variants", "tuned")
    return {name: times for name, times in found.items() if len(times) == len(TIMES)}


def _times(results: Sequence[Mapping[str, Any]], *keys: str) -> dict[str, Any]:
    """The median of the runs' medians, between the lowest and the highest percentile of them all."""
    spreads = {key: [s for result in results if (s := at(result, *keys, key))] for key in TIMES}
    return {
        key: {
            "median": statistics.median(s["median"] for s in found),
            "low": min(s["low"] for s in found),
            "high": max(s["high"] for s in found),
        }
        for key, found in spreads.items()
        if found
    }
