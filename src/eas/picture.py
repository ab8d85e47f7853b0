"""Pictures as models get them: upright, opaque, RGB of 8 bits, whatever the file holds. All readers use this module."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps

from eas.errors import DataError

ImageSource = Image.Image | Path | Callable[[], Image.Image]
"""An image, or a source that is opened when needed: a path, or a function (its ``str`` names the image in errors)."""

CHANGES = {
    "turned": "turned upright, as the EXIF orientation says",
    "scaled": "of more than 8 bits or of floats: the lowest value is black now, the highest white",
    "cut to 8 bits": "of 16 bits a colour, of which the upper 8 are read; scale them yourself if they are dark",
    "on white": "transparent, put on white",
    "converted": "converted to RGB from CMYK, YCbCr, LAB or HSV",
    "first frame": "of several frames, of which only the first is seen",
}
"""What is done to a picture, and how it is said."""


@dataclass(frozen=True)
class Picture:
    """A picture as a model gets it.

    Args:
        rgb: of mode RGB, without orientation or transparency.
        changes: keys of `CHANGES`, except plain conversions of 8-bit grey, black and white, or
            palettes.
    """

    rgb: Image.Image
    changes: tuple[str, ...]


def read_picture(source: ImageSource, where: str) -> Picture:
    """Opens a picture and makes it upright, opaque RGB.

    Args:
        source: the source to open; an image in memory is not changed.
        where: begins the message of an error, as "example 7".

    Raises:
        DataError: the file does not exist, or the picture cannot be read, for whatever reason.
    """
    if isinstance(source, str | Path) and not os.path.isfile(source):  # nor a pipe, which would be waited for
        raise DataError(f"{where}: image {source} does not exist; check the image folder")
    name = "its image" if isinstance(source, Image.Image) else str(source)
    try:
        with _opened(source) as image:
            return _picture(image)
    except FileNotFoundError as error:
        raise DataError(f"{where}: image {name} does not exist; check the image folder") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{where}: {name} is not a readable image ({error}); make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except Exception as error:  # the readers of damaged files raise whatever they come across
        raise DataError(
            f"{where}: {name} is not a readable image ({error or type(error).__name__}); replace it or drop the row"
        ) from error


@contextmanager
def _opened(source: ImageSource) -> Iterator[Image.Image]:
    if isinstance(source, Image.Image):
        yield source
    else:
        with source() if callable(source) else Image.open(source) as image:
            yield image


def _picture(image: Image.Image) -> Picture:
    changes = []
    if getattr(image, "is_animated", False):  # an attribute of the formats that have frames
        changes.append("first frame")
    deep = isinstance(image, ImageFile.ImageFile) and any(";16" in str(tile) for tile in image.tile)
    if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
        changes.append("turned")
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        changes.append("scaled")
        return Picture(_scaled(image), tuple(changes))
    if deep:  # Pillow has no mode for them
        changes.append("cut to 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            changes.append("on white")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        changes.append("converted")
        image = _from_lab(image) if image.mode == "LAB" else image
    return Picture(image.convert("RGB"), tuple(changes))


def _scaled(image: Image.Image) -> Image.Image:
    values: NDArray[Any] = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("it holds values that are not finite")
    clear = values == image.info.get("transparency", np.nan)  # a PNG of 16 bits may name one value that is see-through
    seen = values[~clear] if not clear.all() else values
    low, high = seen.min(), seen.max()
    grey = np.clip((values - low) / (high - low), 0, 1) if high > low else (values > 0).astype(float)
    grey[clear] = 1
    return Image.fromarray(np.round(255 * grey).astype(np.uint8)).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # it is, where the image is not changed in place
    return converted
