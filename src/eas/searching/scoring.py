"""Losses of several skip sets on one batch: shared work runs once, and the losses are those of separate passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eas.attachment.attach import select
from eas.attachment.state import candidates
from eas.hf.api import cache_of
from eas.hf.labelled import heads_all, labelled_only
from eas.models.anatomy import Anatomy
from eas.searching.base import SkipSet

Plan = tuple[tuple[str, ...], ...]  # of every block, the parts that a set skips


@torch.no_grad()
def score_sets(model: PreTrainedModel, inputs: Mapping[str, Any], skip_sets: Sequence[SkipSet]) -> list[float]:
    """``model(**inputs).loss`` under each skip set.

    1. The part before the blocks (vision tower, projector, embeddings, masks) runs once.
    2. The sets are sorted by the parts that they skip, block by block. Each set starts at the first block in which it
       differs from the set before it; earlier blocks are shared.
    3. The head reads only the columns that predict an answer token in some row.

    The first set runs through the model's own forward pass, and hooks record the arguments of every block. For other
    sets, blocks, final norm, head and loss get the same arguments, under the same autocast. Where these do not give the
    model's logits (`eas.models.structure.TextModel.whole`: Qwen3-VL, Gemma, ...), the model runs whole for every set.

    Args:
        model: an attached model in evaluation mode, of a method that skips; keeps the last scored set.
        inputs: the model's arguments, with ``labels`` ``(batch, tokens)``; no cache.
        skip_sets: at least one.

    Returns:
        The losses, in the order of the sets.

    Raises:
        ValueError: the model is in training mode, there are no labels, a cache is given, or the model
            changes the hidden states between its blocks, so that the blocks cannot be called one by one.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before scoring")
    if inputs.get("labels") is None or cache_of(inputs) is not None:
        raise ValueError("scoring needs labels, and takes no cache")
    if Anatomy.of(model).form == "coattention":
        return _score_behind_towers(model, inputs, skip_sets)
    if Anatomy.of(model).built.whole:
        return _score_whole(model, inputs, skip_sets)
    anatomy, head = Anatomy.of(model), model.get_output_embeddings()
    blocks, norm = list(anatomy.layers), anatomy.text_model.get_submodule(anatomy.built.final)
    plans = [_plan(model, skip_set) for skip_set in skip_sets]
    order = sorted(dict(zip(plans, skip_sets, strict=True)).items())
    starts = [0, *(_shared(a, b) for (a, _), (b, _) in pairwise(order))]
    given = labelled_only({**inputs, "use_cache": False}, heads_all(model))
    columns, targets = given["logits_to_keep"], given["shift_labels"]
    called: list[dict[str, Any]] = []  # what each block was called with, hidden states aside
    states: dict[int, Tensor] = {}  # hidden states before the blocks at which later sets set out
    last: Tensor | None = None
    autocast: dict[str, Any] = {}

    def before_block(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        if len(args) != 1 or (called and args[0] is not last):
            raise ValueError(f"{type(model).__name__} changes hidden states between blocks; score one set at a time")
        called.append(kwargs)
        device = args[0].device.type  # accelerate may wrap the model's forward, and nothing else, in autocast
        autocast.update(device_type=device, dtype=torch.get_autocast_dtype(device))
        autocast.update(enabled=torch.is_autocast_enabled(device))

    def after_block(module: Any, args: Any, output: Tensor) -> None:
        nonlocal last
        last = output

    def keep(module: Any, args: tuple[Tensor, ...]) -> None:
        states[module.index] = args[0]

    kept = [blocks[i].register_forward_pre_hook(keep) for i in {*starts[1:]}]
    seen = [block.register_forward_pre_hook(before_block, with_kwargs=True) for block in blocks]
    seen += [block.register_forward_hook(after_block) for block in blocks]
    losses: dict[Plan, float] = {}
    try:
        select(model, order[0][1])
        output = model(**given)
        losses[order[0][0]] = float(output.loss)
        for hook in seen:
            hook.remove()
        if len(called) != len(blocks):
            raise ValueError(
                f"{type(model).__name__} ran {len(called)} blocks of {len(blocks)}; score one set at a time"
            )
        vocabulary = model.config.get_text_config().vocab_size
        with torch.autocast(**autocast):
            for (plan, skip_set), start in zip(order[1:], starts[1:], strict=True):
                select(model, skip_set)
                hidden = states[start]
                for block, kwargs in zip(blocks[start:], called[start:], strict=True):
                    hidden = block(hidden, **kwargs)
                logits = head(norm(hidden)[:, columns])
                loss = model.loss_function(logits, None, vocabulary, shift_labels=targets)
                losses[plan] = float(loss)
    finally:
        for hook in (*seen, *kept):
            hook.remove()
    return [losses[plan] for plan in plans]


def _score_behind_towers(model: Any, inputs: Mapping[str, Any], skip_sets: Sequence[SkipSet]) -> list[float]:
    """METER: the towers run once, the rest runs for every set, because layers of both modalities feed each other."""
    labels = {key: value for key, value in inputs.items() if key.endswith("labels")}
    encoded, losses = model.encode(**{key: value for key, value in inputs.items() if key not in labels}), []
    for skip_set in skip_sets:
        select(model, skip_set)
        losses.append(float(model.head(encoded, **labels).loss))
    return losses


def _score_whole(model: Any, inputs: Mapping[str, Any], skip_sets: Sequence[SkipSet]) -> list[float]:
    """One pass of the whole model for every set."""
    given, losses = labelled_only({**inputs, "use_cache": False}, heads_all(model)), []
    for skip_set in skip_sets:
        select(model, skip_set)
        losses.append(float(model(**given).loss))
    return losses


def loss_weight(model: PreTrainedModel, inputs: Mapping[str, Any]) -> int:
    """How many losses a batch's mean loss is of: its answer tokens; its examples where the model generates nothing."""
    labels: Tensor = inputs["labels"]
    return int((labels[:, 1:] != -100).sum()) if model.can_generate() else len(labels)


def block_evaluations(model: PreTrainedModel, skip_sets: Sequence[SkipSet]) -> int:
    """How many blocks ``score_sets`` evaluates; one by one it is the number of sets times the number of blocks."""
    plans = {_plan(model, skip_set) for skip_set in skip_sets}
    return len({plan[: i + 1] for plan in plans for i in range(len(plan))})


def _plan(model: PreTrainedModel, skip_set: SkipSet) -> Plan:
    known = candidates(model)
    parts: list[tuple[str, ...]] = [()] * len(Anatomy.of(model).layers)
    for block, skipped in (known[i] for i in sorted(skip_set)):
        parts[block.index] += skipped
    return tuple(parts)


def _shared(a: Plan, b: Plan) -> int:
    """How many blocks two sets have in common before the first in which they differ."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=True)))
