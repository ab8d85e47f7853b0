"""The steps of a run, in order. Each loads what it needs from the run folder and leaves its record there when done."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from rich.console import Console
from transformers import PrinterCallback, TrainingArguments

from eas.checkpoint import library_versions, load, load_into, save
from eas.config import ConfigError, SkipConfig
from eas.data.collate import Collator
from eas.demo.larger import larger_pair
from eas.demo.scenes import chance
from eas.distributed import from_main, is_main
from eas.evaluation import evaluate
from eas.files import writing
from eas.measure.count import Counts, count
from eas.measure.latency import benchmark, git_revision, hardware
from eas.measure.layers import block_costs
from eas.methods import METHODS
from eas.methods.eas import EASConfig
from eas.pipeline.progress import ProgressBar
from eas.pipeline.run import Run
from eas.reports.card import write_card
from eas.reports.page import write_report
from eas.reports.sources import is_of_comparison
from eas.search import FIXED, similarity_ranking
from eas.search.similarity import cosines
from eas.standalone import merge_and_save
from eas.surgery import attach, candidates, fold, prune, select, skip_set
from eas.training import EASTrainer, last_checkpoint

console = Console(quiet=os.environ.get("RANK", "0") != "0")  # of several processes one prints


def alone(step: Callable[[Run], None]) -> Callable[[Run], None]:
    """A step of the main process; search and tune are of all."""

    @functools.wraps(step)
    def do(run: Run) -> None:
        if is_main():
            step(run)

    return do


def search(run: Run) -> None:
    """Finds the skip set.

    The PIAs that were trained on the way are left for ``tune`` to go on with.
    """
    config, _ = run.config, run.processor
    for split in ("train", "validation", "test"):
        run.data(split)  # bad data is refused before anything is loaded or computed
    if config.skip_set is not None or not isinstance(config.method, SkipConfig):
        run.finish("search", {"skip_set": sorted(config.skip_set or []), "searched": False})
        return
    model = _attach(run)
    if (ranking := _ranking_without_search(run, model)) is not None:
        run.finish("search", {"skip_set": sorted(ranking[: config.num_skip]), "ranking": ranking, "searched": False})
        return
    trainer = _trainer(run, model, "search", config.train.search_steps)
    if config.search.train:
        _train(trainer)
    else:
        assert trainer.search_phase is not None
        trainer.search_phase.run(config.train.search_steps, run.folder / "search")
    found = trainer.search_result()
    select(model, found.skip_set)
    save(model, run.folder / "search" / "adapter")
    run.finish("search", {**found.to_dict(), "searched": True, "log": _losses(trainer)})
    share = f"{100 * found.round_seconds / found.seconds:.0f} % of {found.seconds:.0f} s in rounds"
    console.print(f"skip set {list(found.skip_set)}, most redundant first {found.ranking[: config.num_skip]}; {share}")


def _ranking_without_search(run: Run, model: Any) -> list[int] | None:
    """All candidates, the first to go first, where the rule needs no losses; None where it does."""
    settings, k = run.config.search, run.config.num_skip
    if settings.rule == "similarity":
        collate, examples = _collator(run), run.data("train")
        batch = collate([examples[i] for i in range(min(settings.batch_size, len(examples)))])
        return similarity_ranking(cosines(model.eval(), [{key: t.to(model.device) for key, t in batch.items()}]))
    if settings.rule in FIXED:
        return FIXED[settings.rule](len(candidates(model)), k, settings.seed)
    return None


def tune(run: Run) -> None:
    """Trains the PIAs under the found skip set and saves the pruned adapter."""
    found = run.require("search")
    model = _attach(run)
    select(model, found["skip_set"])
    if run.config.train.continue_pias and found["searched"]:
        load_into(model, run.folder / "search" / "adapter")
    if isinstance(run.config.method, SkipConfig):
        prune(model)
    trainer = _trainer(run, model, "tune", run.config.train.tune_steps)
    seconds = _train(trainer)
    save(model, run.folder / "adapter")
    run.finish("tune", {"log": _losses(trainer), "seconds": seconds})


@alone
def fold_step(run: Run) -> None:
    """Writes the standalone model, where the method has one; checks that folding changes nothing."""
    run.require("tune")
    model = load(run.load_base(), run.folder / "adapter")
    mode = fold_mode(run)
    if run.config.num_skip:
        with writing(run.folder / "model"):
            merge_and_save(model, run.folder / "model")
            run.processor.save_pretrained(run.folder / "model")
        console.print(f"standalone model in {run.folder / 'model'}")
    if mode is None:
        run.finish("fold", {"mode": None})
        return
    collate, examples = Collator(run.processor, training=False), run.data("validation")
    batches = [collate([examples[i]]) for i in range(min(4, len(examples)))]
    batches = [{key: value.to(model.device) for key, value in batch.items()} for batch in batches]
    with torch.inference_mode():
        unfolded = [model(**inputs).logits for inputs in batches]
        chosen = fold(model, mode)
        folded = [model(**inputs).logits for inputs in batches]
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(folded, unfolded, strict=True))
    run.finish("fold", {**chosen._asdict(), "relative_error": worst})
    console.print(f"folded ({chosen.mode}: {chosen.reason}): relative error {worst:.1e}")


def fold_mode(run: Run) -> str | None:
    """The mode in which the run's method is folded, None if it cannot be."""
    modes = METHODS[run.config.method.name].fold_modes
    return run.config.fold_mode or ("auto" if modes else None)


