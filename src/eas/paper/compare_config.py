"""The configuration of a comparison: the keys of its YAML file, and the runs that follow from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eas.config import Config, ConfigError, option, section
from eas.pipeline.config import RunConfig

BASE = "base"
"""The row of the untuned base."""
OWN = ("method", "search", "train", "skip_set", "fold_mode", "eval_batch_size", "visual_tokens", "visual_choice")
"""The keys of a run that may differ between entries; all others are part of the equal conditions."""


@dataclass(frozen=True)
class Job:
    """One run of a comparison, in its own folder.

    Args:
        entry: the label of its entry.
        row: the name of its row in the table: the label, with k where the entry has several.
        config: the configuration of the run.
        evaluate_only: whether the base itself is scored.
        trial: whether it only helps to choose a learning rate, and never sees the test split.
    """

    entry: str
    row: str
    config: RunConfig
    evaluate_only: bool = False
    trial: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)


@dataclass
class Entry(Config):
    """A line of the comparison, or one per k."""

    label: str = option("", "name of the entry in table and figure")
    run: dict[str, Any] = field(
        default_factory=dict, metadata={"help": f"keys of a run, merged over the shared ones: {', '.join(OWN)}"}
    )
    skips: list[int] = field(
        default_factory=list, metadata={"help": "list of k, one run for each; empty: method.num_skip"}
    )
    learning_rates: list[float] | None = option(
        None, "learning rates that this entry tries; null: those of the comparison"
    )
    learning_rate_of: str | None = option(None, "label of another entry: take the learning rate that was chosen for it")
    evaluate_only: bool = option(False, "score the unchanged base, zero-shot")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("label", bool(_slug(self.label)), "must hold a letter or a digit")
        fits = all(isinstance(k, int) and not isinstance(k, bool) and k >= 0 for k in self.skips)
        self._require("skips", fits and len(set(self.skips)) == len(self.skips), "must be different numbers from 0 up")
        _require_rates(self)
        if foreign := [key for key in self.run if key not in OWN]:
            raise ConfigError(f"run.{foreign[0]} is the same for all entries; set it in the comparison's run")
        given = [self.own_rate is not None, self.learning_rates is not None, self.learning_rate_of is not None]
        if sum(given) > 1:
            raise ConfigError("give one of run.train.learning_rate, learning_rates and learning_rate_of")
        if self.evaluate_only and (self.skips or self.run or any(given)):
            raise ConfigError("evaluate_only scores the base; leave out skips, run and learning rates")

    @property
    def own_rate(self) -> Any:
        train = self.run.get("train")
        return train.get("learning_rate") if isinstance(train, Mapping) else None


@dataclass
class BenchmarkConfig(Config):
    """How the rows are timed, all in one alternated run."""

    repeats: int = option(20, "timed repetitions of every row; 0: no timing")
    new_tokens: int = option(16, "tokens that one repetition decodes")
    hidden_size: int | None = option(
        None, "with the model 'tiny': also time the methods in a random Llama of this width, where overhead is small"
    )
    prompt_tokens: int = option(256, "tokens of the prompt of that wide model")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("repeats", self.repeats >= 0, "must be at least 0")
        self._require("new_tokens", self.new_tokens >= 1, "must be at least 1")
        wide = self.hidden_size
        self._require("hidden_size", wide is None or (wide > 0 and wide % 128 == 0), "must be a multiple of 128")
        self._require("prompt_tokens", self.prompt_tokens >= 1, "must be at least 1")


@dataclass
class CompareConfig(Config):
    """Methods x seeds x k on one task. Building it builds, and so checks, the configuration of every run.

    Raises:
        ConfigError: a key or value is refused; where it belongs to an entry, the message names its label.
    """

    output_dir: str = option("runs/compare", "the comparison's folder; a stopped comparison continues in this folder")
    run: dict[str, Any] = field(default_factory=dict, metadata={"help": "keys of `eas config` that all runs share"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "each run is repeated with these"})
    jobs: int | None = option(
        None, "runs at a time; null: as many as cores and memory allow with the model 'tiny', otherwise 1"
    )
    learning_rates: list[float] = field(
        default_factory=list, metadata={"help": "tried for every entry on the first seed, judged on validation"}
    )
    trial_steps: int = option(300, "tune steps of a learning-rate trial")
    entries: list[Any] = field(default_factory=list, metadata={"help": "methods to compare"})
    benchmark: BenchmarkConfig = section(BenchmarkConfig.from_dict, "timing at the end")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in self.seeds)
        distinct = len(set(self.seeds)) == len(self.seeds) > 0
        self._require("seeds", whole and distinct, "must be one or more different whole numbers")
        self._require("jobs", self.jobs is None or self.jobs >= 1, "must be at least 1, or null")
        self._require("trial_steps", self.trial_steps >= 1, "must be at least 1")
        _require_rates(self)
        self._require("entries", len(self.entries) > 0, "must name at least one entry")
        for key in ("output_dir", "seed"):
            if key in self.run:
                remedy = "a comparison has its own" if key == "output_dir" else "use seeds"
                raise ConfigError(f"CompareConfig.run.{key}: leave it out; {remedy}")
        if self.benchmark.hidden_size is not None and self.run.get("model", "tiny") != "tiny":
            raise ConfigError(
                f"benchmark.hidden_size = {self.benchmark.hidden_size}: only the model 'tiny' is also timed at another "
                f"width, and run.model is {self.run['model']!r}; leave it out"
            )
        self.entries = [_entry(i, values) for i, values in enumerate(self.entries)]
        for i, entry in enumerate(self.entries):
            if any(_slug(entry.label) == _slug(other.label) for other in self.entries[:i]):
                raise ConfigError(
                    f"entry {entry.label!r}: another entry has this label, or a label for the same folder"
                )
            if entry.learning_rate_of is not None and not self.rates_tried(entry.learning_rate_of):
                raise ConfigError(
                    f"entry {entry.label!r}: learning_rate_of = {entry.learning_rate_of!r} must be the label of an "
                    "entry that tries learning rates"
                )
        self.trials()
        jobs = self.jobs_of_seed(self.seeds[0], {})
        if named := [job.entry for job in jobs if job.row == BASE and not job.evaluate_only]:
            raise ConfigError(f"entry {named[0]!r}: this is the name of the untuned base; rename the entry")
        rows = [job.row for job in jobs]
        if twice := sorted({row for row in rows if rows.count(row) > 1}):
            raise ConfigError(f"two rows would be called {twice[0]!r}; rename an entry")

    def rates_tried(self, label: str) -> list[float]:
        """The learning rates among which the entry of this label chooses for itself, if there is one; or none."""
        for entry in self.entries:
            if entry.label == label and not (entry.evaluate_only or entry.learning_rate_of or entry.own_rate):
                return self.learning_rates if entry.learning_rates is None else entry.learning_rates
        return []

    def trials(self) -> dict[str, list[Job]]:
        """The trials of every entry that makes some: at its middle k, one per learning rate."""
        return {
            entry.label: [
                self._job(entry, (sorted(entry.skips) or [None])[len(entry.skips) // 2], self.seeds[0], rate, True)
                for rate in self.rates_tried(entry.label)
            ]
            for entry in self.entries
            if len(self.rates_tried(entry.label)) > 1
        }

    def rate_source(self, entry: Entry) -> str | None:
        """The label of the entry whose trials choose this one's rate; None where the run's own is used."""
        source: str = entry.learning_rate_of or entry.label
        return source if self.rates_tried(source) else None

    def jobs_of_seed(self, seed: int, chosen: Mapping[str, float]) -> list[Job]:
        """All runs of one seed, given the rates chosen by label; the base is the same under every seed, and has one."""
        return [
            self._job(entry, k, seed, chosen.get(self.rate_source(entry) or ""))
            for entry in self.entries
            for k in entry.skips or [None]
            if not entry.evaluate_only or seed == self.seeds[0]
        ]

    def _job(self, entry: Entry, k: int | None, seed: int, rate: float | None, trial: bool = False) -> Job:
        values = _merged(self.run, entry.run)
        extra: dict[str, Any] = {"seed": seed, "search": {"seed": seed}}
        extra |= {"train": {"learning_rate": rate} if rate is not None else {}}
        extra["train"] |= {"tune_steps": self.trial_steps} if trial else {}
        extra |= {"method": {"num_skip": k}} if k is not None else {}
        try:
            config = RunConfig.from_dict(_merged(values, extra))
        except ConfigError as error:
            raise ConfigError(f"entry {entry.label!r}: {error}") from error
        name = f"{_slug(entry.label)}-k{config.num_skip}-" + (f"lr{rate:g}" if trial else f"s{seed}")
        config.output_dir = str(Path(self.output_dir) / ("trials" if trial else "runs") / name)
        row = f"{entry.label}_{k}" if len(entry.skips) > 1 else entry.label
        return Job(entry.label, row, config, entry.evaluate_only, trial)


def _entry(index: int, values: Any) -> Entry:
    if isinstance(values, Entry):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(f"entries[{index}] = {values!r}: must be a mapping with a label")
    try:
        return Entry.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"entry {values.get('label', index)!r}: {error}") from error


def _require_rates(config: Any) -> None:
    rates = config.learning_rates or []
    if not all(isinstance(rate, int | float) and rate > 0 for rate in rates) or len(set(rates)) < len(rates):
        raise ConfigError(f"{type(config).__name__}.learning_rates = {rates!r}: must be different numbers above 0")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Over merged into base, mapping by mapping; a method of another name takes the place of the base's."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = value if key == "method" and _renames(value, below) else _merged(below, value)
        merged[key] = value
    return merged


def _renames(method: Mapping[str, Any], below: Mapping[str, Any]) -> bool:
    return "name" in method and method["name"] != below.get("name", "eas")


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]+", "-", label).strip("-.")
