"""The task of a run, by the class of its model: prompts and generated answers, or one of METER's tasks.

Only ``task_of`` distinguishes them; all other code asks ``run.task``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from eas.config import ConfigError, MethodConfig, SkipConfig
from eas.data import benchmark_of
from eas.example import Example
from eas.hf.api import no_init_weights
from eas.methods import method_of, require_fit
from eas.metrics import LOSS_ONLY
from eas.models.anatomy import Anatomy, auto_class
from eas.tasks.answer_length import ENOUGH, Cut, cut
from eas.tasks.collate import Collator
from eas.tasks.collate_meter import MeterCollator
from eas.tasks.evaluation import Evaluation, evaluate, score_answers
from eas.tasks.evaluation_forms import Meant, meant
from eas.tasks.evaluation_meter import evaluate_meter, score_retrieval

Batch = dict[str, Tensor]
Size = tuple[int, int, tuple[int, int] | None]
"""What ``count`` asks of a prompt: tokens, images, the grid of patches."""


class Run(Protocol):
    """What a task reads of a run (`eas.pipeline.run.Run`)."""

    @property
    def config(self) -> Any: ...

    @property
    def folder(self) -> Path: ...

    @property
    def processor(self) -> Any: ...

    def data(self, split: str) -> Sequence[Example]: ...

    def load_config(self) -> Any: ...


class Task:
    """Models that generate their answers."""

    form = "decoder"
    data_options: Mapping[str, Any] = {}

    def check(self, run: Run) -> None:
        """Refuses what such a model cannot do, before anything is loaded.

        Raises:
            ConfigError: the message names the key.
        """
        if run.config.bits is not None and find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"bits = {run.config.bits}: bitsandbytes is missing; pip install 'eas[quantised]', or leave bits out"
            )

    def check_generation(self, run: Run) -> None:
        """Refuses to answer a prompt.

        Raises:
            ConfigError: the model generates nothing.
        """

    def collator(self, run: Run) -> Callable[[Sequence[Example]], Batch]:
        """Makes the batches that the model is trained on and its skip sets are scored on."""
        train = run.config.train
        return Collator(run.processor, training=True, max_length=train.max_length, cut=train.cut)

    def trial(self, run: Run, split: str) -> Callable[[Example], Batch]:
        """Tries whether the model's processor and chat template take an example as training would give it to them.

        A test example may be longer than ``max_length``: it is not trained on.
        """
        train = run.config.train
        most = None if split == "test" else train.max_length
        collate = Collator(run.processor, training=True, max_length=most, cut=train.cut)
        return lambda example: collate([example])

    def check_metric(self, run: Run) -> None:
        """Scores an empty answer to every example, so that a metric asks for what it needs before anything is computed.

        Raises:
            DataError: the metric does not fit the data.
        """
        config = run.config
        for split in ("validation", "test") if config.metric_name != LOSS_ONLY else ():
            examples = run.data(split)
            empty = {example.id: "" for example in examples}
            score_answers(config.metric_name, examples, empty, config.data_options)

    def inputs(self, run: Run, examples: Sequence[Example]) -> Batch:
        """What the model is called with to answer."""
        batch = Collator(run.processor, training=False)(examples)
        return {key: value for key, value in batch.items() if key != "prompt_mask"}

    def first(self, run: Run, split: str) -> tuple[Batch, Size]:
        """The inputs of a split's first example, and their size."""
        example = run.data(split)[0]
        inputs = self.inputs(run, [example])
        return inputs, (inputs["input_ids"].shape[-1], *seen(inputs, run.load_config()))

    def evaluate(self, run: Run, model: Any, split: str, name: str, batch_size: int, title: str = "") -> Evaluation:
        """Answers a split and scores the answers by the run's metric.

        Args:
            run: the run of the task.
            model: base, attached or folded.
            split: "validation" or "test".
            name: of the model in the run's records.
            batch_size: examples at a time.
            title: the progress bar's; none without one.
        """
        config = run.config
        return evaluate(
            model,
            run.processor,
            run.data(split),
            metric=config.metric_name,
            batch_size=batch_size,
            max_new_tokens=self.answer_limit(run),
            title=title,
            options=config.data_options,
        )

    def answer_limit(self, run: Run) -> int:
        """Tokens at which an answer ends: the run's, or enough for every answer of the data."""
        given: int | None = run.config.max_new_tokens
        if given is not None:
            return given
        cuts = self._cuts(run, ENOUGH).values()
        return max((one.longest for one in cuts if one.score < one.whole), default=ENOUGH)

    def told_of_length(self, run: Run) -> str:
        """What to say of long answers, or of a limit that even perfect answers lose by; else empty."""
        if (limit := run.config.max_new_tokens) is None:
            needed = self.answer_limit(run)
            long = f"answers may have {needed} tokens, as the longest one of the data; -o max_new_tokens=N sets fewer"
            return long if needed > ENOUGH else ""
        cuts = self._cuts(run, limit)
        split, worst = max(cuts.items(), key=lambda named: named[1].whole - named[1].score)
        if worst.score >= worst.whole:
            return ""
        enough = max(one.longest for one in cuts.values())
        return (
            f"answers are cut at max_new_tokens = {limit}: the {split} split's own answers would score "
            f"{worst.score:.1%} so, and {worst.whole:.1%} whole; -o max_new_tokens={enough} is enough"
        )

    def _cuts(self, run: Run, limit: int) -> dict[str, Cut]:
        config = run.config
        return {
            split: cut(run.data(split), run.processor, limit, config.metric_name, config.data_options)
            for split in ("validation", "test")
        }

    def meant(self, run: Run, model: Any, split: str, found: Evaluation, batch_size: int, title: str = "") -> Meant:
        """A zero-shot evaluation with the form of its answers forgiven; see `eas.tasks.evaluation_forms.meant`."""
        config = run.config
        return meant(
            model,
            run.processor,
            run.data(split),
            found,
            metric=config.metric_name,
            batch_size=batch_size,
            title=title,
            options=config.data_options,
        )

    def new_tokens(self, run: Run) -> int:
        """Decode steps that are timed; 0: nothing decodes."""
        return int(run.config.benchmark_new_tokens)

    def layers(self, config: Any) -> int:
        """How many layers a model of this configuration has that the methods work on."""
        layers: int = config.get_text_config().num_hidden_layers
        return layers

    def num_candidates(self, config: Any, method: MethodConfig) -> int:
        """Of how many of them, or of their parts, a method skips some; of attentions, where it skips nothing."""
        kind = candidates_of(method)
        return len(_on_meta(config).blocks(kind)) * (2 if kind == "either" else 1)

    def candidate_layers(self, config: Any, method: MethodConfig) -> list[int] | None:
        """In hybrids the layer of each of them, in the order of their numbers; None where every layer has one."""
        return _on_meta(config).numbered(candidates_of(method))


