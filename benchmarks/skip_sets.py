"""Skip sets of ten of thirty before any training: their losses, and what predicts them.

python benchmarks/skip_sets.py smollm2-135m scienceqa-text:FOLDER benchmarks/smollm2_sets.json
python benchmarks/skip_sets.py smol scenes:textures benchmarks/smol_sets.json
python benchmarks/skip_sets.py smol scenes:codes benchmarks/smol_sets_codes.json

FOLDER is ScienceQA's. In the residual form an untrained skip is the attention left out, so losses before training say
something. Every set is scored once on the same 16 validation questions (loss per token of the answer) and kept in
the file, from which a stopped run goes on. Measured are 300 random sets of ten, every single attention, sets by
position, by the free rankings (LLM-Drop's similarity, and the coupling of queries and keys as in Gate-Norm,
arXiv 2512.20636), by greedy elimination, and the sets that each search rule draws and chooses in 20 rounds of three
(``after``: the loss of what it would choose after so many evaluations).

At the end the table is split, 200 sets to fit and 100 to test: how well does a sum of terms per attention predict the
loss, and does a term per pair of neighbours help? ``spearman`` is over the 100 sets.
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import eas
from eas.attachment.state import candidates
from eas.data import load_data
from eas.exporting.opening import opened
from eas.measure.latency import git_revision, hardware
from eas.searching import similarity_ranking
from eas.searching.fixed import FIXED
from eas.searching.linear import GuidedRule
from eas.searching.scoring import score_sets
from eas.searching.similarity import cosines
from eas.tasks.collate import Collator

LAYERS, K, RANDOM, QUESTIONS, LONGEST = 30, 10, 300, 16, 120
RULES, SEEDS, ROUNDS, SAMPLES = ("guided", "spread", "bandit", "das"), 3, (5, 10, 20), 3
SkipSet = tuple[int, ...]


class Table:
    """The losses of sets, each measured once."""

    def __init__(self, model: str, data: str, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text())["losses"] if path.is_file() else {}
        self.losses: dict[SkipSet, float] = {tuple(json.loads(key)): loss for key, loss in known.items()}
        base, processor = opened(model, dtype="auto")
        collate = Collator(processor, training=True)
        examples = load_data(data, "validation")
        short = (e for e in examples if collate([e])["input_ids"].shape[1] <= LONGEST)
        few = list(islice(short, QUESTIONS))
        self.batch = collate(few)
        del self.batch["prompt_mask"]
        self.model = eas.attach(base, eas.EASConfig(num_skip=K)).eval()

    def measure(self, sets: list[SkipSet]) -> list[float]:
        new = [s for s in dict.fromkeys(sets) if s not in self.losses]
        for at in range(0, len(new), 20):
            some = new[at : at + 20]
            self.losses |= dict(zip(some, score_sets(self.model, self.batch, some), strict=True))
            self.write({})
            print(len(self.losses), flush=True)
        return [self.losses[s] for s in sets]

    def write(self, more: dict[str, Any]) -> None:
        losses = {json.dumps(s): round(loss, 5) for s, loss in self.losses.items()}
        self.path.write_text(json.dumps({**more, "losses": losses}, indent=0) + "\n")


def features(sets: list[SkipSet], pairs: bool) -> NDArray[np.float64]:
    """One column per attention; with ``pairs`` also one per two neighbours that are both skipped."""
    single = np.zeros((len(sets), LAYERS))
    for row, skip_set in zip(single, sets, strict=True):
        row[list(skip_set)] = 1.0
    return np.hstack([single, single[:, 1:] * single[:, :-1]]) if pairs else single


def predicted(train: list[SkipSet], y: NDArray[np.float64], test: list[SkipSet], pairs: bool) -> NDArray[np.float64]:
    """Ridge regression; its strength is that of least leave-one-out error."""
    x, mean = features(train, pairs), y.mean()
    center = x.mean(0)
    u, s, vt = np.linalg.svd(x - center, full_matrices=False)
    best: tuple[float, NDArray[np.float64]] | None = None
    for strength in np.geomspace(0.01, 100, 21):
        shrunk = s**2 / (s**2 + strength)
        rest = (y - mean - u @ (shrunk * (u.T @ (y - mean)))) / (1 - (u**2 * shrunk).sum(1) - 1 / len(y))
        weights = vt.T @ (s / (s**2 + strength) * (u.T @ (y - mean)))
        error = float((rest**2).mean())
        if best is None or error < best[0]:
            best = (error, weights)
    assert best is not None
    return mean + (features(test, pairs) - center) @ best[1]


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return round(float(np.corrcoef(*ranks)[0, 1]), 3)


def greedy(table: Table) -> SkipSet:
    """The set that grows by the attention whose removal costs least, one after the other."""
    skipped: SkipSet = ()
    for _ in range(K):
        grown = [tuple(sorted((*skipped, i))) for i in range(LAYERS) if i not in skipped]
        skipped = grown[int(np.argmin(table.measure(grown)))]
    return skipped


@torch.no_grad()
def coupling(model: Any) -> list[float]:
    """Of every attention the norm of ``Wq^T Wk``, over all heads."""
    norms = []
    for block, _ in candidates(model):
        attention = block.self_attn
        q, k = (m.weight.float().unflatten(0, (-1, attention.head_dim)) for m in (attention.q_proj, attention.k_proj))
        k = k.repeat_interleave(len(q) // len(k), 0)
        gram: list[Tensor] = [each @ each.mT for each in (q, k)]  # |Wq^T Wk|^2 is the trace of their product
        norms.append(float((gram[0] * gram[1]).sum().sqrt()))
    return norms


def main(model: str, data: str, path: Path) -> None:
    table, rng = Table(model, data, path), np.random.default_rng(0)
    random = [tuple(sorted(rng.choice(LAYERS, K, replace=False).tolist())) for _ in range(RANDOM)]
    singles = [(i,) for i in range(LAYERS)]
    base = table.measure([()])[0]
    alone = np.array(table.measure(singles)) - base
    similar = cosines(table.model, [table.batch])
    named: dict[str, SkipSet] = {
        "alternating": tuple(range(4, 24, 2)),
        "best ten singles": tuple(sorted(np.argsort(alone)[:K].tolist())),
        **{name: tuple(sorted(FIXED[name](LAYERS, K, 0)[:K])) for name in FIXED if name != "random"},
        "similarity": tuple(sorted(similarity_ranking(similar)[:K])),
        "coupling of q and k": tuple(sorted(np.argsort(coupling(table.model))[:K].tolist())),
        f"greedy, {sum(range(LAYERS - K + 1, LAYERS + 1))} evaluations": greedy(table),
    }
    table.measure([*named.values()])
    losses = np.array(table.measure(random))
    fit, test = random[:200], random[200:]
    prediction = {
        name: spearman(predicted(fit, losses[:200], test, name == "pairs"), losses[200:]) for name in ("sum", "pairs")
    } | {"singles": spearman(features(test, False) @ alone, losses[200:])}
    searched = {}
    for name in RULES:
        for seed in range(SEEDS):
            rule = eas.make_rule(name, LAYERS, K, seed)
            if isinstance(rule, GuidedRule):
                rule.guide(similar)
            after = {}
            for t in range(1, max(ROUNDS) + 1):
                sets = rule.propose(SAMPLES)
                rule.observe(sets, table.measure(sets))
                if t in ROUNDS:
                    chosen = tuple(sorted(rule.ranking()[:K]))
                    after[SAMPLES * t] = round(table.measure([chosen])[0], 4)
            searched[f"{name}, {seed}"] = {"skip_set": chosen, "loss": after[SAMPLES * max(ROUNDS)], "after": after}
    table.write(
        {
            "model": model,
            "data": data.split(":")[0] if "/" in data else data,
            "questions": QUESTIONS,
            "base": round(base, 4),
            "named": {name: {"skip_set": s, "loss": round(table.losses[s], 4)} for name, s in named.items()},
            "random": {f"{q} %": round(float(np.percentile(losses, q)), 4) for q in (0, 5, 25, 50, 75, 95, 100)},
            "spearman": prediction,
            "searched": searched,
            "evaluations": SAMPLES * max(ROUNDS),
            "git_revision": git_revision(),
            "hardware": hardware(),
        }
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
