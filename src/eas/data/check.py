"""Reads a whole data set once and names its faults: rows, labels, ids, images, and images in two splits.

Where a model is named, its processor and chat template are tried on every row as well.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from eas.data import benchmark_of, data_options, load_data
from eas.data.benchmark import Examples
from eas.data.own import read_own
from eas.example import DataError, Example, ImageSource
from eas.metrics import METRICS
from eas.metrics.vqa import FEWEST, few_answers
from eas.picture import CHANGES, read_picture
from eas.progress import Bar, track

# What a problem is, by the words of its message; all others are rows that do not fit, such as labels out of range.
KINDS = {"does not exist": "missing", "is not a readable image": "broken", "occurs twice": "repeated ids"}
BAD_ROW, REFUSED = "bad rows", "refused"
ALL_KINDS = (*KINDS.values(), BAD_ROW, REFUSED)


@dataclass
class SplitCheck:
    """The findings in one split.

    Args:
        examples: how many there are, good or bad.
        images: distinct images that could be opened.
        problems: one message each: bad rows, repeated ids, images that are missing or broken.
        refused: one message for each row that the model's processor or chat template refuses.
        changes: number of images that are changed, by the keys of `CHANGES`.
        ended: how many answers end in an end token, which is taken off.
        few: ids of examples with too few annotators' answers for the metric ``vqa``.
        failure: why the split cannot be read or scored.
    """

    examples: int = 0
    images: int = 0
    problems: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    few: list[str] = field(default_factory=list)
    failure: str = ""

    def of(self, kind: str) -> list[str]:
        """The problems of a kind."""
        return self.refused if kind == REFUSED else [text for text in self.problems if _kind(text) == kind]

    def notes(self) -> list[str]:
        """Changes of the data that are no problem."""
        pictures = [f"{count:,} images are {CHANGES[kind]}" for kind, count in sorted(self.changes.items())]
        ended = [f"{self.ended:,} answers end in an end token, which is taken off: training adds the model's own"]
        few = [
            f"examples with fewer than {FEWEST} `answers`: {_some(self.few)}; metric=vqa refuses them, as no answer "
            "to them can score 1: give every annotator's answer, or use metric=exact"
        ]
        return pictures + ended * bool(self.ended) + few * bool(self.few)


@dataclass
class Check:
    """The findings in a data set.

    Args:
        splits: by name.
        shared: files or rows that two splits use: the test would contain training data.
        alike: the same pixels under two names in two splits, which official data has too; only a note.
        shown: three examples, with readable images where a split has them.
    """

    splits: dict[str, SplitCheck]
    shared: list[str]
    alike: list[str]
    shown: list[tuple[str, Example]]

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong with rows, ids and images."""
        return [message for split in self.splits.values() for message in split.problems + split.refused]

    @property
    def failures(self) -> list[str]:
        """What cannot be left out: splits that cannot be read or scored, and images in two splits."""
        return [split.failure for split in self.splits.values() if split.failure] + self.shared

    def summary(self) -> dict[str, Any]:
        """The counts as plain values."""
        splits = {
            name: {"examples": split.examples, "images": split.images}
            | {kind: len(split.of(kind)) for kind in ALL_KINDS}
            | {"changed images": dict(split.changes), "end tokens": split.ended}
            for name, split in self.splits.items()
        }
        return {"splits": splits, "problems": len(self.problems), "failures": self.failures, "alike": self.alike}


