"""Your own data: files in the forms of `load_jsonl`, or a dataset with the same columns."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from eas.data.benchmark import OF_HUB, DataOptions, Examples, Source, checked, unknown_split
from eas.data.hub import HubImage, HubRows, hub_rows
from eas.data.jsonl import UNREAD_MEDIA, UNREAD_TEXTS, from_rows, load_jsonl
from eas.example import DataError, Example

# Tenths of the images of a file that is its own train, validation and test set.
_TENTHS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
_READ = ("id", "image", "images", "messages", "conversations", "prompt", "completion", "choices", "answers")
_COLUMNS = (*_READ, *UNREAD_TEXTS)  # which a row must not have
_DATASET_FILES = ("dataset_dict.json", "state.json")


def load_own(
    spec: str, split: str, options: DataOptions, accept: Callable[[Example], object] | None = None
) -> Sequence[Example]:
    """The examples of one split.

    Args:
        spec: a folder with train, validation and test as ``.jsonl`` or ``.json``; one such file, which is then split by
            a hash of the rows' first image (or id), 8 to 1 to 1, so that no image is both trained on and tested; a
            folder that ``save_to_disk`` wrote; or "hub:" and a Hub id or a folder that ``load_dataset`` reads.
        split: "train", "validation" or "test".
        options: ``images`` is what image paths are relative to, the file's folder by default; ``test_split`` and the
            like, and ``splits``, name other files of a folder, or other splits of a dataset.
        accept: as in `checked`.

    Raises:
        DataError: an unknown split, a missing file, an option that such a source does not have, or a row that does not
            fit. Images are looked up, not opened, but under ``skip_bad`` all are opened once, and bad ones are left out
            with a warning that lists them.
    """
    examples = read_own(spec, split, options)
    if ended := sum("end_token" in example.metadata for example in examples):
        warnings.warn(
            f"{spec}: {ended} answers of {split} end in an end token; it is taken off: training adds the model's own",
            stacklevel=2,
        )
    return checked(examples, skip_bad=True, accept=accept) if options.skip_bad else examples


def read_own(spec: str, split: str, options: DataOptions) -> Examples:
    """As `load_own`, but opens no image; under ``skip_bad`` the rows left out are in ``left_out``."""
    if split not in _TENTHS:
        raise unknown_split(spec, split, tuple(_TENTHS))
    left_out: list[str] | None = [] if options.skip_bad else None
    path, images = Path(spec), Path(options.images) if options.images else None
    if images is not None and not images.is_dir():
        raise DataError(f"data_options.images = {options.images!r} is not a folder; name the one that holds the images")
    names = {part: options.chosen(part) or part for part in _TENTHS}
    if unknown := [name for name in options.splits if name not in names.values()]:
        known = ", ".join(names.values())
        raise DataError(f"data_options.splits names {unknown[0]!r}, which nothing reads; the splits are {known}")
    if spec.startswith("hub:") or any((path / name).is_file() for name in _DATASET_FILES):
        rows = hub_rows(Source.parse(spec), names[split], options, dict(zip(_COLUMNS, _COLUMNS, strict=True)), _COLUMNS)
        _refuse_unread(rows)
        numbered = ((f"row {number} of {rows.name}", number, row) for number, row in enumerate(rows))
        examples = from_rows(numbered, images or Path(), left_out)
        if any(isinstance(image, HubImage) for example in examples for image in example.images):
            options.refuse(["images"], f"{spec} holds its pictures itself")
    elif path.is_dir():
        options.refuse((*OF_HUB, "columns"), f"{path} is a folder of files")
        name = options.splits.get(names[split], names[split])
        if "[" in name:
            raise DataError(f"{path} is a folder of files, which have no slice {name!r}; write its rows into a file")
        files = [file for suffix in (".jsonl", ".json") if (file := path / f"{name}{suffix}").is_file()]
        if len(files) != 1:
            raise DataError(f"{path} needs either {name}.jsonl or {name}.json; it has {len(files)} of them")
        examples = load_jsonl(files[0], images, left_out)
    else:
        named = ("splits", *(f"{part}_split" for part in _TENTHS))
        options.refuse((*OF_HUB, "columns", *named), f"{path} is one file, which eas splits itself")
        whole, tenths = load_jsonl(path, images, left_out), _TENTHS[split]
        examples = [example for example in whole if zlib.crc32(example.metadata["group"].encode()) % 10 in tenths]
    return Examples(examples, _itself, left_out or ())


def _refuse_unread(rows: HubRows) -> None:
    for column, images in rows.unread.items():
        if column in UNREAD_MEDIA:
            raise DataError(f"{rows.name} has the column {column!r}, which would be lost; remove the column")
        if images and rows.columns.keys() & {"image", "images"}:
            raise DataError(
                f"{rows.name} has images in the column {column!r} too, which would be lost; put all pictures of a row "
                'into one column "images", a list, or remove the column'
            )
        if images:
            raise DataError(
                f"{rows.name} has images in the column {column!r}, which would be lost; name it as the one to read: "
                f"-o 'data_options.columns={{image: {column}}}'"
            )


def _itself(example: Example) -> Example:
    return example
