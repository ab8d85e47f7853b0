"""Answers of a model on examples, and their score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from eas.data import BENCHMARKS
from eas.example import DataError, Example
from eas.hf.labelled import answer_losses
from eas.metrics import LOSS_ONLY, METRICS, RANKING
from eas.metrics.report import Report
from eas.metrics.vqa import percent
from eas.progress import track
from eas.tasks.collate import Collator

NEUTRAL = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "min_length": 0,
}
GREEDY = {"do_sample": False, **NEUTRAL, "return_dict_in_generate": False}
"""What a base's own generation settings would change: the answer is the likeliest token, one after the other."""


@dataclass(frozen=True)
class Evaluation:
    """A score in [0, 1], the answers that it was computed from (by id), and the metric's full report."""

    score: float
    answers: dict[str, str]
    report: Report


class Answer(NamedTuple):
    """The text of an answer, and whether the length limit cut it, before any token that ends an answer."""

    text: str
    cut: bool


def answer(
    model: Any, processor: Any, examples: Sequence[Example], *, batch_size: int, max_new_tokens: int, title: str = ""
) -> list[Answer]:
    """Greedy answers, in order, under a progress bar when there is a title; the base's own settings do not count.

    Args:
        model: base, attached or folded; batches above 1 need a fold mode that serves them.
        processor: the model's processor or tokenizer.
        examples: what to answer.
        batch_size: examples per call of ``generate``.
        max_new_tokens: length limit of an answer.
        title: the progress bar's; none without one.
    """
    collate, answers = Collator(processor, training=False), []
    tokenizer = collate.tokenizer
    last = ends(model, tokenizer)
    for at in track(range(0, len(examples), batch_size), title):
        batch = collate([examples[i] for i in range(at, min(at + batch_size, len(examples)))])
        inputs = {key: value.to(model.device) for key, value in batch.items() if key != "prompt_mask"}
        with torch.inference_mode():
            tokens = model.generate(
                **inputs,
                **GREEDY,
                max_new_tokens=max_new_tokens,
                eos_token_id=last,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        cut = ~torch.isin(new.cpu(), torch.tensor(last)).any(1)
        answers += [Answer(text.strip(), whether) for text, whether in zip(texts, cut.tolist(), strict=True)]
    return answers


def ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens at which an answer ends: those that the base names, and the one that tuning puts there."""
    named = None if model.generation_config is None else model.generation_config.eos_token_id
    last = None if tokenizer is None else tokenizer.eos_token_id
    found = [*(named if isinstance(named, list) else [named]), last]
    return list(dict.fromkeys(int(token) for token in found if token is not None))


def as_scored(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Generation settings in place of the base's own, with which greedy answers are those of scores; whether to sample
    is left to who asks."""
    return {**NEUTRAL, "eos_token_id": ends(model, tokenizer)}


def answer_as_scored(model: Any, processor: Any) -> None:
    """From now on ``generate`` answers greedily as scores do, in this model and in a folder that it is saved to."""
    tokenizer, config = Collator(processor, training=False).tokenizer, model.generation_config
    for name, value in as_scored(model, tokenizer).items():
        setattr(config, name, value)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def evaluate(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    *,
    metric: str,
    batch_size: int,
    max_new_tokens: int,
    title: str = "",
    options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Scores greedy answers; see ``answer`` for the other arguments.

    Args:
        metric: a name in ``METRICS``; a benchmark's, for examples that `load_data` read for it; or ``LOSS_ONLY``: no
            answer is generated, an example's score is the geometric mean of the probabilities of its target's tokens
            (teacher forcing), and the report has their mean "loss", in nats per token, examples weighing the same.
            Where choices are ranked (``RANKING``, or a benchmark's own), the answer is the choice whose tokens have the
            highest mean log-probability, the first of equals, and the report has the right choice's "loss".
        options: the benchmark's ``data_options``.

    Raises:
        DataError: the metric is unknown.
    """
    if metric == LOSS_ONLY:
        losses = target_losses(model, processor, examples, batch_size, title)
        scores = {example.id: math.exp(-loss) for example, loss in zip(examples, losses, strict=True)}
        report = Report(sum(scores.values()) / len(scores), {"loss": sum(losses) / len(losses)}, scores)
        return Evaluation(report.score, {}, report)
    if metric not in METRICS and metric not in BENCHMARKS:
        raise DataError(f"metric {metric!r} is unknown; use one of {', '.join((*METRICS, LOSS_ONLY, *BENCHMARKS))}")
    if metric == RANKING and not _closed(examples):
        raise DataError(f"metric {RANKING!r} needs choices in every example; use 'exact' or 'contains'")
    if not generated(metric, examples, options):
        ranked = choice_losses(model, processor, [(e, e.choices) for e in examples], batch_size, title)
        answers = {id: min(each, key=each.__getitem__) for id, each in ranked.items()}
        report = score_answers(metric, examples, answers, options)
        loss = sum(ranked[example.id][example.target] for example in examples) / len(examples)
        report = replace(report, numbers={**report.numbers, "loss": loss})
        return Evaluation(report.score, answers, report)
    given = answer(model, processor, examples, batch_size=batch_size, max_new_tokens=max_new_tokens, title=title)
    answers = {example.id: text for example, (text, _) in zip(examples, given, strict=True)}
    report = score_answers(metric, examples, answers, options)
    return Evaluation(report.score, answers, report)


def generated(metric: str, examples: Sequence[Example], options: Mapping[str, Any] | None = None) -> bool:
    """Whether a metric reads answers that are generated; others rank choices, or read the target's probability."""
    if (benchmark := BENCHMARKS.get(metric)) is None:
        ranks = metric == RANKING
    else:
        ranks = benchmark.ranked(benchmark.options.from_dict(options or {}))
    return metric != LOSS_ONLY and not (ranks and _closed(examples))


def _closed(examples: Sequence[Example]) -> bool:
    return bool(examples) and all(example.choices for example in examples)


def target_losses(
    model: Any, processor: Any, examples: Sequence[Example], batch_size: int, title: str = ""
) -> list[float]:
    """The mean loss of each example's target, over its tokens and the end token; see ``answer`` for the arguments."""
    collate, losses = Collator(processor, training=True), []
    for at in track(range(0, len(examples), batch_size), title):
        batch = collate([examples[i] for i in range(at, min(at + batch_size, len(examples)))])
        # The labels tell an attached model where the prompt ends.
        inputs = {key: value.to(model.device) for key, value in batch.items() if key != "prompt_mask"}
        with torch.inference_mode():
            sums, tokens = answer_losses(model, inputs)
        losses += (sums / tokens).tolist()
    return losses


def choice_losses(
    model: Any, processor: Any, asked: Sequence[tuple[Example, Sequence[str]]], batch_size: int, title: str = ""
) -> dict[str, dict[str, float]]:
    """The mean loss of each choice of each example, by the example's id; see ``target_losses``."""
    rows = [(example.id, choice, replace(example, target=choice)) for example, choices in asked for choice in choices]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][2].question) + len(rows[i][1]))  # less padding
    losses = target_losses(model, processor, [rows[i][2] for i in order], batch_size, title) if rows else []
    found: dict[str, dict[str, float]] = {example.id: {} for example, _ in asked}
    by_row = dict(zip(order, losses, strict=True))
    for i, (id, choice, _) in enumerate(rows):
        found[id][choice] = by_row[i]
    return found


def score_answers(
    metric: str, examples: Sequence[Example], answers: Mapping[str, str], options: Mapping[str, Any] | None = None
) -> Report:
    """What a metric, or a benchmark's, says of one answer per example; see ``evaluate``."""
    if metric in BENCHMARKS:
        benchmark = BENCHMARKS[metric]
        return benchmark.score(examples, answers, benchmark.options.from_dict(options or {}))
    scores = {example.id: METRICS[metric](answers[example.id], example) for example in examples}
    mean = sum(scores.values()) / len(scores)
    return Report(mean, {metric: percent(list(scores.values()))}, scores)
