"""What `train_smol.py` trains on: features of pictures, which are computed once, and chats about them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from eas.data.openmoji import Emoji, emojis, load_openmoji
from eas.data.scenes import FAMILIES, question, random_scene, render
from eas.models.efficientnet import HEAD, MIDDLE
from eas.models.smol import build_tower, published_tower

TOKENS, VIEWS, SCENES, COMPOSED = 16, 4, 1500, 800
"""Visual tokens; changed views of a training picture; scenes; questions each about two and four pictures."""
NAMING = ("What does the picture show?", "What is this?", "Name what you see.", "What is in the picture?")
CHOOSING = (
    "What does the picture show? Choose from: {}.",
    "Which of these is in the picture: {}?",
    "The picture shows one of these: {}. Which one?",
)
KIND = ("Which kind of thing does the picture show?", "What kind of thing is this?")
ASKING = ("Does the picture show {}?", "Is this {}?")

Turns = list[tuple[str, str]]


# -------------------------------------------------------------------------------------------------------- features


def changed(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """The picture mirrored or not, turned a little, smaller, elsewhere, on another pale ground."""
    if rng.integers(2):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side, ground = picture.width, tuple(int(x) for x in rng.integers(170, 256, 3))
    pixels = np.asarray(picture.convert("RGB")).astype(np.float32) / 255 * np.array(ground, np.float32)
    turned = Image.fromarray(pixels.astype(np.uint8)).rotate(float(rng.uniform(-15, 15)), fillcolor=ground)
    size = int(side * rng.uniform(0.6, 1.1))
    canvas, room = Image.new("RGB", (side, side), ground), side - size
    left, top = (int(x) for x in rng.uniform(min(0, room), max(0, room), 2))
    canvas.paste(turned.resize((size, size), Image.Resampling.BICUBIC), (left, top))
    return canvas


def pictures() -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Every picture with what is known of it."""
    for emoji in emojis():
        about = {"kind": "emoji", "code": emoji.code, "split": emoji.split}
        yield emoji(), about
    for task in ("odd", "same"):
        for example in load_openmoji(task, "train")[:COMPOSED]:
            yield example.load_images()[0], {"kind": "asked", "turns": [(example.question, example.target)]}
        for example in load_openmoji(task, "test"):
            yield example.load_images()[0], {"kind": "test", "task": task, "id": example.id}
    for i in range(SCENES):
        rng = np.random.default_rng([1, i])
        scene = random_scene(rng)
        pairs = [pair for family in rng.permutation(FAMILIES) if (pair := question(rng, scene, str(family)))]
        turns = [(asked.replace(" ?", "?").capitalize(), answer) for asked, answer in pairs[:4]]
        yield Image.fromarray(render(rng, scene)), {"kind": "asked", "turns": turns}
    for view in range(VIEWS):
        for i, emoji in enumerate(emojis()):
            if emoji.split == "train":
                yield (
                    changed(np.random.default_rng([view, i]), emoji()),
                    {"kind": "emoji", "code": emoji.code, "split": "train"},
                )


