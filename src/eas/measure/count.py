"""``eas.count``: the costs of a model under a tuning method, at any size, before anything is loaded or trained.

A name is built on the meta device, so a 13B model is counted in seconds. ``eas.measure.modules`` says how a model is
counted, ``eas.measure.paper`` how the paper counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from eas.attachment.attach import attach, fold, prune, select
from eas.attachment.load import fitting, read_adapter_record
from eas.attachment.save import WEIGHTS_FILE
from eas.attachment.state import attached, attachment, candidates
from eas.config import ConfigError, MethodConfig, SkipConfig
from eas.hf.api import no_init_weights
from eas.measure.coattention import count_coattention
from eas.measure.modules import Counts, count_modules
from eas.measure.paper import PAPER_FOLDS, as_the_paper_counts
from eas.measure.shapes import SHAPES, build
from eas.measure.vision import require_room_in_prompt
from eas.methods import method_config, recorded_method
from eas.models.anatomy import Anatomy, auto_class
from eas.models.bases import base_folder
from eas.models.folder import model_config

__all__ = ["CONVENTIONS", "Counts", "count"]

CONVENTIONS = ("honest", "paper")


def count(
    model: PreTrainedModel | str | Path,
    prompt_tokens: int,
    images: int = 0,
    patch_grid: tuple[int, int] | None = None,
    *,
    method: str | Mapping[str, Any] | MethodConfig | None = None,
    k: int | None = None,
    skip_set: Iterable[int] | None = None,
    fold_mode: str = "default",
    convention: str = "honest",
    dtype: torch.dtype | None = None,
) -> Counts:
    """Counts a model in its present state, or as a method would make it, pruned and folded.

    Args:
        model: a model of a supported family; or a named shape (``eas.measure.shapes.SHAPES``), a folder (a base, an
            adapter with its base at hand, a standalone model) or a Hub id, whose configuration alone is read.
        prompt_tokens: n, image and question tokens together.
        images: images as the vision tower sees them; each tile of a split image counts as one.
        patch_grid: height and width of an image in patches, before merging, if the tower takes any size (Qwen-VL,
            GLM-V, Pixtral, LFM2-VL, Gemma 4).
        method: a method's name, its keys with ``name`` among them, or its configuration; None counts the unchanged
            model, or EAS if ``k`` or ``skip_set`` is given. A given model is not changed: a twin of it is counted.
        k: number of skipped candidates; may be left out if ``skip_set`` is given.
        skip_set: the skipped candidates; by default the last k, if all blocks cost the same (not in METER).
        fold_mode: "default" (of the method; in the paper's convention the paper's), one of its modes, or "none".
        convention: "honest", or "paper": see ``eas.measure.paper``.
        dtype: dtype of the base's weights, keys and values if the model is built here; by default that of a given
            model, and bfloat16 of a name. What a method adds is float32.

    Raises:
        UnsupportedModelError: the family is not supported.
        ConfigError: the method, its keys, ``k`` or ``skip_set`` are refused.
        ValueError: the name is unknown, an argument is impossible or does not apply; images are given to a model that
            sees none, or whose tower is not known; ``patch_grid`` is missing or impossible; the prompt is shorter than
            its images; or the base is saved quantised.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> eas.count(load_tiny()[0], 32, method={"name": "lora", "rank": 8}).params_trained
        282624
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r} is unknown; use one of {', '.join(CONVENTIONS)}")
    if prompt_tokens < 1 or images < 0:
        raise ValueError(f"prompt_tokens = {prompt_tokens} must be at least 1, and images = {images} at least 0")
    chosen = None if skip_set is None else list(skip_set)
    if method is None and (k or chosen):
        method = "eas"
    if isinstance(model, PreTrainedModel) and method is None:
        if fold_mode != "default" or dtype is not None:
            raise ValueError(
                "a given model is counted unchanged: fold or convert it yourself, or give a method or a name"
            )
    else:
        mode = PAPER_FOLDS if convention == "paper" and fold_mode == "default" else fold_mode
        model = on_meta(model, method, k, chosen, mode, dtype)
    if Anatomy.of(model).form == "coattention":  # which the paper counts as we do
        return count_coattention(model, prompt_tokens, images)
    counts = count_modules(model, prompt_tokens, images, patch_grid)  # first: it refuses towers that nobody knows
    require_room_in_prompt(model, prompt_tokens, images, patch_grid)
    return as_the_paper_counts(counts) if convention == "paper" else counts


