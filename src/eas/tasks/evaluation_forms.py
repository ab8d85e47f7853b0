"""Comparisons for an accuracy: blind answers, and the meaning of zero-shot answers, whatever their words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eas.data import BENCHMARKS
from eas.example import Example
from eas.metrics import LOSS_ONLY, METRICS, RANKING
from eas.metrics.exact import END, START, form_for, normalise
from eas.metrics.scienceqa import LETTERS
from eas.tasks.evaluation import Evaluation, choice_losses, generated, score_answers

CLOSED = 50
"""A split with at most so many different answers, each given twice on average, has a closed answer set."""
COMMON = 8
"""So many of the most common answers are tried as the one answer to all."""
ALREADY = ("contains", "slake", "scienceqa-text")
"""Metrics that forgive the form by themselves."""


@dataclass(frozen=True)
class Blind:
    """Shares of examples that blind answers get right; None if the data do not say.

    Args:
        chance: guessing among an example's choices.
        majority: always giving one answer, the one that scores most.
        majority_answer: that answer.
    """

    chance: float | None = None
    majority: float | None = None
    majority_answer: str | None = None


@dataclass(frozen=True)
class Meant:
    """A zero-shot evaluation by the answers that were meant.

    Args:
        evaluation: with these answers; they are the model's own words where those say it already.
        as_written: the score of the literal words.
        comparable: False where most of the answers are none of the split's, in any reading.
    """

    evaluation: Evaluation
    as_written: float
    comparable: bool = True


def choices_of(example: Example, metric: str) -> Sequence[str]:
    """The choices of an example's answer; empty if the answer is free."""
    if metric == "scienceqa" and not example.choices:
        return [f"The answer is {letter}." for letter in LETTERS[: len(example.metadata["choices"])]]
    return example.choices


def blind(metric: str, examples: Sequence[Example], options: Mapping[str, Any] | None = None) -> Blind:
    """What guessing and one answer to all would score; see `eas.tasks.evaluation.evaluate` for the arguments."""
    if metric == LOSS_ONLY or (metric in BENCHMARKS and BENCHMARKS[metric].score_file is not None):
        return Blind()
    choices = [choices_of(example, metric) for example in examples]
    chance = sum(_chance(example, metric) for example in examples) / len(examples) if all(choices) else None
    given = [dict.fromkeys((example.target, *example.metadata.get("answers", ()))) for example in examples]
    common = Counter(answer for answers in given for answer in answers).most_common(COMMON)
    constant = [answer for answer, times in common if times > 1]
    if metric == "scienceqa":
        constant += [f"The answer is {letter}." for letter in LETTERS]
    scores = {
        answer: score_answers(metric, examples, {example.id: answer for example in examples}, options).score
        for answer in constant
    }
    best = max(scores, key=scores.__getitem__, default=None)
    return Blind(chance, None if best is None else scores[best], best)


def _chance(example: Example, metric: str) -> float:
    """What guessing among the choices scores: a benchmark may repeat one, or a metric may take two for the same."""
    if not example.choices:
        return 1 / len(choices_of(example, metric))
    score = METRICS.get(metric, METRICS[RANKING])
    return sum(score(choice, example) for choice in example.choices) / len(example.choices)


def meant(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    found: Evaluation,
    *,
    metric: str,
    batch_size: int,
    title: str = "",
    options: Mapping[str, Any] | None = None,
) -> Meant:
    """Scores a zero-shot model's answers anew, its form forgiven.

    An answer counts as the one choice that it names. Where it names none or several, it counts as the choice whose
    tokens have the highest mean log-probability. Where examples have no choices of their own but the split has a closed
    set of answers, these are what an answer may name; an answer that names none of them does not change.

    Args:
        model: the base.
        processor: its processor.
        examples: the answered examples.
        found: what `evaluate` said.
        metric: by which the answers are scored.
        batch_size: choices at a time.
        title: the progress bar's; none without one.
        options: the benchmark's ``data_options``.
    """
    if metric in ALREADY or not found.answers or not generated(metric, examples, options):
        return Meant(found, found.score)
    counts = Counter(normalise(example.target) for example in examples)
    closed = {normalise(example.target): example.target for example in examples}
    shared = tuple(closed.values()) if len(counts) <= CLOSED and 2 * len(counts) <= len(examples) else ()
    answers, open_ones = dict(found.answers), list[Example]()
    for example in examples:
        own = choices_of(example, metric)
        said = named(answers[example.id], own or shared)
        if said is not None:
            answers[example.id] = said
        elif own:
            open_ones.append(example)
    losses = choice_losses(model, processor, [(e, choices_of(e, metric)) for e in open_ones], batch_size, title)
    answers |= {id: min(each, key=each.__getitem__) for id, each in losses.items()}
    known = counts.keys() | {normalise(choice) for example in examples for choice in choices_of(example, metric)}
    report = score_answers(metric, examples, answers, options)
    in_form = sum(normalise(answer) in known for answer in answers.values())
    return Meant(Evaluation(report.score, answers, report), found.score, 2 * in_form >= len(examples))


def named(text: str, options: Sequence[str]) -> str | None:
    """The one option that a text names as whole words; None where it names none or several.

    The longest are looked for first, so that "red square" does not name "red". An option of one letter must begin the
    text and be followed by a sign or nothing: "a" is also a word. The option "The answer is A."
    is named with a small letter, too, if a sign or nothing follows the letter.
    """
    form = form_for(options)
    rest, found = form(text), []
    for option in sorted(options, key=len, reverse=True):
        words = form(option)
        if not words:
            continue
        *before, letter = option.strip().removesuffix(".").split()
        if len(letter) == 1 and letter.isalpha():
            start = "".join(rf"{re.escape(word)}\s+" for word in before)
            other = rf"{letter}(?!\w)|{letter.swapcase()}\s*(?:[.:),]|$)"
            pattern = rf"(?<!\w)(?i:{start})(?:{other})" if before else rf"^\(?{letter}\)?(?:[.:),]|$)"
            if re.search(pattern, text.strip()):
                found.append(option)
            continue
        pattern = rf"{START}{re.escape(words)}{END}"
        if re.search(pattern, rest):
            found.append(option)
            rest = re.sub(pattern, " ", rest)
    return found[0] if len(found) == 1 else None
