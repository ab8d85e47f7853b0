"""Sources of examples. A new benchmark is one file (see `eas.data.benchmark`), one line in `BENCHMARKS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eas.config import ConfigError
from eas.data.aid import AID
from eas.data.benchmark import Benchmark, DataOptions, checked, shuffled, unknown_split
from eas.data.digest import GENERATED
from eas.data.flickr30k import FLICKR30K
from eas.data.nlvr import load_nlvr
from eas.data.nlvr2 import NLVR2
from eas.data.openmoji import load_openmoji
from eas.data.own import load_own
from eas.data.scienceqa import SCIENCEQA
from eas.data.scienceqa_text import SCIENCEQA_TEXT
from eas.data.slake import SLAKE
from eas.data.vqa2 import VQA2
from eas.example import DataError, Example

_ALL = (
    SCIENCEQA,
    SCIENCEQA_TEXT,
    SLAKE,
    AID,
    VQA2,
    NLVR2,
    FLICKR30K,
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}

_SCENES = {"train": 4000, "validation": 400, "test": 1000}


def load_data(
    spec: str,
    split: str,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    images: bool = True,
    accept: Callable[[Example], object] | None = None,
) -> Sequence[Example]:
    """The examples of one split, in a fixed order. No image is opened.

    Args:
        spec: "scenes:TASK" or "scenes:TASK@PIXELS" (generated), "openmoji:TASK" (pictures of a package),
            "nlvr:FOLDER", a benchmark's "NAME:FOLDER" or "NAME:hub:ID" (see `BENCHMARKS`), or your own data, "PATH" or
            "hub:ID" (see `load_own`).
        split: "train", "validation" or "test", or an official name of a benchmark's split.
        limit: only so many examples, drawn at random, always the same ones; of generated data, which is in random
            order, the first.
        options: keys of the data's options class (`data_options`).
        images: look images up; without, a benchmark can be scored where its images are not.
        accept: under ``skip_bad``, called with every example; those that it refuses by a `DataError` are left out.

    Raises:
        DataError: an unknown spec or split (with what exists), or bad data.
        ConfigError: an unknown option or a refused value.
    """
    prefix, _, rest = spec.partition(":")
    settings = data_options(spec, options or {})
    benchmark = benchmark_of(spec)
    if benchmark is not None:
        examples = benchmark.read(rest, split, settings)
    elif prefix in DATASETS:
        examples = DATASETS[prefix](rest, split)
    elif prefix == "hub" or Path(spec).exists():
        examples = load_own(spec, split, settings, accept)
    else:
        known = ", ".join(f"{name}:..." for name in (*DATASETS, *BENCHMARKS))
        raise DataError(f"unknown data {spec!r}: no such file or folder, and not one of {known}")
    if limit is not None and prefix not in GENERATED:
        examples = shuffled(examples)
    if benchmark is not None:
        examples = checked(examples, skip_bad=settings.skip_bad, images=images, limit=limit, accept=accept)
    if not examples:
        raise DataError(f"{spec}: the split {split!r} is empty; give more rows, or one file per split in a folder")
    return examples if limit is None else examples[:limit]


def benchmark_of(spec: str) -> Benchmark | None:
    """The benchmark that a spec names, None for other data."""
    return BENCHMARKS.get(spec.partition(":")[0])


def data_options(spec: str, values: Mapping[str, Any]) -> DataOptions:
    """The options of a spec's data.

    Raises:
        ConfigError: an unknown key, with the closest that exists; a refused value; or data that has no options.
    """
    benchmark = benchmark_of(spec)
    if values and spec.partition(":")[0] in DATASETS:
        raise ConfigError(f"data_options {sorted(values)}: {spec} has none")
    return (benchmark.options if benchmark else DataOptions).from_dict(values)


def _scenes(task: str, split: str) -> Sequence[Example]:
    if split not in _SCENES:
        raise unknown_split("scenes", split, tuple(_SCENES))
    from eas.data.scenes import scenes  # the renderer is loaded for those who ask for its pictures only
    from eas.data.textures import UNITS

    name, at, side = task.partition("@")
    if at and not side.isdecimal():
        raise DataError(
            f"scenes:{task}: what follows '@' is the side of a picture in pixels, as in scenes:textures@224"
        )
    return scenes(name, split, _SCENES[split], side=int(side) if at else UNITS)


DATASETS: dict[str, Callable[[str, str], Sequence[Example]]] = {
    "scenes": _scenes,
    "nlvr": lambda folder, split: load_nlvr(Path(folder), split),
    "openmoji": load_openmoji,
}
