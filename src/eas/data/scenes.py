"""The procedural world: seeded pictures of coloured shapes or textures, and questions about them.

A scene is up to six objects in distinct cells of a 4x4 grid; a cell is 12 units wide. The tiny model sees one unit as
a pixel, and a cell as a patch.
Eight question families are what the tiny model was pretrained on; four tasks (`TASKS`) use answer words and rules
that pretraining never showed. Answers are balanced within every wording: a guess without the picture scores `chance`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, permutations, product
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eas.data.textures import TEXTURES, UNITS, enlarged, texture
from eas.example import DataError, Example

COLOURS = {
    "red": (215, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (240, 225, 50),
    "green": (35, 160, 65),
    "blue": (40, 80, 220),
    "purple": (150, 50, 190),
    "black": (15, 15, 15),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
SIZES = ("small", "large")
ORDINALS = ("first", "second", "third", "fourth")
COUNTS = ("zero", "one", "two", "three", "four")
SIDES = ("left", "right", "above", "below")
CODES = ("dax", "wug", "blick", "fep", "zup", "toma", "kiki", "bosa", "lorp", "mib", "pim", "gazzer")
GRID, CELL, MOST, LARGEST = 4, UNITS // 4, 6, 1024
YES_NO = ("yes", "no")
VALUES: dict[str, tuple[str, ...]] = {"size": SIZES, "colour": tuple(COLOURS), "shape": SHAPES}

Pixels = NDArray[np.float32]
Pair = tuple[str, str]


class Thing(NamedTuple):
    """One object; `cell` counts the 16 cells in reading order from 0."""

    size: str
    colour: str
    shape: str
    cell: int

    @property
    def row(self) -> int:
        return self.cell // GRID

    @property
    def column(self) -> int:
        return self.cell % GRID


Scene = tuple[Thing, ...]
"""The objects in reading order."""
Asker = Callable[[Scene], Iterator[Pair]]
"""All questions of one wording that the scene allows, each with its answer."""


def random_scene(rng: np.random.Generator, most: int = MOST) -> Scene:
    """One to `most` objects; few different colours and shapes, so that objects share attributes."""
    palettes = [[values[i] for i in rng.integers(len(values), size=rng.integers(1, 5))] for values in VALUES.values()]
    cells = sorted(rng.permutation(GRID * GRID)[: rng.integers(1, most + 1)].tolist())
    picks = rng.random((len(palettes), len(cells)))
    words = ([palette[int(pick * len(palette))] for pick in row] for palette, row in zip(palettes, picks, strict=True))
    return tuple(Thing(*thing) for thing in zip(*words, cells, strict=True))


def _odd_scene(rng: np.random.Generator) -> Scene:
    """Four to six objects of one colour and one shape, except that one object has another colour or another shape."""
    colours, shapes = rng.choice(list(COLOURS), 2, replace=False), rng.choice(SHAPES, 2, replace=False)
    cells = sorted(rng.permutation(GRID * GRID)[: rng.integers(4, MOST + 1)].tolist())
    changed = rng.integers(2)
    odd = rng.choice(cells)
    return tuple(
        Thing(
            SIZES[rng.integers(2)],
            str(colours[int(cell == odd and changed == 0)]),
            str(shapes[int(cell == odd and changed == 1)]),
            cell,
        )
        for cell in cells
    )


# ---------------------------------------------------------------------------------------------------- questions


def _phrase(words: dict[str, str]) -> str:
    return " ".join([*words.values(), *([] if "shape" in words else ["object"])])


def _having(scene: Scene, words: dict[str, str]) -> list[Thing]:
    return [thing for thing in scene if all(getattr(thing, name) == word for name, word in words.items())]


def _references(scene: Scene, *attributes: str) -> Iterator[tuple[str, Thing]]:
    """Every way to name exactly one object by some of the attributes."""
    for count in range(1, len(attributes) + 1):
        for names, thing in product(combinations(attributes, count), scene):
            words = {name: getattr(thing, name) for name in names}
            if len(_having(scene, words)) == 1:
                yield _phrase(words), thing


def _existence(*names: str) -> Asker:
    def ask(scene: Scene) -> Iterator[Pair]:
        absent: list[str] = []
        near: list[str] = []
        for values in product(*(VALUES[name] for name in names)):
            words = dict(zip(names, values, strict=True))
            question = f"is there a {_phrase(words)} ?"
            if _having(scene, words):
                yield question, "yes"
            else:
                known = all(_having(scene, {name: word}) for name, word in words.items())
                (near if known else absent).append(question)
        # A "no" whose every word is somewhere in the picture cannot be answered from the words one by one.
        yield from ((question, "no") for question in near or absent)

    return ask


def _attribute(asked: str, wording: str) -> Asker:
    def ask(scene: Scene) -> Iterator[Pair]:
        for phrase, thing in _references(scene, *(name for name in VALUES if name != asked)):
            yield wording.format(phrase), getattr(thing, asked)

    return ask


def _position(axis: str) -> Asker:
    def ask(scene: Scene) -> Iterator[Pair]:
        for phrase, thing in _references(scene, *VALUES):
            yield f"which {axis} is the {phrase} in ?", ORDINALS[getattr(thing, axis)]

    return ask


def plural(name: str, word: str) -> str:
    """Several objects of one size, colour or shape."""
    return f"{word} objects" if name != "shape" else f"{word}es" if word.endswith("s") else f"{word}s"


def _comparison(name: str) -> Asker:
    def ask(scene: Scene) -> Iterator[Pair]:
        counts = {word: len(_having(scene, {name: word})) for word in VALUES[name]}
        for one, other in permutations(VALUES[name], 2):
            if counts[one] or counts[other]:
                question = f"are there more {plural(name, one)} than {plural(name, other)} ?"
                yield question, YES_NO[counts[one] <= counts[other]]

    return ask


def _counting(name: str) -> Asker:
    def ask(scene: Scene) -> Iterator[Pair]:
        for word in VALUES[name]:
            if (count := len(_having(scene, {name: word}))) < len(COUNTS):
                yield f"how many {plural(name, word)} are there ?", COUNTS[count]

    return ask


def _caption(scene: Scene) -> Iterator[Pair]:
    if len(scene) <= 3:
        yield "describe the image .", " and ".join(f"a {' '.join(thing[:3])}" for thing in scene)


def _relation(scene: Scene) -> Iterator[Pair]:
    named = [thing for thing in scene if len(_having(scene, {"colour": thing.colour, "shape": thing.shape})) == 1]
    for one, other in permutations(named, 2):
        if one.row == other.row or one.column == other.column:
            question = f"where is the {one.colour} {one.shape} from the {other.colour} {other.shape} ?"
            yield question, SIDES[2 * (one.column == other.column) + (one.cell > other.cell)]


def _odd(scene: Scene) -> Iterator[Pair]:
    kinds = [f"{thing.colour} {thing.shape}" for thing in scene]
    yield "which object is the odd one out ?", min(kinds, key=kinds.count)


def _code(scene: Scene) -> Iterator[Pair]:
    for phrase, thing in _references(scene, "size"):
        group = list(COLOURS).index(thing.colour) // 2 * 3 + SHAPES.index(thing.shape) // 2
        yield f"what is the {phrase} called ?", CODES[group]


_ASKERS: dict[str, tuple[Asker, ...]] = {
    "existence": tuple(_existence(*names) for count in (2, 3) for names in combinations(VALUES, count)),
    "colour": (_attribute("colour", "what color is the {} ?"),),
    "shape": (_attribute("shape", "what shape is the {} ?"),),
    "size": (_attribute("size", "what size is the {} ?"),),
    "position": (_position("row"), _position("column")),
    "comparison": tuple(_comparison(name) for name in VALUES),
    "counting": tuple(_counting(name) for name in VALUES),
    "caption": (_caption,),
    "odd": (_odd,),
    "relation": (_relation,),
    "codes": (_code,),
}
_ANSWERS: dict[str, tuple[str, ...]] = {
    "existence": YES_NO,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "position": ORDINALS,
    "comparison": YES_NO,
    "counting": COUNTS,
    "caption": (),
    "textures": TEXTURES,
    "odd": tuple(f"{colour} {shape}" for colour, shape in product(COLOURS, SHAPES)),
    "relation": SIDES,
    "codes": CODES,
}
FAMILIES = tuple(_ANSWERS)[:8]
TASKS = tuple(_ANSWERS)[8:]
SPLITS = ("train", "validation", "test")


def question(rng: np.random.Generator, scene: Scene, family: str) -> Pair | None:
    """A question of the family about the scene, its answer drawn evenly from those possible; None where none is."""
    options: dict[str, list[str]] = {}
    for text, answer in _ASKERS[family][rng.integers(len(_ASKERS[family]))](scene):
        options.setdefault(answer, []).append(text)
    if not options:
        return None
    answer = list(options)[rng.integers(len(options))]
    return options[answer][rng.integers(len(options[answer]))], answer


def _balanced(rng: np.random.Generator, task: str) -> tuple[Scene, Pair]:
    """Fix the wording and the answer first, then draw scenes until one has such a question."""
    ask = _ASKERS[task][rng.integers(len(_ASKERS[task]))]
    wanted = _ANSWERS[task][rng.integers(len(_ANSWERS[task]))] if _ANSWERS[task] else None
    while True:
        scene = _odd_scene(rng) if task == "odd" else random_scene(rng)
        pairs = [pair for pair in ask(scene) if wanted in (None, pair[1])]
        if pairs:
            return scene, pairs[rng.integers(len(pairs))]


# ----------------------------------------------------------------------------------------------------- pictures


@cache
def _sprite(shape: str, size: str, side: int) -> Pixels:
    """How much of each pixel of a cell the shape covers, (side, side) in 0..1, from 8x8 samples per pixel."""
    radius = 5.4 if size == "large" else 3.3
    samples = ((np.arange(side * 8) + 0.5) / 8 - side / 2) * (CELL / side)
    y, x = np.meshgrid(samples / radius, samples / radius, indexing="ij")
    distance = np.hypot(x, y)
    inside = {
        "circle": distance < 1,
        "square": np.maximum(abs(x), abs(y)) < 0.9,
        "triangle": (y < 0.9) & (y > 2 * abs(x) - 1),
        "cross": (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
        "diamond": abs(x) + abs(y) < 1,
        "ring": (distance < 1) & (distance > 0.55),
    }[shape]
    cover: Pixels = inside.reshape(side, 8, side, 8).mean((1, 3), dtype=np.float32)
    return cover


def render(rng: np.random.Generator, scene: Scene, side: int = UNITS) -> NDArray[np.uint8]:
    """The picture, (side, side, 3): a grey background, plain or noisy; small objects shifted by up to a unit."""
    noise = rng.normal(scale=rng.choice((0.0, 12.0)), size=(UNITS, UNITS, 1)).astype(np.float32)
    canvas = rng.uniform(100, 150) + np.repeat(enlarged(noise, side), 3, axis=2)
    cell = side // GRID
    for thing in scene:
        top, left = thing.row * cell, thing.column * cell
        shift = tuple(rng.integers(-1, 2, size=2) * cell // CELL) if thing.size == "small" else (0, 0)
        cover = np.roll(_sprite(thing.shape, thing.size, cell), shift, (0, 1))[..., None]
        colour = np.array(COLOURS[thing.colour], np.float32) + rng.uniform(-12, 12, size=3)
        canvas[top : top + cell, left : left + cell] += cover * (colour - canvas[top : top + cell, left : left + cell])
    pixels: NDArray[np.uint8] = np.clip(canvas, 0, 255).astype(np.uint8)
    return pixels


# ----------------------------------------------------------------------------------------------------- examples


def chance(task: str) -> float:
    """The exact-match score of the best answer that ignores the picture.

    Raises:
        DataError: there is no such task.
    """
    _check(task, tuple(_ANSWERS), "task")
    return 1 / len(_ANSWERS[task]) if _ANSWERS[task] else 0.0


def _check(name: str, valid: tuple[str, ...], what: str) -> None:
    if name not in valid:
        raise DataError(f"unknown {what} {name!r}; choose one of {', '.join(valid)}")


def scenes(task: str, split: str, size: int, seed: int = 0, side: int = UNITS) -> Scenes:
    """`size` examples of one family or task.

    Args:
        task: one of `FAMILIES` or `TASKS`.
        split: "train", "validation" or "test"; the splits never share a seed.
        size: how many examples.
        seed: another seed is another data set of the same kind.
        side: of a picture, in pixels. The same questions are asked about the same scenes at every side.

    Raises:
        DataError: there is no such task or split; or a side that is not a multiple of 4 from 48 to 1024.
    """
    _check(task, tuple(_ANSWERS), "task")
    _check(split, SPLITS, "split")
    if side % GRID or not UNITS <= side <= LARGEST:
        raise DataError(f"pictures of {side} pixels: the side must be a multiple of {GRID}, {UNITS} to {LARGEST}")
    return Scenes(task, split, seed, range(size), side)


@dataclass(frozen=True)
class Scenes(Sequence[Example]):
    """Made by `scenes`; an example is drawn when it is asked for, from its own seed. A slice draws nothing yet."""

    task: str
    split: str
    seed: int
    indices: range
    side: int

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Scenes: ...
    def __getitem__(self, index: int | slice) -> Example | Scenes:
        chosen = self.indices[index]
        return self._draw(chosen) if isinstance(chosen, int) else replace(self, indices=chosen)

    def _draw(self, index: int) -> Example:
        key = (zlib.crc32(self.task.encode()), SPLITS.index(self.split), self.seed, index)
        rng = np.random.default_rng(np.random.SeedSequence(key))
        metadata = {"task": self.task, "family": self.task}
        if self.task == "textures":
            target = TEXTURES[rng.integers(len(TEXTURES))]
            asked, pixels = "which texture is this ?", texture(rng, target, self.side)
        else:
            scene, (asked, target) = _balanced(rng, self.task)
            pixels = render(rng, scene, self.side)
            metadata["scene"] = "; ".join(f"{' '.join(thing[:3])} {thing.cell}" for thing in scene)
        name = f"{self.task}-{self.split}-{self.seed}-{index}"
        return Example.ask(name, asked, target, Image.fromarray(pixels), choices=_ANSWERS[self.task], metadata=metadata)
