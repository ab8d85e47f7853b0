"""What tells one base from another without its weights."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eas.models.anatomy import Anatomy


def base_fingerprint(model: PreTrainedModel) -> Tensor:
    """Sixteen FFN weights of every layer in bfloat16, ``(layers, 16)``: tells bases apart in whatever dtype they are
    loaded; zeros where the FFN was pruned. Empty where the weights are quantised."""
    weights = [
        layer.mlp.down_proj.weight if "mlp" in layer._modules else torch.zeros(1, 16)
        for layer in Anatomy.of(model).layers
    ]
    # torchao's are tensors that say they were floating
    if not all(w.is_floating_point() and not type(w).__module__.startswith("torchao.") for w in weights):
        return torch.empty(0, dtype=torch.bfloat16)
    return torch.stack([w[0, :16].detach().to("cpu", torch.bfloat16) for w in weights])
