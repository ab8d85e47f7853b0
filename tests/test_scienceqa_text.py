"""ScienceQA without images: its splits, prompts and targets, and answers as ranked choices."""

import json
import os
from pathlib import Path

import pytest

from eas.config import ConfigError
from eas.data import data_options, load_data
from eas.data.scienceqa_text import IDS
from eas.demo.tiny import load_tiny
from eas.example import DataError, Example
from eas.tasks.evaluation import evaluate, score_answers

real = pytest.mark.skipif("EAS_REAL_DATA" not in os.environ, reason="EAS_REAL_DATA does not name the folder of data")
REAL = Path(os.environ.get("EAS_REAL_DATA", ".")) / "scienceqa"
WORDS = {"lecture": "A sky is blue.", "solution": "So it is blue.", "hint": "", "subject": "natural science"}


@pytest.fixture
def folder(tmp_path):
    """Twelve problems, every third with an image, in the official layout."""
    problems = {
        str(i): {
            **WORDS,
            "question": "which color ?",
            "choices": ["red", "blue", "green"][: 2 + i % 2],
            "answer": i % 2,
            "image": None if i % 3 else "image.png",
            "grade": "grade3",
            "topic": "colors",
            "split": ("train", "val", "test")[i // 4],
        }
        for i in range(12)
    }
    splits = {name: [pid for pid, p in problems.items() if p["split"] == name] for name in ("train", "val", "test")}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
    (tmp_path / "captions.json").write_text(json.dumps({"captions": {"0": "a blue sky", "3": "a field"}}))
    return tmp_path


def read(folder, split="train", **options):
    return load_data(f"scienceqa-text:{folder}", split, options={"ids": "official", **options})


def test_problems_without_image_and_their_targets(folder):
    examples = read(folder)
    assert [example.id for example in examples] == ["1", "2"]
    assert examples[0].question == "which color ?\nContext: N/A\nOptions: (A) red (B) blue (C) green"
    assert (examples[0].target, examples[0].choices) == ("blue", ("red", "blue", "green"))
    letters = read(folder, target="letter")
    assert (letters[0].target, letters[0].choices) == ("B", ("A", "B", "C"))
    why = read(folder, target="rationale")[0]
    assert (why.target, why.choices) == ("The answer is B. BECAUSE: A sky is blue. So it is blue.", ())


def test_captions_stand_for_images(folder):
    examples = read(folder, captions=True)
    assert [example.id for example in examples] == ["0", "1", "2", "3"]
    assert "Context: a blue sky" in examples[0].question
    assert not any(example.images for example in examples)
    with pytest.raises(ConfigError, match="captions = True: needs ids = 'official'"):
        data_options("scienceqa-text:x", {"captions": True})


def test_the_ids_of_eas_are_disjoint_and_need_their_problems(folder):
    ids = json.loads(IDS.read_text())
    assert {name: len(pids) for name, pids in ids.items()} == {"train": 1624, "val": 200, "test": 400}
    assert len({pid for pids in ids.values() for pid in pids}) == 2224
    with pytest.raises(DataError, match=r"problems.json lacks 1623 of the 1624 problems of train .*ids = official"):
        load_data(f"scienceqa-text:{folder}", "train")
    with pytest.raises(DataError, match=r"hub:x: name a folder"):
        load_data("scienceqa-text:hub:x", "train")
    with pytest.raises(DataError, match="scienceqa-text has no split 'trainval'"):
        load_data(f"scienceqa-text:{folder}", "trainval")


@real
def test_the_real_files():
    sizes = [len(load_data(f"scienceqa-text:{REAL}", s)) for s in ("train", "validation", "test")]
    assert sizes == [1624, 200, 400]


def test_answers_are_ranked_choices_and_scored_as_letters_are(folder):
    model, processor = load_tiny()
    examples = read(folder)
    found = evaluate(model, processor, examples, metric="scienceqa-text", batch_size=4, max_new_tokens=1)
    assert all(found.answers[example.id] in example.choices for example in examples)
    assert found.report.numbers["loss"] > 0
    right = {example.id: example.target.upper() for example in examples}
    assert score_answers("scienceqa-text", examples, right).numbers == {
        "NAT": 100.0,
        "NO": 100.0,
        "G1-6": 100.0,
        "average": 100.0,
    }
    assert score_answers("scienceqa-text", examples, right | {"1": "purple"}).score == 0.5
    assert score_answers("scienceqa-text", examples, right | {"1": "The answer is B."}).score == 1.0


@pytest.mark.parametrize("right", [0, 1])
def test_choices_that_differ_in_case_are_told_apart(right):
    texts = ("Dear uncle Tom,", "Dear Uncle Tom,")
    about = {"choices": list(texts), "answer": right, "subject": "language science", "grade": "grade3"}
    example = Example.ask("0", "q", texts[right], choices=texts, metadata=about | {"hint": False, "image": False})
    scores = [score_answers("scienceqa-text", [example], {"0": text}).score for text in texts]
    assert scores == [float(right == 0), float(right == 1)]


@pytest.mark.parametrize("answer", [0, 2])
def test_a_choice_that_is_there_twice_is_right_wherever_the_answer_stands(answer):
    texts = ("red", "blue", "red")
    about = {"choices": list(texts), "answer": answer, "subject": "language science", "grade": "grade3"}
    example = Example.ask("0", "q", "red", choices=texts, metadata=about | {"hint": False, "image": False})
    assert [score_answers("scienceqa-text", [example], {"0": text}).score for text in texts] == [1, 0, 1]


def test_ranking_needs_choices(folder):
    with pytest.raises(DataError, match="metric 'ranking' needs choices in every example"):
        evaluate(*load_tiny(), read(folder, target="rationale"), metric="ranking", batch_size=4, max_new_tokens=1)
