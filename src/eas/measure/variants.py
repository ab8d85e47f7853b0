"""The variants of one model that `eas bench` compares: the methods, and EAS in each of its folds.

They share the base's weights, have untrained modules in the base's dtype, and ranks that are those of the paper's LLaVA
scaled by the width. What is measured depends on none of the trained values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from eas.attachment.attach import fold, select
from eas.attachment.quantised import torchao_int8
from eas.attachment.sharing import attached_copy
from eas.attachment.state import candidates
from eas.config import MethodConfig
from eas.measure.count import count
from eas.methods import method_config
from eas.methods.eas_fold import FoldedLinear
from eas.methods.lora import unwrap
from eas.models.anatomy import Anatomy


@dataclass(frozen=True)
class Variant:
    """The recipe of a variant.

    Args:
        method: the method's name and options; None for the base.
        ranks: rank options at width 4096.
        fold: fold mode; None: not folded.
        skips: whether it skips the chosen set.
        equal_macs: whether it skips as many candidates as bring its MACs closest to those of EAS instead.
        compiles: whether its decoding can be compiled.
    """

    method: dict[str, Any] | None
    ranks: dict[str, int]
    fold: str | None = None
    skips: bool = True
    equal_macs: bool = False
    compiles: bool = True


PIA, DAS = {"skip_rank": 256, "adapt_rank": 128}, {"skip_rank": 256, "adapt_rank": 128}
VARIANTS: dict[str, Variant] = {
    "base": Variant(None, {}, skips=False),
    "lora": Variant({"name": "lora"}, {"rank": 16}, skips=False),
    "lora_merged": Variant({"name": "lora"}, {"rank": 16}, "merged", skips=False),
    "adapter": Variant({"name": "adapter"}, {"rank": 128}, skips=False),
    "das": Variant({"name": "das"}, DAS),
    "das_equal_macs": Variant({"name": "das"}, DAS, equal_macs=True),
    "drop": Variant({"name": "drop"}, {"rank": 16}, "merged"),
    "eas": Variant({"name": "eas"}, PIA),
    "eas_shared": Variant({"name": "eas"}, PIA, "shared"),
    "eas_per_example": Variant({"name": "eas"}, PIA, "per_example", compiles=False),
    "eas_constant": Variant({"name": "eas", "router": "constant"}, PIA, "constant"),
}
"""By name. ``drop`` leaves the attentions out without replacement: what EAS cannot be faster than."""


def build_variant(base: PreTrainedModel, name: str, skip_set: Sequence[int], prompt_tokens: int) -> PreTrainedModel:
    """A variant of a model, pruned, not yet folded. It shares the weights of the model, which does not change.

    Args:
        base: in evaluation mode; on the meta device too.
        name: one of ``VARIANTS``.
        skip_set: what EAS skips.
        prompt_tokens: of the prompt whose MACs ``equal_macs`` compares.
    """
    variant = VARIANTS[name]
    if variant.method is None:
        return base
    chosen: Sequence[int] = skip_set if variant.skips else ()
    if variant.equal_macs:
        fold_variant(eas := build_variant(base, "eas_shared", skip_set, prompt_tokens), "eas_shared")
        unpruned = attached_copy(base, _config(base, variant), (), pruned=False)
        chosen = _nearest(unpruned, count(eas, prompt_tokens).macs, prompt_tokens)
    return attached_copy(base, _config(base, variant), chosen)


def fold_variant(model: PreTrainedModel, name: str) -> None:
    """Folds a variant, where it is one that is folded; merged maps lose PEFT's wrappers, which cost time per step."""
    mode = VARIANTS[name].fold
    if mode is not None:
        fold(model, mode)
    unwrap(model)


def quantise_variants(base: PreTrainedModel, variants: Iterable[PreTrainedModel]) -> None:
    """Gives int8 weights, in place, to the linear maps of language model and head: the base's own, and those folded.

    Modules of a method (PIAs, LoRA, adapters) do not change, and shared weights stay shared.

    Args:
        base: what the variants were built from.
        variants: all of them, folded; the base may be one.

    Raises:
        ImportError: torchao is missing.
    """
    own = {id(parameter): parameter for parameter in base.parameters()}  # held, so that no new one gets an old id
    done: dict[int, nn.Module] = {}
    for model in variants:
        inside = {*Anatomy.of(model).text_model.modules(), model.get_output_embeddings()}
        for path, module in list(model.named_modules(remove_duplicate=False)):
            if module not in inside or not isinstance(module, nn.Linear):
                continue
            if isinstance(module, FoldedLinear) or id(module.weight) in own:
                key = id(module.weight)
                if key not in done:
                    done[key] = torchao_int8(module)
                model.set_submodule(path, done[key])


def _config(base: PreTrainedModel, variant: Variant) -> MethodConfig:
    config = method_config({**(variant.method or {}), **variant.ranks})
    return config.rescaled(base.config.get_text_config().hidden_size, multiple=1)  # of tiny shapes too


def _nearest(model: PreTrainedModel, macs: int, prompt_tokens: int) -> tuple[int, ...]:
    """The first so many candidates that bring the model's MACs closest to a number."""
    found: tuple[int, tuple[int, ...]] | None = None
    for k in range(len(candidates(model))):
        select(model, range(k))
        distance = abs(count(model, prompt_tokens).macs - macs)
        if found is None or distance < found[0]:
            found = distance, tuple(range(k))
    assert found is not None
    return found[1]
