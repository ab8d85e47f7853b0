"""How much a module changes what passes through it: the cosine of its input and output (LLM-Drop's redundancy)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eas.models.anatomy import Anatomy
from eas.surgery import candidates, select


@torch.no_grad()
def cosines(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> list[float]:
    """For every candidate of an attached model, nothing skipped: mean cosine of the residual stream before and after.

    In METER, which is post-norm, of what came in and what its norm gives.

    Args:
        model: an attached model of a method that skips; is left with nothing skipped.
        batches: what the model is called with, ``attention_mask`` included; padding does not count.

    Returns:
        One cosine per candidate; near 1 is redundant.
    """
    select(model, [])
    if Anatomy.of(model).form == "coattention":
        return _of_coattention(model, batches)
    layers = list(Anatomy.of(model).layers)
    stream: dict[tuple[int, str], Tensor] = {}

    def keep(key: tuple[int, str]) -> Any:
        return lambda module, args: stream.__setitem__(key, args[0].float())

    def keep_output(key: tuple[int, str]) -> Any:
        return lambda module, args, output: stream.__setitem__(key, output.float())

    hooks = []
    for i, layer in enumerate(layers):
        hooks.append(layer.input_layernorm.register_forward_pre_hook(keep((i, "before"))))
        hooks.append(layer.post_attention_layernorm.register_forward_pre_hook(keep((i, "between"))))
        hooks.append(layer.register_forward_hook(keep_output((i, "after"))))
    ends = {("mha",): ("before", "between"), ("ffn",): ("between", "after"), ("mha", "ffn"): ("before", "after")}
    total, tokens = torch.zeros(len(candidates(model))), 0
    try:
        for batch in batches:
            model(**batch)
            mask = batch["attention_mask"].bool()
            tokens += int(mask.sum())
            for c, (block, parts) in enumerate(candidates(model)):
                first, last = ends[parts]
                pair = stream[block.index, first], stream[block.index, last]
                total[c] += torch.cosine_similarity(*pair, dim=-1)[mask].sum().cpu()
    finally:
        for hook in hooks:
            hook.remove()
    return [float(value) for value in total / tokens]


def _of_coattention(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> list[float]:
    """The first half of the candidates are the text's, whose padding does not count; an image meets every text, and of
    several images each counts."""
    blocks: list[Any] = [block for block, _ in candidates(model)]
    total, tokens = torch.zeros(len(blocks)), torch.zeros(len(blocks))
    mask = torch.empty(0)

    def add(c: int, before: Tensor, after: Tensor) -> None:
        cosine = torch.cosine_similarity(before.float(), after.float(), dim=-1)
        counted = cosine[mask] if c < len(blocks) // 2 else cosine
        total[c] += counted.sum().cpu()
        tokens[c] += counted.numel()

    def watch(c: int, module: Any, before: int) -> Any:
        return module.register_forward_hook(lambda _, args, output: add(c, args[before], output))

    layers: set[Any] = set(Anatomy.of(model).layers)
    hooks = [  # an attention's end is called with what the attention gave and with what came in
        watch(c, block, 0) if block in layers else watch(c, block.output, 1) for c, block in enumerate(blocks)
    ]
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool().flatten(0, -2)
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [float(value) for value in total / tokens]
