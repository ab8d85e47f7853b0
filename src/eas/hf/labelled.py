"""The head on labelled positions only: a large vocabulary costs nothing where no answer is predicted."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


def heads_all(model: nn.Module) -> bool:
    """Whether a model's head reads every position, whatever ``logits_to_keep`` says (Qwen2.5-Omni, VideoLLaMA 3)."""
    return "logits_to_keep" not in inspect.signature(type(model).forward).parameters


def labelled_only(inputs: Mapping[str, Any], everywhere: bool = False) -> dict[str, Any]:
    """Arguments of a model with its head that give the loss of ``inputs``, and logits of fewer positions.

    The head reads the positions whose next token is an answer's in some row. In batches that are padded on the left
    these are as many as the longest answer has tokens. The mean is the same, of the same numbers.

    Args:
        inputs: with ``labels`` ``(batch, tokens)``, -100 on all tokens but the answer's.
        everywhere: the positions are all, for models of ``heads_all``.

    Returns:
        ``inputs`` with ``logits_to_keep``, the positions, and ``shift_labels``, ``(batch, positions)``: the token after
        each, or -100.

    Example:
        >>> found = labelled_only({"labels": torch.tensor([[-100, 5, 6, -100], [-100, -100, 7, -100]])})
        >>> found["logits_to_keep"].tolist(), found["shift_labels"].tolist()
        ([0, 1], [[5, 6], [-100, 7]])
    """
    shifted: Tensor = F.pad(inputs["labels"], (0, 1), value=-100)[:, 1:]  # the last token predicts nothing
    columns = ((shifted != -100).any(0) | everywhere).nonzero()[:, 0].cpu()  # indexes hidden states on whatever device
    return {**inputs, "logits_to_keep": columns, "shift_labels": shifted[:, columns]}


def answer_logits(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The logits at every position before a label, ``(batch, positions, vocabulary)``, and the labels or -100.

    Args:
        model: attached or not; the labels tell it where the prompt ends.
        inputs: see `labelled_only`.
    """
    kept = labelled_only(inputs, heads_all(model))
    logits: Tensor = model(**kept).logits.float()
    return logits, kept["shift_labels"].to(logits.device)


def answer_losses(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The loss of every row's answer, summed over its tokens, and their number: ``(batch,)``; see `answer_logits`."""
    logits, targets = answer_logits(model, inputs)
    each = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-100, reduction="none")
    return each.sum(1), (targets != -100).sum(1)
