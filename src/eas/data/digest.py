"""What a split is told by: a later step that reads other examples under the same name is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image

from eas.example import Example, ImageSource

GENERATED = ("scenes", "openmoji")
"""Data that its name alone tells: code of eas, or packages of one version, makes it."""


class Digest(TypedDict):
    """The rows of a split, and the SHA-256 of their texts and of their images' names and sizes."""

    rows: int
    sha256: str


def digest(examples: Sequence[Example]) -> Digest:
    """The digest of a split. No image is opened, and folders do not count: data may move."""
    found = hashlib.sha256()
    for example in examples:
        images = [_image(image) for image in example.images]
        read = [example.id, example.messages, example.target, example.choices, example.metadata, images]
        found.update(json.dumps(read, sort_keys=True, default=_kind).encode() + b"\n")
    return {"rows": len(examples), "sha256": found.hexdigest()}


def _image(image: ImageSource) -> Any:
    if isinstance(image, Path):
        return image.name, os.path.getsize(image)
    return image.size if isinstance(image, Image.Image) else _kind(image)


def _kind(value: object) -> str:
    """Of values without a text of their own, such as functions that open an image."""
    return type(value).__name__
