"""Checks that a run's model decodes the results of one whole pass, and its fold too: eight tokens, three ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eas.config import ConfigError
from eas.tasks.evaluation import GREEDY

NEW_TOKENS = 8
ALLOWED = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Relative errors that count as rounding, by the model's dtype."""
ALLOWED_HALF = 0.1
"""The same in bfloat16, float16 and on quantised weights."""


def relative_error(a: Tensor, b: Tensor) -> float:
    """``|a - b| / |b|``."""
    return float((a.float() - b.float()).norm() / b.float().norm())


@torch.inference_mode()
def decode(model: Any, inputs: dict[str, Tensor], forced: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Eight tokens after a prompt, ``(1, 8)``, and the logits that they were chosen by, ``(1, 8, vocabulary)``.

    Args:
        model: generates its answers.
        inputs: one prompt.
        forced: the tokens to take, whatever their logits; None: the likeliest.
    """
    length = inputs["input_ids"].shape[1]
    image = model.config.to_dict().get("image_token_id")  # a token without an image, in the pass over all tokens
    more: dict[str, Any] = {} if image is None else {"suppress_tokens": [image]}
    if forced is not None:
        more["prefix_allowed_tokens_fn"] = lambda _, ids: [int(forced[0, len(ids) - length])]
    out = model.generate(
        **inputs,
        **GREEDY | {"min_new_tokens": NEW_TOKENS, "return_dict_in_generate": True},
        max_new_tokens=NEW_TOKENS,
        output_logits=True,
        **more,
    )
    return out.sequences[:, length:], torch.stack(out.logits, 1)


@torch.inference_mode()
def teacher_forced(model: Any, inputs: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits of the same tokens in one pass over prompt and tokens, without a cache."""
    ids = inputs["input_ids"]
    longer = {**inputs, "input_ids": torch.cat([ids, tokens], 1)}
    for name, value in inputs.items():  # one number a token: masks are 1 on text, types 0
        if name != "input_ids" and value.shape == ids.shape:
            added = torch.ones_like(tokens) if name == "attention_mask" else torch.zeros_like(tokens)
            longer[name] = torch.cat([value, added.to(value)], 1)
    labels = longer["input_ids"].clone()
    labels[:, : ids.shape[1]] = -100
    logits: Tensor = model(**longer, labels=labels, use_cache=False).logits
    return logits[:, ids.shape[1] - 1 : -1]


def require_small(errors: dict[str, float], dtype: torch.dtype, mode: str | None, quantised: bool = False) -> None:
    """Stops a run whose model decodes something else than it was tuned for.

    Args:
        errors: relative errors by what was compared.
        dtype: of the model.
        mode: how it is folded.
        quantised: whether its weights have few bits; their products round more than the dtype does.

    Raises:
        ConfigError: an error is more than rounding; the message has all of them.
    """
    allowed = ALLOWED_HALF if quantised else ALLOWED.get(dtype, ALLOWED_HALF)
    if all(error <= allowed for error in errors.values()):
        return
    shown = ", ".join(f"{what} {error:.1e}" for what, error in errors.items())
    raise ConfigError(
        f"the model does not decode what it computes in one pass: relative errors of the logits are {shown}; "
        f"{allowed:.0e} is allowed in {str(dtype).removeprefix('torch.')} (fold mode {mode}). The adapter is intact. "
        "`eas doctor` checks the installation; `-o fold_mode=shared` chooses another fold mode"
    )
