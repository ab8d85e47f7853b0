"""A run folder: the configuration, the loading of model and data, and a JSON file for every finished step."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, AutoTokenizer

from eas.attachment.load import load_base
from eas.attachment.save import CheckpointError
from eas.config import ConfigError
from eas.data import benchmark_of, load_data
from eas.data.digest import GENERATED, Digest, digest
from eas.distributed import is_main, join
from eas.example import Example
from eas.files import claimed, write_text
from eas.models.anatomy import reads_images
from eas.models.bases import base_folder
from eas.models.dtype import chosen_dtype, loaded_dtype
from eas.models.folder import model_config
from eas.models.quantisation import quantisation
from eas.models.visual_tokens import fit_processor, keep_visual_tokens
from eas.pipeline.config import RunConfig
from eas.pipeline.records import STEP_RECORDS
from eas.records import raised_as, read_record
from eas.searching.phase import STATE_FILE
from eas.tasks.task import Task, task_of

CONFIG_FILE = "run.yaml"
COMPUTE = {"float32": torch.float32, "float16": torch.float16}
"""What quantised maps compute in, by ``dtype``; bfloat16 otherwise."""


@dataclass
class Kept:
    """Models that a step leaves to the next step in the same process, which takes them instead of loading them again.

    Args:
        attached: the model of the search, for ``tune``.
        base: for ``measure``.
        folded: the tuned model, folded where the method folds, for ``measure``.
    """

    attached: Any = None
    base: Any = None
    folded: Any = None


@dataclass(frozen=True)
class Run:
    """One run in its folder.

    Args:
        config: what the run is.
        kept: models that steps leave to each other.
    """

    config: RunConfig
    kept: Kept = field(default_factory=Kept, compare=False, repr=False)

    @classmethod
    def create(cls, config: RunConfig) -> Run:
        """Starts a run, or continues the one in the folder.

        Raises:
            ConfigError: the folder holds a run with other settings, which the message names; or with none.
        """
        join()
        run, path = cls(config), Path(config.output_dir) / CONFIG_FILE
        if not is_main():
            return run
        if (found := checkpoints(path.parent)) and not path.exists():
            raise ConfigError(f"{found[0]} is of a run, but there is no {path}; use another output folder")
        if (
            computed(path.parent)
            and path.exists()
            and (changed := changes(RunConfig.from_file(path), config, "output_dir"))
        ):
            raise ConfigError(f"{path.parent} holds another run: {', '.join(changed)}; use another output folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        config.to_file(path)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in a folder, wherever the folder has been moved to.

        Raises:
            ConfigError: the folder holds no run.
        """
        join()
        path = Path(folder) / CONFIG_FILE
        if not path.is_file():
            named = shlex.quote(str(folder))
            raise ConfigError(f"{folder} holds no {CONFIG_FILE}; start a run with `eas run --output-dir {named}`")
        return cls(RunConfig.from_file(path).with_values({"output_dir": str(folder)}))

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def base_id(self) -> str:
        """Where the base is loaded from."""
        return base_folder(self.config.model)

    @property
    def dtype(self) -> str:
        """Of the base's weights here; "auto" is as saved."""
        return chosen_dtype(self.config.dtype, self.load_config())

    @property
    def weights_dtype(self) -> str:
        """The name of what the base's weights are in here."""
        return str(loaded_dtype(self.dtype, self.load_config())).removeprefix("torch.")

    @property
    def saved_dtype(self) -> str:
        """What ``weights_dtype`` is where 16 bits are not computed in software."""
        return str(loaded_dtype(self.config.dtype, self.load_config())).removeprefix("torch.")

    def load_base(self, on_host: bool = False) -> Any:
        """The base model, freshly loaded, on the accelerator if there is one and it is not to stay on the host."""
        given: dict[str, Any] = {"revision": self.config.revision, "dtype": self.dtype}
        if self.config.bits is not None:
            compute = COMPUTE.get(self.dtype, torch.bfloat16)
            given["quantization_config"] = quantisation(self.load_config(), self.config.bits, compute)
        model = load_base(self.base_id, **given)
        if self.config.visual_tokens is not None:
            keep_visual_tokens(model, self.config.visual_tokens, self.config.visual_choice)
        return model.to("cuda" if torch.cuda.is_available() and not on_host else "cpu")

    def load_config(self) -> Any:
        """The base's own configuration."""
        with raised_as(CheckpointError):
            return model_config(self.base_id, self.config.revision, as_base=True)

    @cached_property
    def processor(self) -> Any:
        """The base's processor, or its tokenizer if it reads text only.

        Raises:
            ConfigError: a library is missing; those with a part for videos need torchvision.
        """
        sees = reads_images(self.load_config().model_type)
        given = {"revision": self.config.revision, "trust_remote_code": False}
        try:
            processor = (AutoProcessor if sees else AutoTokenizer).from_pretrained(self.base_id, **given)
        except ImportError as error:
            first = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"the processor of {self.config.model} needs a library: {first} For torchvision: pip install "
                "torchvision, where torch is for CPU with --index-url https://download.pytorch.org/whl/cpu"
            ) from error
        if (number := self.config.visual_tokens) is not None:
            fit_processor(processor, self.load_config(), number)
        return processor

    @cached_property
    def task(self) -> Task:
        """What the model does with examples."""
        return task_of(self.load_config())

    def data(self, split: str) -> Sequence[Example]:
        """The examples of "train", "validation" or "test", within the configured limit."""
        limits = {
            "train": self.config.train_limit,
            "validation": self.config.validation_limit,
            "test": self.config.test_limit,
        }
        options = {**self.task.data_options, **self.config.data_options}
        if split not in self._kept:
            accept = self.task.trial(self, split) if options.get("skip_bad") else None
            self._kept[split] = load_data(self.config.data, split, limits[split], options, accept=accept)
            benchmark = benchmark_of(self.config.data)
            if split == "test" and limits[split] is not None and benchmark is not None and benchmark.of_whole:
                warnings.warn(
                    f"test_limit = {limits[split]}: {benchmark.name}'s {benchmark.of_whole} is that of the whole test "
                    "split only; compare it with no other number, or leave test_limit out",
                    stacklevel=2,
                )
        return self._kept[split]

    def digests(self, *splits: str) -> dict[str, Digest]:
        """What these splits are told by, for a record; without those that the name of the data tells."""
        return {split: found for split in splits if (found := self.digest(split)) is not None}

    def digest(self, split: str) -> Digest | None:
        """The same of one split; None where the name tells it."""
        if self.config.data.partition(":")[0] in GENERATED:
            return None
        if split not in self._digests:
            self._digests[split] = digest(self.data(split))
        return self._digests[split]

    @cached_property
    def _digests(self) -> dict[str, Digest]:
        return {}

    @cached_property
    def _kept(self) -> dict[str, Sequence[Example]]:
        """The examples by split: under ``skip_bad`` each was opened, and tried with the processor."""
        return {}

    def record(self, step: str) -> dict[str, Any] | None:
        """What a step left, None if it has not finished.

        Raises:
            ConfigError: the file is damaged.
        """
        path = self.folder / f"{step}.json"
        if not path.exists():
            return None
        with raised_as(ConfigError):
            record: dict[str, Any] = read_record(
                path, STEP_RECORDS.get(step, dict[str, Any]), "remove it and run its step again"
            )
        return record

    def require(self, step: str) -> dict[str, Any]:
        """What a step left.

        Raises:
            ConfigError: the step has not been run.
        """
        record = self.record(step)
        if record is None:
            command = f"eas {step} {shlex.quote(str(self.folder))}"
            raise ConfigError(f"{self.folder} has no {step}.json; run `{command}` first")
        return record

    def finish(self, step: str, record: dict[str, Any]) -> None:
        """Leaves a step's record, in the main process; it is there complete or not at all."""
        if is_main():
            write_text(self.folder / f"{step}.json", json.dumps(record, indent=1) + "\n")


@contextmanager
def working(folder: str | Path) -> Iterator[None]:
    """One process, or those that were started together, works in a run folder.

    Raises:
        WriteError: another process works in it, or it cannot be written.
    """
    join()
    with claimed(Path(folder), "eas command") if is_main() else nullcontext():
        yield


def computed(folder: Path) -> list[Path]:
    """What a run has left in its folder: records, and checkpoints that it goes on from."""
    return [*folder.glob("*.json"), *checkpoints(folder)]


def checkpoints(folder: Path) -> list[Path]:
    """What ``search`` and ``tune`` go on from."""
    patterns = ("search/checkpoint-*", f"search/{STATE_FILE}", "tune/checkpoint-*")
    return [path for pattern in patterns for path in folder.glob(pattern)]


def changes(old: RunConfig, new: RunConfig, *but: str) -> list[str]:
    """The settings, but for those named, in which two runs differ, as "key = old (now new)"."""
    was, now = (_flat(config.to_dict() | {"metric": config.metric_name}) for config in (old, new))
    keys = [key for key in {**was, **now} if key not in but and was.get(key) != now.get(key)]
    return [f"{key} = {was.get(key)} (now {now.get(key)})" for key in keys]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
