"""The interface of a benchmark: reading and scoring.

A new benchmark is one file here, which ends in ``NAME = Benchmark(...)``, its metric's file in ``eas.metrics``, and one
line in ``eas.data.BENCHMARKS``. The file has

- an options class, a `DataOptions` with the benchmark's own options (prompt form, language, ...);
- ``load(source, split, options)``, which reads annotations, never images, and returns `Examples`: rows and a function
  that builds the `Example` of one. It raises `DataError` for an unknown split (`unknown_split`) and for files that are
  missing or broken; what is wrong with one row it leaves to the function, whose error names the row's id. `load_data`
  then builds every example once (`checked`): that is where rows that do not fit, images that are not there and ids
  that occur twice are refused, or left out and listed under ``skip_bad``;
- ``score(examples, predictions, options)``, which may rely on one prediction per example (`match` has seen to that);
- ``read_predictions(path)``, which reads the benchmark's own result format into texts by example id.

Import from submodules (``eas.example``, ``eas.metrics.report``), never from the packages: they import each other.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TypeVar, overload

from eas.config import Config, option
from eas.example import DataError, Example
from eas.metrics.report import MISSING, Report
from eas.picture import read_picture

Row = TypeVar("Row")
OF_HUB, OF_DATASET = ("config", "revision", "stream"), ("columns", "splits")
"""Options that only what ``load_dataset`` reads has, and those that any dataset of ``datasets`` has."""


@dataclass(frozen=True)
class Source:
    """Where a benchmark is read from.

    Args:
        path: a folder in the official raw layout; or a Hub id or local ``datasets`` folder.
        hub: the latter; read it by `eas.data.hub.hub_rows`.
    """

    path: str
    hub: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.path)

    @classmethod
    def parse(cls, text: str) -> Source:
        """From what follows the benchmark's name in ``--data``: "FOLDER" or "hub:ID"."""
        return cls(text.removeprefix("hub:"), text.startswith("hub:"))


def mapping(help: str) -> Any:
    """An option that is a mapping, empty by default; see `eas.config.option`."""
    return field(default_factory=dict, metadata={"help": help})


