"""Slake 1.0 (Liu et al., 2021): open and closed questions on medical images, in English by default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eas.config import option
from eas.data.benchmark import Benchmark, DataOptions, Examples, Source, unknown_split
from eas.data.hub import HubRows, hub_rows
from eas.data.jsonl import leaving_out, read_rows
from eas.data.official import find_folder, id_of, text_of
from eas.data.predictions import read_texts
from eas.example import DataError, Example, ImageSource
from eas.metrics.report import Report
from eas.metrics.slake import score_slake

LANGUAGES = ("en", "zh", "all")
INSTRUCTION = "Answer the question using a single word or phrase."
# The official files behind a split: the original name first, then that of the copy on the Hub.
_FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (("train",),),
    "val": (("validate", "validation"),),
    "test": (("test",),),
}
_FILES["val+test"] = (*_FILES["val"], *_FILES["test"])
_KEYS = ("qid", "question", "answer", "answer_type", "q_lang", "img_name")
_OPTIONAL = ("content_type", "modality", "location", "base_type")


@dataclass
class SlakeOptions(DataOptions):
    """Options of Slake."""

    language: str = option(
        "en", f"of the questions: {', '.join(LANGUAGES)}; train and test share images across languages"
    )
    instruction: bool = option(True, f"end the prompt with: {INSTRUCTION}")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("language", self.language in LANGUAGES, f"must be one of {', '.join(LANGUAGES)}")


def load(source: Source, split: str, options: SlakeOptions) -> Sequence[Example]:
    """The questions of one split in one language, in the order of the files; ids are the qids.

    Args:
        source: a folder with train.json, validate.json, test.json and imgs/xmlab{N}/source.jpg; or a dataset with
            their columns and "image" (OctoMed/SLAKE), or with img_name and the images in ``options.images``.
        split: "train", "val", "test", or "val+test", which the paper reports.
        options: see `SlakeOptions`.

    Raises:
        DataError: an unknown split, or a file that is missing or broken.
    """
    if split not in _FILES:
        raise unknown_split("slake", split, tuple(_FILES))
    left_out: list[str] | None = [] if options.skip_bad else None
    if source.hub:
        columns = {key: key for key in (*_KEYS, *_OPTIONAL, "image")}
        optional = (*_OPTIONAL, "image", "img_name", "q_lang")
        parts = [hub_rows(source, _hub_split(names, options), options, columns, optional) for names in _FILES[split]]
        places = [(part, row) for part in parts for row in _in_language(part, options.language)]
        return Examples(places, partial(_hub_example, options))
    images = Path(options.images) if options.images else find_folder(source.folder, ("imgs", "images"))
    rows = []
    for names in _FILES[split]:
        for where, _, row in read_rows(_find(source.folder, names), left_out):
            with leaving_out(left_out):
                if "q_lang" not in row:
                    raise DataError(f"{where}: no key 'q_lang'; expected {', '.join(_KEYS)}")
                if options.language in ("all", row["q_lang"]):
                    rows.append((where, row))
    return Examples(rows, partial(_file_example, images, options), left_out or ())


def _find(folder: Path, names: Iterable[str]) -> Path:
    paths = [folder / f"{name}.json" for name in names]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise DataError(f"{paths[0]} does not exist; put Slake's official files there")
    return found


def _hub_split(names: Sequence[str], options: DataOptions) -> str:
    """The copies on the Hub say "validation"; ``options.splits`` may map our "val"."""
    return options.splits.get("val", "validation") if "validation" in names else names[0]


def _in_language(rows: HubRows, language: str) -> Iterable[int]:
    if language == "all" or "q_lang" not in rows.columns:
        return range(len(rows))
    return [row for row, spoken in enumerate(rows.column("q_lang")) if spoken == language]


def _hub_example(options: SlakeOptions, place: tuple[HubRows, int]) -> Example:
    rows, index = place
    row = rows[index]
    image = row.get("image")
    if image is None:
        if options.images is None:
            raise DataError(
                f"row {index} of {rows.name} has no image; unzip imgs.zip and name it by data_options.images"
            )
        image = Path(options.images) / str(row.get("img_name"))
    return _example(f"row {index} of {rows.name}", row, image, options)


def _file_example(images: Path, options: SlakeOptions, place: tuple[str, Mapping[str, Any]]) -> Example:
    where, row = place
    return _example(where, row, images / str(row.get("img_name")), options)


def _example(where: str, row: Mapping[str, Any], image: ImageSource, options: SlakeOptions) -> Example:
    qid = id_of(row, "qid", where)
    question, answer, kind = (text_of(row, key, where) for key in ("question", "answer", "answer_type"))
    kind = kind.strip().upper()
    if kind not in ("OPEN", "CLOSED"):
        raise DataError(f"{where}: answer_type of question {qid} is {kind!r}; expected OPEN or CLOSED")
    about = {key: row[key] for key in _OPTIONAL if key in row}
    prompt = f"{question}\n{INSTRUCTION}" if options.instruction else question
    return Example.ask(qid, prompt, answer, image, metadata=about | {"answer_type": kind})


def score(examples: Sequence[Example], predictions: Mapping[str, str], options: SlakeOptions) -> Report:
    """See `score_slake`."""
    return score_slake(examples, predictions)


SLAKE = Benchmark(
    name="slake",
    splits=tuple(_FILES),
    parts={"train": "train", "validation": "val", "test": "test"},
    load=load,
    score=score,
    read_predictions=read_texts,
    options=SlakeOptions,
)
