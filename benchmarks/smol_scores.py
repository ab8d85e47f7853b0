"""What the shipped small real model can do, by ranking the choices of questions that its training did not have.

python benchmarks/smol_scores.py SCIENCEQA_FOLDER > benchmarks/smol_scores.json

A score is the share of questions whose right choice has the highest mean log-probability. "another picture" gives
each question the picture of the question half a list away; the list is in a random order. "no picture" leaves it out.
Texts are scored with the shipped weights and without, which is SmolLM2-135M-Instruct as it came; their "loss" is that
of the right choice's tokens. "prose" is the loss per token of the lectures of ScienceQA's test problems, each once.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eas.attachment.save import library_versions
from eas.data import load_data
from eas.data.openmoji import load_openmoji
from eas.example import Example
from eas.exporting.opening import opened
from eas.measure.latency import git_revision, hardware
from eas.models.smol import assemble
from eas.tasks.evaluation import Evaluation, evaluate

NOT_LISTED = "What does the picture show?"  # one of the questions of scripts/smol_data.py
TASKS = ("name", "name, not listed", "odd", "same", "category")
FEW = 100
"""Questions of `category`, each of which has 82 choices."""


def ranked(model: Any, processor: Any, examples: Sequence[Example], metric: str = "ranking") -> Evaluation:
    return evaluate(model, processor, examples, metric=metric, batch_size=64, max_new_tokens=1)


def another(examples: Sequence[Example]) -> list[Example]:
    half = len(examples) // 2
    shown = [*examples[half:], *examples[:half]]
    return [replace(one, images=other.images) for one, other in zip(examples, shown, strict=True)]


def asked(examples: Sequence[Example], question: str | None = None, seen: bool = True) -> list[Example]:
    """The examples with another question, or without their pictures."""
    return [
        Example.ask(one.id, question or one.question, one.target, *(one.images if seen else ()), choices=one.choices)
        for one in examples
    ]


def pictures(model: Any, processor: Any) -> dict[str, dict[str, float]]:
    """Of every task, the share of right answers in % by what is shown, and the numbers of choices and questions."""
    table: dict[str, dict[str, float]] = {}
    for task in TASKS:
        examples = list(load_openmoji(task.partition(",")[0], "test"))[: FEW if task == "category" else None]
        if task == "name, not listed":
            examples = asked(examples, NOT_LISTED)
        shown = {"the picture": examples, "another picture": another(examples)}
        if task.startswith("name"):
            shown["no picture"] = asked(examples, seen=False)
        table[task] = {"questions": len(examples), "choices": len(examples[0].choices)}
        for name, given in shown.items():
            table[task][name] = round(100 * ranked(model, processor, given).score, 1)
            print(task, name, table[task][name], file=sys.stderr, flush=True)
    return table


def texts(model: Any, processor: Any, folder: str) -> dict[str, Any]:
    """Scores in % and losses of ScienceQA's test questions without pictures, with the shipped weights and without."""
    examples = list(load_data(f"scienceqa-text:{folder}", "test"))
    before, _ = assemble({})
    problems = json.loads((Path(folder) / "problems_test.json").read_text())
    lectures = sorted({(problem["lecture"] or "").strip() for problem in problems.values()} - {""})
    table: dict[str, Any] = {"questions": len(examples), "lectures": len(lectures)}
    for name, given in {"smol": model, "SmolLM2-135M-Instruct": before}.items():
        found = ranked(given, processor, examples, "scienceqa-text")
        table[name] = {"score": round(100 * found.score, 1), "loss": round(found.report.numbers["loss"], 3)}
        table[name]["prose"] = round(prose(given, processor.tokenizer, lectures), 3)
        print(name, table[name], file=sys.stderr, flush=True)
    return table


@torch.inference_mode()
def prose(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Mean loss per token of texts that stand alone, without the chat's form."""
    total, tokens = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return total / tokens


def main(folder: str) -> None:
    torch.manual_seed(0)
    model, processor = opened("smol", dtype="auto")
    model.eval()
    found = {"dtype": str(model.dtype).removeprefix("torch."), "texts": texts(model, processor, folder)}
    found["scores"] = pictures(model, processor)
    known = {"git_revision": git_revision(), "versions": library_versions(), "hardware": hardware()}
    print(json.dumps(found | known, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
