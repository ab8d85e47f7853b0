"""The verbs that change a model in place: attach, select, prune, fold and unfold.

The model keeps its class (a ``LlavaForConditionalGeneration`` remains one), so Trainer, TRL, accelerate, ``generate``
and pipelines keep working.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import fields, replace
from numbers import Integral
from typing import Any, NamedTuple

from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from eas.attachment.save import AttachedModel, InnerModel
from eas.attachment.state import (
    Attachment,
    all_but_one,
    attached,
    attachment,
    base_fingerprint,
    candidates,
    candidates_of,
    skip_set,
)
from eas.config import ConfigError, MethodConfig, SkipConfig
from eas.hf.api import attention_implementation, require_cache_argument
from eas.hf.changes import Structure
from eas.hf.classes import become, has_device_hook
from eas.hf.one_token import read_rows
from eas.hf.twin import TOLERANCE, deviation
from eas.hf.versions import TransformersChangedError
from eas.methods import method_of, require_fit, require_prompts
from eas.models.anatomy import FAMILIES, Anatomy, model_class
from eas.models.visual_tokens import hook


def attach(model: PreTrainedModel, config: MethodConfig) -> PreTrainedModel:
    """Prepares a model for a tuning method, in place, and freezes everything that the method does not train.

    With EAS: a skip PIA and an adapt PIA at every block of the language model; the untrained result with nothing
    skipped computes exactly what the base computes.

    Args:
        model: a model of a supported family, with its head.
        config: of any method: ``EASConfig``, or another of ``eas.methods``.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: the family is not supported; the message lists those that are.
        ConfigError: the configuration does not fit the model.
        ValueError: the model is attached already or has adapters of PEFT, its forward was replaced, or layers are
            offloaded.
        After any error the model is as it was.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=4, skip_rank=8, adapt_rank=4))
        >>> model.eas.config.num_skip
        4
    """
    if not isinstance(config, MethodConfig):
        values = config if isinstance(config, dict) else {"name": config if isinstance(config, str) else "eas"}
        raise ConfigError(f"attach(model, {config!r}): give a configuration, for example eas.method_config({values!r})")
    if attached(model):
        raise ValueError("the model is attached already; attach a freshly loaded model to start over")
    hook(model)  # the stock class does not
    _attach(model, config)
    return model


def _attach(model: PreTrainedModel, config: MethodConfig, tried: bool = False) -> None:
    """``attach``; ``tried`` for the twin on which the installation is tried."""
    anatomy = Anatomy.of(model)
    layers, method = anatomy.layers, method_of(anatomy.form, config.name)
    require_fit(anatomy.form, config)
    for option, otherwise in anatomy.built.refused:
        if getattr(anatomy.text_model.config, option):
            name = type(anatomy.text_model).__name__
            raise ConfigError(f"{name} with {option} = True has {otherwise}; EAS does not support this variant")
    require_prompts(anatomy.built, config, type(anatomy.text_model).__name__)
    if isinstance(config, SkipConfig) and config.num_skip >= (blocks := len(anatomy.blocks(config.candidates))):
        what = f"{type(config).__name__}.num_skip = {config.num_skip}"
        raise ConfigError(f"{what}: {all_but_one(config.candidates, blocks)}")
    if config.train_projector is None:
        config = replace(config, train_projector=bool(anatomy.tuned_along))
    if config.train_projector and not anatomy.tuned_along:
        raise ConfigError(f"{type(config).__name__}.train_projector = True: the model has no vision-language projector")
    for module in (model, anatomy.text_model, *layers):
        if "forward" in vars(module) and not has_device_hook(module):
            name = type(module).__name__
            raise ValueError(f"{name}.forward was replaced on this instance; attach before compiling or patching it")
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the model has adapters of PEFT (LoRA, say), which would be taken for the method's own; merge them before: "
            "peft.PeftModel.from_pretrained(base, adapter).merge_and_unload() gives the base"
        )
    norms = [norm for _, _, norm in anatomy.bodies()]
    config = config.at_width(norms[0].weight.shape[0])
    if any(has_device_hook(norm) and norm.weight.is_meta for norm in norms):  # without a hook: being loaded
        raise ValueError("some layers are offloaded; load the model with a device_map that keeps all layers on devices")
    if model.can_generate():
        require_cache_argument(anatomy.text_model, *layers)
        if not tried:
            require_decoding(model, config)
    own, before = list(model.parameters()), Structure(model)
    fingerprint = None if norms[0].weight.is_meta else base_fingerprint(model)
    with ExitStack() as on_failure:  # of whatever kind, Ctrl-C among them
        on_failure.callback(before.restore, model)
        model.requires_grad_(False)
        method.attach(model, config)
        for module in anatomy.tuned_along if config.train_projector else ():
            module.requires_grad_(True)
        if (head := model.get_output_embeddings()) is not None:  # METER has none
            read_rows(head)
        added = {*map(id, model.parameters())} != {*map(id, own)}
        if added or isinstance(config, SkipConfig):
            become(model, AttachedModel)
            for part in [part for part in model.modules() if isinstance(part, PreTrainedModel) and part is not model]:
                if layers[0] in part.modules():
                    become(part, InnerModel)
        trained = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        overwrites = any(p.requires_grad for p in own)
        known = candidates_of(anatomy, config)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters() if name not in trained}
        model.eas = Attachment(
            config, trained, overwrites, fingerprint, anatomy, known, before.changes(), before.trained, shapes
        )
        on_failure.pop_all()


def require_decoding(model: PreTrainedModel, config: MethodConfig) -> None:
    """Tries the installed transformers on a tiny twin of a model, once per process, class and method.

    Raises:
        TransformersChangedError: the twin decodes something else than its whole forward pass computes.
    """
    family, text = type(model).__name__, model.config.get_text_config(decoder=True)
    key = (family, type(text).__name__, config.name, attention_implementation(text))
    if key not in _deviations:
        _deviations[key] = twin_deviation(model_class(family), model.config, config)
    if not _deviations[key] <= TOLERANCE:
        raise TransformersChangedError(
            f"{family} with method {config.name} decodes wrongly: on a tiny random model, cached decoding differs from "
            f"the whole forward pass by {_deviations[key]:.1e} of the logits' norm, {TOLERANCE:.0e} is allowed"
        )


_deviations: dict[tuple[str, ...], float] = {}
TWIN = {"num_skip": 1, "num_layers": None, "up_groups": 1, "train_projector": False}
"""Options that depend on a model's size or kind, as they are for a twin."""


