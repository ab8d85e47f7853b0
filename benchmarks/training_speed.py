"""Tokens a second and memory in training: EAS and LoRA by eas, LoRA by PEFT under transformers' own Trainer.

pip install 'eas[smol]'
python benchmarks/training_speed.py FOLDER [--rounds 3] [--steps 6] [--out benchmarks/training_speed.json]

FOLDER is ScienceQA's. Every variant trains SmolLM2-135M in bfloat16 on the same batches of 8 questions. Each turn is a
process of its own, so that the peak of its memory is its own; the variants take turns. The first step of a turn warms
up. The bound is the ratio of the products with weights: of the blocks for every token, and of the head for every token
under the Trainer, where a label is under eas.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from smollm2 import ALTERNATING, EAS, LONGEST, MODEL, ROWS, short
from torch import Tensor, nn
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import eas
from eas.attachment.load import load_base
from eas.measure.latency import Spread, git_revision, hardware
from eas.models.bases import base_folder
from eas.tasks.collate import Collator

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, tuple[str, dict[str, Any], list[int]]] = {  # who trains, the method, the skip set
    "PEFT, LoRA on q, k, v, o": ("peft", {"targets": ATTENTION}, []),
    "PEFT, LoRA on all maps": ("peft", {"targets": ALL}, []),
    "eas, LoRA on q, k, v, o": ("eas", {"name": "lora", "rank": 16, "targets": ATTENTION}, []),
    "eas, LoRA on all maps": ("eas", {"name": "lora", "rank": 16}, []),
    "eas, EAS without ten attentions": ("eas", EAS, ALTERNATING),
}


class Clock(TrainerCallback):  # type: ignore[misc]
    """The seconds of every step but the first."""

    def __init__(self) -> None:
        self.start, self.seconds = 0.0, []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def built(variant: str) -> tuple[Any, type[Trainer]]:
    trains, method, skip_set = VARIANTS[variant]
    model = load_base(MODEL)
    if trains == "peft":
        return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=method["targets"])), Trainer
    model = eas.attach(model, eas.method_config(method))
    if skip_set:
        eas.select(model, skip_set)
        eas.prune(model)
    return model, eas.EASTrainer


def turn(variant: str, data: str, steps: int) -> dict[str, Any]:
    """One process: real tokens a second, of question and answer, and the peak of its memory."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base_folder(MODEL))
    examples = short(data, "validation", tokenizer)[: ROWS * (1 + steps)]
    collate, tokens, labelled, run = Collator(tokenizer, training=True), [], 0, 0

    def counted(rows: list[Any]) -> dict[str, Tensor]:
        nonlocal labelled, run
        batch = collate(rows)
        tokens.append(int(batch["attention_mask"].sum()))
        labelled, run = labelled + int((batch["labels"] != -100).sum()), run + batch["labels"].numel()
        return batch

    model, trainer_class = built(variant)
    base = model.get_base_model() if trainer_class is Trainer else model
    clock = Clock()
    args = TrainingArguments(
        "unused",
        per_device_train_batch_size=ROWS,
        max_steps=1 + steps,
        learning_rate=1e-3,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        remove_unused_columns=False,
    )
    trainer_class(model, args, train_dataset=examples, data_collator=counted, callbacks=[clock]).train()
    maps = [m for m in base.model.layers.modules() if isinstance(m, nn.Linear)]
    headed = 1.0 if trainer_class is Trainer else labelled / run
    return {
        "macs_per_token": sum(m.weight.numel() for m in maps) + headed * base.lm_head.weight.numel(),
        "seconds": clock.seconds[1:],
        "tokens": tokens[1 : 1 + steps],
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--variant", choices=VARIANTS, help="one turn of one variant, in this process")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    data = f"scienceqa-text:{given.folder}"
    if given.variant:
        print(json.dumps(turn(given.variant, data, given.steps)))
        return
    turns: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for number in range(given.rounds):
        for variant in list(VARIANTS)[:: 1 if number % 2 else -1]:
            command = [sys.executable, __file__, given.folder, "--variant", variant, "--steps", str(given.steps)]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            turns[variant].append(json.loads(printed.splitlines()[-1]))
            print(variant, turns[variant][-1], flush=True)
    rates = {v: [sum(one["tokens"]) / sum(one["seconds"]) for one in each] for v, each in turns.items()}
    first = next(iter(rates))
    result = {
        "rows": ROWS,
        "longest": LONGEST,
        "steps": given.steps,
        "rounds": given.rounds,
        "variants": {
            v: {
                "tokens_per_second": vars(Spread.of(rates[v])),
                "bound": turns[first][0]["macs_per_token"] / turns[v][0]["macs_per_token"],
                f"times {first}": vars(Spread.of([a / b for a, b in zip(rates[v], rates[first], strict=True)])),
                "mib": vars(Spread.of([one["mib"] for one in turns[v]])),
                "trained": turns[v][0]["trained"],
            }
            for v in VARIANTS
        },
        "git_revision": git_revision(),
        "hardware": hardware(),
    }
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
