"""From the runs of benchmarks/proxy.py to benchmarks/proxy.json: correlations, and searched sets against random ones.

python benchmarks/proxy_gather.py FOLDER > benchmarks/proxy.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """From 1, equals sharing their mean rank."""
    v = np.asarray(values)
    return np.array([(np.sum(v < x) + np.sum(v <= x) + 1) / 2 for x in v])


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def summary(values: Sequence[float]) -> dict[str, Any]:
    return {"values": [round(v, 3) for v in values], "mean": round(float(np.mean(values)), 3)}


def correlations(runs: Sequence[dict[str, Any]], k: int) -> dict[str, Any]:
    """Of every proxy with accuracy (its sign turned: a good proxy has 1) and loss after tuning, one value per seed."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        tuned = {tuple(row["set"]): row for row in run["tuned"]}
        at = [i for i, s in enumerate(run["sets"]) if len(s) == k]
        rows = [tuned[tuple(run["sets"][i])] for i in at]
        proxies = {name: [values[i] for i in at] for name, values in run["proxies"].items()}
        proxies |= {f"tuned, {step}": [row["early"][step] for row in rows] for step in rows[0]["early"]}
        for name, values in proxies.items():
            both = found.setdefault(name, {"accuracy": [], "loss": []})
            both["accuracy"].append(spearman(values, [-row["accuracy"] for row in rows]))
            both["loss"].append(spearman(values, [row["loss"] for row in rows]))
        ceiling = found.setdefault("loss after tuning", {"accuracy": []})
        ceiling["accuracy"].append(spearman([row["loss"] for row in rows], [-row["accuracy"] for row in rows]))
    return {name: {what: summary(values) for what, values in both.items()} for name, both in found.items()}


def searched(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy and loss after tuning of what a search chose, beside the mean over random sets of its size."""
    rows: dict[tuple[int, str], dict[str, list[float]]] = {}
    for run in runs:
        tuned = {tuple(row["set"]): row for row in run["tuned"]}
        for chosen in run["searched"]:
            row = rows.setdefault((chosen["k"], chosen["rule"]), {})
            random = [tuned[tuple(s)] for s in run["sets"] if len(s) == chosen["k"]]
            for what in ("accuracy", "loss"):
                row.setdefault(what, []).append(tuned[tuple(chosen["set"])][what])
                row.setdefault(f"random {what}", []).append(float(np.mean([r[what] for r in random])))
            row.setdefault("random accuracy, sd", []).append(float(np.std([r["accuracy"] for r in random], ddof=1)))
    return [{"k": k, "rule": r, **{w: summary(v) for w, v in row.items()}} for (k, r), row in sorted(rows.items())]


if __name__ == "__main__":
    tasks: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        tasks.setdefault(path.stem.partition("-")[0], []).append(json.loads(path.read_text()))
    result = {
        task: {
            "seeds": [run["seed"] for run in runs],
            "sets": len(runs[0]["sets"]),
            "correlation": {k: correlations(runs, k) for k in (6,)},
            "searched": searched(runs),
            "seconds": runs[0]["spent"],
        }
        for task, runs in tasks.items()
    }
    first = next(iter(tasks.values()))[0]
    print(json.dumps({"tasks": result, "hardware": first["hardware"], "git_revision": first["git_revision"]}, indent=1))
