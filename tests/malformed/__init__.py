"""Malformed inputs, made from a seed: what people bring by mistake, and what disks and programs leave behind.

A module here is a kind of input. Its ``CASES`` are run by ``test_malformed.py``, which counts how they end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Args:
        name: unique within its module.
        make: writes the input into an empty folder and returns the call that reads it.
        names: a regular expression that the refusal must match: the file, row or field. None: the input is odd but
            right, and the call checks what was read.
        may_read: reading it is right, too, as for a file with a few flipped bits.
    """

    name: str
    make: Callable[[Path], Callable[[], object]]
    names: str | None
    may_read: bool = False


def flipped(data: bytes, seed: int, count: int = 8) -> bytes:
    """The data with a few bytes changed, the same ones for a seed."""
    draw, damaged = random.Random(seed), bytearray(data)
    for _ in range(count):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    return bytes(damaged)
