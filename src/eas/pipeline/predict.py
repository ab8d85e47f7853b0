"""`eas predict`: a run's answers to a file of questions, each written at once; a stopped command continues."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eas.attachment.attach import fold
from eas.attachment.load import load
from eas.attachment.save import WEIGHTS_FILE
from eas.config import ConfigError
from eas.data.jsonl import from_rows, read_rows
from eas.example import DataError, Example
from eas.files import locked, write_text, writing
from eas.pipeline.run import Run
from eas.pipeline.savings import fold_mode
from eas.progress import Bar
from eas.tasks.evaluation import answer
from eas.terminal import console

ABOUT = ".about.json"
"""What the output's name is followed by in that of the file which says whose answers they are."""


def predict(
    run: Run,
    questions: Path,
    output: Path,
    batch_size: int | None = None,
    max_new_tokens: int = 64,
    images: Path | None = None,
) -> int:
    """Writes one line ``{"id": ..., "answer": ...}`` per question, in the questions' order.

    A line also has ``"cut": true`` if the length limit cut its answer. The terminal says how many have.

    Args:
        run: whose tuned model answers, folded as the run folds.
        questions: rows in the forms of ``load_jsonl``; the last answer of a row is not needed, and not read.
        output: the JSON lines. Those of the same run, questions and settings that are there already are kept.
        batch_size: questions at a time; the run's ``eval_batch_size`` by default.
        max_new_tokens: length limit of an answer.
        images: the folder that image paths are relative to; that of the questions by default.

    Returns:
        How many questions are answered now: all of them.

    Raises:
        DataError: a row that is no question, named by file and line; nothing has been computed then.
        ConfigError: the output holds something else, or the model answers no questions.
        WriteError: another process writes the output, or it cannot be written.
    """
    run.task.check_generation(run)
    run.require("tune")
    examples, mode = read_questions(questions, images), fold_mode(run)
    size = 1 if mode == "per_example" else batch_size or run.config.eval_batch_size
    about = {
        "adapter": _digest(run.folder / "adapter" / WEIGHTS_FILE),
        "questions": _digest(questions),
        "images": str(images.resolve()) if images else None,
        "fold_mode": mode,
        "max_new_tokens": max_new_tokens,
    }
    with locked(output.with_name(f".{output.name}.lock"), f"{output}: another eas predict writes it; wait for it"):
        done = _done(output, about, examples)
        write_text(output.with_name(output.name + ABOUT), json.dumps(about, indent=1) + "\n")
        if done < len(examples):
            _answer(run, examples, output, done, size, mode, max_new_tokens)
    if cut := sum("cut" in json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()):
        console(stderr=True).print(
            f"note: {cut} of {len(examples)} answers are cut at --max-new-tokens = {max_new_tokens}, and their lines "
            "say so; name more of them, and another --output"
        )
    return len(examples)


def read_questions(path: Path, images: Path | None = None) -> list[Example]:
    """The examples of a file in which the last answer of a row may be missing; their targets mean nothing.

    Raises:
        DataError: a row does not fit, or an id occurs twice; file and line are named.
    """
    examples: dict[str, Example] = {}
    for where, number, row in read_rows(path):
        # only the last turn is asked; an answer in its place makes the row one of the known form
        example = from_rows([(where, number, _with_answer(row))], images or path.parent)[-1]
        id = f"row-{number}" if row.get("id") is None else str(row["id"])
        if id in examples:
            raise DataError(f"{where}: the id {id!r} occurs twice; make ids unique, or drop all ids")
        examples[id] = Example(id, example.messages, example.target, example.images)
    return list(examples.values())


def _with_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in row.items() if key not in ("choices", "answers", "completion")}
    for key, speaker, text, answers in (
        ("conversations", "from", "value", "gpt"),
        ("messages", "role", "content", "assistant"),
    ):
        if isinstance(turns := row.get(key), list) and turns:
            last = turns[-1]
            asked = turns[:-1] if isinstance(last, dict) and last.get(speaker) == answers else turns
            values[key] = [*asked, {speaker: answers, text: "-"}]
    if "prompt" in row:  # beside another form too, which is refused
        said, missing = row.get("completion"), {"role": "assistant", "content": "-"}
        turns = said[:-1] if isinstance(said, list) else []
        values["completion"] = "-" if isinstance(row["prompt"], str) else [*turns, missing]
    return values


def _done(output: Path, about: Mapping[str, Any], examples: Sequence[Example]) -> int:
    """How many questions the output answers already; a line that was not written to its end is taken away."""
    if not output.exists():
        return 0
    beside = output.with_name(output.name + ABOUT)
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{output} exists already, and there is no {beside.name} that names its run; name another --output"
        )
    if changed := [key for key, value in about.items() if found.get(key) != value]:
        raise ConfigError(f"{output} holds answers with another {' and '.join(changed)}; name another --output")
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.decode("utf-8", errors="replace").splitlines()
    for number, (line, example) in enumerate(zip(lines, examples, strict=False), start=1):
        if not line.startswith(_line(example.id, "")[:-3]):  # up to the answer
            raise ConfigError(f"{output}:{number} does not answer question {example.id!r}; name another --output")
    if len(lines) > len(examples):
        raise ConfigError(f"{output} has more lines than there are questions; name another --output")
    if len(whole) < len(content):
        with writing(output.parent):
            os.truncate(output, len(whole))
    return len(lines)


def _answer(
    run: Run, examples: Sequence[Example], output: Path, done: int, size: int, mode: str | None, max_new_tokens: int
) -> None:
    model = load(run.load_base(), run.folder / "adapter")
    if mode is not None:
        fold(model, mode)
    if done:
        console(stderr=True).print(f"going on after {done} of {len(examples)} answers")
    bar = Bar("answering", len(examples), done)
    with writing(output.parent), output.open("a", encoding="utf-8") as file, bar:
        for at in range(done, len(examples), size):
            asked = examples[at : at + size]
            answers = answer(model, run.processor, asked, batch_size=size, max_new_tokens=max_new_tokens)
            file.write("".join(_line(e.id, *given) + "\n" for e, given in zip(asked, answers, strict=True)))
            file.flush()
            os.fsync(file.fileno())
            bar.advance(at + len(asked))


def _line(id: str, text: str, cut: bool = False) -> str:
    return json.dumps({"id": id, "answer": text} | ({"cut": True} if cut else {}))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
