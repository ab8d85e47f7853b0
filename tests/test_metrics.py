"""Metrics of answers, and answers and losses scored by them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eas.data import load_data
from eas.example import DataError, Example
from eas.metrics import METRICS
from eas.metrics.exact import contains, exact_match


@pytest.mark.parametrize(
    ("metric", "prediction", "target", "score"),
    [
        ("exact", " A  red\nRing. ", "a red ring", 1.0),
        ("exact", "red", "a red ring", 0.0),
        ("contains", "It is red, I think", "Red.", 1.0),
        ("contains", "normal", "no", 0.0),
        ("contains", "it is 3.", "3", 1.0),
        ("contains", "3.5", "3", 0.0),
        ("contains", "-3", "3", 0.0),
        ("contains", "1,300", "300", 0.0),
        ("contains", "2-3", "3", 1.0),
        ("contains", "2,red", "red", 1.0),
        ("contains", "red", ".", 0.0),
        ("contains", " .", ".", 1.0),
        ("contains", "red", " ", 0.0),
        ("exact", "", ".", 0.0),
        ("exact", ".", ". ", 1.0),
        ("choice", "Red square, of course", "red square", 1.0),
        ("choice", "red squares", "red square", 0.0),
        ("choice", "red square", "red", 0.0),
        ("choice", "it is red", "red", 0.0),
    ],
)
def test_metrics(metric, prediction, target, score):
    choices = () if metric != "choice" else ("red", "red square")
    assert METRICS[metric](prediction, Example.ask("x", "q", target, choices=choices)) == score


@given(st.text(), st.text())
@example("", ".")
@example("red", ". ")
def test_nothing_and_something_are_never_alike(text, other):
    for metric in (exact_match, contains):
        assert metric(text, text) == 1
        if text.strip():
            assert metric("", text) == metric(text, " ") == 0
    assert exact_match(text, other) <= contains(text, other)


@pytest.mark.parametrize("choices", [("no", "No"), ("US", "us"), ("a.", "a"), ("b c", "b  c")])
def test_choices_that_differ_in_their_form_only_are_told_apart(choices):
    for metric in ("choice", "ranking"):
        for said, target in ((0, 0), (0, 1), (1, 0), (1, 1)):
            example = Example.ask("x", "q", choices[target], choices=choices)
            assert METRICS[metric](choices[said], example) == (said == target), (metric, said, target)


@pytest.mark.parametrize("metric", ["choice", "ranking"])
def test_choices_are_needed(metric):
    with pytest.raises(DataError, match="example x has no choices"):
        METRICS[metric]("red", Example.ask("x", "q", "red"))


def test_answers_and_losses_are_scored():
    from transformers import AutoProcessor

    from eas.attachment.load import load_base
    from eas.models.folder import TINY_DIR
    from eas.tasks.evaluation import evaluate

    model, processor = load_base(str(TINY_DIR)), AutoProcessor.from_pretrained(TINY_DIR)
    examples = load_data("scenes:textures", "test", limit=6)
    ask = {"batch_size": 4, "max_new_tokens": 4}
    answered = evaluate(model, processor, examples, metric="exact", **ask)
    assert answered.report.numbers == {"exact": round(100 * answered.score, 2)}
    assert answered.answers.keys() == answered.report.scores.keys() == {example.id for example in examples}
    losses = evaluate(model, processor, examples, metric="none", **ask)
    singly = evaluate(model, processor, examples, metric="none", batch_size=1, max_new_tokens=1)
    assert losses.answers == {}
    assert 0 < losses.score < 1
    assert losses.report.scores == pytest.approx(singly.report.scores, rel=1e-4)
    with pytest.raises(DataError, match=r"metric 'bleu' is unknown; use one of exact, .*scienceqa"):
        evaluate(model, processor, examples, metric="bleu", **ask)