def write_features(work: Path, processor: Any) -> None:
    """The tower's tokens of every picture without the part that all tokens of a picture share, in float16."""
    tower, rows, known = build_tower().bfloat16(), [], []

    def flush(batch: list[Image.Image]) -> None:
        pixels = processor.image_processor(batch, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            rows.append(tower(pixels).last_hidden_state[..., : HEAD + MIDDLE].half().numpy())

    waiting: list[Image.Image] = []
    began = time.monotonic()
    for picture, about in pictures():
        waiting.append(picture.convert("RGB"))
        known.append(about)
        if len(waiting) == 16:
            flush(waiting)
            waiting = []
            if len(known) % 800 == 0:
                print(f"features {len(known)} {time.monotonic() - began:.0f}s", flush=True)
    if waiting:
        flush(waiting)
    np.save(work / "features.npy", np.concatenate(rows))
    (work / "known.json").write_text(json.dumps(known))


# ----------------------------------------------------------------------------------------------------------- chats


def class_names() -> list[tuple[str, str]]:
    """ImageNet's 1,000 classes: the first name of each, and its definition in WordNet; from the package timm."""
    spec = find_spec("timm")
    assert spec is not None, "pip install --no-deps timm"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data" / "_info"
    tables = []
    for what in ("lemma", "definition"):
        lines = (folder / f"imagenet_synset_to_{what}.txt").read_text().splitlines()
        tables.append(dict(line.split("\t", 1) for line in lines))
    ids = (folder / "imagenet_synsets.txt").read_text().split()
    return [(tables[0][i].split(",")[0].strip(), tables[1][i].strip()) for i in ids]


def told(rng: np.random.Generator, name: str, kind: str | None, others: Sequence[str]) -> Turns:
    """Questions about a picture with a name, in one of several wordings each; each stands alone."""

    def options() -> str:
        wrong = [str(x) for x in rng.choice(others, int(rng.integers(1, 4)), replace=False) if x != name]
        return ", ".join(str(x) for x in rng.permutation([name, *wrong]))

    asked = name if rng.integers(2) else str(rng.choice(others))
    return [
        (str(rng.choice(CHOOSING)).format(options()), name),
        (str(rng.choice(CHOOSING)).format(options()), name),
        (str(rng.choice(NAMING)), name),
        (str(rng.choice(ASKING)).format(asked), "yes" if asked == name else "no"),
        *([] if kind is None else [(str(rng.choice(KIND)), kind)]),
    ]


class Chats:
    """Draws chats: the visual tokens, standardised, and the turns."""

    def __init__(self, work: Path) -> None:
        self.rows = np.load(work / "features.npy", mmap_mode="r")
        self.known = json.loads((work / "known.json").read_text())
        self.by_code = {emoji.code: emoji for emoji in emojis()}
        self.first = {known["code"]: i for i, known in reversed([*enumerate(self.known)]) if known["kind"] == "emoji"}
        self.seen = [i for i, known in enumerate(self.known) if known.get("split") == "train"]
        self.asked = [i for i, known in enumerate(self.known) if known["kind"] == "asked"]
        self.tests = {(known["task"], known["id"]): i for i, known in enumerate(self.known) if known["kind"] == "test"}
        self.names = sorted({self.emoji(i).name for i in self.seen})
        self.classes = class_names()
        sample = np.asarray(self.rows[self.seen[:: len(self.seen) // 900]], np.float32)
        whole = self._whole(torch.from_numpy(sample))
        self.mean = whole.mean((0, 1))
        self.std = whole.std((0, 1)) + 0.05
        weights = published_tower()["_fc.weight"] * self.std[:HEAD]
        self.directions = normalize(weights - weights.mean(0), dim=1)

    def emoji(self, row: int) -> Emoji:
        return self.by_code[self.known[row]["code"]]

    @staticmethod
    def _whole(local: Tensor) -> Tensor:
        """With the part that all tokens of a picture share: the mean of the head's features."""
        return torch.cat([local, local[..., :HEAD].mean(-2, keepdim=True).expand(*local.shape[:-1], HEAD)], -1)

    def features(self, rows: Sequence[int]) -> Tensor:
        """(rows, 16, 2672), standardised."""
        local = torch.from_numpy(np.stack([self.rows[row] for row in rows]).astype(np.float32))
        return (self._whole(local) - self.mean) / self.std

    def of_class(self, rng: np.random.Generator, index: int) -> Tensor:
        """(16, 2672): what the tower would say of a picture that it is sure to be of this class, with noise."""
        noise = torch.from_numpy(rng.normal(scale=0.5, size=(TOKENS, len(self.mean))).astype(np.float32))
        sure = self.directions[index] * float(rng.uniform(15, 35))
        return noise + torch.cat([sure, torch.zeros(MIDDLE), sure])

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Turns]:
        which = rng.random()
        if which < 0.7:
            row = self.seen[rng.integers(len(self.seen))]
            emoji = self.emoji(row)
            return self.features([row])[0], told(rng, emoji.name, emoji.subgroup, self.names)
        if which < 0.85:
            row = self.asked[rng.integers(len(self.asked))]
            return self.features([row])[0], [tuple(turn) for turn in self.known[row]["turns"]]
        index = int(rng.integers(len(self.classes)))
        return self.of_class(rng, index), told(rng, self.classes[index][0], None, [n for n, _ in self.classes])

    def text(self, rng: np.random.Generator) -> Turns:
        """A question about words alone."""
        name, definition = self.classes[rng.integers(len(self.classes))]
        kinds = rng.permutation(sorted({e.subgroup for e in self.by_code.values()}))[:3]
        other = self.names[rng.integers(len(self.names))]
        pairs = [
            (f"What is a {name}?", f"A {name} is {definition}."),
            (f"Which of these would {other} be: {', '.join(kinds)}?", str(kinds[0])),
        ]
        return [pairs[int(rng.random() < 0.3)]]
