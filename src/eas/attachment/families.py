"""Model families of one's own: decoders whose blocks are built like those of a known family."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from transformers import PreTrainedModel

from eas.attachment.attach import attach_to_twin, twin_deviation
from eas.attachment.standalone import add_family
from eas.hf.twin import TOLERANCE, unlike_base
from eas.methods.eas import EASConfig
from eas.models.anatomy import COATTENTION, FAMILIES, OWN, Anatomy, UnsupportedModelError
from eas.models.anatomy import model_class as class_of
from eas.models.structure import TEXT_MODELS, TextModel

TRIED = EASConfig(num_skip=1, skip_rank=4, adapt_rank=2)


def register_family(
    model_class: type[PreTrainedModel],
    text_model: str = "model",
    projector: str | None = None,
    config: Any = None,
    like: str | TextModel = "LlamaModel",
) -> None:
    """Makes a model class of your own known, so that ``attach``, ``load`` and everything else take it.

    ``like`` says how its blocks are built; Llama's are
    ``x += self_attn(input_layernorm(x)); x += mlp(post_attention_layernorm(x))`` with RMS norms. A tiny random model of
    the class is tried: with EAS attached, untrained, it must compute what it computed before, and with an attention
    skipped it must decode what its whole forward pass computes.

    Call it in every process that uses the class, before a model is attached or a folder is opened.

    Args:
        model_class: the class with its head; its configuration has a ``model_type`` of its own.
        text_model: path to the language model, whose blocks are its ``layers``.
        projector: path to the module between vision tower and language model; None for a model that reads text only.
        config: a configuration whose kind of blocks is tried; None for the class's default.
        like: the class of a supported language model with such blocks (``eas.models.structure.TEXT_MODELS``), or terms
            of its own (``eas.models.structure.decoder``).

    Raises:
        UnsupportedModelError: a part is missing, a norm is of another kind, or the blocks compute something else.
        TransformersChangedError: the tiny model cannot be built, or does not run.
        ValueError: the class or its ``model_type`` is known already, or ``like`` is not.

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
    if isinstance(like, str) and (like not in TEXT_MODELS or TEXT_MODELS[like].form != "decoder"):
        known_texts = ", ".join(text for text, built in TEXT_MODELS.items() if built.form == "decoder")
        raise ValueError(f"like = {like!r}: no such language model is supported; use one of {known_texts}")
    built = TEXT_MODELS[like] if isinstance(like, str) else like
    config = model_class.config_class() if config is None else config
    if config.model_type in {class_of(family).config_class.model_type for family in known}:
        raise ValueError(
            f"{name}: model_type {config.model_type!r} is another family's; give the configuration one of its own"
        )
    with torch.device("meta"):
        model = model_class(config)
    paths = (text_model,) if projector is None else (text_model, projector)
    for path in paths:
        _require(model, name, path, [])
    _require(model, name, f"{text_model}.layers.0", [])
    parts = [
        f"{branch.body}.{child}" if child else branch.body
        for branch in built.branches
        for child in ("", *branch.inputs, branch.output)
    ]
    parts += [part for branch in built.branches for part in (branch.norm, branch.behind) if part is not None]
    for part in parts:
        _require(model, name, f"{text_model}.layers.0.{part}", parts)
    unread = _unread(model.get_submodule(f"{text_model}.layers.0"), built)
    with ExitStack() as on_failure:
        text_class = type(model.get_submodule(text_model)).__name__
        if text_class not in TEXT_MODELS:
            TEXT_MODELS[text_class] = built
            on_failure.callback(TEXT_MODELS.pop, text_class)
        FAMILIES[name], OWN[name] = paths, model_class
        on_failure.callback(FAMILIES.pop, name)
        on_failure.callback(OWN.pop, name)
        _try(model_class, config, text_model, unread)
        add_family(name)
        on_failure.pop_all()


def _require(model: PreTrainedModel, name: str, path: str, parts: list[str]) -> None:
    try:
        model.get_submodule(path)
    except AttributeError as error:
        such = f" with {', '.join(parts)}" if parts else ""
        raise UnsupportedModelError(f"{name} has no {path}; its language model must have layers{such}") from error


def _unread(layer: Any, built: TextModel) -> list[str]:
    """What a layer has and no term of its blocks names: modules, and numbers that could be factors."""
    named = {name for branch in built.branches for name in (branch.body, branch.norm, branch.behind)} | {*built.more}
    modules = [name for name, _ in layer.named_children() if name not in named]
    factors = [name for name, value in vars(layer).items() if isinstance(value, float) and name != built.multiplier]
    return modules + factors


def _try(model_class: type[PreTrainedModel], config: Any, text_model: str, unread: list[str]) -> None:
    """Compares a tiny random model with itself: attached and not, decoding and in one forward pass."""
    name, others = model_class.__name__, set[str]()

    def attached(twin: Any) -> None:
        built = Anatomy.of(twin).built
        for layer in () if built.parallel else Anatomy.of(twin).layers:
            for norm in (getattr(layer, branch.norm) for branch in built.branches if branch.norm is not None):
                x = torch.randn(2, len(norm.weight))
                unit, gains = x * x.square().mean(-1, keepdim=True).rsqrt(), {"weight": norm.weight}
                gains |= {"1 + weight": 1 + norm.weight}
                is_ = [gain for gain in gains if torch.allclose(norm(x), gains[gain] * unit, rtol=1e-3, atol=1e-3)]
                if built.norms.removeprefix("wide ") not in is_:
                    others.add(f"{type(norm).__name__}, which is {' or '.join(is_) or 'something else'}")
        if not others:
            attach_to_twin(twin, TRIED)

    off = unlike_base(model_class, config, text_model, attached)
    more = f". Its layers also have {', '.join(unread)}, which no term of `like` names" if unread else ""
    if others:
        raise UnsupportedModelError(
            f"{name}: its norms multiply x / rms(x) by another factor than `like` says: "
            f"{'; '.join(sorted(others))}{more}"
        )
    if not off <= TOLERANCE:
        raise UnsupportedModelError(
            f"{name}: its blocks are built otherwise than `like` says. On a tiny random model, untrained EAS changes "
            f"the logits by {off:.1e} of their norm{more}"
        )
    if not (off := twin_deviation(model_class, config, TRIED)) <= TOLERANCE:
        raise UnsupportedModelError(
            f"{name} decodes wrongly with a skipped attention. On a tiny random model, cached decoding differs from "
            f"the whole forward pass by {off:.1e} of the logits' norm; {TOLERANCE:.0e} is allowed"
        )
