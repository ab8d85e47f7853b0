"""The steps of a run, in order. Each step loads its inputs from the run folder and writes its record there."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from eas.attachment.attach import fold, prune, select
from eas.attachment.load import load_into
from eas.attachment.save import library_versions, save
from eas.attachment.standalone import save_standalone
from eas.attachment.state import candidates, skip_set
from eas.config import ConfigError, SkipConfig
from eas.demo.larger import larger_pair
from eas.distributed import from_main, is_main
from eas.files import writing
from eas.measure.count import count
from eas.measure.latency import benchmark, git_revision, hardware
from eas.measure.layers import block_costs
from eas.methods.eas import EASConfig
from eas.methods.lora import unwrap
from eas.pipeline.decode_check import decode, relative_error, require_small, teacher_forced
from eas.pipeline.fit import check, check_room
from eas.pipeline.gathering import gather_into
from eas.pipeline.phases import announce, attached_base, console, logged_losses, make_trainer, train
from eas.pipeline.plan import plan
from eas.pipeline.run import Run, working
from eas.pipeline.same_data import READS, require_data_of, require_same_data
from eas.pipeline.savings import bounds, counted_size, fold_mode, slow_dtype, slow_precision, warning
from eas.pipeline.tuned import load_tuned, require_set
from eas.reports.card import write_card
from eas.reports.certainty import share
from eas.reports.findings import final, not_above_blind
from eas.reports.page import write_page
from eas.searching import FIXED, similarity_ranking
from eas.searching.base import shuffled
from eas.searching.similarity import cosines
from eas.tasks.evaluation import answer_as_scored
from eas.tasks.evaluation_forms import blind


def alone(step: Callable[[Run], None]) -> Callable[[Run], None]:
    """A step of the main process; search and tune are of all."""

    @functools.wraps(step)
    def do(run: Run) -> None:
        if is_main():
            step(run)

    return do


def search(run: Run) -> None:
    """Finds the skip set.

    The search leaves its trained PIAs, and ``tune`` continues with them.
    """
    check(run)
    config = run.config
    if not console.quiet and is_main():
        notes = warning(run), slow_dtype(run), slow_precision(run), run.task.told_of_length(run)
        for told in filter(None, notes):
            console.print(f"note: {told}", highlight=False, soft_wrap=True)
    if config.skip_set is not None or not isinstance(config.method, SkipConfig):
        run.finish("search", {"skip_set": sorted(config.skip_set or []), "searched": False})
        return
    model = attached_base(run)
    if (ranking := _ranking_without_search(run, model)) is not None:
        run.kept.attached = model
        record = {"skip_set": sorted(ranking[: config.num_skip]), "ranking": ranking, "searched": False}
        run.finish("search", record | ({"data": run.digests("train")} if config.search.rule == "similarity" else {}))
        return
    planned = plan(run, "search")
    trainer = make_trainer(run, model, "search", planned.steps)
    announce(run, trainer, planned)
    if planned.rounds is None:
        train(run, trainer)
    else:
        assert trainer.search_phase is not None
        trainer.search_phase.run(planned.steps, run.folder / "search", "scoring skip sets")
    found = trainer.search_result()
    select(model, found.skip_set)
    save(model, run.folder / "search" / "adapter")
    record = {**found.to_dict(), "searched": True, "plan": asdict(planned), "log": logged_losses(trainer)}
    record["data"] = run.digests(*READS["search"])
    share = f"{100 * found.round_seconds / found.seconds:.0f} % of {found.seconds:.0f} s in rounds"
    console.print(f"skip set {list(found.skip_set)}, most redundant first {found.ranking[: config.num_skip]}; {share}")
    if config.train.continue_pias and not dist.is_initialized():  # several processes have wrapped or sharded it
        run.kept.attached = model
    run.finish("search", record)


def _ranking_without_search(run: Run, model: Any) -> list[int] | None:
    """All candidates, the first to go first, where the rule needs no losses; None where it does."""
    settings, k, seed = run.config.search, run.config.num_skip, run.config.search_seed
    if settings.rule == "similarity":
        collate, examples = run.task.collator(run), run.data("train")
        batch = collate([examples[i] for i in shuffled(len(examples), seed)[: settings.batch_size]])
        return similarity_ranking(cosines(model.eval(), [{key: t.to(model.device) for key, t in batch.items()}]))
    if settings.rule in FIXED:
        return FIXED[settings.rule](len(candidates(model)), k, seed)
    return None


def tune(run: Run) -> None:
    """Trains the PIAs under the found skip set and saves the pruned adapter."""
    found = run.require("search")
    require_same_data(run, "search", *READS["tune"])
    model, run.kept.attached = run.kept.attached or attached_base(run), None
    try:
        select(model, found["skip_set"])
    except ValueError as error:
        raise ConfigError(f"{run.folder / 'search.json'}: {error}; run `eas search {run.folder}` again") from error
    if run.config.train.continue_pias and found["searched"]:
        load_into(model, run.folder / "search" / "adapter")  # with the set that it was saved under
        require_set(run, skip_set(model), run.folder / "search" / "adapter")
    if isinstance(run.config.method, SkipConfig):
        prune(model)
    planned = plan(run, "tune")
    trainer = make_trainer(run, model, "tune", planned.steps)
    announce(run, trainer, planned)
    trained = train(run, trainer)
    save(model, run.folder / "adapter")
    if trained.steps == 0 and run.record("tune") is not None:  # it says more of the training than this call knows
        return
    record: dict[str, Any] = {"log": logged_losses(trainer), "plan": asdict(planned)}
    record |= {} if trained.seconds is None else {"seconds": trained.seconds}
    run.finish("tune", {**record, "data": run.digests(*READS["tune"]), "made": _made(run)})


@alone
def fold_step(run: Run) -> None:
    """Writes the standalone model, where the method has one; checks that folding changes nothing."""
    run.require("tune")
    model = load_tuned(run)
    mode = fold_mode(run)
    if run.config.bits is not None:
        console.print("no standalone model, as it holds plain weights; docs/lavin.md says how to write one")
    elif run.config.num_skip:
        with writing(run.folder / "model"):
            if model.can_generate():
                answer_as_scored(model, run.processor)
            save_standalone(model, run.folder / "model")
            run.processor.save_pretrained(run.folder / "model")
        console.print(f"standalone model in {run.folder / 'model'}")
    examples = run.data("validation")
    batches = [run.task.inputs(run, [examples[i]]) for i in range(min(4, len(examples)))]
    batches = [{key: value.to(model.device) for key, value in batch.items()} for batch in batches]
    errors: dict[str, float] = {}
    if decodes := run.task.form == "decoder":
        tokens, unfolded_steps = decode(model, batches[0])
        errors["of decoding"] = relative_error(unfolded_steps, teacher_forced(model, batches[0], tokens))
    record: dict[str, Any] = {"mode": None}
    if mode is not None:
        with torch.inference_mode():
            unfolded = [model(**inputs).logits for inputs in batches]
            record = fold(model, mode)._asdict()
            folded = [model(**inputs).logits for inputs in batches]
        errors["of the fold"] = max(map(relative_error, folded, unfolded))
        if decodes:
            errors["of the fold in decoding"] = relative_error(decode(model, batches[0], tokens)[1], unfolded_steps)
        record["relative_error"] = errors["of the fold"]
    require_small(errors, model.dtype, record["mode"], quantised=run.config.bits is not None)
    run.finish("fold", {**record, "errors": errors})
    if mode is not None:
        console.print(f"folded ({record['mode']}: {record['reason']}): relative error {max(errors.values()):.1e}")


@alone
def evaluate_step(run: Run) -> None:
    """Scores base, tuned and folded model on the test split."""
    run.require("tune")
    config, examples, start = run.config, run.data("test"), time.perf_counter()
    record: dict[str, Any] = {"examples": len(examples), "metric": config.metric_name, "score": {}, "answers": {}}
    record |= {"report": {}, "data": run.digests("test")}

    record["blind"] = asdict(blind(config.metric_name, examples, config.data_options))
    record["scores"] = {}

    def score(name: str, model: Any, batch_size: int) -> None:
        result = run.task.evaluate(run, model, "test", name, batch_size, f"evaluating {name}")
        record["answers"][name] = result.answers
        if name == "zero_shot":
            base = run.task.meant(run, model, "test", result, batch_size, "ranking the choices of zero_shot")
            result = base.evaluation
            record["zero_shot"] = {"as_written": base.as_written, "comparable": base.comparable}
            record["zero_shot"]["meant"] = result.answers
        record["score"][name], record["report"][name] = result.score, result.report.numbers
        record["scores"][name] = dict(result.report.scores)
        record["examples_of"] = dict(result.report.counts)
        console.print(f"{name}: {share(result.score, len(examples))} of {len(examples)}")

    run.kept.base = run.load_base()
    score("zero_shot", run.kept.base, config.eval_batch_size)
    run.kept.folded = model = load_tuned(run)
    score("tuned", model, config.eval_batch_size)
    if (mode := fold_mode(run)) is not None:
        fold(model, mode)
        score("folded", model, 1 if mode == "per_example" else config.eval_batch_size)
    if blind_too := not_above_blind({"task": {"examples": len(examples), **record["blind"]}}, final(record["score"])):
        less = ", then a smaller method.num_skip" if config.num_skip else ""
        console.print(
            f"note: the tuned model is not surely above blind answers, as {blind_too}. Try a lower train.learning_rate "
            f"first (with too high a rate a model can learn nothing), then more train.tune_steps{less}",
            highlight=False,
            soft_wrap=True,
        )
    run.finish("eval", {**record, "seconds": time.perf_counter() - start})


@alone
def measure(run: Run) -> None:
    """Counts and times base and folded model, alternated in one run."""
    run.require("tune")
    config = run.config
    inputs, size = run.task.first(run, "test")
    prompt_tokens, images, _ = size
    base, tuned = run.kept.base or run.load_base(), run.kept.folded
    run.kept.base = run.kept.folded = None
    mode = fold_mode(run)
    if tuned is None:
        tuned = load_tuned(run)
        if mode is not None:
            fold(tuned, mode)
    models = {"base": base, "tuned": tuned}
    size = counted_size(base, size)
    left_out = size[1] < images
    counts = {name: count(model, *size) for name, model in models.items()}
    blocks = {name: [asdict(b) for b in block_costs(m, prompt_tokens, images)] for name, m in models.items()}
    timing = {"new_tokens": run.task.new_tokens(run), "repeats": config.benchmark_repeats}
    inputs = {key: value.to(base.device) for key, value in inputs.items()}
    unwrap(tuned)
    latency = _time({"base": base, "folded" if mode else "tuned": tuned}, inputs, **timing)
    latency["bounds"] = bounds(counts["base"], counts["tuned"], prompt_tokens)
    if not latency["new_tokens"]:
        del latency["bounds"]["decode_ms"]
    if left_out:
        del latency["bounds"]["prefill_ms"]
    if config.model == "tiny" and isinstance(config.method, EASConfig) and config.num_skip:
        # at the tiny model's width overhead rules; the same skip set in a wider one shows what its matrices cost
        wide_base, wide_folded, wide_inputs, name = larger_pair(skip_set(tuned), config.method, mode)
        timing["repeats"] = max(3, config.benchmark_repeats // 4)
        wide = wide_inputs["input_ids"].shape[1]
        allowed = bounds(count(wide_base, wide), count(wide_folded, wide), wide)
        timed = _time({"base": wide_base, "folded": wide_folded}, wide_inputs, **timing)
        latency |= {
            "larger": {"name": name, "bounds": allowed, **timed},
            "width": base.config.get_text_config().hidden_size,
        }
    totals = {name: asdict(c) for name, c in counts.items()}
    record = {"counts": totals, "layers": blocks, "latency": latency, "made": _made(run), "images_left_out": left_out}
    run.finish("measure", record)


def _made(run: Run) -> dict[str, Any]:
    """By what, and on what machine, a step was done."""
    return {
        "versions": library_versions(),
        "git_revision": git_revision(),
        "hardware": hardware(),
        "dtype": run.weights_dtype,
    }


@alone
def report(run: Run) -> None:
    """Gathers all records into result.json, and writes figures and page."""
    left_out = gather_into(run, run.folder)
    for message in left_out:
        console.print(f"left out: {message}", highlight=False, soft_wrap=True)
    write_page([run.folder], run.folder, left_out)
    write_card(run.folder)


STEPS: dict[str, Callable[[Run], None]] = {
    "search": search,
    "tune": tune,
    "fold": fold_step,
    "eval": evaluate_step,
    "measure": measure,
}
"""By name, in order."""


def run_steps(run: Run) -> None:
    """Runs the steps that are not done, then reports; if a step fails, the report still covers the steps before it.

    Raises:
        WriteError: another process does them in the same folder.
    """
    with working(run.folder):
        _run_steps(run)


def _run_steps(run: Run) -> None:
    check_room(run)
    try:
        require_data_of(run, STEPS)
        for name, step in STEPS.items():
            missing = run.record(name) is None
            if from_main(missing) if name in ("search", "tune") else missing:  # the first waits for the step before
                title, _, _ = (step.__doc__ or "").partition("\n")
                console.rule(f"{name}: {title.rstrip('.')}", align="left")
                step(run)
    except Exception as error:
        if run.record("search") is not None:
            try:
                report(run)
            except Exception as second:  # the disk may be full: what stopped the step comes first
                error.add_note(f"the report could not be written either: {second}")
                console.print(f"the report could not be written: {second}")
        raise
    report(run)


def _time(models: dict[str, Any], inputs: dict[str, Any], new_tokens: int, repeats: int) -> dict[str, Any]:
    timed = benchmark(models, inputs, new_tokens=new_tokens, repeats=repeats, title=f"timing {' and '.join(models)}")
    return {
        "prompt_tokens": inputs["input_ids"].shape[-1],
        "new_tokens": new_tokens,
        "repeats": repeats,
        "variants": {name: asdict(latency) for name, latency in timed.items()},
    }
