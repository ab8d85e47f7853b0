"""Batches of examples of about one length, which hold less padding than random ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from eas.example import Example

IMAGE = 2000
"""Characters of text that an image counts as; so examples with and without images come in batches of their own."""
SORTED = 32
"""At most so many batches have their examples sorted together; more would make what a batch holds less random."""
TRIED = 512
"""Examples whose lengths decide whether grouping pays."""


def rough_length(example: Example) -> int:
    """The length of an example in characters, known without its tokens.

    Example:
        >>> from eas.example import Example
        >>> asked = {"role": "user", "content": [{"type": "text", "text": "what is it ?"}]}
        >>> rough_length(Example("1", (asked,), "a cat"))
        17
    """
    texts = (part["text"] for message in example.messages for part in message["content"] if part["type"] == "text")
    return sum(map(len, texts)) + len(example.target) + IMAGE * len(example.images)


def padded(lengths: Sequence[int], batch: int) -> float:
    """The length of random batches, padding included, divided by the length of the examples themselves.

    Example:
        >>> padded([3, 3, 3, 3], 2)
        1.0
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [[lengths[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
    read: int = sum(max(each) * len(each) for each in batches)
    return read / max(1, sum(lengths))


def grouped_lengths(examples: Sequence[Example], batch: int, wanted: bool | None) -> list[int]:
    """The lengths of the examples, if their batches are to be grouped by length; or none.

    Args:
        examples: for training.
        batch: examples of a batch.
        wanted: whether to group them; None: if random batches would be a third padding.
    """
    if wanted is None:
        some = [rough_length(examples[i]) for i in range(min(TRIED, len(examples)))]
        wanted = padded(some, batch) > 1.5
    return [rough_length(examples[i]) for i in range(len(examples))] if wanted else []


class GroupedByLength(Sampler[int]):
    """An epoch's order in which each batch holds examples of about one length; the batches come in random order.

    Seed and epoch decide the order, so a training that was stopped continues with the same batches.

    Args:
        lengths: of the examples, in any unit.
        batch: examples of a batch.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by ``Trainer`` before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        # never all at once, or a small set would have the same batches every epoch
        several = self.batch * max(1, min(SORTED, len(order) // self.batch // 2))
        sorted_ = [
            i
            for at in range(0, len(order), several)
            for i in sorted(order[at : at + several], key=self.lengths.__getitem__)
        ]
        batches = [sorted_[at : at + self.batch] for at in range(0, len(sorted_), self.batch)]
        whole = [each for each in batches if len(each) == self.batch]  # the one that is not whole stays the last
        shuffled = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        return iter([i for each in (*shuffled, *batches[len(whole) :]) for i in each])
