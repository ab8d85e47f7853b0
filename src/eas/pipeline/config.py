"""The configuration of a run: model, data, method, training. Its fields are the keys of YAML files and of ``-o``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from eas.config import Config, ConfigError, MethodConfig, SkipConfig, option, read_assignments, section
from eas.data import BENCHMARKS, benchmark_of, data_options
from eas.methods import METHODS, method_config
from eas.metrics import LOSS_ONLY, METRICS
from eas.models.visual_tokens import CHOICES
from eas.searching import SearchConfig
from eas.tasks.answer_length import ENOUGH
from eas.tasks.collate import CUTS

DTYPES = ("auto", "float32", "bfloat16", "float16")
INTO_WEIGHTS = ("per_example", "constant", "merged")
"""Folds that need plain weights to fold into."""


@dataclass
class TrainConfig(Config):
    """How both phases train."""

    search_steps: int | None = option(
        None, "optimizer steps of the search, with its warm-up; null: the size of the data decides"
    )
    tune_steps: int | None = option(
        None, "optimizer steps under the found skip set; null: the size of the data decides"
    )
    learning_rate: float = option(1e-3, "peak learning rate of a cosine schedule")
    warmup_ratio: float = option(0.03, "share of a phase over which the learning rate rises")
    weight_decay: float = option(0.0, "weight decay of AdamW")
    batch_size: int = option(16, "examples per forward pass")
    accumulation: int = option(1, "forward passes per optimizer step")
    group_by_length: bool | None = option(
        None, "batches of examples of about one length; null: where random batches would be a third padding"
    )
    max_length: int | None = option(None, "maximum tokens of a training example, with its answer; null: no limit")
    cut: str | None = option(
        None, f"part that longer examples lose: {', '.join(CUTS)}; null: longer examples are refused"
    )
    precision: str = option(
        "float32", "precision of the computation: 'float32' or 'bfloat16' (weights are not converted)"
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass to save memory")
    continue_pias: bool = option(True, "true: continue with the PIAs of the search; false: start with fresh PIAs")
    save_steps: int = option(100, "optimizer steps between checkpoints")
    logging_steps: int = option(10, "optimizer steps between log entries")
    report_to: str = option("none", "tracker of transformers' Trainer: 'tensorboard', 'wandb', ..., or 'none'")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_counts("batch_size", "accumulation", "save_steps", "logging_steps")
        self._require_counts(*(name for name in ("search_steps", "tune_steps") if getattr(self, name) is not None))
        self._require("learning_rate", self.learning_rate > 0, "must be above 0")
        self._require("warmup_ratio", 0 <= self.warmup_ratio < 1, "must be in [0, 1)")
        self._require("weight_decay", self.weight_decay >= 0, "must be at least 0")
        self._require("max_length", self.max_length is None or self.max_length >= 1, "must be at least 1, or null")
        self._require("cut", self.cut in (None, *CUTS), f"must be null or one of {', '.join(CUTS)}")
        self._require("precision", self.precision in ("float32", "bfloat16"), "must be 'float32' or 'bfloat16'")


@dataclass
class RunConfig(Config):
    """A whole run."""

    model: str = option(
        "tiny",
        "folder, GGUF file or Hub id of a supported model; 'smollm2-135m' or 'smol', which are made of packages; or "
        "'tiny', which comes with eas",
    )
    revision: str | None = option(None, "commit, branch or tag of a Hub model")
    dtype: str = option(
        "auto",
        "dtype of the base's weights: 'float32', 'bfloat16', 'float16', or 'auto': as saved, but float32 on a CPU that "
        "computes 16 bits in software",
    )
    bits: int | None = option(None, "4 or 8: bits of the quantised blocks of the language model; null: not quantised")
    visual_tokens: int | None = option(
        None, "tokens of an image that the language model reads (LLaVA), in training, scoring and serving; null: all"
    )
    visual_choice: str = option("uniform", f"which tokens these are: {', '.join(CHOICES)}")
    data: str = option(
        "scenes:textures",
        "'scenes:TASK', 'nlvr:FOLDER', a benchmark's 'NAME:FOLDER' or 'NAME:hub:ID' "
        f"({', '.join(BENCHMARKS)}), or your own JSON(L) file or folder",
    )
    data_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "options for reading, presenting and scoring the data; see docs/data.md"},
    )
    output_dir: str = option("runs/run", "run folder; a stopped run continues in this folder")
    seed: int = option(0, "random seed of the whole run")
    metric: str | None = option(
        None,
        f"metric of the answers: {', '.join(METRICS)}, '{LOSS_ONLY}' (the loss of the answers); "
        "null: the benchmark's own, 'exact' for other data",
    )
    max_new_tokens: int | None = option(
        None, f"length limit of an answer in tokens; null: {ENOUGH}, or more where an answer of the data needs more"
    )
    eval_batch_size: int = option(16, "examples per generate call")
    train_limit: int | None = option(None, "use only this number of training examples, drawn at random")
    validation_limit: int | None = option(None, "use only this number of validation examples, drawn at random")
    test_limit: int | None = option(None, "use only this number of test examples, drawn at random")
    skip_set: list[int] | None = option(None, "candidates to skip; then the run needs no search")
    fold_mode: str | None = option(
        None,
        "'shared' serves any batch; 'per_example' (the paper's) serves one sequence at a time; 'constant' serves any "
        "batch, but needs a constant router; 'auto' or null: the best mode that the method's configuration allows",
    )
    benchmark_repeats: int = option(20, "timed repetitions of base and folded model, in turns")
    benchmark_new_tokens: int = option(16, "tokens that one repetition decodes")
    method: MethodConfig = section(method_config, "tuning method", train_projector=None)
    search: SearchConfig = section(SearchConfig.from_dict, "the search")
    train: TrainConfig = section(TrainConfig.from_dict, "both training phases")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("dtype", self.dtype in DTYPES, f"must be one of {', '.join(DTYPES)}")
        self._require(
            "visual_tokens", self.visual_tokens is None or self.visual_tokens >= 1, "must be at least 1, or null"
        )
        self._require("visual_choice", self.visual_choice in CHOICES, f"must be one of {', '.join(CHOICES)}")
        self._require("bits", self.bits in (None, 4, 8), "must be 4 or 8, or null")
        data_options(self.data, self.data_options)  # refuses unknown keys and values
        benchmark = benchmark_of(self.data)
        metrics = (*METRICS, LOSS_ONLY, *([benchmark.name] if benchmark else []))
        self._require("metric", self.metric in (None, *metrics), f"must be null or one of {', '.join(metrics)}")
        modes = METHODS[self.method.name].fold_modes
        modes = ("auto", *modes) if modes else ()
        self._require("fold_mode", self.fold_mode in (None, *modes), f"must be null or one of {modes}")
        plain = self.bits is None or self.fold_mode not in INTO_WEIGHTS
        self._require("fold_mode", plain, f"needs plain weights, not bits = {self.bits}; leave one of them out")
        if self.max_new_tokens is not None:
            self._require_counts("max_new_tokens")
        self._require_counts("eval_batch_size", "benchmark_repeats", "benchmark_new_tokens")
        self._require("seed", 0 <= self.seed < 2**32, "must be at least 0 and below 2**32")
        for name in ("model", "data", "output_dir"):
            text = getattr(self, name)
            self._require(name, bool(text) and "\0" not in text, "must name something")
            self._require(name, not re.search("[\ud800-\udfff]", text), "must be UTF-8; rename it")
        for name in ("train_limit", "validation_limit", "test_limit"):
            limit = getattr(self, name)
            self._require(name, limit is None or limit >= 1, "must be at least 1, or null for all")
        k = self.num_skip
        if self.skip_set is not None and len(self.skip_set) != k:
            raise ConfigError(f"skip_set = {self.skip_set} does not hold method.num_skip = {k} candidates")
        steps = self.train.search_steps
        if steps is not None and self.search.warmup_steps + self.search.interval > steps:
            raise ConfigError(
                f"train.search_steps = {steps} leaves no round after search.warmup_steps = "
                f"{self.search.warmup_steps}; raise the first or lower the second"
            )

    @property
    def metric_name(self) -> str:
        """The metric that answers are scored by."""
        benchmark = benchmark_of(self.data)
        return self.metric or (benchmark.name if benchmark else "exact")

    @property
    def num_skip(self) -> int:
        """k, 0 where the method skips nothing."""
        return self.method.num_skip if isinstance(self.method, SkipConfig) else 0

    @property
    def search_seed(self) -> int:
        """The search's seed; the run's where it has none."""
        return self.seed if self.search.seed is None else self.search.seed

    def with_overrides(self, assignments: Iterable[str]) -> Self:
        """A copy with ``key=value`` assignments applied; values are YAML.

        Raises:
            ConfigError: an assignment without "=", an unknown key or a refused value.
        """
        return self.with_values(read_assignments(assignments))

    def with_values(self, given: Mapping[str, Any]) -> Self:
        """A copy with other values; dots in a key reach into sections (``method.skip_rank``).

        Raises:
            ConfigError: an unknown key or a refused value.
        """
        values = self.to_dict()
        first = ("method.name", "method.preset")  # they decide about other keys
        for key in sorted(given, key=lambda key: [key != decides for decides in first]):
            *path, name = key.split(".")
            at: dict[str, Any] = values
            for part in path:
                if not isinstance(at.get(part), dict):
                    raise ConfigError(
                        f"-o {key}: there is no section {part!r}; the sections are data_options, method, search, train"
                    )
                at = at[part]
            at[name] = given[key]
            if key == "method.preset" and at["name"] in METHODS:  # its values, not those of before
                at |= dict.fromkeys(_filled_by_preset(METHODS[at["name"]].config))
            if key == "method.name" and at["name"] != self.method.name:
                values["method"] = {"name": at["name"]}  # another method's keys
        return type(self).from_dict(values)


def _filled_by_preset(method: type[MethodConfig]) -> list[str]:
    """The fields of a method that a preset fills; none where the method has no presets."""
    unset = {f.name for f in fields(method) if f.default is None}
    return sorted(unset - {"preset", "train_projector"}) if "preset" in unset else []