def twin_deviation(cls: Any, config: Any, method: MethodConfig) -> float:
    """``eas.hf.twin.deviation`` of a class under a method, with block 0 skipped where the method skips."""

    def prepare(twin: PreTrainedModel) -> None:
        attach_to_twin(twin, method)
        if isinstance(method, SkipConfig):
            select(twin, [0])

    return deviation(cls, config, FAMILIES[cls.__name__][0], prepare)


def attach_to_twin(twin: PreTrainedModel, method: MethodConfig) -> None:
    """``attach`` of the method at a twin's size; the installation is not tried."""
    own = {f.name for f in fields(method)}
    ranks = {name for name in own if isinstance(value := getattr(method, name), int) and value > 64}
    small: dict[str, Any] = dict.fromkeys(ranks, 64)
    small |= {name: value for name, value in TWIN.items() if name in own}
    _attach(twin, replace(method, **small), tried=True)


def select(model: PreTrainedModel, skip_set: Iterable[int]) -> None:
    """Skips exactly these candidates; sets flags on blocks, so it is cheap, and nothing of the last choice remains.

    Args:
        model: an attached model.
        skip_set: candidate indices, which leave at least one attention. With candidates "mha", "ffn" or "layer" they
            are block indices; with "either", block i's FFN is candidate ``i + number of blocks``.

    Raises:
        ValueError: an index is outside the model or repeated, nothing would be kept, or the model is folded or pruned.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        >>> eas.select(model, [2, 5])
        >>> eas.skip_set(model)
        (2, 5)
    """
    state = attachment(model)
    chosen, known = list(skip_set), candidates(model)
    if chosen and not known:
        raise ValueError(f"{state.config.name} skips nothing; the skip set must be empty")
    if wrong := [i for i in chosen if isinstance(i, bool) or not isinstance(i, Integral) or not 0 <= i < len(known)]:
        raise ValueError(f"skip set names {wrong}; the model's candidates are 0 to {len(known) - 1}")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"skip set {chosen} names a candidate twice")
    parts = {(known[i][0].index, part) for i in chosen for part in known[i][1]}
    blocks = {block.index: block for block, _ in known}
    if known and all((i, "mha") in parts for i in blocks):
        raise ValueError(f"skip set {chosen} leaves no attention; at least one must be kept")
    if state.fold_mode is not None:
        raise ValueError("the model is folded; call unfold(model) before select")
    if state.pruned:
        raise ValueError("the model is pruned, its skip set is final; load the base again to choose another")
    for i, block in blocks.items():
        block.skip_mha, block.skip_ffn = (i, "mha") in parts, (i, "ffn") in parts


