"""`lmms-eval --model eas --model_args pretrained=RUN`: lmms-eval finds this model by its entry point."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from eas.config import ConfigError
from eas.errors import DataError
from eas.example import Example
from eas.progress import track

MANIFEST = ModelManifest("eas", simple_class_path=f"{__name__}.EASModel")
MAX_NEW_TOKENS = 1024
"""Of an answer, where the task names no number; as in lmms-eval's own models."""


class EASModel(lmms):  # type: ignore[misc]
    """A tuned model, folded, with the prompts of tuning: an example's images and its text are one turn of the user.

    Args:
        pretrained: folder of a run, an adapter, a standalone model or a base.
        base: folder or Hub id of an adapter's base; by default what the adapter or the run names.
        processor: folder or Hub id of the tokenizer or processor; by default the base's.
        dtype: of the weights; by default the run's, or the base's own: float32 where the CPU computes 16 bits in
            software.
        batch_size: examples at a time.
        max_batch_size: not used.
        device: by default the accelerator, if there is one.

    Raises:
        ConfigError: the model generates no text, or has no processor; several processes; no number of a batch.
        CheckpointError: the folder is damaged, or its base is not found.
    """

    def __init__(
        self,
        pretrained: str,
        base: str | None = None,
        processor: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        from eas.pipeline.serve import served

        super().__init__()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError("lmms-eval's model eas runs in one process; start it without torchrun or accelerate")
        if not str(batch_size).isdecimal():
            raise ConfigError(f"batch_size = {batch_size!r}: expected a number")
        self.size = int(batch_size)
        self.model, self.processor = served(str(pretrained), base, processor, dtype)
        if device is not None:
            self.model.to(device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, each up to the first of the task's ends.

        Raises:
            ConfigError: the task asks for samples or beams.
            DataError: an example has something else than texts and images.
        """
        from eas.tasks.evaluation import answer

        found = []
        for batch in self._batches(requests, lambda request: str(request.args[1])):
            options = batch[0].args[1]
            if options.get("temperature") or options.get("do_sample") or options.get("num_beams", 1) != 1:
                raise ConfigError(
                    f"{batch[0].task_name} asks for {options}, but eas answers greedily; "
                    "add --gen_kwargs temperature=0,do_sample=False,num_beams=1"
                )
            until = options.get("until") or []
            ends = [end for end in ([until] if isinstance(until, str) else until) if end]
            longest = int(options.get("max_new_tokens", MAX_NEW_TOKENS))
            examples = [self._example(request) for request in batch]
            given = answer(self.model, self.processor, examples, batch_size=len(batch), max_new_tokens=longest)
            found += [min((text.split(end)[0] for end in ends), key=len, default=text) for text, _ in given]
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Of each continuation a number, and whether it is the greedy answer, each with the end token behind it.

        Returns:
            the number of a choice is its mean loss, as in lmms-eval's own models, since lmms-eval takes the choice
            whose number is smallest. In tasks without choices it is the log-probability, which lmms-eval makes a
            perplexity of.

        Raises:
            DataError: an example has something else than texts and images.
        """
        from eas.hf.labelled import answer_logits
        from eas.tasks.collate import Collator

        collate, found = Collator(self.processor, training=True), []
        for batch in self._batches(requests, _of_choice):
            inputs = collate([self._example(request, self._target(request)) for request in batch])
            inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items() if name != "prompt_mask"}
            with torch.inference_mode():
                logits, targets = answer_logits(self.model, inputs)
            answered = targets != -100
            chosen = logits.log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
            sums = (chosen * answered).sum(1)
            greedy = ((logits.argmax(-1) == targets) | ~answered).all(1)
            for request, total, tokens, same in zip(batch, sums, answered.sum(1), greedy, strict=True):
                pair = float(-total / tokens if _of_choice(request) else total), bool(same)
                found.append(GenerationResult(pair))  # of a bare pair lmms-eval 0.7.3 makes a text
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: tuning knows no such tasks."""
        raise ConfigError(f"{requests[0].task_name} asks in several rounds, which eas does not answer")

    def _batches(self, requests: Sequence[Instance], kind: Callable[[Instance], object]) -> Iterator[list[Instance]]:
        """In their order; those of one batch are of one kind."""
        chunks = []
        for _, group in groupby(requests, key=kind):
            same = list(group)
            chunks += [same[at : at + self.size] for at in range(0, len(same), self.size)]
        yield from track(chunks, "answering")

    def _example(self, request: Instance, target: str = "") -> Example:
        text, _, visuals_of, number, task, split = request.args
        images = visuals_of(self.task_dict[task][split][number]) or []
        if other := {type(image).__name__ for image in images if not isinstance(image, Image.Image)}:
            raise DataError(f"{task}, example {number}: it has {', '.join(other)}; eas reads texts and images")
        return Example.ask(f"{task}-{number}", text, target, *images)

    def _target(self, request: Instance) -> str:
        _, target, _, number, task, split = request.args
        text = target if isinstance(target, str) else target(self.task_dict[task][split][number])
        return str(text).strip()  # lmms-eval puts a space between prompt and answer, tuning none


def _of_choice(request: Instance) -> bool:
    return isinstance(request.args[1], str)
