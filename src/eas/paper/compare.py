"""`eas compare`: many runs under equal conditions, each in its folder, resumable, and one comparison of them all."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from transformers.utils import logging

from eas import progress
from eas.attachment.attach import fold
from eas.attachment.save import library_versions
from eas.config import ConfigError
from eas.files import claimed, write_text
from eas.keys import as_typed
from eas.measure.count import count
from eas.measure.latency import git_revision, hardware
from eas.paper.compare_config import CompareConfig, Job
from eas.paper.compare_refusals import refuse_changes, refuse_misfits, refuse_other_data
from eas.paper.compare_rows import result_of, rows_of, summary_of
from eas.paper.compare_timing import time_rows
from eas.pipeline import phases, steps
from eas.pipeline.fit import (
    BYTES_TRAINED,
    KEPT_CHECKPOINTS,
    require_room,
)
from eas.pipeline.records import ComparisonRecord
from eas.pipeline.run import Run
from eas.pipeline.savings import counted_size, fold_mode
from eas.pipeline.tuned import load_tuned
from eas.progress import Bar, duration
from eas.records import raised_as, read_record
from eas.reports.card import write_card
from eas.reports.certainty import share
from eas.reports.comparison import write_comparison
from eas.tasks.evaluation import Evaluation
from eas.tasks.evaluation_forms import blind
from eas.terminal import console as make_console

COMPARISON_FILE, ERROR_FILE = "comparison.json", "error.txt"
WORKER_BYTES = 1.5 * 2**30  # torch, transformers and the tiny model in training
console = make_console()


def compare_runs(config: CompareConfig, command: str = "") -> dict[str, Any]:
    """Runs what is not done, first the trials, then one seed after the other, and writes ``comparison.json``
    with the table, the figure and the timing beside it.

    Args:
        config: the comparison.
        command: for the record.

    Returns:
        What ``comparison.json`` holds.

    Raises:
        ConfigError: a method does not fit the model; or the folder holds runs with other settings, or damaged files.
        DataError: the data cannot be loaded, or is not that of the results which are there.
        WriteError: another process compares in the folder.
    """
    folder = Path(config.output_dir)
    with claimed(folder, "eas compare"):
        return _compare(config, command)


def _compare(config: CompareConfig, command: str) -> dict[str, Any]:
    trials, path = config.trials(), Path(config.output_dir) / COMPARISON_FILE
    tried, jobs = [job for group in trials.values() for job in group], _all_jobs(config, {})
    refuse_changes(tried)
    refuse_changes(jobs, "train.learning_rate")  # which the trials may have yet to tell
    needs = refuse_misfits(config.jobs_of_seed(config.seeds[0], {}))
    _refuse_full_disk(config, [*tried, *jobs], needs)
    old = _read(path)
    refuse_other_data([*tried, *jobs], config.output_dir)
    with _pool(config, max(len(tried), len(jobs))) as pool:
        _do(tried, pool)
        rates = {entry.label: choose_rate(config, entry.label) for entry in config.entries}
        chosen = {label: rate for label, rate in rates.items() if rate is not None}
        waiting = {e.label for e in config.entries if (source := config.rate_source(e)) and source not in chosen}
        jobs = _all_jobs(config, chosen)
        ready = [job for job in jobs if job.entry not in waiting]
        refuse_changes(ready)

        def gathered(jobs: Sequence[Job]) -> dict[str, Any]:
            rows = rows_of(jobs)
            return {
                "command": command,
                "config": config.to_dict(),
                "git_revision": git_revision(),
                "versions": library_versions(),
                "dtype": Run(jobs[0].config).weights_dtype,
                "task": _task(Run(jobs[0].config)),
                "trials": {label: [summary_of(job) for job in group] for label, group in trials.items()},
                "rows": rows,
                "runs": len(jobs),
                "failed": sum(row["failed"] for row in rows),
                "latency": old.get("latency"),
            }

        def so_far() -> None:
            tried = [job for job in jobs if result_of(job) is not None or (job.folder / ERROR_FILE).exists()]
            _write(path, gathered(tried))

        _do(ready, pool, so_far)
    for label in sorted(waiting):
        console.print(f"{label}: not run, because a trial of its learning rate failed or all diverged")
    done, result = [job for job in ready if result_of(job) is not None], gathered(jobs)
    _write(path, result)  # before the timing, which may fail
    result["latency"] = time_rows(config, done, old.get("latency"))
    _write(path, result)
    return result


def _task(run: Run) -> dict[str, Any]:
    """What all runs are scored on, and what blind answers score there."""
    examples, config = run.data("test"), run.config
    known = {"data": config.data, "metric": config.metric_name, "split": "test", "examples": len(examples)}
    return known | asdict(blind(config.metric_name, examples, config.data_options))


def _read(path: Path) -> dict[str, Any]:
    """An earlier comparison, of which the timing is kept."""
    if not path.exists():
        return {}
    with raised_as(ConfigError):
        return dict(read_record(path, ComparisonRecord, "remove it, the runs are kept"))


def _write(path: Path, result: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(result, indent=1) + "\n")
    write_comparison(path)


def _all_jobs(config: CompareConfig, chosen: Mapping[str, float]) -> list[Job]:
    return [job for seed in config.seeds for job in config.jobs_of_seed(seed, chosen)]


def choose_rate(config: CompareConfig, label: str) -> float | None:
    """The learning rate of the entry's best trial on the validation split, the first of equals.

    None where it tries none, or while one of its trials lacks a result; one that diverged has a result, and loses.
    """
    rates, trials = config.rates_tried(label), config.trials().get(label, [])
    if not trials:
        return rates[0] if rates else None
    results = [result_of(job) for job in trials]
    scores = [result["score"]["validation"] for result in results if result is not None]
    if len(scores) < len(trials) or set(scores) == {None}:
        return None
    return rates[max(range(len(rates)), key=lambda i: -1.0 if scores[i] is None else scores[i])]


def run_job(job: Job) -> str | None:
    """Does one run in its folder; returns None, or the error, whose traceback is in ``error.txt`` then."""
    quiet, phases.console.quiet = phases.console.quiet, True
    try:
        run = Run.create(job.config)
        (job.folder / ERROR_FILE).unlink(missing_ok=True)
        record = _tune_and_score(run, job)
        for phase in ("search", "tune"):  # checkpoints: several hundred runs share one disk
            shutil.rmtree(job.folder / phase, ignore_errors=True)
        run.finish("result", record)
        if not job.trial:
            write_card(job.folder)
        return None
    except Exception as error:  # for every error the other runs continue
        return _failed(job, error)
    finally:
        phases.console.quiet = quiet


def _tune_and_score(run: Run, job: Job) -> dict[str, Any]:
    config = run.config
    record: dict[str, Any] = {
        "label": job.entry,
        "row": job.row,
        "trial": job.trial,
        "metric": config.metric_name,
        "candidates": run.task.num_candidates(run.load_config(), config.method),
        "candidate_layers": run.task.candidate_layers(run.load_config(), config.method),
        "k": 0 if job.evaluate_only else config.num_skip,
        "seed": config.seed,
        "learning_rate": None if job.evaluate_only else config.train.learning_rate,
        "config": config.to_dict(),
        "git_revision": git_revision(),
        "versions": library_versions(),
        "hardware": hardware(),
        "dtype": run.weights_dtype,
    }
    try:
        if run.record("search") is None and not job.evaluate_only:
            steps.search(run)
        if run.record("tune") is None and not job.evaluate_only:
            steps.tune(run)
    except FloatingPointError as error:
        if not job.trial:
            raise
        return {**record, "diverged": str(error), "score": {"validation": None}}  # a rate too high is a result too
    start, sizes = time.perf_counter(), run.task.first(run, "test")[1]
    model = run.load_base() if job.evaluate_only else load_tuned(run)
    sizes = counted_size(model, sizes)
    name, mode = ("zero_shot", None) if job.evaluate_only else ("tuned", fold_mode(run))

    def scored(split: str, batch_size: int) -> Evaluation:
        found = run.task.evaluate(run, model, split, name, batch_size, f"evaluating {name}")
        if not job.evaluate_only:
            return found
        base = run.task.meant(run, model, split, found, batch_size, f"ranking the choices of {name}")
        record["comparable"] = base.comparable
        return base.evaluation

    costs, validation = count(model.eval(), *sizes), scored("validation", config.eval_batch_size)
    trained, unfolded = 0 if job.evaluate_only else costs.params_trained, validation.answers
    batch_size = 1 if mode == "per_example" else config.eval_batch_size
    if mode is not None:
        mode = fold(model, mode).mode
        costs, validation = count(model, *sizes), scored("validation", batch_size)
    scores = {"validation": validation.score}
    if not job.trial:
        tested = scored("test", batch_size)
        scores["test"], record["report"] = tested.score, tested.report.numbers
    searched, tuned = run.record("search") or {}, run.record("tune") or {}
    return record | {
        "score": scores,
        "examples": {split: len(run.data(split)) for split in scores},
        "data": run.digests(*scores),
        "skip_set": searched.get("skip_set", []),
        "fold_mode": mode,
        "fold_keeps_answers": validation.answers == unfolded if mode is not None and unfolded else None,
        "counts": {**asdict(costs), "params_trained": trained},
        "losses": [entry["loss"] for entry in tuned.get("log", [])[-5:]],
        "seconds": {
            "search": searched.get("seconds", 0.0),
            "tune": tuned.get("seconds", 0.0),
            "evaluate": time.perf_counter() - start,
        },
    }


def _failed(job: Job, error: BaseException) -> str:
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / ERROR_FILE).write_text("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {as_typed(str(error), 'compare')}"


def _do(jobs: Sequence[Job], pool: Executor | None, after_seed: Callable[[], None] = lambda: None) -> None:
    """Does the jobs that have no result, in their order, with a line for each that is finished.

    Args:
        jobs: of trials, or of all seeds.
        pool: processes that do them side by side.
        after_seed: called when all jobs of a seed are done, but not of the last.
    """
    todo = [job for job in jobs if result_of(job) is None]
    start, left = time.perf_counter(), Counter(job.config.seed for job in todo)
    for i, (job, error) in enumerate(_outcomes(todo, pool), start=1):
        rate = f" lr {job.config.train.learning_rate:g}" if job.trial else ""
        who = f"[{i}/{len(todo)}] {'trial ' if job.trial else ''}{job.entry} k {job.config.num_skip}{rate}"
        result = result_of(job)
        if result is None:
            said = f"failed: {error} ({job.folder / ERROR_FILE})"
        elif "diverged" in result:
            said = "diverged"
        else:
            split = "validation" if job.trial else "test"
            score = share(result["score"][split], result.get("examples", {}).get(split))
            said = f"{split} {score}  {sum(result['seconds'].values()):.0f} s"
        remaining = (time.perf_counter() - start) / i * (len(todo) - i)
        said += f", about {duration(remaining)} left" if i < len(todo) else ""
        console.print(f"{who} seed {job.config.seed}  {said}", highlight=False, soft_wrap=True)
        left[job.config.seed] -= 1
        if not left[job.config.seed] and i < len(todo):
            after_seed()


def _outcomes(jobs: Sequence[Job], pool: Executor | None) -> Iterator[tuple[Job, str | None]]:
    if pool is None:
        for job in jobs:
            yield job, run_job(job)
        return
    futures = {pool.submit(run_job, job): job for job in jobs}
    with Bar("runs of the comparison", len(jobs)) as bar:
        for future in as_completed(futures):
            bar.advance()
            try:
                yield futures[future], future.result()
            except BrokenProcessPool as error:  # all that were not finished end here
                error.add_note("a process died, of too little memory perhaps; lower jobs and start it again")
                yield futures[future], _failed(futures[future], error)


@contextmanager
def _pool(config: CompareConfig, most: int) -> Iterator[Executor | None]:
    """Processes that stay for many runs, as importing torch takes long; None where runs are done in this one."""
    cores = _cores()
    jobs = _at_a_time(config, cores, most)
    if jobs == 1:
        yield None
        return
    threads = max(1, cores // jobs)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by a process when it starts
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker, initargs=(threads,))
    try:
        yield pool
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()  # next time its run continues from its last checkpoint
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ.pop("OMP_NUM_THREADS")
        os.environ |= {} if before is None else {"OMP_NUM_THREADS": before}


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
    torch.set_num_threads(threads)
    progress.CONSOLE.quiet = True  # the parent says how far all are
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _at_a_time(config: CompareConfig, cores: int, most: int) -> int:
    """Runs that are done side by side."""
    default = 1  # how much memory another model takes is known to its owner
    if config.run.get("model", "tiny") == "tiny":
        default = max(1, min(cores, int(psutil.virtual_memory().available / WORKER_BYTES)))
    return min(config.jobs or default, most)


def _refuse_full_disk(config: CompareConfig, jobs: Sequence[Job], needs: Mapping[str, int]) -> None:
    """Checkpoints lie there for the runs that are done side by side, adapters of all."""
    left = [needs[job.row] for job in jobs if job.row in needs and result_of(job) is None]
    at_once = _at_a_time(config, _cores(), len(jobs))
    adapters = sum(left) // BYTES_TRAINED * 4  # in float32
    need = KEPT_CHECKPOINTS * sum(sorted(left)[-at_once:]) + adapters
    require_room(Path(config.output_dir), need, "checkpoints and adapters")
