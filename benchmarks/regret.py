"""Which search rule finds a good skip set with how many evaluations, on measured losses of the embedded model.

python benchmarks/regret.py FOLDER > benchmarks/regret.json      (FOLDER: what benchmarks/proxy.py wrote)

The losses of all 495 sets of four attentions of twelve, under weights shared by a warm-up of 400 steps, are known on
each of six held-out batches of 32, and so are the cosines that rule "guided" takes. A rule's i-th round of three sets
is answered from batch i, cyclically, as in a search, so that its noise is the real one. A chosen set's rank (0: the
best) and regret are those of the mean over all batches. 20 rounds are the default of "guided", 300 are 900 evaluations.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eas.measure.latency import git_revision
from eas.searching import FIXED, RULES, make_rule
from eas.searching.base import SkipSet
from eas.searching.linear import GuidedRule

SAMPLES, ROUNDS, SEEDS = 3, (20, 100, 300), range(10)
Table = dict[SkipSet, NDArray[np.float64]]
Known = tuple[Table, list[float]]  # of one task and seed: losses by batch, and cosines


def play(name: str, known: Known, size: tuple[int, int], seed: int) -> dict[int, SkipSet]:
    """What a rule would skip after each of ROUNDS."""
    if name in FIXED:
        return dict.fromkeys(ROUNDS, tuple(sorted(FIXED[name](*size, seed)[: size[1]])))
    rule, chosen, (table, cosines) = make_rule(name, *size, seed), {}, known
    if isinstance(rule, GuidedRule):
        rule.guide(cosines)
    for t in range(1, max(ROUNDS) + 1):
        sets = rule.propose(SAMPLES)
        rule.observe(sets, [float(table[s][(t - 1) % len(table[s])]) for s in sets])
        if t in ROUNDS:
            chosen[t] = tuple(sorted(rule.ranking()[: size[1]]))
    return chosen


def compare(tables: list[Known]) -> dict[str, dict[str, Any]]:
    """Mean rank and regret of every rule over tables and seeds."""
    rows: dict[str, dict[str, Any]] = {}
    for name in [*RULES, *FIXED]:
        rank: dict[int, list[int]] = {t: [] for t in ROUNDS}
        regret: dict[int, list[float]] = {t: [] for t in ROUNDS}
        for known in tables:
            table = known[0]
            true = {s: float(row.mean()) for s, row in table.items()}
            order = {s: i for i, s in enumerate(sorted(true, key=true.__getitem__))}
            best, size = min(true.values()), (max(map(max, table)) + 1, len(next(iter(table))))
            for seed in SEEDS:
                for t, chosen in play(name, known, size, seed).items():
                    rank[t].append(order[chosen])
                    regret[t].append(true[chosen] - best)
        rows[name] = {
            "evaluations": [SAMPLES * t for t in ROUNDS],
            "rank": [round(float(np.mean(rank[t])), 1) for t in ROUNDS],
            "regret": [round(float(np.mean(regret[t])), 4) for t in ROUNDS],
            "regret_sd": [round(float(np.std(regret[t], ddof=1)), 4) for t in ROUNDS],
        }
    return rows


def load(path: Path) -> Known:
    """What is known of one task and seed."""
    found = json.loads(path.read_text())
    return {tuple(s): np.array(row) for s, row in found["table"]}, found["cosines"]


if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).glob("*.json"))
    by_task: dict[str, list[Known]] = {}
    for path in paths:
        by_task.setdefault(path.stem.partition("-")[0], []).append(load(path))
    tasks = {task: compare(tables) for task, tables in by_task.items()}
    print(json.dumps({"tables": [p.stem for p in paths], "tasks": tasks, "git_revision": git_revision()}))
