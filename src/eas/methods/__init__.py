"""The tuning methods, one file each: a configuration and an ``attach``, and what else the method can do.

``attach`` adds modules to a frozen model in place and leaves exactly what is trained with ``requires_grad``.
``eas.attachment`` does the rest: freezing, the projector, saving, loading and undoing. A new method is one file and
one line in ``METHODS``; see docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from eas.config import ConfigError, MethodConfig, shortened
from eas.methods import (
    adapter,
    das,
    drop,
    eas,
    eas_meter,
    full,
    lavin_adapter,
    llama_adapter,
    lora,
    mam,
    meter_prompts,
    prefix,
    prompts,
    soft_prompt,
)
from eas.models.structure import TextModel


@dataclass(frozen=True)
class Method:
    """The parts of a method.

    Args:
        config: its configuration's class.
        attach: adds its modules to a model whose parameters are frozen; refuses before it changes anything.
        prune: removes the modules that the chosen skip set does not use, besides the skipped modules.
        fold: re-parameterises for inference; takes the model and one of ``fold_modes``.
        unfold: undoes ``fold``.
        fold_modes: the modes of ``fold``; empty if the method cannot fold.
        best_fold: the mode for "auto", with the reason; None if there is only one mode.
    """

    config: type[MethodConfig]
    attach: Callable[[Any, Any], None]
    prune: Callable[[PreTrainedModel], None] | None = None
    fold: Callable[[PreTrainedModel, str], None] | None = None
    unfold: Callable[[PreTrainedModel], None] | None = None
    fold_modes: tuple[str, ...] = ()
    best_fold: Callable[[PreTrainedModel], tuple[str, str]] | None = None


PIA_FOLD: dict[str, Any] = {
    "fold": eas.fold,
    "unfold": eas.unfold,
    "fold_modes": ("shared", "per_example", "constant"),
    "best_fold": eas.best_fold,
}
INPUT_ROUTED: dict[str, Any] = PIA_FOLD | {"fold_modes": ("shared", "per_example")}
MERGE: dict[str, Any] = {"fold": lora.fold, "unfold": lora.unfold, "fold_modes": ("merged",)}
PRECOMPUTED: dict[str, Any] = {
    "fold": soft_prompt.fold,
    "unfold": soft_prompt.unfold,
    "fold_modes": ("precomputed",),
}  # of every method whose prompt becomes keys and values
METHODS: dict[str, Method] = {
    "eas": Method(eas.EASConfig, eas.attach, eas.prune, **PIA_FOLD),
    "das": Method(das.DASConfig, das.attach, das.prune),
    "drop": Method(drop.DropConfig, drop.attach, drop.prune, **MERGE),
    "full": Method(full.FullConfig, full.attach),
    "head": Method(full.HeadConfig, full.attach_head),
    "lora": Method(lora.LoRAConfig, lora.attach, **MERGE),
    "adapter": Method(adapter.AdapterConfig, adapter.attach),
    "parallel_adapter": Method(adapter.ParallelAdapterConfig, adapter.attach_parallel),
    "lavin_adapter": Method(lavin_adapter.LavinAdapterConfig, lavin_adapter.attach, **INPUT_ROUTED),
    "prefix": Method(prefix.PrefixConfig, prefix.attach, **PRECOMPUTED),
    "shallow_prompt": Method(prompts.ShallowPromptConfig, prompts.attach_shallow, **PRECOMPUTED),
    "deep_prompt": Method(prompts.DeepPromptConfig, prompts.attach_deep, **PRECOMPUTED),
    "mam": Method(mam.MAMConfig, mam.attach),
    "llama_adapter": Method(llama_adapter.LlamaAdapterConfig, llama_adapter.attach, **PRECOMPUTED),
}


OWN_FORMS: dict[str, dict[str, Method]] = {
    "decoder": {},
    "coattention": {
        "eas": Method(eas.EASConfig, eas_meter.attach, eas_meter.prune),
        "das": Method(das.DASConfig, das.attach_post_norm, das.prune),
        "shallow_prompt": Method(prompts.ShallowPromptConfig, meter_prompts.attach_shallow),
        "deep_prompt": Method(prompts.DeepPromptConfig, meter_prompts.attach_deep),
        "prefix": Method(prefix.PrefixConfig, prefix.attach),
    },
}
"""By the form of a model's `Anatomy`, the methods that are others there. METER is post-norm and has two streams."""
REFUSED: dict[str, dict[str, str]] = {
    "decoder": {},
    "coattention": {
        "llama_adapter": "its gated prompts are for the topmost blocks of a decoder; use 'deep_prompt' or 'prefix'",
        "lavin_adapter": "its routers read LaVIN's modality token or a decoder's prompt; use 'adapter' or 'eas'",
    },
}
"""Methods that a form does not have, and what to use instead."""
REFUSED_OPTIONS: dict[str, tuple[tuple[str, str, tuple[Any, ...], str], ...]] = {
    "decoder": (),
    "coattention": (
        ("eas", "candidates", ("mha",), "of METER attentions may be skipped ('mha')"),
        ("eas", "pooling", ("prompt", "none"), "METER's tokens have no order; use 'prompt' or 'none'"),
        ("eas", "adapt", ("pia",), "METER is tuned by adapt PIAs; use 'pia'"),
        ("das", "routed", (False,), "on METER the adapters are plain; use preset 'meter'"),
        ("drop", "candidates", ("mha", "layer"), "on METER it must be 'mha' or 'layer'"),
        ("prefix", "reparameterise", (None,), "on METER keys and values are trained directly; leave it out"),
    ),
}
"""Of a method an option, the values that it may have in a form, and what to say of others."""


