"""JSON records: a record that is read has the annotated types, or is refused with file, field and remedy."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    TypedDict,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

Record = TypeVar("Record")
Base = TypedDict(
    "Base",
    {
        "id": str,
        "revision": str | None,
        "class": str,
        "hidden_size": int,
        "num_hidden_layers": int,
        "vocab_size": NotRequired[int],
    },
)


class VisualTokens(TypedDict):
    """How many tokens of an image the language model reads, and which (``eas.models.visual_tokens``)."""

    number: int
    choice: str


class AdapterRecord(TypedDict):
    """The record that ``eas.save`` writes for an adapter."""

    config: dict[str, Any]
    skip_set: list[int]
    pruned: bool
    visual_tokens: NotRequired[VisualTokens | None]
    base: Base
    versions: dict[str, str]


class CardRecord(TypedDict):
    """The part of an adapter's record that a card shows."""

    base: dict[str, Any]


class EASEntry(TypedDict):
    """The method's entry in a standalone folder's config.json."""

    config: dict[str, Any]
    skip_set: list[int]


class ModelRecord(TypedDict):
    """The common keys of a model's config.json."""

    model_type: str


class GenerationRecord(TypedDict):
    """What a model's generation_config.json must hold: anything, as a mapping."""


class StandaloneRecord(ModelRecord):
    """config.json of a standalone folder."""

    eas: EASEntry


class IndexRecord(TypedDict):
    """The file of each weight."""

    weight_map: dict[str, str]


class RecordError(ValueError):
    """A file that is missing, damaged or of another kind; the message names file, field and remedy."""


@contextmanager
def raised_as(kind: type[ValueError]) -> Iterator[None]:
    """Within it a ``RecordError`` becomes an error of another kind, with the same words."""
    try:
        yield
    except RecordError as error:
        raise kind(str(error)) from error


def read_record(path: Path, kind: type[Record], remedy: str) -> Record:
    """A JSON file that holds one mapping.

    Args:
        path: of the file.
        kind: a TypedDict; further keys are allowed.
        remedy: what to do where the file is of no use.

    Raises:
        RecordError: the file is missing, is not JSON, or lacks a field, or has a field of another type.
    """
    if not path.is_file():  # a folder or a pipe is none
        raise RecordError(f"{path} is missing or no file; {remedy}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read as text ({error}); {remedy}") from error
    return parse_record(text, kind, str(path), remedy)


def parse_record(text: str, kind: type[Record], where: str, remedy: str) -> Record:
    """The same of a text, which is found at ``where``."""
    try:
        value: Record = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where} is damaged ({error}); {remedy}") from error
    if wrong := misfit(value, kind, ""):
        raise RecordError(f"{where}: {wrong}; {remedy}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"a key of {reprlib.repr(list(values))} occurs twice")
    return values


def misfit(value: Any, kind: Any, where: str) -> str | None:
    """Which field of a value is not of its annotated type, in words; None where all are.

    An int is a float, a bool is no int, and floats are finite.
    """
    kind = NoneType if kind is None else kind
    origin, parts = get_origin(kind), get_args(kind)

    def must(be: str) -> str:  # late, as some values are long to show
        return f"{where or 'the whole'} = {reprlib.repr(value)} must be {be}"

    if kind is Any:
        return None
    if origin is Literal:
        return None if any(value == part and type(value) is type(part) for part in parts) else must(kind_name(kind))
    if origin in (UnionType, Union):
        found = [misfit(value, part, where) for part in parts if part is not NoneType or value is None]
        return None if None in found else found[0] if len(found) == 1 else must(kind_name(kind))
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return must("a mapping")
        inside = []
        for key, hint in get_type_hints(kind, include_extras=True).items():
            if key in value:
                hint = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
                inside.append((value[key], hint, f"{where}.{key}".lstrip(".")))
            elif get_origin(hint) is not NotRequired:
                return f"{where or 'it'} has no {key!r}"
    elif origin in (list, tuple, dict):
        if not isinstance(value, origin):
            return must(kind_name(kind))
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        if origin is dict and any(misfit(key, parts[0], where) for key in value):
            return must(kind_name(kind))
        inside = [(one, parts[-1 if origin is dict else 0], f"{where}[{key!r}]") for key, one in entries]
    else:
        is_bool = isinstance(value, bool)  # an int to Python, but not to us
        if kind is float and isinstance(value, float | int) and not is_bool:
            return (
                None
                if abs(value) <= sys.float_info.max
                else must("finite" if isinstance(value, float) else "below 1e308")
            )
        ok = kind is bool if is_bool else isinstance(value, int if kind is float else kind)
        return None if ok else must(kind_name(kind))
    return next((wrong for one in inside if (wrong := misfit(*one))), None)


def kind_name(kind: Any) -> str:
    """An annotated type in words."""
    if get_origin(kind) in (UnionType, Union):
        return " or ".join(kind_name(part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        *others, last = map(repr, get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if parts := get_args(kind):
        return f"{get_origin(kind).__name__}[{', '.join(map(kind_name, parts))}]"
    if is_typeddict(kind):
        return "mapping"
    return "None" if kind is NoneType else kind.__name__ if isinstance(kind, type) else str(kind)