def prune(model: PreTrainedModel) -> None:
    """Frees what the skip set makes dead: the skipped modules with their weights, and PIAs without use.

    Raises:
        ValueError: the model is folded, or pruned already, or the skip set, which becomes final, has not ``num_skip``
            members. (``select`` takes sets of other sizes, as a search draws them.)

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        >>> eas.select(model, [2, 5])
        >>> before = model.num_parameters()
        >>> eas.prune(model)
        >>> model.num_parameters() < before
        True
    """
    state = attachment(model)
    if state.fold_mode is not None:
        raise ValueError("the model is folded; call unfold(model) before prune")
    if state.pruned:
        raise ValueError("the model is pruned already")
    chosen, config = skip_set(model), state.config
    if isinstance(config, SkipConfig) and len(chosen) != config.num_skip:
        raise ValueError(
            f"skip set {list(chosen)} has {len(chosen)} members, but {type(config).__name__}.num_skip = "
            f"{config.num_skip}; select {config.num_skip} candidates, or attach with num_skip={len(chosen)}"
        )
    for block, _ in candidates(model):
        for name in state.anatomy.modules_of(block, block.skipped_parts()):
            if name in block._modules:  # 'either' names a block twice
                delattr(block, name)
    if state.method.prune is not None:
        state.method.prune(model)
    state.pruned, state.anatomy = True, Anatomy.of(model)


class Folded(NamedTuple):
    """What ``fold`` did: the mode, and why it was chosen."""

    mode: str
    reason: str


def fold(model: PreTrainedModel, mode: str | None = None) -> Folded:
    """Re-parameterises the method for inference; ``unfold`` takes it back.

    Modes of EAS, none of which writes to the base's weights (but LoRA, where it adapts, is merged into plain maps):
        shared: one form for any batch; two thin products per token remain.
        per_example: each request's PIAs are folded into its own copy of the FFN's gate and up (skipped) or the
            attention's q, k and v (kept) right after its prompt's statistics are known; batch 1; no work per token
            remains. The folded weights live in the request's cache and go with it.
        constant: for a constant router, weights folded once for all sequences. With pooling, c is a bias of gate and
            up, made when the prompt has been read: one addition per token, any batch.

    Args:
        model: an attached model.
        mode: one of the method's modes; "auto", or None, is the one that leaves least to do per token and serves any
            batch.

    Returns:
        The mode, and why.

    Raises:
        ValueError: the method has no fold or not this mode, the configuration does not allow it, the model is folded
            already, or what reads the method's output cannot be folded into.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> config = eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4, router="constant")
        >>> model = eas.attach(load_tiny()[0], config)
        >>> eas.fold(model).mode
        'constant'
    """
    state = attachment(model)
    method, name = state.method, state.config.name
    if method.fold is None:
        raise ValueError(f"{name} cannot be folded; use the unfolded model")
    if state.fold_mode is not None:
        raise ValueError(f"the model is folded already ({state.fold_mode}); call unfold(model) first")
    modes, reason = method.fold_modes, "asked for"
    if mode in (None, "auto"):
        mode, reason = (modes[0], "the only mode") if method.best_fold is None else method.best_fold(model)
    if mode not in modes:
        known = " or ".join(map(repr, ("auto", *modes)))
        raise ValueError(f"fold mode {mode!r} is unknown to {name}; use {known}")
    method.fold(model, mode)
    state.fold_mode = mode
    return Folded(mode, reason)


def unfold(model: PreTrainedModel) -> None:
    """Takes a fold back; the weights are those of before, bit for bit, or up to rounding where LoRA was merged.

    Raises:
        ValueError: the model is not folded.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        >>> mode, reason = eas.fold(model)
        >>> eas.unfold(model)
        >>> model.eas.fold_mode is None
        True
    """
    state = attachment(model)
    if state.fold_mode is None or state.method.unfold is None:
        raise ValueError("the model is not folded")
    state.method.unfold(model)
    state.fold_mode = None