def check_data(
    spec: str,
    splits: Sequence[str],
    options: Mapping[str, Any],
    accept: Callable[[Example], object] | None = None,
    metric: str = "",
) -> Check:
    """Builds every example of some splits and opens every image once, with a progress bar.

    Args:
        spec: as `load_data` takes it.
        splits: their names; by default those that a run trains on, validates on and tests on.
        options: the ``data_options``.
        accept: tries an example on a model's processor and raises a `DataError` where that refuses it.
        metric: of a run with the data, one of ``METRICS``; tried on the examples that the run scores.
    """
    benchmark = benchmark_of(spec)
    parts = tuple(benchmark.parts.values()) if benchmark else ("train", "validation", "test")
    found: dict[str, SplitCheck] = {}
    pixels: dict[tuple[str, str], bytes | None] = {}
    rows: dict[str, dict[bytes, str]] = {}
    good: list[tuple[str, Example]] = []
    said: set[str] = set()
    for split in dict.fromkeys(splits or parts):
        found[split] = SplitCheck()
        try:
            with Bar(f"reading {split}", 1):
                examples = _read(spec, split, options)
        except DataError as error:
            found[split].failure = f"{split}: {error}"
            continue
        left_out = examples.left_out if isinstance(examples, Examples) else ()
        # The splits of one file leave out the same rows; they are said once.
        found[split].problems += [message for message in left_out if message not in said]
        said.update(left_out)
        scored = None if split == "train" else METRICS.get(metric)
        checked = _check_split(split, examples, found[split], pixels, rows.setdefault(split, {}), accept, scored)
        good += [(split, example) for example in checked]
    shared, alike = _in_two_splits(pixels, list(found))
    if _is_own(spec):  # official data repeats some of its questions
        shared += _rows_in_two_splits(rows)
    return Check(found, shared, alike, [good[at] for at in sorted({0, len(good) // 2, len(good) - 1} if good else ())])


def _read(spec: str, split: str, options: Mapping[str, Any]) -> Sequence[Example]:
    """The unchanged examples, without rows that a loader cannot turn into an example."""
    settings, benchmark = data_options(spec, options), benchmark_of(spec)
    settings.skip_bad = True  # all that is wrong is wanted, not the first
    if benchmark is not None:
        return benchmark.read(spec.partition(":")[2], split, settings)
    if _is_own(spec):
        return read_own(spec, split, settings)
    return load_data(spec, split, options=options)


def _is_own(spec: str) -> bool:
    return benchmark_of(spec) is None and (Path(spec).exists() or spec.startswith("hub:"))


def _check_split(
    split: str,
    examples: Sequence[Example],
    found: SplitCheck,
    pixels: dict[tuple[str, str], bytes | None],
    rows: dict[bytes, str],
    accept: Callable[[Example], object] | None,
    metric: Callable[[str, Example], float] | None,
) -> list[Example]:
    """Fills in what was found, and the digest of every (split, image), None if unreadable; a few examples to show.

    ``rows`` gets the id of every row by the digest of all that it holds, but for rows with image files: those are found
    by their files.
    """
    found.examples = len(examples) + len(found.problems)
    if not found.examples:
        found.failure = f"{split}: it is empty; give it rows, or take it out of --split"
    ids: set[str] = set()
    good: list[Example] = []
    imageless: list[Example] = []
    for index in track(range(len(examples)), f"checking {split}"):
        try:
            example = examples[index]
        except DataError as error:
            found.problems.append(str(error))
            continue
        if example.id in ids:
            found.problems.append(
                f"example {example.id}: this id occurs twice; make ids unique, or drop one of the rows"
            )
        ids.add(example.id)
        found.ended += "end_token" in example.metadata
        if few_answers(example):
            found.few.append(example.id)
        if metric is not None and not found.failure:
            try:
                metric("", example)
            except DataError as error:
                found.failure = f"{split}: {error}"
        whole, contents = True, [repr(example.messages), example.target]
        for number, image in enumerate(example.images):
            place = split, str(image) if isinstance(image, Path) else f"{split} {example.id}, image {number + 1}"
            if place not in pixels:
                pixels[place] = None
                try:
                    picture = read_picture(image, f"example {example.id}")
                    pixels[place] = _digest(picture.rgb)
                    found.changes.update(picture.changes)
                except DataError as error:
                    found.problems.append(str(error))
            whole = whole and pixels[place] is not None
            contents.append(repr(pixels[place]))
        if whole and not any(isinstance(image, Path) for image in example.images):
            rows.setdefault(hashlib.blake2b(repr(contents).encode(), digest_size=16).digest(), example.id)
        if whole and accept is not None:
            try:
                accept(example)
            except DataError as error:
                found.refused.append(str(error))
        if len(kept := good if whole else imageless) < 3:
            kept.append(example)
    found.images = sum(digest is not None for (at, _), digest in pixels.items() if at == split)
    return good or imageless


def _digest(opened: Image.Image) -> bytes:
    return hashlib.blake2b(repr(opened.size).encode() + opened.tobytes(), digest_size=16).digest()


def _in_two_splits(
    pixels: Mapping[tuple[str, str], bytes | None], splits: Sequence[str]
) -> tuple[list[str], list[str]]:
    names = {split: {name: digest for (at, name), digest in pixels.items() if at == split} for split in splits}
    shared, alike = [], []
    for one, other in combinations(splits, 2):
        both = sorted(names[one].keys() & names[other].keys())
        if both:
            shared.append(
                f"image files in both {one} and {other}: {_some(both)}; the test would contain training images: "
                "split by image (Slake: use one language)"
            )
        first = {digest: name for name, digest in names[one].items() if digest is not None}
        same = [
            f"{first[digest]} = {name}" for name, digest in names[other].items() if digest in first and name not in both
        ]
        if same:
            alike.append(f"images of {other} that look exactly like one of {one} under another name: {_some(same)}")
    return shared, alike


def _rows_in_two_splits(rows: Mapping[str, Mapping[bytes, str]]) -> list[str]:
    shared = []
    for one, other in combinations(rows, 2):
        if both := [rows[one][row] for row in rows[one] if row in rows[other]]:
            shared.append(
                f"rows in both {one} and {other}, by their ids in {one}: {_some(both)}; the test would contain "
                "training rows: give each row to one split (data_options.splits cuts a split of a dataset in two)"
            )
    return shared


def _some(names: Sequence[str]) -> str:
    return f"{len(names):,} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"


def _kind(message: str) -> str:
    return next((kind for words, kind in KINDS.items() if words in message), BAD_ROW)


def check_view(check: Check, whole: bool) -> RenderableType:
    """Counts, problems (all if ``whole``, else five of a kind) and examples, for the terminal."""
    table = Table()
    table.add_column("split", overflow="fold")
    for heading in ("examples", "images", *ALL_KINDS):
        table.add_column(heading, justify="right")
    for name, split in check.splits.items():
        counts = (split.examples, split.images, *(len(split.of(kind)) for kind in ALL_KINDS))
        table.add_row(Text(name), *(f"{count:,}" for count in counts))
    lines = [Text(f"wrong: {message}", "red") for message in check.failures]
    for name, split in check.splits.items():
        for kind in ALL_KINDS:
            messages = split.of(kind)
            cut = len(messages) if whole else 5
            lines += [
                Text(f"{'left out' if whole else 'wrong'}: {name}: {message}", "red") for message in messages[:cut]
            ]
            if len(messages) > cut:
                lines.append(
                    Text(f"... and {len(messages) - cut:,} more {kind} in {name}; --skip-bad lists them", "red")
                )
    noted = [f"{name}: {message}" for name, split in check.splits.items() for message in split.notes()]
    lines += [Text(f"note: {message}", "yellow") for message in (*noted, *check.alike)]
    return Group(table, *lines, *(_panel(split, example) for split, example in check.shown))


def _panel(split: str, example: Example) -> Panel:
    text, images = Text(), iter(example.images)
    for message in example.messages:
        text.append(f"{message['role']}: ", "bold")
        for part in message["content"]:
            if part["type"] == "image":
                text.append(f"[image {_size(example.id, next(images))}] ", "cyan")
            else:
                text.append(part["text"])
        text.append("\n")
    text.append("target: ", "bold")
    text.append(example.target)
    if example.choices:
        text.append(f"\nchoices: {' | '.join(example.choices)}", "dim")
    return Panel(text, title=Text(f"{split}: {example.id}"), title_align="left")


def _size(id: str, image: ImageSource) -> str:
    try:
        return " x ".join(map(str, read_picture(image, id).rgb.size))
    except DataError:
        return "unreadable"
