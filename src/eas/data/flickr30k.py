"""Flickr30K in Karpathy's split (29,000 / 1,014 / 1,000 images, 5 captions each), scored by recall both ways.

Official layout: ``dataset_flickr30k.json`` in the folder or in ``karpathy``; images in ``flickr30k-images``.
Hub: nlphuji/flickr30k, whose rows name their split in a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from eas.config import option
from eas.data.benchmark import Benchmark, DataOptions, Examples, Source, unknown_split
from eas.data.hub import hub_rows
from eas.data.official import find_file, read_json, text_of
from eas.errors import shown
from eas.example import DataError, Example, ImageSource
from eas.metrics.report import Report
from eas.metrics.retrieval import recall

SPLITS = ("train", "val", "test")
_COLUMNS = {name: name for name in ("image", "caption", "filename", "split")}
_MATRIX = "Flickr30K is scored from a matrix of image-caption scores (.npy), not from texts; see docs/data.md"


@dataclass
class Flickr30KOptions(DataOptions):
    """Options of Flickr30K."""

    prompt: str = option("Provide a one-sentence caption for the provided image.", "prompt that the caption answers")


def _load(source: Source, split: str, options: Flickr30KOptions) -> Examples:
    """One example per caption, image by image in the file's order; ids are "FILENAME#N", the captions the targets.

    Raises:
        DataError: an unknown split, a file that is missing or broken, or a Hub dataset without a split column.
    """
    if split not in SPLITS:
        raise unknown_split("flickr30k", split, SPLITS)
    images = _from_hub(source, split, options) if source.hub else _from_file(source, split, options)
    rows = [(*image, number) for image in images for number in range(len(image[1]))]
    return Examples(rows, partial(_example, prompt=options.prompt))


Image = tuple[str, Sequence[str], ImageSource]
"""File name, captions, the image."""


def _from_file(source: Source, split: str, options: Flickr30KOptions) -> list[Image]:
    path = find_file(source.folder, "dataset_flickr30k.json", (".", "karpathy"))
    folder = Path(options.images) if options.images else source.folder / "flickr30k-images"
    match read_json(path):
        case {"images": [*rows]}:
            images = [_image(f"{path}: images[{number}]", row) for number, row in enumerate(rows)]
        case other:
            raise DataError(f"{path} is not Karpathy's file: images is missing in {shown(other)}; download it again")
    return [(name, captions, folder / name) for of, name, captions in images if of == split]


def _image(where: str, row: Any) -> tuple[str, str, list[str]]:
    match row:
        case {"split": str(split), "filename": str(name), "sentences": [*sentences]}:
            return split, name, [text_of(sentence, "raw", where) for sentence in sentences]
        case {"split": _, "filename": _, "sentences": _}:
            raise DataError(f"{where}: {shown(row)} is not Karpathy's form; download the file again")
        case _:
            keys = ("split", "filename", "sentences")
            absent = next((key for key in keys if not isinstance(row, dict) or key not in row), "")
            raise DataError(f"{where}: {absent!r} is missing in an image; download Karpathy's file again")


def _from_hub(source: Source, split: str, options: Flickr30KOptions) -> list[Image]:
    # All of the data is under one name, "test"; a column tells Karpathy's splits.
    rows = hub_rows(source, split if split in options.splits else "test", options, _COLUMNS, ("split",))
    if "split" not in rows.columns and split not in options.splits:
        raise DataError(
            f"{source.path} has no column 'split', so its test images cannot be told from those trained on; use "
            "nlphuji/flickr30k or the official dataset_flickr30k.json, name the column (-o "
            "'data_options.columns={split: COLUMN}'), or, if the dataset's own splits are Karpathy's, say so: "
            f"-o 'data_options.splits={{{split}: {split}}}'"
        )
    return [(row["filename"], row["caption"], row["image"]) for row in rows if row.get("split", split) == split]


def _example(row: tuple[str, Sequence[str], ImageSource, int], prompt: str) -> Example:
    filename, captions, image, number = row
    return Example.ask(f"{filename}#{number}", prompt, captions[number], image, metadata={"image": filename})


def _score_file(examples: Sequence[Example], path: Path) -> Report:
    """Recall from a ``.npy`` matrix, images x captions in the order of the examples.

    Raises:
        DataError: it is no such file, or does not fit the split.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        scores = np.load(path, mmap_mode="r")
    except Exception as error:  # a damaged header raises whatever its parser does
        raise DataError(f"{path} is not a .npy file ({error}); save the scores with numpy.save") from error
    if not isinstance(scores, np.ndarray) or scores.dtype.kind not in "fiub":
        raise DataError(f"{path} holds no numbers of one matrix; save the scores with numpy.save")
    names = [example.metadata["image"] for example in examples]
    index = {name: number for number, name in enumerate(dict.fromkeys(names))}
    shares = recall(scores, [index[name] for name in names], len(index))
    shares["mean R@1"] = (shares["IR@1"] + shares["TR@1"]) / 2
    counts = {name: len(names) if name.startswith("IR") else len(index) for name in shares if name != "mean R@1"}
    return Report(shares["mean R@1"], {name: round(100 * share, 2) for name, share in shares.items()}, {}, counts)


def _score(examples: Sequence[Example], predictions: Mapping[str, str], options: Flickr30KOptions) -> Report:
    raise DataError(f"{_MATRIX}; train with metric=none")


def _read_predictions(path: Path) -> dict[str, str]:
    raise DataError(_MATRIX)


FLICKR30K = Benchmark(
    name="flickr30k",
    splits=SPLITS,
    parts={"train": "train", "validation": "val", "test": "test"},
    load=_load,
    score=_score,
    read_predictions=_read_predictions,
    score_file=_score_file,
    options=Flickr30KOptions,
    of_whole="recall",
)
