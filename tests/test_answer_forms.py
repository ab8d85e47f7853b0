"""Zero-shot answers count by what they mean, and blind answers are what an accuracy is set beside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from eas.demo.tiny import load_tiny
from eas.example import Example
from eas.tasks.evaluation import Evaluation, evaluate, score_answers, target_losses
from eas.tasks.evaluation_forms import Blind, _chance, blind, meant, named

torch.set_num_threads(1)


def asked(targets: list[str], choices: tuple[str, ...] = ()) -> list[Example]:
    return [Example.ask(str(i), "q", t, choices=choices) for i, t in enumerate(targets)]


def found(examples: list[Example], answers: list[str], metric: str = "exact") -> Evaluation:
    given = {example.id: text for example, text in zip(examples, answers, strict=True)}
    report = score_answers(metric, examples, given)
    return Evaluation(report.score, given, report)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("Yes, it is.", ("yes", "no"), "yes"),
        ("It is normal.", ("yes", "no"), None),  # not inside a word
        ("yes and no", ("yes", "no"), None),
        ("The red square.", ("red", "red square", "blue"), "red square"),
        ("A banana", ("A", "B"), None),
        ("A. banana", ("A", "B"), "A"),
        ("(B)", ("A", "B"), "B"),
        ("b", ("A", "B"), None),
        ("c++ it is", ("c++", "c"), "c++"),
        ("", ("yes", "no"), None),
        ("yes", (), None),
        ("They let us in", ("US", "us"), "us"),
        ("THEY", ("US", "us"), None),
        ("The answer is B. Because", ("The answer is A.", "The answer is B."), "The answer is B."),
        ("The answer is a magnet.", ("The answer is A.", "The answer is B."), None),
        ("the answer is b", ("The answer is A.", "The answer is B."), "The answer is B."),
        ("It is 5 m long", ("5 m", "3 m"), "5 m"),
        ("It is 3.5", ("3", "5"), None),
    ],
)
def test_the_one_option_that_a_text_names(text: str, options: tuple[str, ...], said: str | None) -> None:
    assert named(text, options) == said


def test_a_closed_answer_set_is_found_in_longer_texts() -> None:
    examples = asked(["yes"] * 6 + ["no"] * 4)
    words = ["Yes, there is a cat."] * 5 + ["No idea"] + ["No, there is none."] * 3 + ["It cannot be told."]
    before = found(examples, words)
    assert before.score == 0.0
    result = meant(None, None, examples, before, metric="exact", batch_size=4)
    assert (result.evaluation.score, result.as_written, result.comparable) == (0.8, 0.0, True)
    assert result.evaluation.report.numbers == {"exact": 80.0}
    assert result.evaluation.answers["9"] == "It cannot be told."


def test_other_words_are_not_comparable() -> None:
    examples = asked(["yes"] * 5 + ["no"] * 5)
    silent = meant(None, None, examples, found(examples, ["I cannot say"] * 10), metric="exact", batch_size=4)
    assert not silent.comparable
    captions = asked([f"a picture of {i}" for i in range(10)])
    said = meant(None, None, captions, found(captions, ["nice"] * 10), metric="exact", batch_size=4)
    assert not said.comparable
    contained = found(captions, ["nice"] * 10, "contains")  # it forgives the form by itself
    assert meant(None, None, captions, contained, metric="contains", batch_size=4).comparable


def test_choices_are_ranked_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = asked(["cat", "dog", "cat", "dog"], choices=("cat", "dog"))
    losses = {("0", "cat"): 1.0, ("0", "dog"): 2.0, ("3", "cat"): 0.5, ("3", "dog"): 3.0}
    seen: list[tuple[str, str]] = []

    def target_losses(model: Any, processor: Any, rows: list[Example], *_: Any) -> list[float]:
        seen.extend((row.id, row.target) for row in rows)
        return [losses[row.id, row.target] for row in rows]

    monkeypatch.setattr("eas.tasks.evaluation.target_losses", target_losses)
    before = found(examples, ["an animal", "It is a dog", "the dog", "cat or dog"])
    result = meant(None, None, examples, before, metric="exact", batch_size=4)
    assert seen == list(losses)  # only those that named none or several
    assert [result.evaluation.answers[i] for i in "0123"] == ["cat", "dog", "dog", "cat"]
    assert (result.evaluation.score, result.as_written, result.comparable) == (0.5, 0.0, True)


def test_the_likeliest_choice_has_the_highest_mean_log_probability() -> None:
    model, processor = load_tiny()
    example = Example.ask("a", "what color is this ?", "red", choices=("red", "blue square", "green"))
    rows = [replace(example, target=choice) for choice in example.choices]
    losses = target_losses(model, processor, rows, 2)
    best = example.choices[losses.index(min(losses))]
    ranked = evaluate(model, processor, [example], metric="ranking", batch_size=2, max_new_tokens=1)
    assert ranked.answers == {"a": best}
    assert ranked.report.numbers["loss"] == pytest.approx(losses[0], rel=1e-5)
    plain = evaluate(model, processor, rows[1:2], metric="none", batch_size=1, max_new_tokens=1)
    assert plain.report.numbers["loss"] == pytest.approx(losses[1], rel=1e-5)


def test_blind_answers() -> None:
    assert blind("exact", asked(["yes"] * 6 + ["no"] * 4)) == Blind(None, 0.6, "yes")
    assert blind("exact", asked(["a", "b", "b", "a", "b"], ("a", "b", "c", "d"))) == Blind(0.25, 0.6, "b")
    assert blind("exact", asked(["one", "two", "three"])) == Blind(None, None, None)
    for metric in ("choice", "ranking", "scienceqa-text"):
        twice = _chance(Example.ask("x", "q", "a", choices=("a", "b", "a", "c")), metric)
        assert (twice, _chance(Example.ask("x", "q", "no", choices=("no", "No")), metric)) == (0.5, 0.5)
    assert _chance(Example.ask("x", "q", "no", choices=("no", "No")), "exact") == 1  # to which both are right
    assert blind("none", asked(["yes", "yes"])) == Blind()
    science = asked(["The answer is B. BECAUSE: so", "The answer is B. BECAUSE: no"])
    about = {"choices": ["x", "y", "z"], "answer": 1, "subject": "s", "grade": "grade1", "hint": False, "image": False}
    found = blind("scienceqa", [replace(example, metadata=about) for example in science])
    assert found == Blind(pytest.approx(1 / 3), 1.0, "The answer is B.")
