"""Fast decoding for every model: a static cache, and one compiled graph for each step.

On a GPU the step is a CUDA graph, recorded again for every request's cache. On a CPU inductor freezes the graph's
weights: it lays them out once for the matrix kernels. This needs memory for a second copy, and reads the weights about
twice as fast. Maps of one input are packed into one matrix. Attention and thin products are in ``eas.hf.one_token``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor
from transformers import PreTrainedModel

from eas.attachment.state import attached
from eas.hf import one_token
from eas.hf.api import Cache, StaticCache, StaticLayer, attention_implementation, cached
from eas.hf.generation import compile_config
from eas.models.anatomy import Anatomy
from eas.pia import PIA

# models, batch sizes and lengths that are compiled in one process; torch's own limit is 8, for all models together
GRAPHS = 64


class UnfrozenLayer(StaticLayer):  # type: ignore[misc]
    """A static cache layer for frozen graphs: its tensors are not marked static, or freezing would take those of the
    first request for weights, and every later request would write to them."""

    keys: Tensor
    values: Tensor
    cumulative_length: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = self.keys.detach(), self.values.detach()  # the mark is on the object
        self.cumulative_length = self.cumulative_length.detach()


def fast_decode(
    model: PreTrainedModel, backend: str | Callable[..., Any] = "inductor", multiple: int = 256
) -> Callable[..., Any]:
    """Returns ``model.generate`` with compiled decode steps, for base, attached and folded models.

    The first call compiles. Every new batch size compiles again, and so does every length beyond the next multiple of
    ``multiple`` tokens. The prefill is not compiled. On a CPU the compiled steps keep the weights of the first call:
    after a change of weights, call ``torch.compiler.reset()`` and this function again.

    Args:
        model: in evaluation mode, on one device.
        backend: backend of ``torch.compile``; only inductor freezes weights.
        multiple: cache lengths are multiples of this number of tokens; every step reads the whole cache.

    Returns:
        A function with the arguments of ``generate``; ``max_new_tokens`` must be given.

    Raises:
        UnsupportedModelError: the family is not supported.
        ValueError: the model is in training mode, is folded per example (its weights are new with every prompt, so
            every prompt would be compiled), does not fit (Mllama, Phi-4-multimodal, Gemma 4 Unified, PaliGemma 2), or,
            on a CPU, attends within a window or is a hybrid.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model, processor = load_tiny()
        >>> inputs = processor(text="question : what is this ? answer :", return_tensors="pt")
        >>> generate = eas.fast_decode(model)
        >>> tokens = generate(**inputs, max_new_tokens=4)  # doctest: +SKIP
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    if attached(model) and model.eas.fold_mode == "per_example":
        raise ValueError(
            "a model folded per_example has new weights with every prompt, which cannot be compiled beforehand; fold "
            "it with mode 'shared' or 'constant', or use model.generate"
        )
    anatomy = Anatomy.of(model)
    text = anatomy.text_model
    if anatomy.built.uncompiled is not None:
        raise ValueError(f"{type(text).__name__} {anatomy.built.uncompiled}; use model.generate, not fast_decode")
    if model.config.model_type == "paligemma" and text.config.model_type == "gemma2":
        raise ValueError(
            "PaliGemma 2's head cannot read the masks that generate makes for a static cache, one for each kind of "
            "layer; use model.generate, not fast_decode"
        )
    freeze = model.device.type == "cpu" and backend == "inductor"
    if freeze:
        _cache(model, multiple, freeze)  # refuses layers that it has no frozen form of
    if model.device.type == "cpu" and attention_implementation(text.config) == "sdpa":
        text.set_attn_implementation(one_token.NAME)  # outside of compiled steps it is sdpa still
    # a CUDA graph's outputs are overwritten by its next run, and a running mean is one
    running = any(isinstance(module, PIA) and module.running for module in model.modules())
    cuda_graphs = model.device.type == "cuda" and not running
    mode = "reduce-overhead" if cuda_graphs and backend == "inductor" else None
    config = compile_config(fullgraph=True, dynamic=False, backend=backend, mode=mode)
    fixed = _weights(model) if freeze else None

    def generate(inputs: Tensor | None = None, *, max_new_tokens: int, **kwargs: Any) -> Any:
        if freeze and _weights(model) != fixed:
            raise ValueError("the weights were changed; call torch.compiler.reset() and eas.fast_decode(model) again")
        given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
        prompt = next(tensor for tensor in given if tensor is not None)
        cache = _cache(model, -(-(prompt.shape[1] + max_new_tokens) // multiple) * multiple, freeze)
        # freezing is read while the step is traced, not only by the backend
        options = {"freezing": freeze, "cpp.enable_concat_linear": freeze}
        with inductor.patch(options), dynamo.patch(recompile_limit=GRAPHS):
            return model.generate(
                inputs, max_new_tokens=max_new_tokens, compile_config=config, **cached(cache), **kwargs
            )

    return generate


def _weights(model: nn.Module) -> list[tuple[int, int]]:
    """Changes whenever a parameter is written to, or its storage replaced."""
    return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]


def _cache(model: PreTrainedModel, length: int, frozen: bool) -> Cache:
    cache: Cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=length)
    if frozen:
        if any(type(layer) is not StaticLayer for layer in cache.layers):
            raise ValueError(
                "fast_decode on a CPU does not support attention within a window, nor layers of other kinds than "
                "attention; use model.generate"
            )
        cache.layers = [UnfrozenLayer(length) for _ in cache.layers]
    return cache
