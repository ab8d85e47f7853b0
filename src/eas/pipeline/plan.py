"""The length of a phase: its steps from the size of the data, and the same in epochs and minutes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from eas.config import SkipConfig
from eas.pipeline.run import Run
from eas.training import EASTrainer, Phase, search_steps

EPOCHS, FEWEST, MOST = 3.0, 100, 6000
"""Of a tune phase."""


@dataclass(frozen=True)
class Plan:
    """The plan of a phase.

    Args:
        phase: "search" or "tune".
        steps: of the optimizer.
        batch: examples of a step, of all processes.
        examples: in the training split.
        rounds: of a search that does not train; None where steps train.
    """

    phase: Phase
    steps: int
    batch: int
    examples: int
    rounds: int | None = None

    @property
    def epochs(self) -> float:
        return self.steps * self.batch / self.examples

    def __str__(self) -> str:
        if self.rounds is not None:
            return f"{self.phase}: {self.rounds} rounds, and nothing is trained"
        return f"{self.phase}: {self.steps} steps of {self.batch} examples, {self.epochs:.3g} epochs of {self.examples}"


def plan(run: Run, phase: Phase) -> Plan:
    """The configured steps, or those that the size of the data asks for.

    A search takes 1.5 epochs, but at least its warm-up and 30 rounds, and at most 2000 steps. A search that does not
    train takes 20 rounds with rule ``guided``, 40 with others. A tune phase takes 3 epochs, at least 100 and at most
    6000 steps.
    """
    train, search = run.config.train, run.config.search
    examples, processes = len(run.data("train")), dist.get_world_size() if dist.is_initialized() else 1
    batch = train.batch_size * train.accumulation * processes
    if phase == "tune":
        steps = train.tune_steps or max(FEWEST, min(math.ceil(EPOCHS * examples / batch), MOST))
        return Plan(phase, steps, batch, examples)
    assert isinstance(run.config.method, SkipConfig)  # others need no search
    trains = search.trains(run.config.method)
    steps = train.search_steps or search_steps(search, examples, batch, trains)
    return Plan(phase, steps, batch, examples, None if trains else len(search.rounds_in(steps)))


def estimate(run: Run, trainer: EASTrainer, planned: Plan) -> str:
    """How long the phase will take, by one step that is timed and leaves nothing behind.

    Returns:
        "about 3 min", or nothing where several processes train together.
    """
    if dist.is_initialized():
        return ""
    step = _seconds_of_a_step(run, trainer)
    seconds = planned.steps * step
    if planned.phase == "search":
        search = run.config.search
        rounds = len(search.rounds_in(planned.steps))
        scored = rounds * search.samples * search.batch_size / planned.batch  # in batches, which go forward only
        seconds = (seconds if planned.rounds is None else 0.0) + scored * step / 3
    return f"about {duration(seconds)}"


def duration(seconds: float) -> str:
    """As one says it: in seconds, minutes or hours."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _seconds_of_a_step(run: Run, trainer: EASTrainer) -> float:
    model, data, train = trainer.model, run.data("train"), run.config.train
    examples = [data[i] for i in typical_batch(trainer.lengths or [1] * len(data), train.batch_size)]
    start, training = time.perf_counter(), model.training
    with torch.random.fork_rng(), trainer.accelerator.autocast():  # what is drawn here is drawn again
        model.train()  # before the batch: training reads the head at answers alone
        loss = trainer.compute_loss(model, trainer.on_device(trainer.data_collator(examples)))
        loss.backward()
        loss.detach().item()  # waits for the accelerator
    model.zero_grad(set_to_none=True)
    model.train(training)
    return (time.perf_counter() - start) * train.accumulation


def typical_batch(lengths: Sequence[int], size: int) -> list[int]:
    """Of batches of about one length, that whose longest example is nearest to the mean of all batches' longest.

    Args:
        lengths: of the examples.
        size: of a batch. Fewer examples are taken several times.

    Example:
        >>> typical_batch([2, 900, 3, 1, 20, 10, 4, 800], 2)  # the longest are 2, 4, 20 and 900
        [5, 4]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    longest = {first: lengths[order[first : first + size][-1]] for first in range(0, len(order), size)}
    mean = sum(longest.values()) / len(longest)
    first = min(longest, key=lambda first: abs(longest[first] - mean))
    return [order[(first + i) % len(order)] for i in range(size)]
