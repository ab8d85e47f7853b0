"""Does the loss under shared weights, what a search sees, rank skip sets as tuning them does? On the embedded model.

python benchmarks/proxy.py TASK SEED > FOLDER/TASK-SEED.json      (a quarter of an hour on one core)
python benchmarks/proxy.py TASK SEED table > FOLDER/TASK-SEED.json      (only "table" and "cosines": minutes)
python benchmarks/proxy_gather.py FOLDER > benchmarks/proxy.json

Weights are shared by training under sampled sets, of six ("k"), of one to ten ("range"), or in turn of none, of eleven
and of a range ("sandwich"). After so many steps the loss on held-out answers is a proxy; "errors" are the answers got
wrong. Random sets, and those that a search over the last weights of "k" chose, are then tuned on from these weights, as
`eas run` does, all with the same batches, and scored on answers seen nowhere else; "tuned" is the held-out loss early
in that tuning. "table" holds the proxy of every set of four on each held-out
batch, and "cosines" the similarity of every attention's input and output before training, for benchmarks/regret.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eas.attachment.attach import attach, select
from eas.data.scenes import scenes
from eas.demo.tiny import load_tiny
from eas.measure.latency import git_revision, hardware
from eas.methods.eas import EASConfig
from eas.searching import make_rule, random_skip_set
from eas.searching.scoring import score_sets
from eas.searching.similarity import cosines
from eas.tasks.collate import Collator

LAYERS, BATCH, HELD_OUT, UNSEEN, RATE = 12, 16, 192, 384, 0.003
SETS = {6: 20, 4: 4}
TUNE, EARLY = 120, (20, 40, 60)
SNAPSHOTS = (0, 40, 120, 400)
SEARCH = {"rounds": 40, "samples": 3, "batch": 32}
Batch = dict[str, Tensor]


def sampled(kind: str, seed: int, step: int) -> tuple[int, ...]:
    """The skip set of one training step of a kind of sharing."""
    if kind == "sandwich" and step % 3 < 2:  # nothing skipped, all but one, and something between, in turn
        return random_skip_set(LAYERS, LAYERS - 1, seed, step) if step % 3 else ()
    return random_skip_set(LAYERS, 6, seed, step, None if kind == "k" else (1, LAYERS - 2))


class Trial:
    """One task and seed: its batches, and a model with shared weights."""

    def __init__(self, task: str, seed: int) -> None:
        self.task, self.seed = task, seed
        _, processor = load_tiny()
        collate = Collator(processor, training=True)
        train, held_out = scenes(task, "train", 100_000), scenes(task, "validation", HELD_OUT)
        order = np.random.default_rng([seed, 7]).permutation(len(train))
        steps = max(SNAPSHOTS) + TUNE
        self.batches = [collate([train[int(j)] for j in order[i * BATCH : (i + 1) * BATCH]]) for i in range(steps)]
        self.held_out = [collate([held_out[j] for j in range(i, i + 32)]) for i in range(0, HELD_OUT, 32)]
        unseen = scenes(task, "test", UNSEEN)
        self.unseen = [collate([unseen[j] for j in range(i, i + 64)]) for i in range(0, UNSEEN, 64)]

    def model(self) -> Any:
        """An attached base; the PIAs are the seed's."""
        model, _ = load_tiny()
        torch.manual_seed(self.seed)
        return attach(model, EASConfig(6, 32, 16, form="paper", train_projector=True))

    def train(self, model: Any, batches: Sequence[Batch], sets: Sequence[tuple[int, ...]], until: int) -> Any:
        """AdamW with a cosine schedule over ``until`` steps; yields after every step."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: min(1.0, (t + 1) / (0.03 * until)) * 0.5 * (1 + np.cos(np.pi * t / until))
        )
        for step, (batch, skip_set) in enumerate(zip(batches, sets, strict=True), start=1):
            model.train()
            select(model, skip_set)
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            yield step

    def by_batch(self, model: Any, sets: Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        """Held-out losses, ``(sets, batches)``."""
        model.eval()
        return np.array([score_sets(model, batch, sets) for batch in self.held_out]).T

    def losses(self, model: Any, sets: Sequence[tuple[int, ...]]) -> list[float]:
        """Held-out loss of each set."""
        return self.by_batch(model, sets).mean(1).tolist()  # type: ignore[no-any-return]

    @torch.no_grad()
    def answers(self, model: Any, batches: Sequence[Batch], skip_set: tuple[int, ...]) -> tuple[float, float]:
        """Mean loss, and the share of answers whose every token is the likeliest: what greedy decoding gets right."""
        model.eval()
        select(model, skip_set)
        right, losses = [], []
        for batch in batches:
            labels, output = batch["labels"][:, 1:], model(**batch)
            right += ((output.logits[:, :-1].argmax(-1) == labels) | (labels == -100)).all(1).tolist()
            losses.append(float(output.loss))
        return float(np.mean(losses)), float(np.mean(right))

    def search(self, model: Any, k: int, rule_name: str) -> tuple[int, ...]:
        """What a search over these weights chooses."""
        model.eval()
        rule = make_rule(rule_name, LAYERS, k, self.seed)
        for i in range(SEARCH["rounds"]):
            sets = rule.propose(SEARCH["samples"])
            rule.observe(sets, score_sets(model, self.held_out[i % len(self.held_out)], sets))
        return tuple(sorted(rule.ranking()[:k]))


def run(task: str, seed: int, only_table: bool = False) -> dict[str, Any]:
    """Everything about one task and seed."""
    start, trial = time.perf_counter(), Trial(task, seed)
    rng = np.random.default_rng([seed, 8])
    random: dict[int, list[tuple[int, ...]]] = {}
    for k, number in SETS.items():
        every = list(combinations(range(LAYERS), k))
        random[k] = [every[i] for i in rng.choice(len(every), number, replace=False)]
    sets = [s for group in random.values() for s in group]
    proxies: dict[str, list[float]] = {}
    spent: dict[str, float] = {}  # until when, in seconds
    record: dict[str, Any] = {"task": task, "seed": seed, "sets": sets, "proxies": proxies, "spent": spent}
    steps = range(max(SNAPSHOTS))
    for kind in ("k", "range", *(("sandwich",) if seed == 0 else ())):
        model = trial.model()
        if kind == "k":
            record["cosines"] = cosines(model.eval(), trial.held_out[:1])
        drawn = [sampled(kind, seed, step) for step in steps]
        at = SNAPSHOTS if kind == "k" else SNAPSHOTS[-1:]
        if 0 in at:
            proxies["k, 0"] = trial.losses(model, sets)
        for step in trial.train(model, trial.batches[: len(steps)], drawn, len(steps)):
            if step in at:
                proxies[f"{kind}, {step}"] = trial.losses(model, sets)
        spent[kind] = round(time.perf_counter() - start)
        if kind == "k":
            shared = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            proxies[f"k, {SNAPSHOTS[-1]}, errors"] = [1 - trial.answers(model, trial.held_out, s)[1] for s in sets]
            found = {k: {rule: trial.search(model, k, rule) for rule in ("spread",)} for k in SETS}
            every = list(combinations(range(LAYERS), 4))
            losses = trial.by_batch(model, every)
            record["table"] = [[s, row.round(5).tolist()] for s, row in zip(every, losses, strict=True)]
            best = every[int(losses.mean(1).argmin())]
            if only_table:
                return {**record, "git_revision": git_revision(), "hardware": hardware()}
    record["searched"] = [{"k": k, "rule": r, "set": s} for k, by in found.items() for r, s in by.items()]
    record["searched"].append({"k": 4, "rule": "best of all", "set": best})
    chosen = [tuple(row["set"]) for row in record["searched"]]
    record["tuned"] = []
    for skip_set in dict.fromkeys([*sets, *chosen]):
        began, model, early = time.perf_counter(), trial.model(), {}
        model.load_state_dict(shared, strict=False)
        batches = trial.batches[len(steps) :]
        for step in trial.train(model, batches, [skip_set] * TUNE, TUNE):
            if step in EARLY:
                early[step] = trial.losses(model, [skip_set])[0]
        loss, accuracy = trial.answers(model, trial.unseen, skip_set)
        tuned = {"set": skip_set, "loss": loss, "accuracy": accuracy, "early": early}
        record["tuned"].append({**tuned, "seconds": time.perf_counter() - began})
        print(f"{skip_set} {loss:.3f} {accuracy:.3f}", file=sys.stderr, flush=True)
    return {**record, "seconds": time.perf_counter() - start, "git_revision": git_revision(), "hardware": hardware()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["table"])))