@dataclass
class DataOptions(Config):
    """What every benchmark and data of your own can be told; the keys of ``data_options``."""

    skip_bad: bool = option(False, "leave out bad rows and images and list them, instead of stopping")
    images: str | None = option(None, "folder of the images, if it is not the official one")
    train_split: str | None = option(None, "official split to train on; null: the benchmark's usual one")
    validation_split: str | None = option(
        None, "official split for the losses of the search; null: the benchmark's usual one"
    )
    test_split: str | None = option(None, "official split to score; null: the benchmark's usual one")
    config: str | None = option(None, "configuration of a Hub dataset")
    revision: str | None = option(None, "commit, branch or tag of a Hub dataset")
    stream: int | None = option(
        None, "a number: read only the first rows of a Hub dataset, without downloading all of it"
    )
    columns: dict[str, str] = mapping("names of a Hub dataset's columns, if they differ, for example {image: picture}")
    splits: dict[str, str] = mapping(
        "a Hub dataset's names of the official splits, if they differ, for example {val: dev}"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("stream", self.stream is None or self.stream >= 1, "must be at least 1, or null for all")

    def chosen(self, split: str) -> str | None:
        """The split that is given to be a run's "train", "validation" or "test", if one is."""
        return {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}.get(split)

    def refuse(self, names: Sequence[str], source: str) -> None:
        """Refuses options that a source does not have, where they are given; ``source`` begins the message.

        Raises:
            DataError: one of them is given.
        """
        if given := [name for name in names if getattr(self, name)]:
            raise DataError(f"{source}: data_options.{given[0]} has no meaning here; leave it out (docs/data.md)")


class Examples(Sequence[Example]):
    """Examples that are built when they are asked for; slices stay so.

    Args:
        rows: whatever ``build`` takes, one per example: records, or indices (``range(len(table))``) into a table.
        build: the example of a row; raises `DataError` naming it if it does not fit. Opens no image.
        left_out: what a loader already left out under ``skip_bad``, one message each.
    """

    def __init__(self, rows: Sequence[Row], build: Callable[[Row], Example], left_out: Sequence[str] = ()) -> None:
        self.rows: Sequence[Any] = rows
        self.build: Callable[[Any], Example] = build
        self.left_out = tuple(left_out)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return Examples(self.rows[index], self.build, self.left_out)
        return self.build(self.rows[index])


@dataclass(frozen=True)
class Benchmark:
    """One benchmark; see the module.

    Args:
        name: of its spec ("NAME:FOLDER", "NAME:hub:ID") and of its metric.
        splits: the official names, as messages list them; `load` may take more.
        parts: the official split that is a run's "train", "validation" and "test".
        load: the examples of an official split; see the module.
        score: the official metric of one prediction (a text, as the model gives it or `read_predictions` makes of an
            index) per example.
        read_predictions: texts by example id, from the official result format.
        options: the class of its options.
        score_file: the official metric of a result file that holds no texts (a score matrix); instead of
            `read_predictions` and `score`.
        ranked: of the options, whether an answer is the likeliest of the example's choices; nothing is generated.
        of_whole: the numbers of its report that mean something else on a part of a split.
    """

    name: str
    splits: tuple[str, ...]
    parts: Mapping[str, str]
    load: Callable[[Source, str, Any], Sequence[Example]]
    score: Callable[[Sequence[Example], Mapping[str, str], Any], Report]
    read_predictions: Callable[[Path], dict[str, str]]
    options: type[DataOptions] = DataOptions
    score_file: Callable[[Sequence[Example], Path], Report] | None = None
    ranked: Callable[[Any], bool] = lambda options: False
    of_whole: str = ""

    def official(self, split: str, options: DataOptions) -> str:
        """The official split behind a run's "train", "validation" or "test"; any other name is official already."""
        return options.chosen(split) or self.parts.get(split, split)

    def read(self, source: str, split: str, options: DataOptions) -> Sequence[Example]:
        """The examples of a split as ``load`` gives them.

        Args:
            source: what follows the benchmark's name in ``--data``.
            split: a run's or an official one.
            options: of ``self.options``.

        Raises:
            DataError: as ``load``; or an option that only a Hub dataset has is given for official files.
        """
        parsed = Source.parse(source)
        if not parsed.hub:
            options.refuse((*OF_HUB, *OF_DATASET), f"{self.name}:{source} is a folder of official files")
        return self.load(parsed, self.official(split, options), options)


def unknown_split(name: str, split: str, splits: Sequence[str]) -> DataError:
    """The error for a split that does not exist, for use inside ``load``."""
    return DataError(f"{name} has no split {split!r}; use one of {', '.join(splits)}")


def shuffled(examples: Sequence[Example]) -> Examples:
    """The examples in a random order, always the same for as many: data may be sorted, and its first part unlike it."""
    order = Random(0).sample(range(len(examples)), len(examples))
    return Examples(order, examples.__getitem__, examples.left_out if isinstance(examples, Examples) else ())


def checked(
    examples: Sequence[Example],
    *,
    skip_bad: bool = False,
    images: bool = True,
    limit: int | None = None,
    accept: Callable[[Example], object] | None = None,
) -> Sequence[Example]:
    """The first so many examples, each built once to see that it fits. Image files are looked up; none is opened.

    Args:
        examples: as a loader returns them.
        skip_bad: leave out bad rows and images, with a warning that lists them. All images are then opened, so that one
            that is broken is found here and not in the middle of training.
        images: look the images up; without, predictions can be scored where the images are not.
        limit: stop after so many good ones.
        accept: under ``skip_bad``, what else may refuse an example by a `DataError`: the model's processor.

    Raises:
        DataError: unless ``skip_bad``, for the first example that does not fit, lacks an image or repeats an id; with
            it, where nothing is left.
    """
    left_out = list(examples.left_out) if isinstance(examples, Examples) else []
    good: list[int] = []
    seen: set[str] = set()
    for index in range(len(examples)):
        if limit is not None and len(good) == limit:
            break
        try:
            example = examples[index]
            if example.id in seen:
                raise DataError(f"example {example.id}: this id occurs twice; make ids unique, or drop one of the rows")
            if images:
                _look_up(example, open_them=skip_bad)
            if skip_bad and accept is not None:
                accept(example)
        except DataError as error:
            if not skip_bad:
                raise
            left_out.append(str(error))
            continue
        seen.add(example.id)
        good.append(index)
    if left_out and not good:
        raise DataError(f"all rows are bad, {len(left_out)} of them; the first: {left_out[0]}")
    if left_out:
        warnings.warn(f"{len(left_out)} left out:\n" + "\n".join(left_out), stacklevel=2)
    if isinstance(examples, Examples) and good == [*range(len(good))]:  # none left out in between
        return Examples(examples.rows[: len(good)], examples.build, left_out)
    return Examples(good, examples.__getitem__, left_out)


def _look_up(example: Example, open_them: bool) -> None:
    for image in example.images:
        if isinstance(image, Path) and not os.path.isfile(image):
            raise DataError(f"example {example.id}: image {image} does not exist; check the image folder")
    if open_them and not all(isinstance(image, Path) and _opens(image) for image in example.images):
        example.load_images()  # raises an error that names the fault


@cache
def _opens(path: Path) -> bool:
    """Whether a file is a readable image; a run asks for its data several times."""
    try:
        read_picture(path, "")
    except DataError:
        return False
    return True


def match(
    examples: Sequence[Example], predictions: Mapping[str, str], *, skip_bad: bool = False
) -> tuple[Mapping[str, str], list[str]]:
    """One prediction per example, and a message for each that was missing or too many.

    Args:
        examples: the scored examples.
        predictions: texts by id.
        skip_bad: a missing prediction counts as wrong, one too many is dropped; both are in the list.

    Raises:
        DataError: unless ``skip_bad``, if ids are missing or too many.
    """
    ids = dict.fromkeys(example.id for example in examples)
    missing, extra = [id for id in ids if id not in predictions], [id for id in predictions if id not in ids]
    messages = [f"no prediction for {id}; counted as wrong" for id in missing]
    messages += [f"prediction for {id}, which is not in the split; dropped" for id in extra]
    if messages and not skip_bad:
        some = ", ".join([*missing, *extra][:5])
        raise DataError(
            f"the predictions lack {len(missing)} of {len(ids)} ids and have {len(extra)} of others ({some}, ...): "
            "is this the right split? complete the file, or use --skip-bad (data_options.skip_bad)"
        )
    return {id: predictions.get(id, MISSING) for id in ids}, messages
