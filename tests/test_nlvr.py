"""NLVR v1: images in a tar or in folders, errors, and the files as published."""

import json
import os
import pickle
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from eas.data import load_data
from eas.data.nlvr import load_nlvr
from eas.example import DataError


@pytest.fixture
def nlvr(tmp_path):
    """Two directories of one sentence and two permutations each, the images in a tar."""
    rows = [{"sentence": f"s{d}", "label": "true", "identifier": f"{d}-0", "directory": str(d)} for d in range(2)]
    (tmp_path / "dev.json").write_text("\n".join(map(json.dumps, rows)))
    for d in range(2):
        folder = tmp_path / "dev" / "images" / str(d)
        folder.mkdir(parents=True)
        for k in (0, 3):
            Image.new("RGBA", (8, 2), (d, k, 0, 255)).save(folder / f"dev-{d}-0-{k}.png")
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(tmp_path / "dev", "dev")
    return tmp_path


def test_nlvr_reads_tar_and_folder_alike(nlvr):
    extracted = load_nlvr(nlvr, "dev")
    pixels = [example.load_images()[0].tobytes() for example in extracted]
    shutil.rmtree(nlvr / "dev")
    packed = pickle.loads(pickle.dumps(load_nlvr(nlvr, "test")))
    assert [e.id for e in packed] == ["dev-0-0-0", "dev-0-0-3", "dev-1-0-0", "dev-1-0-3"]
    for one, other in zip(extracted, packed, strict=True):
        assert (one.id, one.messages, one.target, one.metadata) == (
            other.id,
            other.messages,
            other.target,
            other.metadata,
        )
    assert [example.load_images()[0].tobytes() for example in packed] == pixels
    example = packed[3]
    assert example.question == "s1\nIs this true of the image? Answer true or false."
    assert (example.choices, example.metadata["directory"]) == (("true", "false"), "1")
    assert example.load_images()[0].getpixel((0, 0)) == (1, 3, 0)


def test_nlvr_errors(nlvr):
    with pytest.raises(DataError, match=r"neither .*train.json nor .*train.json exists"):
        load_nlvr(nlvr, "train")
    (nlvr / "dev" / "images" / "1" / "dev-1-0-0.png").unlink()
    assert len(load_nlvr(nlvr, "dev")) == 3
    (nlvr / "dev" / "images" / "1" / "dev-1-0-3.png").unlink()
    with pytest.raises(DataError, match=r"dev.json:2: no image dev/images/1/dev-1-0-0.png"):
        load_nlvr(nlvr, "dev")
    shutil.rmtree(nlvr / "dev")
    tar = nlvr / "images.tar"
    whole = tar.read_bytes()
    image = load_nlvr(nlvr, "dev")[0]
    tar.write_bytes(whole.replace(b"\x89PNG", b"\x00PNG"))
    with pytest.raises(
        DataError, match=r"example dev-0-0-0: .*images.tar:dev/images/0/dev-0-0-0.png is not a readable"
    ):
        image.load_images()
    tar.write_bytes(whole[:2100])
    with pytest.raises(DataError, match=r"images.tar is not a whole uncompressed tar"):
        load_nlvr(nlvr, "dev")
    tar.unlink()
    with pytest.raises(DataError, match=r"neither .*images nor .*images.tar exists"):
        load_nlvr(nlvr, "dev")
    (nlvr / "dev.json").write_text('{"sentence": "s"}')
    tar.write_bytes(whole)
    with pytest.raises(DataError, match=r"dev.json:1: no key 'label'"):
        load_nlvr(nlvr, "dev")


@pytest.mark.skipif("EAS_REAL_DATA" not in os.environ, reason="EAS_REAL_DATA does not name the folder of real data")
def test_nlvr_as_published(monkeypatch):
    folder = Path(os.environ["EAS_REAL_DATA"]) / "nlvr"
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_: pytest.fail("an image was opened at load"))
        dev, train, held = (load_data(f"nlvr:{folder}", split) for split in ("dev", "train", "validation"))
    assert Counter(e.target for e in dev) == {"true": 547, "false": 442}
    assert len({e.metadata["identifier"] for e in dev}) == 989
    both = [*train, *held]
    assert len({e.id for e in both}) == len(both) == 2000
    assert Counter(e.target for e in both) == {"true": 2 * 587, "false": 2 * 413}
    assert set(Counter(e.metadata["identifier"] for e in both).values()) == {2}
    assert {e.metadata["directory"] for e in train}.isdisjoint(e.metadata["directory"] for e in held)
    assert 0.05 < len(held) / len(both) < 0.15
    for example in (dev[0], dev[-1], train[0], held[-1]):
        (image,) = example.load_images()
        assert (image.size, image.mode) == ((400, 100), "RGB")
