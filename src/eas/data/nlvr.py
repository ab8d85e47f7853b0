"""NLVR v1 (Suhr et al., 2017): is a sentence true of a picture of three boxes? Read in its official layout."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from eas.data.jsonl import read_rows
from eas.data.official import id_of, text_of
from eas.example import DataError, Example, ImageSource

INSTRUCTION = "Is this true of the image? Answer true or false."
CHOICES = ("true", "false")
# The project's parts, and the official file each is read from; the official test file is scored as "test-p".
FILES = {"train": "train", "validation": "train", "dev": "dev", "test": "dev", "test-p": "test"}


def load_nlvr(folder: Path, split: str) -> Sequence[Example]:
    """Every sentence with every available permutation of its three boxes; ids are "split-n-m-k" like the image names.

    Args:
        folder: holds ``{train,dev,test}.json``, here or in a folder of the same name, and the images, extracted as
            ``{split}/images/{directory}/{split}-{n}-{m}-{k}.png`` or under those names in an ``images.tar``.
        split: "train", "validation" (a tenth of train, by directory), "dev" or "test" (both the official dev set),
            "test-p" (the official public test set).

    Raises:
        DataError: an unknown split, a missing file or image, or a bad row; images are looked up, not opened.
    """
    if split not in FILES:
        raise DataError(f"NLVR has no split {split!r}; use one of {', '.join(FILES)}")
    name = FILES[split]
    paths = [folder / f"{name}.json", folder / name / f"{name}.json"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataError(f"neither {paths[0]} nor {paths[1]} exists; {folder} should be the folder of NLVR v1")
    images = _find_images(folder, name)
    examples = []
    for where, _, row in read_rows(path):
        sentence, label, identifier = (text_of(row, key, where) for key in ("sentence", "label", "identifier"))
        directory = id_of(row, "directory", where)
        if name == "train" and _held_out(directory) != (split == "validation"):
            continue
        ids = [f"{name}-{identifier}-{k}" for k in range(6)]
        found = {id: images[file] for id in ids if (file := f"{name}/images/{directory}/{id}.png") in images}
        if not found:
            raise DataError(
                f"{where}: no image {name}/images/{directory}/{ids[0]}.png in {folder}; complete the images"
            )
        metadata = {"sentence": sentence, "directory": directory, "identifier": identifier}
        question = f"{sentence}\n{INSTRUCTION}"
        examples += [
            Example.ask(id, question, label, image, choices=CHOICES, metadata=metadata) for id, image in found.items()
        ]
    return examples


def _held_out(directory: str) -> bool:
    """A tenth of the directories; the permutations of a picture, and its sentences, share one."""
    return zlib.crc32(directory.encode()) % 10 == 9


@dataclass(frozen=True)
class TarImage:
    """One file of an uncompressed tar, read when called; holds no open file, so it survives fork and pickling."""

    tar: Path
    name: str
    offset: int
    size: int

    def __call__(self) -> Image.Image:
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return Image.open(io.BytesIO(file.read(self.size)))

    def __str__(self) -> str:
        return f"{self.tar}:{self.name}"


def _find_images(folder: Path, name: str) -> dict[str, ImageSource]:
    """All images of one official set, by their official path."""
    extracted, tar = folder / name / "images", folder / "images.tar"
    if extracted.is_dir():
        return {file.relative_to(folder).as_posix(): file for file in extracted.glob("*/*.png")}
    if not tar.is_file():
        raise DataError(f"neither {extracted} nor {tar} exists; download the images of NLVR v1 and extract them there")
    try:
        with tarfile.open(tar, "r:") as members:
            return {
                member.name: TarImage(tar, member.name, member.offset_data, member.size)
                for member in members
                if member.name.startswith(f"{name}/images/")
            }
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{tar} is not a whole uncompressed tar ({error}); extract it: tar xf {tar} -C {folder}"
        ) from error
