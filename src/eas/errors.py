"""The error for bad data, and the characters that no text of a data set may hold."""

from __future__ import annotations

from reprlib import Repr


class DataError(ValueError):
    """Bad data; the message names the file, line or id and the remedy."""


def fault(text: str) -> str:
    """What makes a text unfit for tokenizers and terminals: half a surrogate pair, or a NUL; else empty."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return ""


def printable(text: str) -> str:
    """The text with what cannot be encoded written as an escape."""
    return text.encode(errors="backslashreplace").decode()


def shown(value: object, length: int = 60) -> str:
    """A value of a file for a message: one line, cut short however large or deep the value is."""
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = length
    return printable(short.repr(value))[: 2 * length]
