"""Makes the router constant after training, so that weights fold once for all inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.attachment.state import attachment
from eas.hf.api import DynamicCache, cached
from eas.hf.cache import prompt_layer
from eas.methods.eas import EASConfig
from eas.models.anatomy import Anatomy
from eas.pia import PIA


class FrozenRouter(NamedTuple):
    """Mean loss per answer token with the input router, and with the constant router that replaced it.

    Example:
        >>> import eas
        >>> eas.FrozenRouter(loss_before=0.23, loss_after=0.24).loss_after
        0.24
    """

    loss_before: float
    loss_after: float


@torch.no_grad()
def freeze_router(model: PreTrainedModel, loader: Iterable[Mapping[str, Tensor]]) -> FrozenRouter:
    """Turns the trained input routers of EAS into constant ones, in place: each PIA's mean alpha over the prompts.

    After it ``fold(model, "constant")`` is possible, and the configuration says ``router="constant"``: what ``save``
    and ``save_standalone`` write opens like any other.

    Args:
        model: a tuned model, pruned, not folded.
        loader: batches with labels, as for training; it is gone through twice, so no generator.

    Returns:
        The loss over the loader before and after.

    Raises:
        ValueError: the model is not of EAS with an input router, not pruned, or folded; the loader is empty, can be
            gone through but once, or has no labels.

    Example:
        >>> import eas
        >>> before, after = eas.freeze_router(model, loader)  # doctest: +SKIP
    """
    state = attachment(model)
    config = state.config
    if not isinstance(config, EASConfig) or config.router != "input":
        raise ValueError(f"{config.name} has no input router here; freeze_router is for EAS with router='input'")
    if not state.pruned or state.fold_mode is not None:
        remedy = "unfold(model)" if state.fold_mode is not None else "prune(model)"
        raise ValueError(f"call {remedy} first: freeze_router freezes the routers of the PIAs that the skip set uses")
    if isinstance(loader, Iterator):
        raise ValueError("freeze_router reads the loader twice: pass a DataLoader or a list, not an iterator")
    routed = {key: pia for key, pia in _pias(model).items() if pia.router is not None}
    training = model.training
    try:
        model.eval()
        before, alphas = _gone_through(model, loader, routed)
        for key, pia in routed.items():
            pia.router, pia.mix = None, nn.Parameter(pia.temperature * alphas[key].to(pia.down1.weight).log())
        mixes = {f"{name}.mix" for name, module in model.named_modules() if module in routed.values()}
        state.trained = frozenset(name for name, _ in model.named_parameters() if name in state.trained | mixes)
        state.config = dataclasses.replace(config, router="constant")
        after, _ = _gone_through(model, loader, ())
    finally:
        model.train(training)
    return FrozenRouter(before, after)


def _pias(model: PreTrainedModel) -> dict[int, PIA]:
    """The PIAs in use by their key among the prompt states."""
    return {key: pia for block in Anatomy.of(model).blocks("mha") for key, pia in block.pias().items()}


def _gone_through(
    model: PreTrainedModel, loader: Iterable[Mapping[str, Tensor]], keys: Iterable[int]
) -> tuple[float, dict[int, Tensor]]:
    """The loss per answer token, and the mean alpha over the prompts of the PIAs with these keys."""
    alphas: dict[int, Tensor] = {key: torch.zeros(2, dtype=torch.float64) for key in keys}
    total, tokens, rows = 0.0, 0, 0
    for batch in loader:
        if "labels" not in batch:
            raise ValueError("a batch has no labels; pass batches as for training")
        moved, cache = {key: value.to(model.device) for key, value in batch.items()}, DynamicCache(config=model.config)
        loss = model(**moved, **cached(cache), use_cache=True).loss
        answered, states = int((moved["labels"][:, 1:] != -100).sum()), prompt_layer(cache)
        assert states is not None
        for key, alpha in alphas.items():
            alpha += states.states[key][:, -1, :2].double().sum(0).cpu()
        total, tokens, rows = total + float(loss) * answered, tokens + answered, rows + len(moved["labels"])
    if rows == 0:
        raise ValueError("the loader has no batches")
    return total / tokens, {key: alpha / rows for key, alpha in alphas.items()}
