"""The data of a run stays the same: a step that goes on from another's record reads the examples that it read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from eas.config import ConfigError
from eas.data.digest import Digest
from eas.distributed import is_main
from eas.example import DataError
from eas.files import write_text
from eas.pipeline.run import Run, checkpoints
from eas.records import raised_as, read_record

DATA_FILE = "data.json"
"""Beside the checkpoints of a phase: what it reads."""
READS = {"search": ("train", "validation"), "tune": ("train",)}
"""The splits of each phase."""
AFTER = {"search": ("search", "tune", "fold", "eval", "measure"), "tune": ("tune", "fold", "eval", "measure")}
"""What is made anew with a step, besides itself."""


class ChangedDataError(DataError):
    """The examples of a split are not those that an earlier step read."""


def require_same_data(
    run: Run, step: str, *splits: str, now: Callable[[str], Digest | None] | None = None, remedy: str | None = None
) -> None:
    """Refuses to use a step's record with other examples than the step read.

    Args:
        run: the run.
        step: name of the record. Where it does not exist, or does not say what was read, nothing is refused.
        splits: those that matter; all by default.
        now: digests of the splits; the run's by default.
        remedy: what to do, besides naming another output_dir.

    Raises:
        ChangedDataError: a split has changed.
        DataError: a split cannot be read any more.
    """
    said = (run.record(step) or {}).get("data") or {}
    said = {split: digest for split, digest in said.items() if not splits or split in splits}
    _require(run, run.folder / f"{step}.json", said, now or run.digest, remedy or _anew(run, step))


def require_data_of(run: Run, steps: Iterable[str]) -> None:
    """Refuses to go on with other data than that of the steps that are done.

    Where all are done, data and base may be gone.

    Raises:
        ChangedDataError: a split has changed.
        DataError: a split cannot be read any more, and a step is left.
    """
    try:
        for step in steps:
            require_same_data(run, step)
    except ChangedDataError:
        raise
    except (ValueError, OSError):  # of the data, or of a base whose configuration says how it is read
        if any(run.record(step) is None for step in steps):
            raise


def pin_data(run: Run, phase: str) -> None:
    """Says beside a phase's checkpoints what it reads; refuses to go on from them with other examples.

    Raises:
        ChangedDataError: the examples have changed.
    """
    path = run.folder / phase / DATA_FILE
    if any(checkpoint.parent == path.parent for checkpoint in checkpoints(run.folder)):
        if path.exists():
            with raised_as(ConfigError):
                said = read_record(path, dict[str, Digest], "remove it")
            _require(run, path, said, run.digest, _anew(run, phase))
    elif (found := run.digests(*READS[phase])) and is_main():
        write_text(path, json.dumps(found) + "\n")


def _require(
    run: Run, path: Path, said: Mapping[str, Digest], now: Callable[[str], Digest | None], remedy: str
) -> None:
    for split, before in said.items():
        if (found := now(split)) is not None and found != before:
            same = found["rows"] == before["rows"]
            rows = f"{found['rows']} other rows" if same else f"{found['rows']} rows now, {before['rows']} then"
            raise ChangedDataError(
                f"{path}: the split {split!r} of {run.config.data} has changed since ({rows}); use another output_dir, "
                f"or {remedy}"
            )


def _anew(run: Run, step: str) -> str:
    """How a step, and what comes of it, is done again."""
    steps = AFTER.get(step, (step,))
    names = [f"{each}.json" for each in steps] + [each for each in steps if each in READS]  # with their checkpoints
    made = [run.folder / name for name in names]
    return f"do the step again: rm -r {' '.join(shlex.quote(str(path)) for path in made if path.exists())}"
