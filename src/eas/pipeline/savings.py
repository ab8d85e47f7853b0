"""Counts, before a run trains, whether the run can save anything; on the meta device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from eas.attachment.state import attachment
from eas.config import RANKS, MethodConfig, SkipConfig
from eas.hf.api import no_init_weights
from eas.measure.count import Counts, count, on_meta
from eas.measure.vision import counted
from eas.methods import method_of
from eas.models.anatomy import auto_class
from eas.models.dtype import in_software, loaded_dtype
from eas.models.visual_tokens import keep_visual_tokens
from eas.pipeline.config import INTO_WEIGHTS
from eas.pipeline.run import Run
from eas.reports.findings import saves_nothing
from eas.tasks.task import Size
from eas.terminal import console


def bounds(base: Counts, tuned: Counts, prompt_tokens: int) -> dict[str, float]:
    """The speed-up that fewer MACs (prefill) and fewer bytes read (decode) allow; more is no gain of the method."""

    def read(counts: Counts) -> int:
        return counts.weight_bytes + prompt_tokens * counts.kv_bytes_per_token

    return {"prefill_ms": base.macs / tuned.macs, "decode_ms": read(base) / read(tuned)}


def counted_size(model: Any, size: Size) -> Size:
    """What is counted of a prompt; where the images of the family cannot be counted it is without them, and says so."""
    tokens, images, grid = size
    if counted(model, images, grid) == images:
        return size
    console().print("the images of this family cannot be counted: the MACs are the language model's alone")
    return tokens, 0, None


def fold_mode(run: Run) -> str | None:
    """The mode in which the run's method is folded, None if it cannot be."""
    modes = method_of(run.task.form, run.config.method.name).fold_modes
    if run.config.bits is not None:
        return next((mode for mode in modes if mode not in INTO_WEIGHTS), None)
    return run.config.fold_mode or ("auto" if modes else None)


def warning(run: Run) -> str:
    """What to say of a run that skips something and yet saves nothing, with ranks that would save; else empty."""
    method = run.config.method
    if not isinstance(method, SkipConfig) or method.num_skip == 0 or run.config.bits is not None:
        return ""
    config, size = run.load_config(), run.task.first(run, "test")[1]
    last = run.task.num_candidates(config, method)
    skip_set = run.config.skip_set or range(last - method.num_skip, last)
    dtype = loaded_dtype(run.dtype, config)
    with torch.device("meta"), no_init_weights():
        base = auto_class(config.model_type).from_config(config, dtype=dtype).eval()
    if run.config.visual_tokens is not None:
        keep_visual_tokens(base, run.config.visual_tokens, run.config.visual_choice)
    size = size[0], counted(base, *size[1:]), size[2]  # the measurement says what is left out
    before = count(base, *size)

    def allowed(changed: MethodConfig) -> tuple[MethodConfig, dict[str, float]]:
        tuned = on_meta(base, changed, None, skip_set, fold_mode(run) or "none", dtype)
        return attachment(tuned).config, bounds(before, count(tuned, *size), size[0])

    filled, found = allowed(method)
    if not (more := saves_nothing(found)):
        return ""
    ranks = {name: rank for name, rank in filled.to_dict().items() if name in RANKS}
    said = "".join(f", {name} {rank}" for name, rank in ranks.items())
    about, step = (
        f"this run can save nothing: k = {method.num_skip}{said} take {more}",
        vars(filled).get("up_groups", 1),
    )
    while ranks and max(ranks.values()) > step:
        ranks = {name: max(step, rank // 2 // step * step) for name, rank in ranks.items()}
        _, found = allowed(replace(filled, **ranks))
        if min(found.values()) > 1:
            keys = " ".join(f"-o method.{name}={rank}" for name, rank in ranks.items())
            macs, read = (100 * (1 / found[key] - 1) for key in ("prefill_ms", "decode_ms"))
            return f"{about}; it saves with {keys} ({macs:+.1f} % MACs, {read:+.1f} % bytes read)"
    return f"{about}; no ranks save at this k: raise method.num_skip"


def slow_dtype(run: Run) -> str:
    """What to say of plain weights that are not loaded in the dtype that they are saved in; else empty."""
    if (name := run.saved_dtype) == run.weights_dtype or run.config.bits is not None:
        return ""
    return f"weights are in float32, as this CPU computes {name} in software; -o dtype={name} halves their memory"


def slow_precision(run: Run) -> str:
    """What to say of autocast to bfloat16 on a CPU that computes it in software; else empty."""
    precisions = {"train.precision": run.config.train.precision, "search.score_dtype": run.config.search.score_dtype}
    asked = [key for key, precision in precisions.items() if precision == "bfloat16"]
    if not asked or torch.cuda.is_available() or not in_software("bfloat16"):
        return ""
    return f"this CPU computes bfloat16 in software, which is slow: leave {' and '.join(asked)} out"
