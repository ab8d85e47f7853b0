"""Trained weights of 16 bits have a float32 copy in the optimizer, in which small updates add up."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

COPY = "float32"
"""Name of the copy in an optimizer's state."""


def keep_float32(optimizer: Optimizer) -> None:
    """Makes an optimizer update float32 copies of its 16-bit weights; after a step the weights are the rounded copies.

    A bfloat16 weight has eight significant bits, so the weight itself loses every update below 1/512 of it, and an
    update of AdamW is about as large as the learning rate. Copies and averages are part of the optimizer's state.
    Adapters are float32 already; these are weights of the base: of `full`, of `head`, of a projector.

    Example:
        >>> weight = Parameter(torch.ones(1, dtype=torch.bfloat16))
        >>> optimizer = torch.optim.SGD([weight], lr=1e-3)
        >>> keep_float32(optimizer)
        >>> for _ in range(4):  # each alone is too small to change the weight
        ...     weight.grad = torch.ones_like(weight)
        ...     optimizer.step()
        >>> round(weight.item(), 3)
        0.996
    """
    pairs: list[tuple[Parameter, Parameter]] = []
    for group in optimizer.param_groups:
        for i, weight in enumerate(group["params"]):
            if weight.dtype in (torch.bfloat16, torch.float16):
                group["params"][i] = copy = Parameter(weight.detach().float())
                pairs.append((weight, copy))

    @torch.no_grad()
    def before(optimizer: Optimizer, *ignored: Any) -> None:
        for weight, copy in pairs:
            if weight.grad is not None:  # a weight that was set from outside is where its copy goes on
                copy.copy_(torch.where(copy.to(weight.dtype) == weight, copy, weight.float()))
                copy.grad = weight.grad.float()

    @torch.no_grad()
    def after(optimizer: Optimizer, *ignored: Any) -> None:
        for weight, copy in pairs:
            if copy.grad is not None:
                weight.copy_(copy)
                optimizer.state[copy][COPY], copy.grad = copy.detach(), None

    @torch.no_grad()
    def loaded(optimizer: Optimizer) -> None:
        for _, copy in pairs:
            if COPY in optimizer.state[copy]:
                copy.copy_(optimizer.state[copy][COPY])

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    optimizer.register_load_state_dict_post_hook(loaded)
