"""Is the set that finalists choose better than the rule's, when all are tuned alike from the same weights?

python benchmarks/finalists.py TASK > benchmarks/finalists_TASK.json      (a quarter of an hour on one core)

Three seeds on the embedded model, k = 6: a search of 300 steps, then six finalists, the better half tuned on. Then
every finalist is tuned for 120 steps from the search's weights, with the same batches, and scored on the test split.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from proxy_gather import spearman

from eas.attachment.attach import select
from eas.attachment.load import load_into
from eas.measure.latency import git_revision, hardware
from eas.pipeline import Run, RunConfig, steps
from eas.pipeline.phases import attached, make_trainer, train

TUNE = 120
SETTINGS = [
    "method.num_skip=6",
    "method.skip_rank=32",
    "method.adapt_rank=16",
    "search.warmup_steps=100",
    "search.interval=5",
    "search.finalists=6",
    "search.finalist_steps=20",
    "train.search_steps=300",
    "train.learning_rate=0.003",
    "train.save_steps=1000",
    "max_new_tokens=8",
    "eval_batch_size=50",
    "validation_limit=384",
    "test_limit=600",
]


def one(task: str, seed: int, folder: Path) -> dict[str, Any]:
    """One seed: the finalists, what was known of each, and what became of it."""
    given = [f"data=scenes:{task}", f"seed={seed}", f"search.seed={seed}", f"output_dir={folder}"]
    run = Run.create(RunConfig().with_overrides([*given, *SETTINGS]))
    steps.search(run)
    found = run.require("search")
    first = found["rungs"][0]
    tuned = []
    for skip_set in first["skip_sets"]:
        model = attached(run)
        load_into(model, folder / "search" / "adapter")
        select(model, skip_set)
        train(make_trainer(run, model, "tune", TUNE, folder / "-".join(map(str, skip_set))))
        tuned.append(run.task.evaluate(run, model.eval(), "test", "tuned", 50).score)
    by_set = dict(zip(map(tuple, first["skip_sets"]), tuned, strict=True))
    return {
        "seed": seed,
        "rungs": found["rungs"],
        "accuracy": tuned,
        "of the rule's set": tuned[0],
        "of the winner": by_set[tuple(found["skip_set"])],
        "mean of all": float(np.mean(tuned)),
        "best of all": max(tuned),
        "spearman of the first rung": spearman(first["losses"], [-a for a in tuned]),
        "seconds": {"search": found["seconds"] - found["finals_seconds"], "finals": found["finals_seconds"]},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    steps.console.quiet = True
    with tempfile.TemporaryDirectory() as aside:
        results = [one(sys.argv[1], seed, Path(aside) / str(seed)) for seed in range(3)]
    settings = {"settings": SETTINGS, "tune": TUNE, "git_revision": git_revision(), "hardware": hardware()}
    print(json.dumps({"task": sys.argv[1], **settings, "seeds": results}))
