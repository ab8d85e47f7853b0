"""ScienceQA without its images, for text models: problems that have none, or all of them with captions for images.

Scored by ranking the choices by their mean log-probability, as cloze scoring does: a small model answers in the words
of a choice long before it learns the letters. Splits are the official ones, or ids that come with eas: 1,624 to train
on, 200 to validate and 400 to test, drawn (seed 0) from the image-less official test problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from eas.config import option
from eas.data.benchmark import Benchmark, DataOptions, Examples, Source, unknown_split
from eas.data.official import find_file
from eas.data.scienceqa import (
    ScienceQAOptions,
    lettered,
    make_example,
    read_captions,
    read_pids,
    read_predictions,
    read_problems,
)
from eas.example import DataError, Example
from eas.metrics.report import Report
from eas.metrics.scienceqa import LETTERS, score_scienceqa

IDS = Path(__file__).with_name("scienceqa_text.json")
SPLITS = ("train", "val", "test")
ORDERS = {"choice": "QCM-A", "letter": "QCM-A", "rationale": "QCM-ALE"}


@dataclass
class ScienceQATextOptions(DataOptions):
    """Options of ScienceQA's texts."""

    target: Literal["choice", "letter", "rationale"] = option(
        "choice", "answer: 'choice' (its text), 'letter', or 'rationale' (letter, lecture and solution)"
    )
    captions: bool = option(False, "take the problems with images too, captions (captions.json) in the images' place")
    ids: Literal["eas", "official"] = option(
        "eas", "splits: 'eas' (ids that come with eas, all of official test problems) or 'official' (pid_splits.json)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = not self.captions or self.ids == "official"
        self._require("captions", ok, "needs ids = 'official', because the ids that come with eas have no images")


def load(source: Source, split: str, options: ScienceQATextOptions) -> Sequence[Example]:
    """The problems of one split, in the order of its ids.

    Args:
        source: a folder with problems.json or, for ids 'eas', problems_test.json; for ids 'official' with
            pid_splits.json too, and with captions.json for captions.
        split: "train", "val" or "test".
        options: see `ScienceQATextOptions`.

    Raises:
        DataError: an unknown split; a dataset of the Hub; a file that is missing, broken or incomplete.
    """
    if source.hub:
        raise DataError(f"scienceqa-text:hub:{source.path}: name a folder with the official files instead")
    if split not in SPLITS:
        raise unknown_split("scienceqa-text", split, SPLITS)
    folder, own = source.folder, options.ids == "eas"
    alone = folder / "problems_test.json"
    path = alone if own and alone.is_file() else find_file(folder, "problems.json")
    problems, ids = read_problems(path), IDS if own else find_file(folder, "pid_splits.json")
    pids = read_pids(ids, split)
    if absent := [pid for pid in pids if pid not in problems]:
        raise DataError(
            f"{path} lacks {len(absent)} of the {len(pids)} problems of {split} ({absent[0]}, ...); put the official "
            "problems.json there, or read a complete folder's own splits by data_options.ids = official"
        )
    captions = read_captions(folder) if options.captions else {}
    read = [pid for pid in pids if options.captions or not problems[pid].get("image")]
    form = ScienceQAOptions(order=ORDERS[options.target])

    def build(pid: str) -> Example:
        example = make_example(pid, problems[pid], None, captions.get(pid, ""), form)
        about = {**example.metadata, "image": bool(problems[pid].get("image"))}
        if options.target == "rationale":
            return replace(example, metadata=about)
        texts = tuple(about["choices"] if options.target == "choice" else LETTERS[: len(about["choices"])])
        return replace(example, target=texts[about["answer"]], choices=texts, metadata=about)

    return Examples(read, build)


def score(examples: Sequence[Example], predictions: Mapping[str, str], options: ScienceQATextOptions) -> Report:
    """As `eas.metrics.scienceqa.score_scienceqa`; the text of a choice counts as its letter."""
    return score_scienceqa(examples, lettered(examples, predictions))


SCIENCEQA_TEXT = Benchmark(
    name="scienceqa-text",
    splits=SPLITS,
    parts={"train": "train", "validation": "val", "test": "test"},
    load=load,
    score=score,
    read_predictions=read_predictions,
    options=ScienceQATextOptions,
    ranked=lambda options: True,
)