def on_meta(
    model: PreTrainedModel | str | Path,
    method: str | Mapping[str, Any] | MethodConfig | None,
    k: int | None = None,
    skip_set: Sequence[int] | None = None,
    fold_mode: str | Mapping[str, str] = "default",
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The model that ``count`` counts, without storage; ``fold_mode`` may also be the mode of each method."""
    with torch.device("meta"), no_init_weights():
        built = _built(model, method, dtype)
        _apply(built, method, k, skip_set)
        _fold(built, fold_mode)
    return built


def _built(model: PreTrainedModel | str | Path, method: Any, dtype: torch.dtype | None) -> PreTrainedModel:
    """A model without storage: of the name, or the given model's twin."""
    if isinstance(model, PreTrainedModel):
        if attached(model):
            raise ValueError("the model is attached already; count it without method, k and skip_set, or give its base")
        if (own := model.config.to_dict()).get("quantization_config") is not None:
            raise ValueError(f"a quantised {own['model_type']} has no twin to count; attach the method to it instead")
        return _from_config(model.config, dtype or model.dtype)
    folder, dtype = Path(model), dtype or torch.bfloat16
    if str(model) in SHAPES:
        return build(str(model), dtype=dtype)
    if not (folder / WEIGHTS_FILE).is_file():
        return _from_config(_config(str(model), as_base=method is not None), dtype)
    if method is not None:
        raise ValueError(f"{folder} holds an adapter; leave method, k and skip_set out, or name its base")
    record = read_adapter_record(folder)
    base = _from_config(_config(record["base"]["id"]), dtype)
    with fitting(folder):
        config, skipped = recorded_method(record["config"]), record["skip_set"]
        if isinstance(config, SkipConfig):  # a search that goes on draws sets of other sizes
            config = dataclasses.replace(config, num_skip=len(skipped))
        built = attach(base, config)
        select(built, skipped)
        if candidates(built):
            prune(built)
    return built


def _config(name: str, as_base: bool = False) -> Any:
    name = base_folder(name)
    if "/" not in name and not Path(name).is_dir():  # spares a typing error the way to the Hub
        raise ValueError(f"{name} is neither a folder nor a shape; use one of {', '.join(SHAPES)}")
    try:
        config = model_config(name, as_base=as_base)
    except OSError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    if vars(config).get("quantization_config") is not None:
        raise ValueError(f"{name} is saved quantised, and its bytes are not known here; name its unquantised base")
    return config


def _from_config(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = auto_class(config.model_type).from_config(config, dtype=dtype)
    model.tie_weights()
    return model.eval()


def _apply(model: PreTrainedModel, method: Any, k: int | None, skip_set: Sequence[int] | None) -> None:
    """Attaches, selects and prunes."""
    if method is None:
        return
    config = method if isinstance(method, MethodConfig) else _method_config(method)
    if not isinstance(config, SkipConfig):
        if k or skip_set:
            raise ConfigError(f"{config.name} skips nothing; leave k and skip_set out")
        attach(model, config)
        return
    if k is not None and skip_set is not None and k != len(skip_set):
        raise ConfigError(f"k = {k} and a skip_set of {len(skip_set)} candidates; give one of them")
    number = len(skip_set) if skip_set is not None else config.num_skip if k is None else k
    attach(model, dataclasses.replace(config, num_skip=number))
    unequal = config.candidates == "either" or any(branch.across for branch in Anatomy.of(model).branches)
    if skip_set is None and number and unequal:
        raise ConfigError(
            "this model's candidates cost differently (attentions and FFNs, METER's); give the skip_set, not k"
        )
    last = len(candidates(model))
    select(model, range(last - number, last) if skip_set is None else skip_set)
    prune(model)


def _method_config(method: str | Mapping[str, Any]) -> MethodConfig:
    values: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
    return method_config(values)


def _fold(model: PreTrainedModel, mode: str | Mapping[str, str]) -> None:
    if not attached(model):
        if isinstance(mode, str) and mode not in ("default", "none"):
            raise ValueError(f"fold_mode {mode!r}: there is nothing to fold without a method")
        return
    state = attachment(model)
    if state.method.fold is None and (mode == "default" or not isinstance(mode, str)):
        return
    mode = mode if isinstance(mode, str) else mode.get(state.config.name, "none")
    if mode != "none":
        fold(model, None if mode == "default" else mode)
