"""The procedural world: it never changes, its splits are disjoint, its answers are right and balanced."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from eas.data.scenes import COLOURS, FAMILIES, ORDINALS, SHAPES, SIZES, SPLITS, TASKS, chance, scenes
from eas.data.textures import TEXTURES
from eas.example import DataError, Example

NUMBERS = ("zero", "one", "two", "three", "four")


def things(example: Example) -> list[tuple[str, str, str, int]]:
    """Size, colour, shape and cell of every object, read back from the description."""
    words = [text.split() for text in example.metadata["scene"].split("; ")]
    return [(size, colour, shape, int(cell)) for size, colour, shape, cell in words]


def named(example: Example, phrase: str) -> list[tuple[str, str, str, int]]:
    """The objects of which every word of the phrase is true, singular or plural."""
    singular = {"crosses": "cross"} | {f"{word}s": word for word in (*SHAPES, "object")}
    words = {singular.get(word, word) for word in phrase.split()} - {"object"}
    return [thing for thing in things(example) if words <= set(thing[:3])]


def solve(example: Example) -> str:
    """The answer, worked out from the question's words and the description alone."""
    question = example.question.removesuffix(" ?")
    match question.split():
        case ["is", "there", "a", *phrase]:
            return "yes" if named(example, " ".join(phrase)) else "no"
        case ["what", ("color" | "shape" | "size") as asked, "is", "the", *phrase]:
            (thing,) = named(example, " ".join(phrase))
            return str(thing[["size", "color", "shape"].index(asked)])
        case ["which", ("row" | "column") as axis, "is", "the", *phrase, "in"]:
            (thing,) = named(example, " ".join(phrase))
            return ORDINALS[thing[3] // 4 if axis == "row" else thing[3] % 4]
        case ["are", "there", "more", *phrase]:
            one, other = " ".join(phrase).split(" than ")
            return "yes" if len(named(example, one)) > len(named(example, other)) else "no"
        case ["how", "many", *phrase, "are", "there"]:
            return NUMBERS[len(named(example, " ".join(phrase)))]
        case ["describe", "the", "image", "."]:
            return " and ".join(f"a {size} {colour} {shape}" for size, colour, shape, _ in things(example))
        case ["which", "object", "is", "the", "odd", "one", "out"]:
            kinds = Counter((colour, shape) for _, colour, shape, _ in things(example))
            assert sorted(kinds.values()) == [1, len(things(example)) - 1]
            return " ".join(kinds.most_common()[-1][0])
        case ["where", "is", "the", *phrase]:
            one, other = (named(example, part) for part in " ".join(phrase).split(" from the "))
            down, right = one[0][3] // 4 - other[0][3] // 4, one[0][3] % 4 - other[0][3] % 4
            assert len(one) == len(other) == 1
            assert (down == 0) != (right == 0)
            return ("left" if right < 0 else "right") if right else ("above" if down < 0 else "below")
        case ["what", "is", "the", *phrase, "called"]:
            (thing,) = named(example, " ".join(phrase))
            names = ["dax wug blick", "fep zup toma", "kiki bosa lorp", "mib pim gazzer"]
            return names[[*COLOURS].index(thing[1]) // 2].split()[SHAPES.index(thing[2]) // 2]
    raise AssertionError(question)


@pytest.mark.parametrize("task", [name for name in FAMILIES + TASKS if name != "textures"])
def test_answers_follow_from_the_description(task: str) -> None:
    for example in scenes(task, "train", 100):
        assert solve(example) == example.target


@pytest.mark.parametrize("task", [name for name in FAMILIES + TASKS if name not in ("caption", "odd")])
def test_answers_are_balanced(task: str) -> None:
    counts = Counter(example.target for example in scenes(task, "test", 400))
    assert set(counts) == set(scenes(task, "test", 1)[0].choices)
    expected, spread = 400 * chance(task), (400 * chance(task) * (1 - chance(task))) ** 0.5
    assert all(abs(count - expected) < 4 * spread for count in counts.values())


def test_nothing_in_the_question_gives_the_answer_away() -> None:
    """The best guess from the exact wording, up to which object is named, is no better than chance."""
    values = {**dict.fromkeys(COLOURS, "C"), **dict.fromkeys(SHAPES, "S"), **dict.fromkeys(SIZES, "Z")}
    for task in ("existence", "comparison", "size"):
        by_wording: dict[str, Counter[str]] = {}
        for example in scenes(task, "train", 800):
            wording = " ".join(values.get(word, word) for word in example.question.split())
            by_wording.setdefault(wording, Counter())[example.target] += 1
        assert sum(max(counts.values()) for counts in by_wording.values()) / 800 < chance(task) + 0.06, task


def test_pictures_show_the_description() -> None:
    for example in scenes("existence", "train", 50):
        pixels = np.asarray(example.images[0])
        assert pixels.shape == (48, 48, 3)
        for _, colour, shape, cell in things(example):
            if shape != "ring":  # its middle is background
                top, left = cell // 4 * 12, cell % 4 * 12
                middle = pixels[top + 4 : top + 9, left + 4 : left + 9].astype(int)
                assert abs(middle - COLOURS[colour]).max(axis=2).min() < 13


@pytest.mark.parametrize("task", [*TASKS, "counting"])
def test_larger_pictures_show_the_same_in_more_pixels(task: str) -> None:
    small, large = (scenes(task, "train", 20, side=side) for side in (48, 192))
    for one, other in zip(small, large, strict=True):
        assert (one.id, one.question, one.target, one.metadata) == (
            other.id,
            other.question,
            other.target,
            other.metadata,
        )
        pixels = np.asarray(other.images[0], float)
        assert pixels.shape == (192, 192, 3)
        reduced = pixels.reshape(48, 4, 48, 4, 3).mean((1, 3))
        assert np.corrcoef(reduced.ravel(), np.asarray(one.images[0], float).ravel())[0, 1] > 0.9


def test_textures_differ_from_each_other_and_among_themselves() -> None:
    shown: dict[str, list[bytes]] = {}
    for example in scenes("textures", "train", 200):
        shown.setdefault(example.target, []).append(example.images[0].tobytes())
    assert set(shown) == set(TEXTURES)
    assert all(len(set(pictures)) == len(pictures) > 1 for pictures in shown.values())


def test_splits_and_seeds_are_disjoint_and_repeatable() -> None:
    seen = [
        [(example.id, example.images[0].tobytes()) for example in scenes("colour", split, 40, seed)]
        for split in SPLITS
        for seed in (0, 1)
    ]
    for position in (0, 1):
        assert len({example[position] for part in seen for example in part}) == 6 * 40
    again = scenes("colour", "train", 40)
    assert [(example.id, example.images[0].tobytes()) for example in again] == seen[0]


def test_examples_are_drawn_when_asked_for() -> None:
    many = scenes("odd", "train", 10**9)
    assert len(many) == 10**9
    assert many[10**9 - 1].target == many[-1].target
    assert [example.id for example in many[5:7]] == [many[5].id, many[6].id]
    assert len(list(islice(many, 3))) == 3
    with pytest.raises(IndexError):
        many[10**9]


def test_the_world_never_changes() -> None:
    text, means = hashlib.sha256(), []
    for task in FAMILIES + TASKS:
        for example in scenes(task, "test", 5):
            text.update(f"{example.question} {example.target} {example.metadata.get('scene')}\n".encode())
            means.append(np.asarray(example.images[0]).mean())
    assert text.hexdigest()[:16] == "57c6e497c12b77db"
    assert np.mean(means) == pytest.approx(126.837, abs=0.01)  # the last bit of a pixel may differ between processors


@pytest.mark.parametrize(("task", "split"), [("colours", "train"), ("colour", "dev")])
def test_unknown_names_are_refused(task: str, split: str) -> None:
    with pytest.raises(DataError, match="choose one of"):
        scenes(task, split, 10)


def test_unknown_chance_is_refused() -> None:
    with pytest.raises(DataError, match="textures"):
        chance("colours")
