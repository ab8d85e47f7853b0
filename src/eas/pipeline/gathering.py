"""The result of a run, gathered from the records of its steps; it needs neither the data nor the base again."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eas.config import ConfigError
from eas.files import write_text
from eas.pipeline.run import Run
from eas.pipeline.same_data import require_same_data
from eas.pipeline.samples import chosen_answers, samples
from eas.reports.sources import ReportError, is_of_comparison, read_result

GONE = (ValueError, OSError)
"""What is raised of data, or of a base, that is damaged, that lies elsewhere now, or that changed."""


def gather_into(run: Run, folder: Path) -> list[str]:
    """Gathers a run's records, and the pictures of its samples, into the result.json of a folder.

    What cannot be read any more, as the data or the base may be gone, is as it was in the run's result.json.

    Returns:
        Messages on what could not be read.

    Raises:
        ConfigError: the folder is that of a comparison's run, whose result.json is another.
    """
    if is_of_comparison(run.folder):
        raise ConfigError(f"{run.folder} is one run of a comparison; name the comparison's folder")
    left_out: list[str] = []
    config, before = run.config, _before(run.folder)
    records = {step: _record(run, step, left_out) for step in ("search", "tune", "eval", "measure")}
    found, score = records["search"], records["eval"].get("score")
    zero_shot = records["eval"].get("zero_shot") or {}
    skipping = {"skip_set": found.get("skip_set"), "k": config.num_skip, "method": config.method.name}
    made = records["measure"].get("made") or records["tune"].get("made") or {}  # not where it is gathered
    result = {
        "versions": made.get("versions"),
        "git_revision": made.get("git_revision"),
        "command": shlex.join(["eas", "run", "--output-dir", config.output_dir]),
        "hardware": made.get("hardware"),
        "config": config.to_dict(),
        "seed": config.seed,
        "model": {"id": config.model, **_base(run, before, left_out), **skipping, "dtype": made.get("dtype")},
        "task": {
            "data": config.data,
            "split": "test",
            "examples": records["eval"].get("examples"),
            "metric": config.metric_name,
            "images_left_out": records["measure"].get("images_left_out", False),
            **(records["eval"].get("blind") or {}),
            "zero_shot": {key: value for key, value in zero_shot.items() if key != "meant"},
        },
        "accuracy": score,
        "categories": {**(records["eval"].get("report") or {}), "examples": records["eval"].get("examples_of")},
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
        "samples": _samples(run, records["eval"], folder, before, left_out),
    }
    write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
    return [*dict.fromkeys(left_out)]


def _before(folder: Path) -> dict[str, Any]:
    try:
        return read_result(folder)
    except ReportError:  # there is none, or it is to be written anew
        return {}


def _record(run: Run, step: str, left_out: list[str]) -> dict[str, Any]:
    try:
        return run.record(step) or {}
    except ConfigError as error:
        left_out.append(str(error))
        return {}


def _base(run: Run, before: Mapping[str, Any], left_out: list[str]) -> dict[str, Any]:
    """What the base's configuration says."""
    try:
        model_config, method = run.load_config(), run.config.method
        return {
            "class": model_config.architectures[0],
            "layers": run.task.layers(model_config),
            "candidates": run.task.num_candidates(model_config, method),
            "candidate_layers": run.task.candidate_layers(model_config, method),
        }
    except GONE as error:
        left_out.append(f"the base: {error}")
        return dict(before.get("model") or {})


def _samples(
    run: Run, evaluated: Mapping[str, Any], folder: Path, before: Mapping[str, Any], left_out: list[str]
) -> list[dict[str, Any]]:
    """Those of the data; of the last result.json, where the answers are still the same, if the data is gone."""
    if not evaluated:
        return []
    try:
        require_same_data(run, "eval", "test")
        return samples(run, evaluated, folder)
    except GONE as error:
        base, tuned, _ = chosen_answers(evaluated)
        kept = [
            sample
            for sample in before.get("samples") or []
            if (id := sample.get("id")) in tuned
            and (base.get(id), tuned[id]) == (sample.get("base"), sample.get("tuned"))
        ]
        left_out.append(f"{'new ' if kept else ''}samples of the test split: {error}")
    if folder != run.folder and (pictures := run.folder / "samples").is_dir():
        shutil.copytree(pictures, folder / "samples", dirs_exist_ok=True)
    return kept
