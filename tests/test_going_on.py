"""A run that goes on in its folder: under the same settings, with the same skip set and data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import eas
from eas.pipeline import STEPS, Run, RunConfig

FEW: dict[str, Any] = {
    "data": "scenes:colour",
    "method": {"name": "eas", "skip_rank": 8, "adapt_rank": 4, "num_skip": 3},
    "search": {"warmup_steps": 1, "interval": 1, "samples": 2, "batch_size": 4},
    "train": {"search_steps": 2, "tune_steps": 4, "batch_size": 2, "save_steps": 2},
    "train_limit": 8,
    "validation_limit": 4,
    "test_limit": 4,
    "benchmark_repeats": 1,
    "benchmark_new_tokens": 2,
    "max_new_tokens": 4,
}


def started(folder: Path, **more: Any) -> Run:
    return Run.create(RunConfig.from_dict(FEW | {"output_dir": str(folder)} | more))


def do(run: Run, *steps: str) -> Run:
    for step in steps:
        STEPS[step](run)
    return run


def edited(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_checkpoints_of_a_tune_phase_belong_to_their_settings(tmp_path):
    do(started(tmp_path, skip_set=[1, 2, 3]), "search", "tune")
    for record in tmp_path.glob("*.json"):
        record.unlink()
    with pytest.raises(eas.ConfigError, match=r"train\.learning_rate = .* \(now 0\.5\)"):
        started(tmp_path, skip_set=[1, 2, 3], train=FEW["train"] | {"learning_rate": 0.5})
    (tmp_path / "run.yaml").unlink()
    with pytest.raises(eas.ConfigError, match=r"checkpoint-\d is of a run, but there is no .*run\.yaml"):
        started(tmp_path, skip_set=[4, 5, 6])


def test_a_skip_set_edited_by_hand_is_refused_where_weights_are_for_another(tmp_path):
    run = do(started(tmp_path, skip_set=[1, 2, 3]), "search", "tune")
    edited(tmp_path / "search.json", skip_set=[4, 5, 6])
    for step, trained in (("tune", "tune/checkpoint-4"), ("fold", "adapter"), ("eval", "adapter")):
        with pytest.raises(eas.ConfigError, match=rf"\[4, 5, 6\], but .*{trained} is for \[1, 2, 3\]; put"):
            STEPS[step](Run.open(run.folder))


def test_a_searched_skip_set_edited_by_hand_is_refused(tmp_path):
    run = do(started(tmp_path), "search")
    found = run.require("search")["skip_set"]
    other = [i for i in range(12) if i not in found][:3]
    edited(tmp_path / "search.json", skip_set=other)
    with pytest.raises(eas.ConfigError, match="search/adapter is for") as refused:
        STEPS["tune"](Run.open(tmp_path))
    assert f"-o skip_set={other}".replace(" ", "") in str(refused.value).replace(" ", "")
