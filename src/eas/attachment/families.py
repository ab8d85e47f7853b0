"""Model families of one's own: decoders whose blocks are built like Llama's."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from transformers import PreTrainedModel

from eas.attachment.attach import attach_to_twin, twin_deviation
from eas.attachment.standalone import add_family
from eas.hf.twin import TOLERANCE, unlike_base
from eas.methods.eas import EASConfig
from eas.models.anatomy import COATTENTION, DECODER, FAMILIES, OWN, TEXT_MODELS, Anatomy, UnsupportedModelError
from eas.models.anatomy import model_class as class_of

TRIED = EASConfig(num_skip=1, skip_rank=4, adapt_rank=2)
MAPS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
PARTS = ["input_layernorm", "post_attention_layernorm", *MAPS]


def register_family(
    model_class: type[PreTrainedModel], text_model: str = "model", projector: str | None = None, config: Any = None
) -> None:
    """Makes a model class of your own known, so that ``attach``, ``load`` and everything else take it.

    Its blocks must be built like Llama's: ``x += self_attn(input_layernorm(x)); x += mlp(post_attention_layernorm(x))``
    with RMS norms. A tiny random model of the class is tried: with EAS attached, untrained, it must compute what it
    computed before, and with an attention skipped it must decode what its whole forward pass computes.

    Call it in every process that uses the class, before a model is attached or a folder is opened.

    Args:
        model_class: the class with its head; its configuration has a ``model_type`` of its own.
        text_model: path to the language model, whose blocks are its ``layers``.
        projector: path to the module between vision tower and language model; None for a model that reads text only.
        config: a configuration whose kind of blocks is tried; None for the class's default.

    Raises:
        UnsupportedModelError: a part is missing, a norm is of another kind, or the blocks compute something else.
        TransformersChangedError: the tiny model cannot be built, or does not run.
        ValueError: the class or its ``model_type`` is known already.

    Example:
        >>> import eas
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> class MyConfig(LlamaConfig):
        ...     model_type = "my_llama"
        >>> class MyForCausalLM(LlamaForCausalLM):
        ...     config_class = MyConfig
        >>> eas.register_family(MyForCausalLM)
        >>> model = MyForCausalLM(MyConfig(hidden_size=32, num_hidden_layers=4, vocab_size=64))
        >>> model = eas.attach(model, eas.EASConfig(num_skip=2, skip_rank=4, adapt_rank=2))
    """
    name, known = model_class.__name__, FAMILIES | COATTENTION
    if name in known and class_of(name) is model_class:
        return
    if name in known:
        raise ValueError(f"another {name} is supported; give the class a name of its own")
    config = model_class.config_class() if config is None else config
    if config.model_type in {class_of(family).config_class.model_type for family in known}:
        raise ValueError(
            f"{name}: model_type {config.model_type!r} is another family's; give the configuration one of its own"
        )
    with torch.device("meta"):
        model = model_class(config)
    paths = (text_model,) if projector is None else (text_model, projector)
    for path in paths:
        _require(model, name, path)
    _require(model, name, f"{text_model}.layers.0")
    for part in PARTS:
        _require(model, name, f"{text_model}.layers.0.{part}")
    with ExitStack() as on_failure:
        text_class = type(model.get_submodule(text_model)).__name__
        if text_class not in TEXT_MODELS:
            TEXT_MODELS[text_class] = DECODER
            on_failure.callback(TEXT_MODELS.pop, text_class)
        FAMILIES[name], OWN[name] = paths, model_class
        on_failure.callback(FAMILIES.pop, name)
        on_failure.callback(OWN.pop, name)
        _try(model_class, config, text_model)
        add_family(name)
        on_failure.pop_all()


def _require(model: PreTrainedModel, name: str, path: str) -> None:
    try:
        model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{name} has no {path}; a family's language model has layers with {', '.join(PARTS)}"
        ) from error


def _try(model_class: type[PreTrainedModel], config: Any, text_model: str) -> None:
    """Compares a tiny random model with itself: attached and not, decoding and in one forward pass."""
    name, others = model_class.__name__, set[str]()

    def attached(twin: Any) -> None:
        for layer in Anatomy.of(twin).layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                x = torch.randn(2, len(norm.weight))
                expected = norm.weight * x * x.square().mean(-1, keepdim=True).rsqrt()
                if not torch.allclose(norm(x), expected, rtol=1e-3, atol=1e-3):
                    others.add(type(norm).__name__)
        if not others:
            attach_to_twin(twin, TRIED)

    off = unlike_base(model_class, config, text_model, attached)
    if others:
        raise UnsupportedModelError(
            f"{name}: {', '.join(others)} is not weight * x / rms(x), the norm of Llama's blocks"
        )
    if not off <= TOLERANCE:
        raise UnsupportedModelError(
            f"{name}: its blocks are not built like Llama's (x += self_attn(input_layernorm(x)), then "
            "x += mlp(post_attention_layernorm(x))). On a tiny random model, untrained EAS changes the logits by "
            f"{off:.1e} of their norm"
        )
    if not (off := twin_deviation(model_class, config, TRIED)) <= TOLERANCE:
        raise UnsupportedModelError(
            f"{name} decodes wrongly with a skipped attention. On a tiny random model, cached decoding differs from "
            f"the whole forward pass by {off:.1e} of the logits' norm; {TOLERANCE:.0e} is allowed"
        )
