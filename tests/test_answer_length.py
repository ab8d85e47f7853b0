"""No answer of the data is cut where its metric reads on, and a limit that cuts one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lavin_original import letters

from eas.demo.tiny import load_tiny
from eas.example import Example
from eas.pipeline import Run, RunConfig
from eas.tasks.answer_length import ENOUGH, cut

LONG = " ".join(["a large red circle and a small blue square"] * 3)


@pytest.fixture(scope="module")
def processor():
    return load_tiny()[1]


def run(folder: Path, **values: object) -> Run:
    """A run on own data of which one validation answer is long."""
    for split in ("train", "validation", "test"):
        answers = ["red", LONG if split == "validation" else "a blue square"]
        rows = [
            {"id": str(i), "messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": a}]}
            for i, a in enumerate(answers)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Run(RunConfig.from_dict({"data": str(folder), "output_dir": str(folder / "run"), **values}))


def test_the_limit_fits_the_longest_answer(tmp_path, processor):
    made = run(tmp_path)
    needed = len(processor.tokenizer(LONG, add_special_tokens=False)["input_ids"]) + 1
    assert needed > ENOUGH
    assert made.task.answer_limit(made) == needed
    assert made.task.told_of_length(made) == (
        f"answers may have {needed} tokens, as the longest one of the data; -o max_new_tokens=N sets fewer"
    )


def test_a_given_limit_stays_and_is_told(tmp_path, processor):
    made = run(tmp_path, max_new_tokens=20)
    needed = len(processor.tokenizer(LONG, add_special_tokens=False)["input_ids"]) + 1
    assert made.task.answer_limit(made) == 20
    assert made.task.told_of_length(made) == (
        "answers are cut at max_new_tokens = 20: the validation split's own answers would score 50.0% so, and 100.0% "
        f"whole; -o max_new_tokens={needed} is enough"
    )


def test_what_is_not_generated_needs_no_tokens(tmp_path):
    for made in (run(tmp_path, metric="none"), run(tmp_path, metric="none", max_new_tokens=1)):
        assert made.task.answer_limit(made) == (made.config.max_new_tokens or ENOUGH)
        assert made.task.told_of_length(made) == ""


@pytest.mark.parametrize(
    ("metric", "target", "extra", "kept"),
    [
        ("exact", "a red circle", {}, 0.0),
        ("contains", "a red circle", {}, 0.0),
        ("choice", "red circle", {"choices": ("red circle", "red square")}, 0.0),
        ("choice", "red", {"choices": ("red", "blue")}, 1.0),
        ("ranking", "red circle", {"choices": ("red circle", "red square")}, 1.0),
    ],
)
def test_what_a_metric_reads(processor, metric, target, extra, kept):
    found = cut([Example.ask("0", "what?", target, **extra)], processor, 1, metric)
    assert (found.whole, found.score) == (1.0, kept)


@pytest.mark.parametrize(("limit", "kept"), [(16, 1.0), (4, 0.0)])
def test_an_explanation_behind_the_answer_may_be_cut(limit, kept):
    """ScienceQA's letter comes first, so a limit that cuts the lecture alone loses nothing."""
    about = {"answer": 0, "choices": ("red", "blue"), "subject": "natural science", "grade": "grade3"}
    target = f"The answer is A.\nBECAUSE: {LONG}"
    example = Example.ask("0", "what?", target, metadata={**about, "hint": False, "image": False})
    spelled = letters(pad_token="<unk>")  # a token is a letter
    found = cut([example], spelled, limit, "scienceqa")
    assert (found.whole, found.score) == (1.0, kept)
