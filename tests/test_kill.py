"""Nothing computed is lost: processes killed while they write, and disks that are full."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from families import quick
from safetensors.torch import load_file
from trainers import forkserver, searcher

from eas.attachment.save import adapter_state
from eas.files import WriteError
from eas.pipeline import STEPS, Run, RunConfig
from eas.training import last_checkpoint

# dropout on, epochs of three steps, and checkpoints that fall on neither their ends nor on log entries
SETTINGS = [
    "method.preset=released",
    "method.skip_rank=8",
    "method.adapt_rank=4",
    "method.num_skip=4",
    "search.train=true",
    "search.warmup_steps=2",
    "search.interval=2",
    "search.batch_size=4",
    "train.search_steps=8",
    "train.tune_steps=5",
    "train.batch_size=2",
    "train.accumulation=2",
    "train.save_steps=2",
    "train.logging_steps=3",
    "train_limit=12",
    "validation_limit=8",
    "test_limit=2",
]


def search_and_tune(folder: Path, kill_at: int | None) -> None:
    """What ``eas run`` does first, in a process that kills itself at an access to a file of the run."""
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "shutil.rmtree") and str(folder) in str(arguments[0]):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run = Run.create(RunConfig().with_overrides([f"output_dir={folder}", "data=scenes:relation", *SETTINGS]))
    for step in ("search", "tune"):
        if run.record(step) is None:
            STEPS[step](run)
    (folder.parent / "count").write_text(str(count))


def run_in_a_process(folder: Path, kill_at: int | None = None) -> int | None:
    """Its exit code."""
    process = forkserver(__name__).Process(target=search_and_tune, args=(folder, kill_at))
    process.start()
    process.join()
    return process.exitcode


def outcome(folder: Path) -> dict[str, object]:
    """Everything a run computed, without times."""
    search, tune = (json.loads((folder / f"{step}.json").read_text()) for step in ("search", "tune"))
    for record in (search, tune):
        record.pop("seconds")
    search.pop("round_seconds")
    adapters = ("adapter", "search/adapter")
    tensors = {name: load_file(folder / name / "adapter.safetensors") for name in adapters}
    return {"search": search, "tune": tune} | {
        f"{name}/{key}": tensor.tolist() for name, found in tensors.items() for key, tensor in found.items()
    }


@pytest.mark.slow
def test_killed_at_any_access_to_a_file_a_run_ends_as_if_undisturbed(tmp_path):
    assert run_in_a_process(tmp_path / "whole") == 0
    accesses = int((tmp_path / "count").read_text())
    draw = random.Random(int(os.environ.get("EAS_TEST_SEED", "0")))
    for _ in range(3):
        assert run_in_a_process(tmp_path / "killed", draw.randrange(1, accesses // 3)) == -signal.SIGKILL
    assert run_in_a_process(tmp_path / "killed") == 0
    killed, whole = outcome(tmp_path / "killed"), outcome(tmp_path / "whole")
    assert [key for key in whole if killed[key] != whole[key]] == []
    assert sorted(path.name for path in (tmp_path / "killed" / "tune").iterdir()) == ["checkpoint-4", "checkpoint-5"]


def test_a_phase_that_was_killed_after_its_last_checkpoint_is_not_trained_on(tmp_path):
    trainer = searcher(tmp_path)
    trainer.train()
    again = searcher(tmp_path)
    again.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert again.state.global_step == 12
    assert again.search_result().rounds == trainer.search_result().rounds
    ours, theirs = adapter_state(again.model), adapter_state(trainer.model)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_rounds_without_training_go_on_from_the_last_one(tmp_path):
    phases = [searcher(tmp_path / name).search_phase for name in ("whole", "killed", "killed")]
    phases[0].run(12)
    phases[1].run(6, tmp_path / "search")
    phases[2].run(12, tmp_path / "search")
    assert len(phases[1].rounds) < len(phases[2].rounds)
    assert phases[2].rounds == phases[0].rounds


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk does, the kernel refuses to write on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", quick([10_000, 40_000], [40_000]), ids=["the adapter", "the optimizer"])
def test_a_full_disk_ends_with_the_folder_the_remedy_and_the_last_checkpoint(tmp_path, size):
    searcher(tmp_path, max_steps=4, save_steps=4).train()
    trainer = searcher(tmp_path, max_steps=12)
    with files_of_at_most(size), pytest.raises(WriteError, match=f"{tmp_path}.*make room.*same command"):
        trainer.train(resume_from_checkpoint=last_checkpoint(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    searcher(tmp_path, max_steps=12).train(resume_from_checkpoint=last_checkpoint(tmp_path))
