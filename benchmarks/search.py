"""How well every search rule finds planted redundancy, without a model: precision at k and regret of the chosen set.

python benchmarks/search.py > benchmarks/search.json

Of n = 32 candidates k = 12 cost nothing when skipped. The costs of the others sum to 1, all alike ("even") or drawn
from U(0, 1) and scaled ("uniform": some cost next to nothing). The loss of a set is the cost of what it skips, a noise
of its own, and a noise that its round of three shares. With pairs, four disjoint pairs of the redundant, or of the
kept, cost U(0.1, 0.3) more if both are skipped. Regret is the noiseless loss of the chosen set less the best set's;
precision is the share of it that is in the nearest best set.

The ceiling ranks unbiased estimates of the costs with variance 4 noise^2 / evaluations, the least that any choice of
what to weigh together allows (Hotelling 1944), and here without the batch noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eas.measure.latency import git_revision
from eas.searching import FIXED, RULES, make_rule
from eas.searching.base import Array, SkipSet

CANDIDATES, SKIP, SAMPLES, ROUNDS, TRIALS = 32, 12, 3, (30, 100, 300), 20
BATCH_NOISE = 0.1  # shared by the losses of a round
# costs of the kept ones, noise of one evaluation, among which candidates there are pairs
SCENARIOS: dict[str, tuple[str, float, str]] = {
    "even": ("even", 0.05, ""),
    "uniform": ("uniform", 0.05, ""),
    "even, noise 0.4": ("even", 0.4, ""),
    "uniform, noise 0.4": ("uniform", 0.4, ""),
    "uniform, redundant pairs": ("uniform", 0.05, "redundant"),
    "even, kept pairs": ("even", 0.05, "kept"),
}


@dataclass(frozen=True)
class Planted:
    """A hidden truth: ``single`` costs of skipping, and ``pair`` costs (symmetric) of skipping two together."""

    single: Array
    pair: Array

    def loss(self, skip_set: Sequence[int]) -> float:
        s = list(skip_set)
        return float(self.single[s].sum() + self.pair[np.ix_(s, s)].sum() / 2)


def plant(rng: np.random.Generator, costs: str, pairs: str) -> Planted:
    """A truth of one scenario."""
    order = rng.permutation(CANDIDATES)
    redundant, kept = order[:SKIP], order[SKIP:]
    single, pair = np.zeros(CANDIDATES), np.zeros((CANDIDATES, CANDIDATES))
    single[kept] = 1.0 if costs == "even" else rng.uniform(size=len(kept))
    for i, j in {"redundant": redundant, "kept": kept, "": kept[:0]}[pairs][:8].reshape(-1, 2):
        pair[i, j] = pair[j, i] = rng.uniform(0.1, 0.3)
    return Planted(single / single.sum(), pair)


def best_sets(truth: Planted, rng: np.random.Generator, starts: int = 100) -> set[SkipSet]:
    """The sets of least loss that descending by the best swap reaches from random starts."""
    found: dict[SkipSet, float] = {}
    for _ in range(starts):
        inside = np.zeros(CANDIDATES, dtype=bool)
        inside[rng.choice(CANDIDATES, SKIP, replace=False)] = True
        while True:
            out, into = np.flatnonzero(inside), np.flatnonzero(~inside)
            slope = truth.single + truth.pair @ inside
            change = slope[into] - slope[out][:, None] - truth.pair[np.ix_(out, into)]
            i, j = np.unravel_index(change.argmin(), change.shape)
            if change[i, j] > -1e-12:
                break
            inside[out[i]], inside[into[j]] = False, True
        skip_set = tuple(np.flatnonzero(inside).tolist())
        found[skip_set] = truth.loss(skip_set)
    return {s for s, loss in found.items() if loss < min(found.values()) + 1e-9}


def play(
    name: str,
    loss: Callable[[SkipSet], float],
    size: tuple[int, int],
    noise: float,
    seed: int,
    rounds: Sequence[int] = ROUNDS,
) -> tuple[dict[int, SkipSet], int | None]:
    """The set that a rule would skip after each of ``rounds``, and after which round it was settled (None: never)."""
    rule, rng, chosen, settled = make_rule(name, *size, seed), np.random.default_rng([seed, 1]), {}, None
    for t in range(1, max(rounds) + 1):
        sets, batch = rule.propose(SAMPLES), BATCH_NOISE * rng.standard_normal()
        rule.observe(sets, [loss(s) + batch + noise * rng.standard_normal() for s in sets])
        if settled is None and rule.settled():
            settled = t
        if t in rounds or t == settled:
            chosen[t] = tuple(sorted(rule.ranking()[: size[1]]))
    return chosen, settled


def ceiling(truth: Planted, noise: float, seed: int) -> dict[int, SkipSet]:
    """The sets chosen by the most exact unbiased estimates of additive costs."""
    rng, chosen = np.random.default_rng([seed, 2]), {}
    for t in ROUNDS:
        estimates = truth.single + 2 * noise / np.sqrt(SAMPLES * t) * rng.standard_normal(CANDIDATES)
        chosen[t] = tuple(np.argsort(estimates)[:SKIP].tolist())
    return chosen


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over trials."""
    return {"mean": round(float(np.mean(values)), 4), "sd": round(float(np.std(values, ddof=1)), 4)}


