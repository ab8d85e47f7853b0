"""ScienceQA: the option that a text names, and accuracy by subject, context and grade.

Sources: lupantech/ScienceQA (evaluate_acc.py, run_gpt3.py), LLaVA and the EAS authors' copy (eval_science_qa.py), LaVIN
(eval.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from eas.example import Example
from eas.metrics.report import MISSING, Report

LETTERS = "ABCDE"
EXTRACTIONS = ("llava", "eas", "lavin", "official")
_SUBJECTS = {"NAT": "natural science", "SOC": "social science", "LAN": "language science"}
_GRADES = {"G1-6": {f"grade{n}" for n in range(1, 7)}, "G7-12": {f"grade{n}" for n in range(7, 13)}}


def extract(text: str, extraction: str) -> str | None:
    """The letter that a text answers with, None if it cannot be told.

    Args:
        text: the model's answer.
        extraction: "official": the one match of "The answer is X." (any character for the period, so a text may not end
            on the letter), none if there are several. "llava": the text is a letter, or begins "X. ", or the former.
            "eas": the same without "The". "lavin": the first match of "The answer is X.", or else the first of "X.".
    """
    if extraction == "lavin":
        found = re.findall(r"The answer is ([A-Z]).", text) or re.findall(r"([A-E]).", text)
        return found[0] if found else None
    if extraction in ("llava", "eas"):
        if len(text) == 1 and text in LETTERS:
            return text
        if text[:1] in tuple(LETTERS) and text[1:3] == ". ":
            return text[0]
    found = re.findall(r"answer is ([A-Z])." if extraction == "eas" else r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else None


def score_scienceqa(
    examples: Sequence[Example],
    predictions: Mapping[str, str],
    extraction: str = "eas",
    fallback_seed: int | None = None,
) -> Report:
    """The official report: NAT, SOC, LAN, TXT, IMG, NO, G1-6, G7-12 and the average.

    TXT has a hint, with or without an image, IMG an image, and NO neither. Categories without an example are left out.

    Args:
        examples: with "answer" (index), "choices", "subject", "grade", "hint", "image" (both bool) in their metadata.
        predictions: a text per id.
        extraction: see `extract`.
        fallback_seed: a text without an answer among the choices counts as wrong (None), as in LLaVA; or it gets a
            random choice, as in LaVIN and the official script, drawn from this seed and the id.
    """
    hits: dict[str, list[float]] = {name: [] for name in (*_SUBJECTS, "TXT", "IMG", "NO", *_GRADES, "average")}
    scores = {}
    for example in examples:
        about = example.metadata
        count = len(about["choices"])
        letter = extract(predictions[example.id], extraction)
        index = LETTERS.index(letter) if letter is not None and letter in LETTERS[:count] else -1
        if index < 0 and fallback_seed is not None and predictions[example.id] != MISSING:
            index = random.Random(f"{fallback_seed} {example.id}").randrange(count)
        hit = scores[example.id] = float(index == about["answer"])
        member = {name: about["subject"] == subject for name, subject in _SUBJECTS.items()}
        member |= {"TXT": about["hint"], "IMG": about["image"], "NO": not about["hint"] and not about["image"]}
        member |= {name: about["grade"] in grades for name, grades in _GRADES.items()}
        for name in [name for name, is_member in member.items() if is_member] + ["average"]:
            hits[name].append(hit)
    numbers = {name: round(sum(found) / len(found) * 100, 2) for name, found in hits.items() if found}
    return Report(
        score=sum(hits["average"]) / len(hits["average"]),
        numbers=numbers,
        scores=scores,
        counts={name: len(found) for name, found in hits.items() if found},
    )
