"""The plain decoder as a graph of which batch, new tokens and earlier tokens have any size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from eas.exporting.decoder import PlainDecoder
from eas.exporting.engine import Source
from eas.exporting.limits import LLAMA, common, shorter, text_only


def limits(model: PreTrainedModel, engine: str) -> list[str]:
    """Reasons why a model is no such graph; a skipped layer 0 and norms of queries and keys are none."""
    return text_only(model, engine) or common(model, (*LLAMA, "Qwen3Model"))


def lost(model: PreTrainedModel) -> list[str]:
    """See ``Engine.lost``."""
    return shorter(model)


def decoder(source: Source) -> PlainDecoder:
    """The module of the graph."""
    return PlainDecoder(source.plain.sizes, source.plain.tensors, source.plain.frequencies).eval()


def sample(module: PlainDecoder) -> tuple[Any, ...]:
    """Inputs whose sizes are all different and none of them one, which a tracer would take for fixed."""
    tokens, padding = torch.ones(2, 3, dtype=torch.long), torch.tensor([0, 1])
    return tokens, padding, torch.tensor([0, 1, 2, 2, 1]), module.empty(2, 4)


def traced(module: PlainDecoder) -> ExportedProgram:
    """The graph."""
    any_size = (Dim.DYNAMIC, Dim.DYNAMIC)
    past = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC} for _ in module.empty()]
    shapes = (dict(enumerate(any_size)), {0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}, past)
    return torch.export.export(module, sample(module), dynamic_shapes=shapes)


@contextmanager
def without_remarks() -> Iterator[None]:
    """Within it torch's exporter does not warn of what it calls itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        yield


def names(module: PlainDecoder) -> tuple[list[str], list[str]]:
    """Names of the graph's inputs and outputs, in order: keys and values by the layer that they are of."""
    pairs = [f"{kind}.{layer}" for layer in module.sizes.kept for kind in ("key", "value")]
    return ["tokens", "padding", "wanted", *pairs], ["logits", *(f"new_{name}" for name in pairs)]
