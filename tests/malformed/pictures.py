"""Files in the place of pictures."""

import gzip
import io
import json
import os

import numpy as np
from PIL import Image, PngImagePlugin

from eas.data.jsonl import load_jsonl
from malformed import Case, flipped


def encoded(kind, mode="RGB", size=(40, 30), **options):
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def floats(*values):
    buffer = io.BytesIO()
    Image.fromarray(np.array([values], np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def large():
    """A scan of 200 megapixels in a small file."""
    buffer = io.BytesIO()
    Image.new("1", (20000, 10000)).save(buffer, "PNG")
    return buffer.getvalue()


def long_text():
    """A program's settings, saved in the picture."""
    text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_itxt("c", "x" * 2**21, zip=True)
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def case(name, write, *, may_read=False, names=r"(example bad: |jsonl:1: ).*picture"):
    def make(folder):
        path = folder / "picture"
        if isinstance(write, bytes):
            path.write_bytes(write)
        else:
            path = write(path) or path
        row = {"id": "bad", "image": os.path.relpath(path, folder), "prompt": "what ?", "completion": "red"}
        (folder / "rows.jsonl").write_text(json.dumps(row))
        return lambda: [example.load_images() for example in load_jsonl(folder / "rows.jsonl")]

    return Case(name, make, names, may_read)


KINDS = {
    **{kind: encoded(kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "PPM", "WEBP", "TGA", "ICO")},
    "GIF": encoded("GIF", "P"),
    "CMYK": encoded("JPEG", "CMYK"),
    "16 bits": encoded("PNG", "I;16"),
    "palette": encoded("PNG", "P", transparency=3),
}
CASES = [
    *(case(f"{kind} cut short", data[: len(data) // 3]) for kind, data in KINDS.items() if kind not in ("ICO", "TGA")),
    *(
        case(f"{kind} with flipped bytes, seed {seed}", flipped(data, seed), may_read=True)
        for kind, data in KINDS.items()
        for seed in range(3)
    ),
    *(case(f"{kind}, its head damaged", bytes(12) + data[12:], may_read=kind == "TGA") for kind, data in KINDS.items()),
    case("decompression bomb", large(), names="picture .*MAX_IMAGE_PIXELS"),
    case("text chunk too large", long_text()),
    case("PPM whose maximum is no number", b"P6 8 8 25\xb5\n" + bytes(192)),
    case("PPM of negative width", b"P6 -8 8 255\n" + bytes(192)),
    case("PPM of enormous width", b"P6 999999999999 8 255\n" + bytes(192)),
    case("PNG of no width", KINDS["PNG"][:16] + bytes(4) + KINDS["PNG"][20:]),
    case("floats that are not finite", floats(0.0, float("nan"), 1.0), names="picture .*not finite"),
    case("infinite floats", floats(0.0, float("inf")), names="picture .*not finite"),
    case("empty file", b""),
    case("a page in its place", b"<!DOCTYPE html><html><body>404</body></html>"),
    case("a drawing", b"<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>"),
    case("gzipped", gzip.compress(KINDS["PNG"])),
    case("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"),
    case("a folder", lambda path: path.mkdir()),
    case("a pipe", lambda path: os.mkfifo(path)),
    case("a link to nowhere", lambda path: path.symlink_to("nowhere")),
    case("a link to itself", lambda path: path.symlink_to(path)),
    case("missing", lambda path: None),
    case("a name that is too long", lambda path: path.with_name("picture" * 100)),
    case("a device", lambda path: path.symlink_to("/dev/zero")),
]