def method_of(form: str, name: str) -> Method:
    """A method in the form that fits a model's anatomy.

    Raises:
        ConfigError: there is none.
    """
    if name in REFUSED[form]:
        raise ConfigError(f"method {name!r} does not exist for this model: {REFUSED[form][name]}")
    return (METHODS | OWN_FORMS[form])[name]


def require_fit(form: str, config: MethodConfig) -> None:
    """Refuses what a form of models cannot do.

    Raises:
        ConfigError: the message names the option.
    """
    for name, option, allowed, words in REFUSED_OPTIONS[form]:
        if config.name == name and (value := vars(config)[option]) not in allowed:
            raise ConfigError(f"{type(config).__name__}.{option} = {value!r}: {words}")


def require_prompts(built: TextModel, config: MethodConfig, name: str) -> None:
    """Refuses methods that make keys and values themselves where a language model makes them otherwise.

    Raises:
        ConfigError: the message names methods that fit.
    """
    fitting = {"tokens": NEED_KEYS | NEED_TOKENS, "keys": NEED_KEYS, "none": frozenset[str]()}[built.prompts]
    if config.name in (NEED_KEYS | NEED_TOKENS) - fitting:
        instead = ", ".join(map(repr, ["lora", "adapter", "eas", *sorted(fitting)]))
        raise ConfigError(
            f"method {config.name!r} does not exist for {name}: its attentions make keys and values in a way of their "
            f"own; use {instead}"
        )


NEED_TOKENS = frozenset({"shallow_prompt", "deep_prompt", "llama_adapter", "lavin_adapter"})
"""Methods that run tokens of their own through the attentions' maps."""
NEED_KEYS = frozenset({"prefix", "mam"})
"""Methods that put trained keys and values in front of every attention's own."""


def method_config(values: Mapping[str, Any]) -> MethodConfig:
    """The configuration whose ``name`` the values give; EAS without one.

    Raises:
        ConfigError: the name is unknown, or a key or value is refused.

    Example:
        >>> import eas
        >>> eas.method_config({"name": "lora", "rank": 8}).rank
        8
    """
    name = values.get("name", "eas")
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"method {shortened(name)} is unknown; use one of {', '.join(METHODS)}")
    return METHODS[name].config.from_dict(values)


def recorded_method(values: Mapping[str, Any]) -> MethodConfig:
    """The configuration that a stored model holds.

    An EAS without "form" is older than the residual form. Its ``hidden_scale`` was also that of adapt PIAs, and
    ``train_scale`` trained a factor of g. METER's head was trained by a key of its own, ``train_head``.

    Raises:
        ConfigError: it holds what only the older EAS computed, or a key or value is refused.
    """
    values = dict(values)
    if values.pop("train_head", False):
        values["train_projector"] = True
    if values.get("name", "eas") != "eas" or "form" in values:
        return method_config(values)
    older = {"form": "paper", "adapt_router_bias": True, **values}
    if older.pop("train_scale", False) or older.get("hidden_scale", 1.0) != 1.0:
        raise ConfigError(
            "it was trained by an EAS whose hidden_scale was also that of adapt PIAs, or whose train_scale trained a "
            "factor of the norm's weight; train it again"
        )
    return method_config(older)
