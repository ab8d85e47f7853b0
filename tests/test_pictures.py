"""Pictures of every kind come out upright, opaque and RGB, for all readers; `eas data check` counts the kinds."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from typer.testing import CliRunner

from eas.cli import app
from eas.data.hub import HubRows
from eas.errors import DataError
from eas.example import Example
from eas.picture import read_picture

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def seen(source):
    """What was done to a picture, and its pixels, row by row."""
    picture = read_picture(source, "example x")
    assert picture.rgb.mode == "RGB"
    return picture.changes, [[tuple(map(int, pixel)) for pixel in row] for row in np.asarray(picture.rgb)]


def row(*pixels):
    """A picture of one row in memory, of the mode that so many numbers have."""
    return Image.fromarray(np.array([pixels], np.uint8))


@pytest.fixture
def sideways():
    """Red left and blue right, to be turned: red is on top. By the EXIF tag 0x0112."""

    def write(path, orientation=6, **options):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = Image.new("RGB", (32, 16), RED)
        picture.paste(BLUE, (16, 0, 32, 16))
        picture.save(path, exif=exif, **options)
        return path

    return write


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation(sideways, tmp_path, suffix):
    picture = read_picture(sideways(tmp_path / f"a.{suffix}"), "")
    assert (picture.rgb.size, picture.changes) == ((16, 32), ("turned",))
    assert np.abs(np.asarray(picture.rgb)[4, 4].astype(int) - RED).max() < 4
    assert np.abs(np.asarray(picture.rgb)[28, 12].astype(int) - BLUE).max() < 4


@pytest.mark.parametrize(("orientation", "corner"), [(1, RED), (2, BLUE), (3, BLUE), (4, RED), (5, RED), (8, BLUE)])
def test_every_orientation(sideways, tmp_path, orientation, corner):
    picture = read_picture(sideways(tmp_path / "a.png", orientation), "")
    assert picture.rgb.getpixel((0, 0)) == corner
    assert picture.rgb.size == ((16, 32) if orientation > 4 else (32, 16))
    assert picture.changes == (("turned",) if orientation > 1 else ())


def test_a_picture_in_memory_is_turned_and_kept(sideways, tmp_path):
    given = Image.open(sideways(tmp_path / "a.png"))
    (image,) = Example.ask("x", "?", "y", given).load_images()
    assert (image.size, given.size) == ((16, 32), (32, 16))
    (again,) = Example.ask("x", "?", "y", image).load_images()
    assert again.size == (16, 32)


def test_image_columns_are_turned(sideways, tmp_path):
    datasets = pytest.importorskip("datasets")
    buffer = io.BytesIO(sideways(tmp_path / "a.png").read_bytes())
    rows = datasets.Dataset.from_dict({"image": [{"bytes": buffer.getvalue(), "path": None}]})
    rows = rows.cast_column("image", datasets.Image(decode=False))
    image = HubRows(rows, {"image": "image"}, "rows")[0]["image"]
    assert read_picture(image, "").rgb.size == (16, 32)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[1000, 3000, 5000]], np.uint16), [0, 128, 255]),  # I;16
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),  # I
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),  # F
        (np.array([[-3e38, 0.0, 3e38]], np.float32), [0, 128, 255]),
        (np.array([[0, 0]], np.uint16), [0, 0]),
        (np.array([[65535, 65535]], np.uint16), [255, 255]),
    ],
)
def test_numbers_of_more_than_8_bits_are_scaled_by_their_range(tmp_path, values, expected):
    path = tmp_path / "a.tif"
    Image.fromarray(values).save(path)
    assert seen(path) == (("scaled",), [[(grey,) * 3 for grey in expected]])


def test_the_16_bit_ramp_keeps_its_steps(tmp_path):
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).save(tmp_path / "a.png")
    _, pixels = seen(tmp_path / "a.png")
    assert [pixel[0] for line in pixels for pixel in line] == list(range(256))


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(
        DataError, match=r"example x: .*a.tif is not a readable image \(it holds values that are not fin"
    ):
        read_picture(tmp_path / "a.tif", "example x")


def test_transparency_is_put_on_white(tmp_path):
    half = (127, 127, 127)
    assert seen(row((0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128))) == (("on white",), [[WHITE, RED, half]])
    grey = row((0, 0, 0, 0), (0, 0, 0, 255))
    assert seen(grey.convert("LA")) == (("on white",), [[WHITE, BLACK]])
    assert seen(Image.new("PA", (1, 1), (0, 0))) == (("on white",), [[WHITE]])
    assert seen(row((9, 8, 7, 255), (255, 0, 0, 255))) == ((), [[(9, 8, 7), RED]])


@pytest.mark.parametrize(("mode", "through"), [("P", 0), ("L", 0), ("RGB", (0, 0, 0)), ("I;16", 0)])
def test_one_transparent_colour(tmp_path, mode, through):
    """What palettes and PNGs without an alpha channel have."""
    picture = Image.new(mode, (3, 1), through if mode != "P" else 0)
    if mode == "P":
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), {"P": 1, "L": 90, "RGB": RED, "I;16": 4000}[mode])
    picture.putpixel((2, 0), {"P": 2, "L": 255, "RGB": BLUE, "I;16": 8000}[mode])
    picture.save(tmp_path / "a.png", transparency=through)
    changes, (pixels,) = seen(tmp_path / "a.png")
    expected = {"P": [RED, BLUE], "L": [(90,) * 3, WHITE], "RGB": [RED, BLUE], "I;16": [BLACK, WHITE]}[mode]
    assert pixels == [WHITE, *expected]
    assert changes == (("scaled",) if mode == "I;16" else ("on white",))


def test_other_colours(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    colour = Image.new("RGB", (1, 1), (200, 100, 50))
    ImageCms.profileToProfile(colour, srgb, lab, outputMode="LAB").save(tmp_path / "lab.tif")
    changes, [[pixel]] = seen(tmp_path / "lab.tif")
    assert changes == ("converted",)
    assert np.abs(np.array(pixel) - (200, 100, 50)).max() <= 2
    for mode, value in (("CMYK", (0, 255, 255, 0)), ("HSV", (0, 255, 255)), ("YCbCr", (76, 85, 255))):
        changes, [[pixel]] = seen(Image.new(mode, (1, 1), value))
        assert changes == ("converted",)
        assert np.abs(np.array(pixel) - RED).max() <= 2


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_of_several_frames_the_first(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    changes, pixels = seen(tmp_path / f"a.{suffix}")
    assert (changes, pixels[0][0]) == (("first frame",), RED)


def test_plain_pictures_are_no_news():
    for mode in ("1", "L", "P", "RGB"):
        assert seen(Image.new(mode, (1, 1))) == ((), [[BLACK]])


def png_of_16_bits(path, colour_type, *values):
    """What Pillow cannot write: 16 bits for each of several channels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour_type, 0, 0, 0)
    pixel = b"\0" + struct.pack(f">{len(values)}H", *values)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixel)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_colours_of_16_bits_are_told(tmp_path):
    assert seen(png_of_16_bits(tmp_path / "rgb.png", 2, 4095, 300, 0)) == (("cut to 8 bits",), [[(15, 1, 0)]])
    assert seen(png_of_16_bits(tmp_path / "grey.png", 4, 300, 65535))[0] == ("cut to 8 bits",)
    assert seen(png_of_16_bits(tmp_path / "rgba.png", 6, 4095, 300, 0, 0))[0] == ("cut to 8 bits", "on white")