def candidates_of(method: MethodConfig) -> str:
    """What a method skips; attentions, where it skips nothing."""
    return method.candidates if isinstance(method, SkipConfig) else "mha"


def _on_meta(config: Any) -> Anatomy:
    """The parts of a model without its weights: in hybrids not every layer has an attention."""
    with torch.device("meta"), no_init_weights():
        return Anatomy.of(auto_class(config.model_type).from_config(config))


def seen(inputs: Mapping[str, Tensor], config: Any) -> tuple[int, tuple[int, int] | None]:
    """How many images the vision tower gets, each tile of a split image one of them; and the height and width of the
    first in patches, where the tower reads images of any size.

    Args:
        inputs: the processor's, of one example.
        config: the model's configuration.
    """
    pixels = inputs.get("pixel_values", inputs.get("image_pixel_values"))
    if pixels is None:
        return 0, None
    if "image_grid_thw" in inputs:
        sizes = inputs["image_grid_thw"][:, 1:]
    elif "spatial_shapes" in inputs:  # LFM2-VL
        sizes = inputs["spatial_shapes"]
    elif "image_position_ids" in inputs:  # Gemma 4: x and y of every patch
        sizes = inputs["image_position_ids"].amax(1).flip(-1) + 1
    elif "image_sizes" in inputs and pixels.ndim == 4:  # Pixtral; LLaVA-NeXT has its sizes beside tiles
        sizes = inputs["image_sizes"] // config.vision_config.patch_size
    else:
        return pixels.shape[:-3].numel(), None
    height, width = sizes[0].tolist()
    return len(sizes), (height, width)


