"""The tuning methods, one file each: a configuration and an ``attach``, and what else the method can do.

``attach`` adds modules to a frozen model in place and leaves exactly what is trained with ``requires_grad``; freezing,
the projector, saving, loading and undoing are done for it (``eas.surgery``, ``eas.checkpoint``). A new method costs its
file and its line in ``METHODS``; see docs/methods.md.
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
    full,
    lavin_adapter,
    llama_adapter,
    lora,
    mam,
    prefix,
    prompts,
    soft_prompt,
)
from eas.methods import meter_adapters as meter
from eas.methods.meter_drop import attach_drop, prune_drop
from eas.methods.meter_eas import attach_das, attach_eas, prune_das, prune_eas
from eas.methods.meter_prefix import attach_mam, attach_prefix


@dataclass(frozen=True)
class Method:
    """What a method is made of.

    Args:
        config: its configuration's class.
        attach: adds its modules to a model whose parameters are frozen; refuses before it changes anything.
        prune: drops what the chosen skip set leaves without use, besides the skipped modules themselves.
        fold: re-parameterises for inference; gets the model and one of ``fold_modes``.
        unfold: takes ``fold`` back.
        fold_modes: what ``fold`` can do; empty where nothing can be folded.
        best_fold: the mode for "auto", and why; None where there is but one.
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
    "drop": Method(drop.DropConfig, drop.attach, **MERGE),
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


COATTENTION: dict[str, Method] = {
    "eas": Method(eas.EASConfig, attach_eas, prune_eas),
    "das": Method(das.DASConfig, attach_das, prune_das),
    "drop": Method(drop.DropConfig, attach_drop, prune_drop, **MERGE),
    "full": Method(full.FullConfig, meter.attach_full),
    "head": Method(full.HeadConfig, meter.attach_head),
    "lora": Method(lora.LoRAConfig, meter.attach_lora, **MERGE),
    "adapter": Method(adapter.AdapterConfig, meter.attach_adapter),
    "parallel_adapter": Method(adapter.ParallelAdapterConfig, meter.attach_parallel),
    "shallow_prompt": Method(prompts.ShallowPromptConfig, meter.attach_shallow),
    "deep_prompt": Method(prompts.DeepPromptConfig, meter.attach_deep),
    "prefix": Method(prefix.PrefixConfig, attach_prefix),
    "mam": Method(mam.MAMConfig, attach_mam),
}
"""The methods in the form they have on METER."""
NOT_ON_METER = {
    "llama_adapter": "its gated prompts are for the topmost blocks of a decoder; use 'deep_prompt' or 'prefix'",
    "lavin_adapter": "its routers read LaVIN's modality token or a decoder's prompt; use 'adapter' or 'eas'",
}
"""Why the others are not there, and what to use instead."""
FORMS = {"decoder": METHODS, "coattention": COATTENTION}


def method_of(form: str, name: str) -> Method:
    """A method in the form that fits a model's anatomy.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMS[form]:
        why = NOT_ON_METER.get(name, f"there is {', '.join(FORMS[form])}")
        raise ConfigError(f"method {name!r} does not exist for this model: {why}")
    return FORMS[form][name]


def method_config(values: Mapping[str, Any]) -> MethodConfig:
    """The configuration whose ``name`` the values give; EAS without one.

    Raises:
        ConfigError: the name is unknown, or a key or value is refused.
    """
    name = values.get("name", "eas")
    if not isinstance(name, str) or name not in METHODS:
        raise ConfigError(f"method {shortened(name)} is unknown; there is {', '.join(METHODS)}")
    return METHODS[name].config.from_dict(values)
