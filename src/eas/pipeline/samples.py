"""The examples that a run's page shows: questions with the turns before them, pictures, and both models' answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eas.example import Example
from eas.pipeline.run import Run

MOST = 60
"""Samples of a page, spread evenly over the split."""
SIDE = 336
"""Pixels of a picture's longer side on the page."""
SMALL = 128
"""Pictures up to this side stay PNG; photographs are much smaller as JPEG."""
CATEGORIES = ("answer_type", "subject", "grade", "family", "category")
"""Keys of an example's metadata that are worth a filter."""


def samples(run: Run, record: Mapping[str, Any], into: Path) -> list[dict[str, Any]]:
    """What the page shows of the test split; none where nothing was evaluated, or nothing is answered.

    Args:
        run: the evaluated run.
        record: of the evaluation.
        into: the folder whose ``samples`` the pictures are written to.
    """
    answers, tuned, final = chosen_answers(record)
    if not answers:
        return []
    scores = record.get("scores") or {}
    examples, made = run.data("test"), list[dict[str, Any]]()
    (into / "samples").mkdir(exist_ok=True)
    read_as = (record.get("zero_shot") or {}).get("meant") or {}
    for number, index in enumerate(spread_evenly(len(examples), MOST)):
        example, paths = examples[index], []
        for j, image in enumerate(example.load_images()):
            paths.append(_written(into, image, f"{number}-{j}"))
        base = answers.get(example.id)
        made.append(
            {
                "id": example.id,
                "turns": turns(example),
                "question": example.question,
                "target": example.target,
                "base": base,
                "base_read_as": read if (read := read_as.get(example.id)) != base else None,
                "tuned": tuned.get(example.id),
                "base_score": (scores.get("zero_shot") or {}).get(example.id),
                "tuned_score": (scores.get(final) or {}).get(example.id),
                "categories": {key: str(example.metadata[key]) for key in CATEGORIES if example.metadata.get(key)},
                "images": paths,
            }
        )
    return made


def chosen_answers(record: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str], str]:
    """The answers that samples show, by id: of the base, and of the tuned model, whose name in the record is third."""
    answers = record.get("answers") or {}
    final = "folded" if answers.get("folded") else "tuned"
    return answers.get("zero_shot") or {}, answers.get(final) or {}, final


def spread_evenly(total: int, most: int) -> Sequence[int]:
    """At most so many indices, evenly spread from the first to the last."""
    if total <= most:
        return range(total)
    return [round(i * (total - 1) / (most - 1)) for i in range(most)]


def turns(example: Example) -> list[dict[str, str]]:
    """The turns before the question, in plain text, an image as "[image]"."""
    return [
        {
            "role": message["role"],
            "text": " ".join(part["text"] if part["type"] == "text" else "[image]" for part in message["content"]),
        }
        for message in example.messages[:-1]
    ]


def _written(into: Path, image: Image.Image, name: str) -> str:
    """Writes a picture for the page, and returns its path in the folder."""
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    path = f"samples/{name}.{'png' if max(image.size) <= SMALL else 'jpg'}"
    image.save(into / path, quality=85)
    return path
