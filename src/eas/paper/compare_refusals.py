"""What a comparison refuses before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eas.config import ConfigError
from eas.paper.compare_config import Job
from eas.pipeline.config import RunConfig
from eas.pipeline.fit import SPLITS, check_method, check_tracker, training_bytes
from eas.pipeline.run import CONFIG_FILE, Run, changes, computed
from eas.pipeline.same_data import require_same_data
from eas.pipeline.savings import warning
from eas.terminal import console as make_console

console = make_console()


def refuse_changes(jobs: Sequence[Job], *but: str) -> None:
    for job in jobs:
        path = job.folder / CONFIG_FILE
        if not computed(job.folder):
            continue
        if not path.is_file():
            raise ConfigError(f"entry {job.entry!r}: {job.folder} holds results but no {CONFIG_FILE}; remove it")
        changed = changes(RunConfig.from_file(path), job.config, "output_dir", *but)
        run = Run(job.config)
        was, now = (run.record("result") or {}).get("dtype"), run.weights_dtype
        if was not in (None, now):  # "auto" is another on another machine
            changed.append(f"dtype = {was} (now {now})")
        if changed:
            raise ConfigError(
                f"entry {job.entry!r}: {job.folder} holds another run: {', '.join(changed)}; remove that folder or use "
                "another output_dir"
            )


def refuse_other_data(jobs: Sequence[Job], output_dir: str) -> None:
    """Refuses bad data before anything is computed, and data that is not that of the results which are there."""
    runs: dict[tuple[Any, ...], Run] = {}
    for job in jobs:
        config = job.config  # under skip_bad an example must fit the model's inputs
        own = (config.visual_tokens, config.visual_choice, config.train.max_length, config.train.cut)
        run = runs.setdefault(own if config.data_options.get("skip_bad") else (), Run(config))
        for split in SPLITS:
            run.data(split)
        run.task.check_metric(run)
        for record in ("search", "tune", "result"):
            require_same_data(Run(config), record, now=run.digest, remedy=f"remove {output_dir}, whose rows share data")


def refuse_misfits(jobs: Sequence[Job]) -> dict[str, int]:
    """Attaches every row's method to the base, without storage, so that nothing is computed before it is refused.

    Returns:
        By row, the bytes of what it trains.
    """
    needs = dict[str, int]()
    for job in jobs:
        run = Run(job.config)
        try:
            run.task.check(run)
            if job.evaluate_only:
                continue
            check_tracker(job.config.train.report_to)
            needs[job.row] = training_bytes(check_method(run))
            if told := warning(run):
                console.print(f"{job.row}: {told}", highlight=False, soft_wrap=True)
        except ValueError as error:
            raise ConfigError(f"entry {job.entry!r}: {error}") from error
    return needs
