"""A folder that ``eas export`` wrote: its record, which is read before an engine is given the folder.

Importing this file loads neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypedDict

from eas.records import RecordError, read_record

FORMAT_VERSION = 1
RECORD_FILE, EXPECTED_FILE = "eas_export.json", "expected.json"
REMEDY = "export the model again"


class ExportError(ValueError):
    """What cannot be exported, or a folder that no engine should open; the message names the reason and the remedy.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> try:
        ...     eas.export(load_tiny()[0], "gguf", "served")
        ... except eas.ExportError as error:
        ...     print(error)  # doctest: +ELLIPSIS
        gguf: the model reads images...
    """


class ExportRecord(TypedDict):
    """``eas_export.json``.

    Args:
        format_version: of the folder.
        engine: the form: "decilm", "gguf", "onnx", "openvino" or "vllm".
        dtype: of the weights.
        skip_set: the layers without attention.
        kept: the layers with one; keys and values are stored for these, in this order.
        kv_heads: key-value heads of an attention.
        head_dim: numbers of a head.
        context: the longest sequence.
        eos: tokens that end an answer.
        files: size and SHA-256 of every other file.
        config: of the method; null for a base.
        base: what the model was made from.
        versions: of the packages that wrote it.
    """

    format_version: int
    engine: str
    dtype: str
    skip_set: list[int]
    kept: list[int]
    kv_heads: int
    head_dim: int
    context: int
    eos: list[int]
    files: dict[str, list[Any]]
    config: dict[str, Any] | None
    base: dict[str, Any]
    versions: dict[str, str]


class Expected(TypedDict):
    """``expected.json``: what eas itself answers, so that an engine can be checked.

    Args:
        prompt: a text; null where the model has no tokenizer, or its context is too short for it.
        prompt_tokens: the same as tokens, or the first ones that the context holds.
        tokens: the most likely token, step by step within the context, but for those that end an answer.
        likeliest: at every step the five likeliest tokens.
        log_probs: their log-probabilities.
        dtype: eas computed in it.
    """

    prompt: str | None
    prompt_tokens: list[int]
    tokens: list[int]
    likeliest: list[list[int]]
    log_probs: list[list[float]]
    dtype: str


def read_export(folder: str | Path, *, whole: bool = False) -> ExportRecord:
    """The record of an exported folder, whose files are all there.

    Args:
        folder: that ``eas export`` wrote.
        whole: compare every byte with the digests of the record; otherwise the sizes of files are compared.

    Raises:
        ExportError: a file is missing or damaged, or the folder is of another format; the message names it.
    """
    folder = Path(folder)
    path = folder / RECORD_FILE
    if not path.is_file():
        raise ExportError(f"{folder} has no {RECORD_FILE}; name a folder that `eas export` wrote")
    try:
        if (version := read_record(path, _Versioned, REMEDY)["format_version"]) != FORMAT_VERSION:
            raise ExportError(
                f"{path}: format_version = {version}, and this eas reads {FORMAT_VERSION}; {REMEDY} with this eas, or "
                "install the eas that wrote it"
            )
        record = read_record(path, ExportRecord, REMEDY)
    except RecordError as error:
        raise ExportError(str(error)) from error
    for name, (size, digest) in record["files"].items():
        file = folder / name
        if not file.is_file():
            raise ExportError(f"{file} is missing; copy the folder again, or {REMEDY}")
        if file.stat().st_size != size or (whole and file_digest(file) != digest):
            raise ExportError(f"{file} is not the file that was written (damaged or edited); {REMEDY}")
    return record


def read_expected(folder: str | Path) -> Expected:
    """What eas itself answers.

    Raises:
        ExportError: the file is missing or damaged.
    """
    try:
        return read_record(Path(folder) / EXPECTED_FILE, Expected, REMEDY)
    except RecordError as error:
        raise ExportError(str(error)) from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Versioned(TypedDict):
    format_version: int
