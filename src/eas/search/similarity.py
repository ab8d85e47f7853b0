"""How much a module changes what passes through it: the cosine of its input and output (LLM-Drop's redundancy)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eas.config import ConfigError
from eas.models.anatomy import Anatomy
from eas.surgery import candidates, select


@torch.no_grad()
def cosines(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> list[float]:
    """For every candidate of an attached model, nothing skipped: mean cosine of the residual stream before and after.

    Args:
        model: an attached model of a method that skips; is left with nothing skipped.
        batches: what the model is called with, ``attention_mask`` included; padding does not count.

    Returns:
        One cosine per candidate; near 1 is redundant.
    """
    if Anatomy.of(model).form != "decoder":
        raise ConfigError("rule 'similarity' reads the residual stream of a decoder; use another on METER")
    select(model, [])
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
