"""What eas itself answers to one prompt: an engine that answers something else does not compute the model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from eas.exported import Expected, ExportError
from eas.exporting.decoder import PlainDecoder
from eas.exporting.plain import Plain
from eas.hf.api import cached, output_cache

PROMPT, STEPS, TOP = "The capital of France is", 24, 5
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
"""By the dtype that eas computes in: how far log-probabilities of the plain weights, in float32, may be from it."""


@torch.no_grad()
def expected(model: PreTrainedModel, tokenizer: Any, ends: list[int], context: int) -> Expected:
    """The most likely tokens after a prompt, and at every step the likeliest with their log-probabilities.

    A token that ends an answer is never taken, as engines leave it out when they are to go on. Prompt and answer fit
    the context: behind it the model, with its window, computes something else than the plain weights.
    """
    training = model.training
    prompt, ids = None, [1 + i % 7 for i in range(9)]
    if tokenizer is not None:
        prompt, ids = PROMPT, tokenizer(PROMPT)["input_ids"]
    if len(ids) >= context:
        prompt, ids = None, ids[: max(context - 1, 1)]
    new, cache = torch.tensor([ids], device=model.device), None
    likeliest: list[list[int]] = []
    log_probs: list[list[float]] = []
    tokens: list[int] = []
    model.eval()
    try:
        for _ in range(min(STEPS, max(context - len(ids), 1))):
            output = model(input_ids=new, use_cache=True, **cached(cache))
            cache = output_cache(output)
            row = output.logits[0, -1].float().log_softmax(-1)
            values, places = row.topk(TOP)
            likeliest.append(places.tolist())
            log_probs.append(values.tolist())
            row[ends] = -torch.inf
            tokens.append(int(row.argmax()))
            new = torch.tensor([tokens[-1:]], device=model.device)
    finally:
        model.train(training)
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "prompt": prompt,
        "prompt_tokens": ids,
        "tokens": tokens,
        "likeliest": likeliest,
        "log_probs": log_probs,
        "dtype": dtype,
    }


@torch.no_grad()
def require_equal(plain: Plain, want: Expected) -> None:
    """Compares the plain weights with the model that they were taken from.

    Raises:
        ExportError: they compute something else, so the model has a part that the plain weights do not hold.
    """
    decoder = PlainDecoder(plain.sizes, plain.tensors, plain.frequencies)
    ids = torch.tensor([[*want["prompt_tokens"], *want["tokens"][:-1]]])
    steps = torch.arange(len(want["prompt_tokens"]) - 1, ids.shape[1])
    logits, _ = decoder(ids, torch.zeros(1, dtype=torch.long), steps, decoder.empty())
    found = logits[0].log_softmax(-1).gather(1, torch.tensor(want["likeliest"]))
    off = float((found - torch.tensor(want["log_probs"])).abs().max())
    if not off <= TOLERANCE[getattr(torch, want["dtype"])]:
        raise ExportError(
            f"the plain weights compute something else than the model: log-probabilities differ by {off:.1e}. The "
            "model has a part that cannot be exported (a patched forward, for example); serve it with eas"
        )