def test_data_check_counts_each_kind(sideways, tmp_path):
    sideways(tmp_path / "turned.jpg")
    Image.new("I;16", (4, 4), 7).save(tmp_path / "scaled.png")
    Image.new("RGBA", (4, 4)).save(tmp_path / "ink.png")
    Image.new("CMYK", (4, 4)).save(tmp_path / "print.jpg")
    Image.new("RGB", (4, 4)).save(tmp_path / "frames.gif", save_all=True, append_images=[Image.new("RGB", (4, 4), RED)])
    Image.new("RGB", (4, 4), BLUE).save(tmp_path / "plain.png")
    names = sorted(path.name for path in tmp_path.iterdir())
    rows = [{"id": name, "image": name, "prompt": "q", "completion": "a"} for name in [*names, "ink.png"]]
    rows[-1]["id"] = "again"
    Path(tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path), "--split", "train"])
    counts = json.loads(result.stdout.strip().splitlines()[-1])["splits"]["train"]
    assert result.exit_code == 0
    kinds = ("turned", "scaled", "on white", "converted", "first frame")
    assert counts["changed images"] == dict.fromkeys(kinds, 1)
    flat = " ".join(result.output.split())
    assert "note: train: 1 images are turned upright, as the EXIF orientation says" in flat
    assert "note: train: 1 images are of several frames, of which only the first is seen" in flat
