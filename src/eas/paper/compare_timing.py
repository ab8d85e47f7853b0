"""The timing of a comparison: one model of every row and the base take turns in one benchmark."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

from eas.attachment.attach import fold
from eas.attachment.load import load
from eas.demo.larger import larger_base, larger_tuned
from eas.measure.latency import benchmark, hardware
from eas.methods.lora import unwrap
from eas.paper.compare_config import BASE, CompareConfig, Job
from eas.pipeline.config import RunConfig
from eas.pipeline.run import Run
from eas.pipeline.savings import fold_mode


def time_rows(config: CompareConfig, jobs: Sequence[Job], before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Times the model of every row's first run, folded where the method folds, and the base.

    Args:
        config: of the comparison.
        jobs: the runs that have results.
        before: an earlier call's return value, which is kept if it timed the same.
    """
    first: dict[str, Job] = {}
    for job in jobs:
        if not job.evaluate_only:
            first.setdefault(job.row, job)
    skip_sets = {row: Run(job.config).require("result")["skip_set"] for row, job in first.items()}
    timed = {"settings": asdict(config.benchmark), "skip_sets": skip_sets, "hardware": hardware()}
    timed["models"] = {row: _what_is_timed(job) for row, job in first.items()}
    if config.benchmark.repeats == 0 or not first:
        return None
    if before is not None and all(before.get(key) == value for key, value in timed.items()):
        return dict(before)
    choice = config.run.get("visual_choice", RunConfig.visual_choice)
    run = Run(replace(jobs[0].config, visual_tokens=config.run.get("visual_tokens"), visual_choice=choice))
    inputs, tokens = _prompt(run)
    others = {row: job for row, job in first.items() if job.config.visual_tokens != run.config.visual_tokens}
    own = {row: _prompt(Run(job.config)) for row, job in others.items()}
    own_inputs = {row: given for row, (given, _) in own.items()}
    models = {BASE: run.load_base().eval(), **{row: _folded(job) for row, job in first.items()}}
    return {
        **timed,
        "prompt_tokens": tokens,
        "own_prompt_tokens": {row: count for row, (_, count) in own.items()},
        "variants": _variants(config, models, inputs, run.task.new_tokens(run) > 0, "all rows", own_inputs),
        "wide": None if config.benchmark.hidden_size is None else _time_wide(config, first, skip_sets, own),
    }


def _what_is_timed(job: Job) -> dict[str, Any]:
    """What decides the time of a row's model, beside its skip set."""
    config = job.config
    base = {key: getattr(config, key) for key in ("model", "revision", "bits", "visual_tokens", "visual_choice")}
    prompt = {key: getattr(config, key) for key in ("data", "data_options", "test_limit")}
    run = Run(config)
    return {
        "method": config.method.to_dict(),
        "fold_mode": fold_mode(run),
        "dtype": run.weights_dtype,
        **base,
        **prompt,
    }


def _prompt(run: Run) -> tuple[Mapping[str, Any], int]:
    """The first example of the test split as the run's model reads it, and its tokens."""
    inputs, (tokens, _, _) = run.task.first(run, "test")
    return inputs, tokens


def _time_wide(
    config: CompareConfig, jobs: Mapping[str, Job], skip_sets: Mapping[str, Sequence[int]], others: Collection[str]
) -> dict[str, Any]:
    """At the tiny model's width overhead rules: the same methods and skip sets, untrained, where matrices do.

    What cannot be attached to a text-only model is left out, with the reason.
    """
    base, inputs, name = larger_base(config.benchmark.hidden_size or 0, config.benchmark.prompt_tokens)
    models = {BASE: base}
    left_out = dict.fromkeys(others, "the wide model reads no image, so no other number of its tokens")
    for row, job in jobs.items():
        if row in left_out:
            continue
        width = Run(job.config).load_config().get_text_config().hidden_size
        try:
            method = replace(job.config.method.rescaled(base.config.hidden_size, of=width), train_projector=False)
            models[row] = larger_tuned(base, skip_sets[row], method, fold_mode(Run(job.config)))
        except ValueError as error:
            left_out[row] = str(error)
    return {"name": name, "left_out": left_out, "variants": _variants(config, models, inputs, True, "the wide rows")}


def _variants(
    config: CompareConfig,
    models: Mapping[str, Any],
    inputs: Mapping[str, Any],
    decodes: bool,
    what: str,
    own: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> dict[str, Any]:
    settings = config.benchmark
    new_tokens = settings.new_tokens if decodes else 0
    timed = benchmark(models, inputs, new_tokens, settings.repeats, title=f"timing {what}", own_inputs=own)
    return {row: asdict(latency) for row, latency in timed.items()}


def _folded(job: Job) -> Any:
    run = Run(job.config)
    model = load(run.load_base(), run.folder / "adapter").eval()
    if (mode := fold_mode(run)) is not None:
        fold(model, mode)
    unwrap(model)
    return model
