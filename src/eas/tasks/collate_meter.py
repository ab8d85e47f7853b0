"""From examples to METER's inputs: questions with soft scores, sentences with two images, captions beside others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eas.data import load_data
from eas.example import DataError, Example
from eas.metrics.vqa import answer_vocabulary, soft_targets
from eas.tasks.collate import naming

TASKS = ("vqa", "nlvr2", "retrieval")


def answer_classes(folder: str) -> dict[str, int]:
    """VQA's classes by answer: the frequent ones of train2014 and val2014, 3,129 in all of VQA v2.0. No image is read.

    Args:
        folder: VQA v2.0 in its official layout.
    """
    splits = [load_data(f"vqa2:{folder}", split, images=False) for split in ("train2014", "val2014")]
    return answer_vocabulary(example.target for split in splits for example in split)


@dataclass(frozen=True)
class MeterCollator:
    """Makes a batch of B examples of one of METER's tasks.

    Args:
        processor: a ``MeterProcessor``.
        task: "vqa" (VQA v2.0, with ``prompt`` "question"), "nlvr2" or "retrieval" (Flickr30K).
        vocabulary: VQA's classes by answer (``eas.metrics.vqa.answer_vocabulary``; a model's ``config.label2id``).
        captions: what retrieval draws other images' captions from, usually all of the training split.
        negatives: how many of them stand beside an image's own.
    """

    processor: Any
    task: str
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    captions: Sequence[Example] = ()
    negatives: int = 15

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task {self.task!r}: use one of {', '.join(TASKS)}")
        if self.task == "vqa" and not self.vocabulary:
            raise ValueError("vqa needs its vocabulary of answers; see eas.metrics.vqa.answer_vocabulary")

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (B x T; B x texts x T for retrieval), ``pixel_values`` and ``labels``.

        Raises:
            DataError: an example has another number of images, there are no captions of other images, or the processor
                refuses an example.
        """
        images = [example.load_images() for example in examples]
        wanted = 2 if self.task == "nlvr2" else 1
        for example, found in zip(examples, images, strict=True):
            if len(found) != wanted:
                raise DataError(f"example {example.id}: {len(found)} images, where METER's {self.task} has {wanted}")
        texts = [self._texts(example) for example in examples]
        try:
            batch = dict(
                self.processor([image for found in images for image in found], [t for text in texts for t in text])
            )
        except Exception:  # it raises whatever its libraries do
            for example, found, text in zip(examples, images, texts, strict=True):
                with naming(example, "the processor"):
                    self.processor(found, text)
            raise
        if self.task == "nlvr2":
            batch["pixel_values"] = batch["pixel_values"].unflatten(0, (-1, 2))
            labels = torch.tensor([int(example.target == "True") for example in examples])
        elif self.task == "retrieval":
            batch |= {key: batch[key].unflatten(0, (len(examples), -1)) for key in ("input_ids", "attention_mask")}
            labels = torch.zeros(len(examples), dtype=torch.long)
        else:
            labels = torch.zeros(len(examples), len(self.vocabulary))
            for row, example in zip(labels, examples, strict=True):
                for answer, score in soft_targets(example.metadata["answers"], self.vocabulary).items():
                    row[answer] = score
        return {**batch, "labels": labels}

    def _texts(self, example: Example) -> list[str]:
        """The question or sentence; the image's caption and others'."""
        if self.task != "retrieval":
            return [example.question]
        texts, tries = [example.target], 0
        while len(texts) <= self.negatives:
            tries += 1
            if not self.captions or tries > 100 * self.negatives:
                raise DataError(f"example {example.id}: there are no captions of other images to compare with its own")
            other = self.captions[int(torch.randint(len(self.captions), ()))]
            if other.metadata["image"] != example.metadata["image"]:
                texts.append(other.target)
        return texts
