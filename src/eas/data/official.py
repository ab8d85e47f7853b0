"""Files of the official layouts: found by their names, plain or gzipped, and read with errors that name them."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from eas.errors import DataError, fault, printable, shown

# What JSON may write for half a surrogate pair, or for a NUL; whether it is one shows only behind its neighbours.
_SUSPECT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")


def find_file(folder: Path, name: str, places: Sequence[str] = (".",)) -> Path:
    """The file of an official name, or of that name with ``.gz``, in the first of some places below a folder.

    Raises:
        DataError: it is in none of them.
    """
    candidates = [folder / place / f"{name}{suffix}" for place in places for suffix in ("", ".gz")]
    found = next((path for path in candidates if os.path.isfile(path)), None)
    if found is None:
        raise DataError(f"{candidates[0]} does not exist, nor {name}.gz; put the official file there")
    return found


def find_folder(folder: Path, places: Sequence[str]) -> Path:
    """The first of some places below a folder that exists, or else the first."""
    return next((folder / place for place in places if os.path.isdir(folder / place)), folder / places[0])


def read_text(path: Path) -> str:
    """The text of a file, gzipped if its name ends in ``.gz``.

    Raises:
        DataError: it is missing, no plain file (a folder, a pipe), not UTF-8, or not whole.
    """
    if not os.path.isfile(path):  # which says no of any name, however odd
        raise DataError(f"{path} is not a file; check the path")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); convert it, or name the right file") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); download it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check its permissions and its disk") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: a NUL byte; is it UTF-16? convert the file to UTF-8, or name the right file")
    return text


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value of a JSON file; ``object_hook`` as in `json.loads`.

    Raises:
        DataError: as `read_text` and `parse_json`.
    """
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} is empty; download it again, or name the right file")
    value = parse_json(text, path, object_hook=object_hook, remedy="download it again, or fix it")
    if suspect(text):
        refuse_unfit(value, str(path))
    return value


def parse_json(
    text: str,
    path: Path,
    line: int = 1,
    *,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    remedy: str = "fix or drop this row",
) -> Any:
    """The value of a JSON text: standard JSON, no key twice in an object.

    Args:
        text: the text to parse.
        path: its file, for messages.
        line: of the file that the text begins on.
        object_hook: as in `json.loads`.
        remedy: ends the messages.

    Raises:
        DataError: naming file and line.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=partial(_unique, object_hook),
            parse_constant=_refuse_number,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        where = f"{path}:{line + error.lineno - 1}"
        raise DataError(f"{where}: broken JSON at column {error.colno} ({error.msg}); {remedy}") from error
    except RecursionError as error:
        raise DataError(f"{path}:{line}: nested too deep; {remedy}") from error
    except DataError as error:
        raise DataError(f"{path}:{line}: {error}; {remedy}") from error
    except ValueError as error:  # of int(), for more digits than Python converts
        raise DataError(f"{path}:{line}: a number of too many digits; {remedy}") from error


def _unique(object_hook: Callable[[dict[str, Any]], Any] | None, pairs: list[tuple[str, Any]]) -> Any:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"the key {shown(twice)} stands twice in one object")
    return value if object_hook is None else object_hook(value)


def _finite(number: str) -> float:
    return value if math.isfinite(value := float(number)) else _refuse_number(number)


def _refuse_number(number: str) -> NoReturn:
    raise DataError(f"{number[:20]} is not a finite number, which JSON asks for")


def suspect(text: str) -> bool:
    """Whether a JSON text may hold what `refuse_unfit` looks for; most do not, and need not be walked through."""
    return _SUSPECT.search(text) is not None


def refuse_unfit(value: Any, where: str) -> None:
    """Refuses half a surrogate pair, or a NUL, in any text of a JSON value.

    Args:
        value: the parsed value.
        where: begins the message.

    Raises:
        DataError: naming the field.
    """
    left: list[tuple[str, Any]] = [("", value)]
    while left:
        at, value = left.pop()
        if isinstance(value, str) and (found := fault(value)):
            raise DataError(f"{where}: {at or 'the text'} holds {found}; take it out, or drop this row")
        if isinstance(value, dict):
            if bad := next((key for key in value if fault(key)), ""):
                raise DataError(f"{where}: the key {printable(bad)!r} holds {fault(bad)}; take it out")
            left += [(f"{at}.{key}" if at else key, entry) for key, entry in value.items()]
        elif isinstance(value, list):
            left += [(f"{at}[{number}]", entry) for number, entry in enumerate(value)]


def text_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """The text under a key of a row.

    Raises:
        DataError: there is none.
    """
    if not isinstance(row, Mapping) or key not in row:
        raise DataError(f"{where}: no key {key!r}; complete the row, or drop it")
    if not isinstance(value := row[key], str):
        raise DataError(f"{where}: {key} is {shown(value)}; expected a text")
    return value


def id_of(row: Mapping[str, Any], key: str, where: str) -> str:
    """The id under a key of a row, a text or a whole number.

    Raises:
        DataError: there is none.
    """
    if key not in row:
        raise DataError(f"{where}: no key {key!r}; complete the row, or drop it")
    if isinstance(value := row[key], bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{where}: {key} is {shown(value)}; expected a text or a whole number")
    return str(value)
