"""A run that can save nothing is told so before it trains, with ranks that save."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eas.pipeline import Run, RunConfig
from eas.pipeline import steps as steps_module
from eas.pipeline.savings import warning


def run_with(folder: Path, *overrides: str) -> Run:
    given = [f"output_dir={folder}", "data=scenes:textures", "train_limit=4", "validation_limit=4", "test_limit=2"]
    return Run(RunConfig().with_overrides([*given, *overrides]))


def test_ranks_of_a_slow_model_in_a_narrow_one(tmp_path: Path) -> None:
    told = warning(run_with(tmp_path, "method.num_skip=4", "method.skip_rank=256", "method.adapt_rank=128"))
    assert told.startswith(
        "this run can save nothing: k = 4, skip_rank 256, adapt_rank 128 take +14.5 % MACs, +15.4 % bytes read; "
        "it saves with -o method.skip_rank="
    )
    remedy = re.findall(r"-o (method\.\w+=\d+)", told)
    assert len(remedy) == 2
    assert warning(run_with(tmp_path, "method.num_skip=4", *remedy)) == ""


@pytest.mark.parametrize("given", [["method.num_skip=4"], [], ["method.name=lora"]])
def test_what_saves_or_skips_nothing_is_told_nothing(given: list[str], tmp_path: Path) -> None:
    assert warning(run_with(tmp_path, *given)) == ""


def test_where_no_ranks_save(tmp_path: Path) -> None:
    told = warning(run_with(tmp_path, "method.num_skip=1", "method.skip_rank=64", "method.adapt_rank=64", "bits=null"))
    assert "k = 1, skip_rank 64, adapt_rank 64" in told
    wide = ["method.num_skip=1", "method.skip_rank=128", "method.adapt_rank=128", "method.up_groups=128"]
    assert warning(run_with(tmp_path, *wide)).endswith("no ranks save at this k: raise method.num_skip")


def test_it_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path, "method.num_skip=4", "method.skip_rank=256", "method.adapt_rank=128")

    def train(run: Run) -> None:
        raise InterruptedError("training would begin")

    monkeypatch.setattr(steps_module, "attached_base", train)
    with pytest.raises(InterruptedError):
        steps_module.search(run)
    assert "this run can save nothing" in capsys.readouterr().out
