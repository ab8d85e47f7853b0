"""Log-probabilities of answers: for ranking choices, for perplexity, for every score without generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eas.hf.labelled import answer_losses


@torch.no_grad()
def log_likelihood(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """``log p(answer | prompt)`` of every row, summed over the answer's tokens: ``(batch,)``, natural logarithm.

    The labels say which tokens are the answer. A model with EAS must know that, or it would count the answer as prompt
    and score what it has already read. So do not take log-probabilities from logits of a call without labels.

    Args:
        model: in evaluation mode, attached or not.
        inputs: what the model is called with, and ``labels`` ``(batch, tokens)``: -100 on all tokens but the answer's.

    Raises:
        ValueError: there are no labels, or the model is in training mode.

    Example:
        >>> from eas.demo.tiny import load_tiny
        >>> model, processor = load_tiny()
        >>> ids = processor.tokenizer("question : what is this ? answer : red", return_tensors="pt").input_ids
        >>> labels = torch.full_like(ids, -100)
        >>> labels[:, -1] = ids[:, -1]
        >>> log_likelihood(model.eval(), {"input_ids": ids, "labels": labels}).shape
        torch.Size([1])
    """
    if inputs.get("labels") is None:
        raise ValueError(
            "log_likelihood needs labels, -100 on all tokens but the answer's: labels separate prompt and answer"
        )
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    return -answer_losses(model, inputs)[0]
