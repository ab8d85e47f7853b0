"""Prediction files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eas.data.jsonl import read_rows
from eas.data.official import id_of, read_json
from eas.errors import DataError, shown


def read_answers(path: Path, id_key: str = "question_id", text_key: str = "text") -> dict[str, Any]:
    """Answers by id: one JSON object ``{id: answer}``, or rows (JSON lines or an array) as LLaVA writes them.

    Args:
        path: the file.
        id_key: the key of a row's id.
        text_key: the key of a row's answer.

    Raises:
        DataError: naming file and line: no such file, broken JSON, a row without those keys, an id that occurs twice,
            also as a key.
    """
    try:
        whole = read_json(path)
    except DataError as error:
        if not isinstance(error.__cause__, json.JSONDecodeError):
            raise
        whole = None  # JSON lines, or broken: reading rows tells where
    if isinstance(whole, dict) and not {id_key, text_key} <= whole.keys():
        return whole
    answers: dict[str, Any] = {}
    for where, _, row in read_rows(path):
        if not {id_key, text_key} <= row.keys():
            raise DataError(f"{where}: the row has the keys {sorted(row)}; expected {id_key!r} and {text_key!r}")
        if (id := id_of(row, id_key, where)) in answers:
            raise DataError(f"{where}: the id {shown(id)} occurs twice; keep one of the rows")
        answers[id] = row[text_key]
    return answers


def read_texts(path: Path) -> dict[str, str]:
    """As `read_answers`, for benchmarks whose answers are texts.

    Raises:
        DataError: besides, an answer that is not a text.
    """
    answers = read_answers(path)
    for id, text in answers.items():
        if not isinstance(text, str):
            raise DataError(f"{path}: the prediction for {id} is {shown(text)}; expected a text")
    return answers
