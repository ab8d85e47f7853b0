"""NLVR2 (Suhr et al., 2019): is a sentence true of two photographs? In its official files or from the Hub.

Official layout: ``{split}.json`` of JSON lines, plain or ``.gz``, in the folder, in ``data``, ``data/balanced`` or
``data/unbalanced``; images ``{identifier without its last field}-img0.png`` (left) and ``-img1.png`` (right), of which
many are JPEG, in ``images/train/{directory}``, ``dev``, ``test1`` and ``test2``. Hub: lmms-lab/NLVR2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eas.config import option
from eas.data.benchmark import Benchmark, DataOptions, Examples, Source, unknown_split
from eas.data.hub import hub_rows
from eas.data.jsonl import read_rows
from eas.data.official import find_file, find_folder, read_text, text_of
from eas.errors import shown
from eas.example import DataError, Example, ImageSource
from eas.metrics.nlvr2 import accuracy, consistency, correct, sentence
from eas.metrics.report import Report

WHOLE = ("train", "dev", "test1", "test2")
SPLITS = (*WHOLE, *(f"{kind}_{split}" for split in WHOLE[1:] for kind in ("balanced", "unbalanced")))
INSTRUCTION = "Is this true of the two images? Answer True or False."
CHOICES = ("True", "False")
_PLACES = (".", "data", "data/balanced", "data/unbalanced")
_HUB_SETS = {"test1": "test_public", "test2": "test_unseen"}
_COLUMNS = {"identifier": "identifier", "sentence": "sentence", "label": "label"} | {
    "left": "left_image",
    "right": "right_image",
}


@dataclass
class NLVR2Options(DataOptions):
    """Options of NLVR2."""

    prompt: str = option(
        "sentence", "'sentence': the sentence alone, as in METER; 'instruction': also ask for True or False"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("prompt", self.prompt in ("sentence", "instruction"), "must be sentence or instruction")


def _load(source: Source, split: str, options: NLVR2Options) -> Examples:
    """One example per sentence and pair of images, the left one first; ids are the official identifiers.

    Raises:
        DataError: an unknown split, or a file that is missing or broken.
    """
    if split not in SPLITS:
        raise unknown_split("nlvr2", split, SPLITS)
    kind, _, whole = split.rpartition("_")
    if source.hub:
        name = split if split in options.splits else f"{kind}_{_HUB_SETS.get(whole, whole)}".removeprefix("_")
        return Examples(hub_rows(source, name, options, _COLUMNS), partial(_from_hub, options=options))
    path = find_file(source.folder, f"{split}.json", _PLACES)
    places = ("images/train", "train") if whole == "train" else (whole, f"images/{whole}")
    images = Path(options.images) if options.images else find_folder(source.folder, places)
    lines = [(where, row) for where, _, row in read_rows(path)]
    return Examples(lines, partial(_from_line, images=images, train=whole == "train", options=options))


def _from_hub(row: Mapping[str, Any], options: NLVR2Options) -> Example:
    if row["left"] is None or row["right"] is None:
        raise DataError(f"{row['identifier']}: one of its images is missing; drop the row")
    return _example(str(row["identifier"]), row, (row["left"], row["right"]), options)


def _from_line(line: tuple[str, dict[str, Any]], images: Path, train: bool, options: NLVR2Options) -> Example:
    where, row = line
    pair = text_of(row, "identifier", where).rpartition("-")[0]
    if train and isinstance(row.get("directory"), bool | float | list | dict | None):
        raise DataError(f"{where}: directory is {row.get('directory')!r}; expected the number of a folder")
    folder = images / str(row["directory"]) if train else images
    return _example(where, row, (folder / f"{pair}-img0.png", folder / f"{pair}-img1.png"), options)


def _example(
    where: str, row: Mapping[str, Any], images: tuple[ImageSource, ImageSource], options: NLVR2Options
) -> Example:
    id, said = text_of(row, "identifier", where), text_of(row, "sentence", where)
    if id.count("-") != 3:
        raise DataError(f"{where}: identifier is {shown(id)}; expected split-set-pair-sentence, as dev-850-0-0")
    ask = said if options.prompt == "sentence" else f"{said}\n{INSTRUCTION}"
    label = row.get("label")
    label = str(label) if isinstance(label, bool) else text_of(row, "label", where)
    return Example.ask(id, ask, label, *images, choices=CHOICES, metadata={"sentence": sentence(id)})


def _score(examples: Sequence[Example], predictions: Mapping[str, str], options: NLVR2Options) -> Report:
    """Accuracy, and consistency over unique sentences."""
    scores = {example.id: correct(predictions[example.id], example.target) for example in examples}
    shares = {"accuracy": accuracy(scores), "consistency": consistency(scores)}
    numbers = {name: round(100 * share, 2) for name, share in shares.items()}
    return Report(shares["accuracy"], numbers, scores, {"consistency": len(set(map(sentence, scores)))})


def _read_predictions(path: Path) -> dict[str, str]:
    """The official result file: lines of ``identifier,prediction``.

    Raises:
        DataError: a line has other than two fields, or an identifier occurs twice.
    """
    predictions: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        match [field.strip() for field in line.split(",")] if line.strip() else []:
            case []:
                continue
            case [identifier, prediction] if identifier not in predictions:
                predictions[identifier] = prediction
            case [identifier, _]:
                raise DataError(f"{path}:{number}: {identifier} occurs twice; give one prediction each")
            case _:
                raise DataError(f"{path}:{number}: expected identifier,prediction; found {shown(line)}")
    return predictions


NLVR2 = Benchmark(
    name="nlvr2",
    splits=SPLITS,
    parts={"train": "train", "validation": "dev", "test": "test1"},
    load=_load,
    score=_score,
    read_predictions=_read_predictions,
    options=NLVR2Options,
    of_whole="consistency",
)