def choose(name: str, truth: Planted, noise: float, seed: int) -> tuple[dict[int, SkipSet], int | None]:
    """As ``play``, for whatever a row of the table may name."""
    if name in RULES:
        return play(name, truth.loss, (CANDIDATES, SKIP), noise, seed)
    if name in FIXED:
        return dict.fromkeys(ROUNDS, tuple(FIXED[name](CANDIDATES, SKIP, seed)[:SKIP])), None
    return ceiling(truth, noise, seed), None


def scenario(costs: str, noise: float, pairs: str) -> dict[str, dict[str, Any]]:
    """Precision and regret of every rule, over trials that plant the same truths for all."""
    # [seed, 0] would be the rules' own stream
    truths = [plant(np.random.default_rng([seed, 4]), costs, pairs) for seed in range(TRIALS)]
    best = [best_sets(truth, np.random.default_rng([seed, 3])) for seed, truth in enumerate(truths)]
    table: dict[str, dict[str, Any]] = {}
    for name in [*RULES, *FIXED, *([] if pairs else ["ceiling"])]:
        precision: dict[int, list[float]] = {t: [] for t in ROUNDS}
        regret: dict[int, list[float]] = {t: [] for t in ROUNDS}
        settled: list[tuple[int, float]] = []
        draws = 50 if name == "ceiling" else 1  # it costs nothing, and a ceiling should not waver
        for seed, (truth, sets) in enumerate(list(zip(truths, best, strict=True)) * draws):
            least = truth.loss(next(iter(sets)))
            chosen, at = choose(name, truth, noise, seed)
            for t in ROUNDS:
                precision[t].append(max(len({*chosen[t]} & {*s}) for s in sets) / SKIP)
                regret[t].append(truth.loss(chosen[t]) - least)
            if at is not None:
                settled.append((at, truth.loss(chosen[at]) - least))
        table[name] = {
            "precision": {t: summary(values) for t, values in precision.items()},
            "regret": {t: summary(values) for t, values in regret.items()},
            "settled": [[at, round(value, 4)] for at, value in settled],  # in which round, with which regret
        }
    return table


if __name__ == "__main__":
    setting = {"candidates": CANDIDATES, "skip": SKIP, "samples": SAMPLES, "batch_noise": BATCH_NOISE}
    seeds = {"seeds": list(range(TRIALS)), "git_revision": git_revision()}
    print(json.dumps({**setting, **seeds, "scenarios": {n: scenario(*s) for n, s in SCENARIOS.items()}}))
