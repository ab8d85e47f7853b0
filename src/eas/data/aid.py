"""AID (Xia et al., 2017): aerial photographs of 30 classes, in a folder per class: Airport/airport_1.jpg.

There is no official split. The protocol trains on 20 % or 50 % of every class, drawn once, and tests on the rest.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath

from eas.config import option
from eas.data.benchmark import Benchmark, DataOptions, Examples, Source, mapping, unknown_split
from eas.data.hub import hub_rows
from eas.data.jsonl import leaving_out, read_rows
from eas.data.official import find_folder, read_text, text_of
from eas.data.predictions import read_texts
from eas.example import DataError, Example, ImageSource
from eas.metrics.aid import score_aid
from eas.metrics.report import Report

QUESTION = "What is the label for this image?\nAnswer the question using a single word."
_HALVES = ("train20", "test20", "train50", "test50")
SPLITS = (*_HALVES, "fit20", "held20", "fit50", "held50", "all")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif"}


@dataclass
class AIDOptions(DataOptions):
    """Options of AID."""

    seed: int = option(0, "random seed of the splits that have no list")
    lists: dict[str, str] = mapping(f"files that list the images of a split: {', '.join(_HALVES)}")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("lists", self.lists.keys() <= set(_HALVES), f"the keys must be among {', '.join(_HALVES)}")


def load(source: Source, split: str, options: AIDOptions) -> Sequence[Example]:
    """The images of one split, by class and number; an id is a file's name without its suffix.

    - train20, train50: 20 % or 50 % of every class, drawn by ``options.seed``; test20, test50: the rest. Or the
      lists of ``options.lists``; if one list of a pair is given, the other split is the rest.
    - held20, held50: every tenth image of a class in the training split; fit20, fit50: its others. A run trains on
      fit20 and validates on held20, so its search is not scored on training images.
    - all.

    Args:
        source: the folder of the class folders, or the one above; or a dataset with one split, "train", whose images
            keep their file names.
        split: one of these.
        options: see `AIDOptions`.

    Raises:
        DataError: an unknown split, no images, or a list that cannot be read or names an image that is not there.
    """
    if split not in SPLITS:
        raise unknown_split("aid", split, SPLITS)
    left_out: list[str] | None = [] if options.skip_bad else None
    images = _hub_images(source, options, left_out) if source.hub else _folder_images(source, left_out)
    ids = sorted(images, key=_class_and_number)
    if split != "all":
        chosen = _chosen(split[:-2], split[-2:], ids, options)
        ids = [id for id in ids if id in chosen]
    return Examples(ids, partial(_example, images), left_out or ())


def _chosen(half: str, share: str, ids: Sequence[str], options: AIDOptions) -> set[str]:
    train, test = (_listed(options.lists.get(f"{name}{share}"), ids) for name in ("train", "test"))
    if train is None:
        train = _drawn(ids, int(share), options.seed) if test is None else set(ids) - test
    if half == "test":
        return set(ids) - train if test is None else test
    if half == "train":
        return train
    in_order = [id for id in ids if id in train]
    held = {id for _, group in groupby(in_order, _class) for id in list(group)[9::10]}
    return held if half == "held" else train - held


def _drawn(ids: Sequence[str], share: int, seed: int) -> set[str]:
    """So many percent of every class."""
    drawn: set[str] = set()
    for name, group in groupby(ids, _class):
        members = list(group)
        drawn.update(random.Random(f"{seed} {share} {name}").sample(members, round(len(members) * share / 100)))
    return drawn


def _listed(file: str | None, known: Sequence[str]) -> set[str] | None:
    """The ids that a list names: a path or name per line, or rows (JSON lines, an array) with "image", as in LLaVA."""
    if file is None:
        return None
    if read_text(Path(file)).lstrip()[:1] in ("[", "{"):
        names = [text_of(row, "image", where) for where, _, row in read_rows(Path(file))]
    else:
        names = read_text(Path(file)).split()
    ids = {PurePosixPath(name).stem for name in names}
    if unknown := sorted(ids - set(known)):
        raise DataError(f"{file} lists {len(unknown)} images that are not there ({unknown[0]}, ...); is AID complete?")
    return ids


def _folder_images(source: Source, left_out: list[str] | None) -> dict[str, ImageSource]:
    folder = find_folder(source.folder, ("AID", "."))
    images: dict[str, ImageSource] = {}
    for file in sorted(folder.glob("*/*")):
        if file.suffix.lower() in _SUFFIXES:
            with leaving_out(left_out):
                if _class(file.stem) != file.parent.name.lower():
                    raise DataError(f"{file} is not named after its folder; move it to its class")
                if file.stem in images:
                    raise DataError(f"{file} and {images[file.stem]} have the same name; keep one of them")
                images[file.stem] = file
    if not images:
        raise DataError(f"{folder} has no folders of images; expected Airport/airport_1.jpg and so on")
    return images


def _hub_images(source: Source, options: AIDOptions, left_out: list[str] | None) -> dict[str, ImageSource]:
    rows = hub_rows(source, "train", options, {"image": "image"})
    names = rows.column("image")
    if None in names:
        raise DataError(f"the images of {source.path} have no file names, which classes and splits are made from")
    images: dict[str, ImageSource] = {}
    for row, name in enumerate(names):
        with leaving_out(left_out):
            _class(id := PurePosixPath(name).stem)  # refuses other names
            if id in images:
                raise DataError(f"{id} occurs twice in {source.path}; drop one of them")
            images[id] = rows[row]["image"]
    return images


def _class_and_number(id: str) -> tuple[str, int]:
    name, _, number = id.rpartition("_")
    if not name or not number.isdecimal():
        raise DataError(f"{id}: expected a name such as airport_1; rename the image, or take it out of the folder")
    return name.lower(), int(number)


def _class(id: str) -> str:
    return _class_and_number(id)[0]


def _example(images: Mapping[str, ImageSource], id: str) -> Example:
    return Example.ask(id, QUESTION, _class(id), images[id])


def score(examples: Sequence[Example], predictions: Mapping[str, str], options: AIDOptions) -> Report:
    """See `score_aid`."""
    return score_aid(examples, predictions)


def read_predictions(path: Path) -> dict[str, str]:
    """See `read_texts`; ids may also be the images' paths."""
    return {PurePosixPath(id).stem: text for id, text in read_texts(path).items()}


AID = Benchmark(
    name="aid",
    splits=SPLITS,
    parts={"train": "fit20", "validation": "held20", "test": "test20"},
    load=load,
    score=score,
    read_predictions=read_predictions,
    options=AIDOptions,
)