@dataclass(frozen=True)
class MeterTask(Task):
    """METER with the head of a task.

    Args:
        name: of the task, as ``MeterCollator`` names it.
        benchmark: the data that it is about; empty for a head that has none.
        data_options: how METER reads it, where the run does not say otherwise.
    """

    name: str
    benchmark: str
    data_options: Mapping[str, Any] = field(default_factory=dict)

    form = "coattention"

    def check(self, run: Run) -> None:
        config, benchmark = run.config, benchmark_of(run.config.data)
        if config.bits is not None:
            raise ConfigError(f"bits = {config.bits}: METER is not quantised; leave bits out")
        if not self.benchmark:
            raise ConfigError(
                f"model = {config.model!r}: METER's pretraining head has no task to tune for; convert the checkpoint "
                "with --task vqa, nlvr2 or retrieval (docs/meter.md)"
            )
        if benchmark is None or benchmark.name != self.benchmark:
            raise ConfigError(
                f"data = {config.data!r}: this METER's head is for {self.name}; give {self.benchmark}:FOLDER, or "
                "convert the checkpoint for another task (docs/meter.md)"
            )
        if config.metric not in (None, self.benchmark):
            raise ConfigError(f"metric = {config.metric!r}: METER's {self.name} is scored officially; leave metric out")
        if config.train.max_length is not None:
            raise ConfigError(
                "train.max_length: METER's processor cuts texts itself, at its max_text_length; leave it out"
            )
        method = method_of(self.form, config.method.name)
        require_fit(self.form, config.method)
        if not method.fold_modes and config.fold_mode is not None:
            raise ConfigError(
                f"fold_mode = {config.fold_mode!r}: on METER {config.method.name} cannot be folded; leave fold_mode out"
            )
        classes = run.load_config().num_answers
        if self.name == "vqa" and sorted(self._answers(run).values()) != [*range(classes)]:
            raise ConfigError(
                f"model = {config.model!r}: its configuration does not name the {classes} answers of its head; convert "
                "the checkpoint with --answers VQA_FOLDER (docs/meter.md)"
            )

    def check_generation(self, run: Run) -> None:
        raise ConfigError(
            f"{run.folder}: METER chooses among classes or scores pairs, it generates no text; `eas eval` scores it, "
            "and docs/meter.md shows how to call it"
        )

    def collator(self, run: Run) -> Callable[[Sequence[Example]], Batch]:
        captions = run.data("train") if self.name == "retrieval" else ()
        return MeterCollator(run.processor, self.name, self._answers(run), captions)

    def trial(self, run: Run, split: str) -> Callable[[Example], Batch]:
        collate = MeterCollator(run.processor, self.name, self._answers(run), negatives=0)
        return lambda example: collate([example])

    def check_metric(self, run: Run) -> None:
        if self.name != "retrieval":  # which scores a matrix, not answers
            super().check_metric(run)

    def inputs(self, run: Run, examples: Sequence[Example]) -> Batch:
        batch = MeterCollator(run.processor, self.name, self._answers(run), negatives=0)(examples)
        return {key: value for key, value in batch.items() if key != "labels"}

    def evaluate(self, run: Run, model: Any, split: str, name: str, batch_size: int, title: str = "") -> Evaluation:
        """As everywhere; retrieval leaves its matrix of scores in the run's folder, for ``eas eval --predictions``."""
        examples = run.data(split)
        if self.name == "retrieval":
            path = run.folder / "scores" / f"{split}-{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            report = score_retrieval(model, run.processor, examples, path, pairs=batch_size, title=title)
            return Evaluation(report.score, {}, report)
        return evaluate_meter(model, run.processor, examples, self.benchmark, batch_size=batch_size, title=title)

    def told_of_length(self, run: Run) -> str:
        return ""  # it generates none

    def meant(self, run: Run, model: Any, split: str, found: Evaluation, batch_size: int, title: str = "") -> Meant:
        return Meant(found, found.score)  # it chooses among the answers

    def new_tokens(self, run: Run) -> int:
        return 0

    def layers(self, config: Any) -> int:
        return 2 * int(config.coattention_config.num_hidden_layers)

    def num_candidates(self, config: Any, method: MethodConfig) -> int:
        layerwise = isinstance(method, SkipConfig) and method.candidates == "layer"
        return self.layers(config) * (1 if layerwise else 2)  # self and cross attention

    def _answers(self, run: Run) -> Mapping[str, int]:
        """VQA's classes by answer, as the model's configuration names them."""
        answers: Mapping[str, int] = run.load_config().label2id
        return answers


METER = {
    "MeterForVisualQuestionAnswering": MeterTask("vqa", "vqa2", {"prompt": "question"}),
    "MeterForNLVR2": MeterTask("nlvr2", "nlvr2"),
    "MeterForImageTextRetrieval": MeterTask("retrieval", "flickr30k"),
    "MeterForPreTraining": MeterTask("pretraining", ""),
}
"""By the class of the model with its head."""


def task_of(config: Any) -> Task:
    """What a model of this configuration is for."""
    architecture = (config.architectures or [""])[0]
    return METER.get(architecture, Task())
