"""Files are written as a whole or not at all; if that fails, the error names the remedy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
from filelock import FileLock, Timeout

LOCK_FILE = ".lock"


class WriteError(OSError):
    """A folder cannot be written, for example because the disk is full; the message names the folder and the remedy."""


@contextmanager
def writing(folder: str | Path) -> Iterator[None]:
    """What fails within it while a folder is written is raised as one kind of error.

    Raises:
        WriteError: the disk is full, or whatever else the writer reports.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:  # the last is what torch.save raises
        raise WriteError(
            f"{folder} could not be written: {error}. Complete files there are intact. If the disk is full, make "
            "room; then run the same command again, and it continues"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a file aside and renames it: a killed process leaves the old one or the new one.

    Raises:
        WriteError: the file cannot be written.
    """
    aside = path.with_name(f"{path.name}.partial")
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, path)
        finally:  # it is still there where the disk is full
            aside.unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path, who: str) -> Iterator[None]:
    """No second process works in a folder meanwhile; the system frees it, however this one ends.

    The process that has claimed it may claim it again.

    Raises:
        WriteError: another process works in it.
    """
    with locked(folder / LOCK_FILE, f"{folder}: another {who} works in it; wait for it, or name another folder"):
        yield


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """No second process holds the lock of this file meanwhile; this one may take it again.

    Raises:
        WriteError: another process holds it, with the refusal as its message; or the folder cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(path, timeout=0, is_singleton=True).acquire()
        except Timeout as error:
            raise WriteError(refusal) from error
    with held:
        yield
