"""The sources of a report: result.json of runs, comparison.json of comparisons, frontier.json of searches."""

from __future__ import annotations

import base64
import json
import mimetypes
from pathlib import Path
from typing import Any, get_type_hints

from eas.records import misfit
from eas.reports.records import FrontierRecord, ResultRecord, ShownComparison

RESULT_FILE, COMPARISON_FILE, FRONTIER_FILE = "result.json", "comparison.json", "frontier.json"
OF_COMPARISON = ("runs/*-k*-s*/run.yaml", "trials/*-k*-lr*/run.yaml")
"""Where `eas compare` keeps its runs, which are there before its table is."""
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
"""What a file raises that holds something else than it should."""


class ReportError(ValueError):
    """A result file that is missing or damaged; the message names file and field."""


def read_json(path: Path) -> dict[str, Any]:
    """One mapping.

    Raises:
        ReportError: the file cannot be read, is not JSON or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} is missing or damaged ({error})") from error
    if not isinstance(values, dict):
        raise ReportError(f"{path} must hold one mapping, not {type(values).__name__}")
    return values


def read_result(folder: Path) -> dict[str, Any]:
    """A run's ``result.json``; sections that are absent or null are there, empty.

    Raises:
        ReportError: it is missing, is not JSON, is of something else, has a field of another kind, or is that of a
            comparison's run; or the folder is of a comparison without a table yet.
    """
    path = folder / RESULT_FILE
    if not path.is_file() and any(found for names in OF_COMPARISON for found in folder.glob(names)):
        raise ReportError(
            f"{folder} holds a comparison that is not finished, and no {COMPARISON_FILE} yet; wait for it, or continue "
            "it with the same `eas compare` command"
        )
    if not path.is_file():
        raise ReportError(f"{path} is missing; name the folder of a run or of a comparison")
    result = read_json(path)
    if {"row", "trial"} <= result.keys():
        raise ReportError(f"{path} is one run of a comparison; name the comparison's folder")
    sections = get_type_hints(ResultRecord)
    if result and not sections.keys() & result.keys():
        raise ReportError(f"{path} is no result of eas; name the folder of a run or of a comparison")
    _require(path, result, ResultRecord, "`eas report` on the whole run folder writes it again")
    empty: dict[str, Any] = {name: [] if name == "samples" else {} for name in sections if result.get(name) is None}
    return result | empty


def is_of_comparison(folder: Path) -> bool:
    """Whether a folder's result.json is what `eas compare` leaves of one run, which has other sections."""
    try:
        return {"row", "trial"} <= read_json(folder / RESULT_FILE).keys()
    except ReportError:  # there is none, or it is to be written anew
        return False


def read_comparison(path: Path) -> dict[str, Any]:
    """A ``comparison.json``.

    Raises:
        ReportError: the file is missing or damaged.
    """
    result = read_json(path)
    _require(path, result, ShownComparison, "run `eas compare` on its folder again")
    return result


def read_frontier(path: Path) -> dict[str, Any]:
    """A ``frontier.json``.

    Raises:
        ReportError: the file is missing or damaged.
    """
    result = read_json(path)
    _require(path, result, FrontierRecord, "run `eas frontier` on its folder again")
    return result


def _require(path: Path, values: dict[str, Any], kind: Any, remedy: str) -> None:
    if wrong := misfit(values, kind, ""):
        raise ReportError(f"{path} is damaged ({wrong}); {remedy}")


def image_uri(folder: Path, name: str) -> str | None:
    """An image of a run's folder as a data URI, None if it is gone.

    Raises:
        ReportError: the name is no image inside the folder.
    """
    path, kind = (folder / name).resolve(), mimetypes.guess_type(name)[0]
    if not path.is_relative_to(folder.resolve()) or kind is None or not kind.startswith("image/"):
        raise ReportError(f"{folder / RESULT_FILE}: {name!r} is not an image inside the folder")
    if not path.is_file():
        return None
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
