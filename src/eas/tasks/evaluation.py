"""Answers of a model on examples, and their score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eas.data import BENCHMARKS
from eas.example import DataError, Example
from eas.metrics import LOSS_ONLY, METRICS
from eas.metrics.report import Report
from eas.metrics.vqa import percent
from eas.progress import track
from eas.tasks.collate import IGNORED, Collator


@dataclass(frozen=True)
class Evaluation:
    """A score in [0, 1], the answers that it was computed from (by id), and the metric's full report."""

    score: float
    answers: dict[str, str]
    report: Report


def answer(
    model: Any, processor: Any, examples: Sequence[Example], *, batch_size: int, max_new_tokens: int, title: str = ""
) -> list[str]:
    """Greedy answers, in order, under a progress bar when there is a title.

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
    for at in track(range(0, len(examples), batch_size), title):
        batch = collate([examples[i] for i in range(at, min(at + batch_size, len(examples)))])
        inputs = {key: value.to(model.device) for key, value in batch.items() if key != "prompt_mask"}
        with torch.inference_mode():
            tokens = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


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
    given = answer(model, processor, examples, batch_size=batch_size, max_new_tokens=max_new_tokens, title=title)
    answers = {example.id: text for example, text in zip(examples, given, strict=True)}
    report = score_answers(metric, examples, answers, options)
    return Evaluation(report.score, answers, report)


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
            logits = model(**inputs).logits[:, :-1].float()
        labels = inputs["labels"][:, 1:]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        losses += (each.sum(1) / (labels != IGNORED).sum(1)).tolist()
    return losses


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
