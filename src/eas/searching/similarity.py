"""The similarity of a module's input and output, as their cosine (LLM-Drop's redundancy)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eas.attachment.attach import select
from eas.attachment.state import candidates
from eas.hf.labelled import heads_all, labelled_only
from eas.models.anatomy import Anatomy


def cosines(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> list[float]:
    """For every candidate of an attached model, nothing skipped: mean cosine of the residual stream before and after.

    In METER, which is post-norm, of what came in and what its norm gives.

    Args:
        model: an attached model of a method that skips; is left with nothing skipped.
        batches: what the model is called with; padding, as ``attention_mask`` tells, does not count. Where there are
            ``labels`` the head runs on their positions only.

    Returns:
        One cosine per candidate; near 1 is redundant.
    """
    total, tokens = cosine_sums(model, batches)
    return [float(value) for value in total / tokens]


@torch.no_grad()
def cosine_sums(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> Tensor:
    """``(2, n)``: for every candidate the sum of what `cosines` is the mean of, and the number of its tokens."""
    select(model, [])
    anatomy, known = Anatomy.of(model), candidates(model)
    layers, branches, built = list(anatomy.layers), anatomy.branches, anatomy.built
    total, tokens, mask = torch.zeros(len(known)), torch.zeros(len(known)), torch.empty(0)

    def hooks_of(layer: Any, padded: bool) -> list[Any]:
        """Keeps the stream as it comes into the layer and as every branch leaves it, and compares at the end."""
        stream: dict[int, Tensor] = {}
        spans = []  # of candidates of this layer: where in its stream they begin and end
        for c, (block, parts) in enumerate(known):
            own = [b.part in parts if block is layer else layer._modules.get(b.body) is block for b in branches]
            if any(own):
                spans.append((c, own.index(True), len(own) - own[::-1].index(True)))
        if not spans:  # a layer of a hybrid, without an attention
            return []

        def keep(at: int) -> Any:
            return lambda module, args, output=None: stream.update(
                {at: (args[0] if output is None else output).float()}
            )

        def compare(module: Any, args: Any, output: Tensor) -> None:
            stream[len(branches)] = output.float()
            for c, first, last in spans:
                cosine = torch.cosine_similarity(stream[first], stream[last], dim=-1)
                cosine = cosine[mask] if padded else cosine
                total[c] += cosine.sum().cpu()
                tokens[c] += cosine.numel()

        if built.post_norm:
            norms = [getattr(layer, branch.norm) for branch in branches if branch.norm is not None]
            kept = [norm.register_forward_hook(keep(i + 1)) for i, norm in enumerate(norms)]
        elif built.parallel:  # the stream with the attention's output alone is nowhere to be seen

            def add(module: Any, args: Any, output: Any) -> None:
                stream[1] = stream[0] + output[0].float()

            kept = [getattr(layer, built.mha.body).register_forward_hook(add)]
        else:
            kept = [getattr(layer, built.ffn.norm or built.ffn.body).register_forward_pre_hook(keep(1))]
        return [layer.register_forward_pre_hook(keep(0)), *kept, layer.register_forward_hook(compare)]

    of_text = len(layers) // len(built.sides)  # an image has no padding
    hooks = [hook for i, layer in enumerate(layers) for hook in hooks_of(layer, i < of_text)]
    try:
        for batch in batches:
            real = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
            mask = real.bool().flatten(0, -2)  # an image may meet several texts
            headless = model.can_generate() and batch.get("labels") is not None  # a large vocabulary's logits are large
            model(**(labelled_only({**batch, "use_cache": False}, heads_all(model)) if headless else batch))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([total, tokens])