@alone
def evaluate_step(run: Run) -> None:
    """Scores base, tuned and folded model on the test split."""
    run.require("tune")
    config, examples, start = run.config, run.data("test"), time.perf_counter()
    record: dict[str, Any] = {"examples": len(examples), "metric": config.metric_name, "score": {}, "answers": {}}
    record["report"] = {}

    def score(name: str, model: Any, batch_size: int) -> None:
        result = evaluate(
            model,
            run.processor,
            examples,
            metric=config.metric_name,
            batch_size=batch_size,
            max_new_tokens=config.max_new_tokens,
            title=f"evaluating {name}",
            options=config.data_options,
        )
        record["score"][name], record["answers"][name] = result.score, result.answers
        record["report"][name] = result.report.numbers
        console.print(f"{name}: {100 * result.score:.1f} % of {len(examples)}")

    score("zero_shot", run.load_base(), config.eval_batch_size)
    model = load(run.load_base(), run.folder / "adapter")
    score("tuned", model, config.eval_batch_size)
    if (mode := fold_mode(run)) is not None:
        fold(model, mode)
        score("folded", model, 1 if mode == "per_example" else config.eval_batch_size)
    run.finish("eval", {**record, "seconds": time.perf_counter() - start})


@alone
def measure(run: Run) -> None:
    """Counts and times base and folded model, alternated in one run."""
    run.require("tune")
    config = run.config
    example = run.data("test")[0]
    inputs = Collator(run.processor, training=False)([example])
    prompt_tokens, images = inputs["input_ids"].shape[1], len(example.images)
    base, tuned = run.load_base(), load(run.load_base(), run.folder / "adapter")
    mode = fold_mode(run)
    if mode is not None:
        fold(tuned, mode)
    grid = tuple(inputs["image_grid_thw"][0, 1:].tolist()) if "image_grid_thw" in inputs else None
    counts = {"base": count(base, prompt_tokens, images, grid), "tuned": count(tuned, prompt_tokens, images, grid)}
    blocks = {
        name: [asdict(b) for b in block_costs(m, prompt_tokens)] for name, m in (("base", base), ("tuned", tuned))
    }
    timing = {"new_tokens": config.benchmark_new_tokens, "repeats": config.benchmark_repeats}
    inputs = {key: value.to(base.device) for key, value in inputs.items() if key != "prompt_mask"}
    latency = _time({"base": base, "folded" if mode else "tuned": tuned}, inputs, **timing)
    latency["bounds"] = _bounds(counts["base"], counts["tuned"], prompt_tokens)
    if config.model == "tiny" and isinstance(config.method, EASConfig) and config.num_skip:
        # at the tiny model's width overhead rules; the same skip set in a wider one shows what its matrices cost
        wide_base, wide_folded, wide_inputs, name = larger_pair(skip_set(tuned), config.method, mode)
        timing["repeats"] = max(3, config.benchmark_repeats // 4)
        wide = wide_inputs["input_ids"].shape[1]
        bounds = _bounds(count(wide_base, wide), count(wide_folded, wide), wide)
        timed = _time({"base": wide_base, "folded": wide_folded}, wide_inputs, **timing)
        latency["larger"] = {"name": name, "bounds": bounds, **timed}
    totals = {name: asdict(c) for name, c in counts.items()}
    run.finish("measure", {"counts": totals, "layers": blocks, "latency": latency})


@alone
def gather(run: Run) -> None:
    """Gathers all records into result.json.

    Raises:
        ConfigError: the folder is that of a comparison's run, whose result.json is another.
    """
    if is_of_comparison(run.folder):
        raise ConfigError(f"{run.folder} is one run of a comparison; name the comparison's folder")
    config, records = run.config, {step: run.record(step) or {} for step in ("search", "tune", "eval", "measure")}
    found, score = records["search"], records["eval"].get("score")
    model_config = run.load_config()
    result = {
        "versions": library_versions(),
        "git_revision": git_revision(),
        "command": f"eas run --output-dir {config.output_dir}",
        "hardware": hardware(),
        "config": config.to_dict(),
        "seed": config.seed,
        "model": {
            "id": config.model,
            "class": model_config.architectures[0],
            "layers": model_config.get_text_config().num_hidden_layers,
            "skip_set": found.get("skip_set"),
            "k": config.num_skip,
            "method": config.method.name,
        },
        "task": {
            "data": config.data,
            "split": "test",
            "examples": records["eval"].get("examples"),
            "chance": chance(config.data.removeprefix("scenes:")) if config.data.startswith("scenes:") else None,
            "metric": config.metric_name,
        },
        "accuracy": score,
        "categories": records["eval"].get("report"),
        "counts": records["measure"].get("counts"),
        "layers": records["measure"].get("layers"),
        "latency": records["measure"].get("latency"),
        "search": found if found.get("searched") else None,
        "training": {
            "search": found.get("log", []),
            "tune": records["tune"].get("log", []),
            "seconds": {
                "search": found.get("seconds"),
                "tune": records["tune"].get("seconds"),
                "evaluate": records["eval"].get("seconds"),
            },
        },
        "samples": _samples(run, records["eval"].get("answers")),
    }
    run.finish("result", result)


@alone
def report(run: Run) -> None:
    """Gathers all records into result.json, and writes figures and page."""
    gather(run)
    write_report(run.folder)
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
    """Does what is not done yet, then reports; a step that fails does not take the report on those before it along."""
    try:
        for name, step in STEPS.items():
            missing = run.record(name) is None
            if from_main(missing) if name in ("search", "tune") else missing:  # the first waits for the step before
                title, _, _ = (step.__doc__ or "").partition("\n")
                console.rule(f"{name}: {title.rstrip('.')}", align="left")
                step(run)
    finally:
        if run.record("search") is not None:
            report(run)


def _attach(run: Run) -> Any:
    model = run.load_base(on_host=parse_flag_from_env("ACCELERATE_USE_FSDP"))  # FSDP places what it shards
    torch.manual_seed(run.config.seed)  # of the PIAs
    return attach(model, run.config.method)


def _trainer(run: Run, model: Any, phase: Any, steps: int) -> EASTrainer:
    train, cuda = run.config.train, torch.cuda.is_available()
    args = TrainingArguments(
        output_dir=str(run.folder / phase),
        max_steps=steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(train.warmup_ratio * steps),
        weight_decay=train.weight_decay,
        bf16=train.precision == "bfloat16",
        save_steps=train.save_steps,
        save_total_limit=2,
        logging_steps=train.logging_steps,
        report_to=train.report_to,
        seed=run.config.seed,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
    )
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer = EASTrainer(
        model,
        args,
        phase=phase,
        search=run.config.search,
        held_out=run.data("validation") if phase == "search" else (),
        train_dataset=run.data("train"),
        data_collator=_collator(run),
        callbacks=[ProgressBar(phase, console)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _collator(run: Run) -> Collator:
    train = run.config.train
    return Collator(run.processor, training=True, max_length=train.max_length, cut=train.cut)


def _train(trainer: EASTrainer) -> float:
    start = time.perf_counter()
    checkpoint = from_main(last_checkpoint(trainer.args.output_dir) if is_main() else None)
    if checkpoint is not None:
        console.print(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    return time.perf_counter() - start


def _losses(trainer: EASTrainer) -> list[dict[str, float]]:
    return [{"step": e["step"], "loss": e["loss"]} for e in trainer.state.log_history if "loss" in e]


def _bounds(base: Counts, tuned: Counts, prompt_tokens: int) -> dict[str, float]:
    """The speed-up that fewer MACs (prefill) and fewer bytes read (decode) allow; more than that is saved overhead."""

    def read(counts: Counts) -> int:
        return counts.weight_bytes + prompt_tokens * counts.kv_bytes_per_token

    return {"prefill_ms": base.macs / tuned.macs, "decode_ms": read(base) / read(tuned)}


def _time(models: dict[str, Any], inputs: dict[str, Any], new_tokens: int, repeats: int) -> dict[str, Any]:
    timed = benchmark(models, inputs, new_tokens=new_tokens, repeats=repeats)
    return {
        "prompt_tokens": inputs["input_ids"].shape[1],
        "new_tokens": new_tokens,
        "repeats": repeats,
        "variants": {name: asdict(latency) for name, latency in timed.items()},
    }


def _samples(run: Run, answers: dict[str, dict[str, str]] | None, most: int = 6) -> list[dict[str, Any]]:
    if not answers or not answers["zero_shot"]:  # not evaluated, or without answers: metric none
        return []
    folder, examples, samples = run.folder / "samples", run.data("test"), []
    folder.mkdir(exist_ok=True)
    for i in range(min(most, len(examples))):
        example, paths = examples[i], []
        for j, image in enumerate(example.load_images()):
            paths.append(f"samples/{i}-{j}.png")
            image.save(run.folder / Path(paths[-1]))
        samples.append(
            {
                "id": example.id,
                "question": example.question,
                "target": example.target,
                "base": answers["zero_shot"][example.id],
                "tuned": answers["tuned"][example.id],
                "images": paths,
            }
        )
    return samples
