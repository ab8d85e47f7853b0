"""Scores of a prediction file in a benchmark's own result format, without any model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eas.data import BENCHMARKS, data_options, load_data
from eas.data.benchmark import Examples, match
from eas.example import DataError
from eas.metrics.report import Report


@dataclass(frozen=True)
class FileScore:
    """The report of a prediction file.

    Args:
        report: what the official metric says.
        examples: how many examples were scored.
        left_out: one message for each row left out, and for each prediction missing or too many, under ``skip_bad``.
    """

    report: Report
    examples: int
    left_out: list[str]


def score_file(dataset: str, data_dir: str, split: str, path: Path, options: Mapping[str, Any]) -> FileScore:
    """Scores a file against the official annotations; images are not needed.

    Args:
        dataset: a benchmark's name.
        data_dir: its folder in the official layout, or "hub:ID".
        split: an official split.
        path: the predictions.
        options: its ``data_options``. Under ``skip_bad`` a missing prediction counts as wrong and one too many is
            dropped; a score matrix must always fit.

    Raises:
        DataError: an unknown benchmark or split, bad data, or predictions with missing or extra ids.
    """
    if dataset not in BENCHMARKS:
        raise DataError(f"there is no benchmark {dataset!r}; use one of {', '.join(BENCHMARKS)}")
    benchmark, spec = BENCHMARKS[dataset], f"{dataset}:{data_dir}"
    settings = data_options(spec, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the result lists what was left out
        examples = load_data(spec, split, options=options, images=False)
    left_out = list(examples.left_out) if isinstance(examples, Examples) else []
    if benchmark.score_file is not None:
        return FileScore(benchmark.score_file(examples, path), len(examples), left_out)
    given, messages = match(examples, benchmark.read_predictions(path), skip_bad=settings.skip_bad)
    return FileScore(benchmark.score(examples, given, settings), len(examples), left_out + messages)
