"""Removes the machine's paths from pages and cards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

# A path from the root of a disk, of two or more names, not part of an address or of a longer path.
ABSOLUTE = re.compile(r"(?<![\w./\\~…-])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"<>,;:()\[\]]+){2,}")


def without_places(value: Any) -> Any:
    """The value with every absolute path in its texts cut to "…/NAME"; relative paths stay.

    Args:
        value: a text, or lists and mappings of such.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        return {key: without_places(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    return value


def _text(text: str) -> str:
    start, colon, rest = text.partition(":")
    if colon and len(start) > 1 and "\n" not in text and _whole(rest):  # as in slake:/data/Slake
        return f"{start}:{_name(rest)}"
    return _name(text) if "\n" not in text and _whole(text) else ABSOLUTE.sub(lambda found: _name(found[0]), text)


def _whole(text: str) -> bool:
    """Whether a text is nothing but an absolute path."""
    rooted = text.startswith(("/", "~/")) or PureWindowsPath(text).is_absolute()
    return rooted and not text.startswith("//") and len(PureWindowsPath(text).parts) > 1 and ": " not in text


def _name(path: str) -> str:
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return f"…/{kind(path).name}"
