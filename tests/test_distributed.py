"""Two processes, DDP and FSDP2 on gloo: what one process computes on the same global batch."""

from __future__ import annotations

import json
import os
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from families import build
from safetensors.torch import load_file
from test_kill import SETTINGS
from trainers import CONFIG, arguments, forkserver, rows

import eas
from eas import METHODS, cli
from eas.pipeline import STEPS, phases, steps
from eas.searching import SearchConfig, SearchResult
from eas.training import EASTrainer

FSDP2 = {"use_cpu": False, "dataloader_pin_memory": False, "fsdp": True, "fsdp_config": {"version": 2}}
FIRST = {name: STEPS[name] for name in ("search", "tune")}  # steps keep their order
RUN = [
    *SETTINGS,
    "search.train=true",
    "train.search_steps=4",
    "train.tune_steps=2",
    "train.accumulation=1",
    "method.dropout=0.0",
]


def uneven(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Examples with one to three answer tokens: shares of a batch weigh differently."""
    examples = rows(count, seed)
    for i, example in enumerate(examples):
        example["labels"][5 + i % 3 :] = example["input_ids"][5 + i % 3 :]
    return examples


def searcher(
    folder: Path, config: eas.MethodConfig | None = None, trains: bool | None = None, **changes: Any
) -> EASTrainer:
    torch.manual_seed(0)  # of the PIAs
    model = eas.attach(
        build("LlavaForConditionalGeneration", num_hidden_layers=3), config or eas.EASConfig(1, **CONFIG)
    )
    return EASTrainer(
        model,
        arguments(folder, **{"max_steps": 4, "save_steps": 2, "learning_rate": 1e-3, **changes}),
        phase="search" if config is None else "tune",
        search=SearchConfig(warmup_steps=1, interval=2, batch_size=5, train=trains),
        held_out=uneven(10, seed=1),
        train_dataset=uneven(40, seed=0),
    )


def run(folder: Path, batch_size: int) -> None:
    """``eas run``."""
    cli.run.run(folder, data="scenes:relation", option=[*RUN, f"train.batch_size={batch_size}"])


def train(folder: Path, **settings: Any) -> SearchResult:
    """A search, and that it goes on exactly from its checkpoint."""
    whole = searcher(folder, **settings)
    whole.train()
    resumed = searcher(folder / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert resumed.search_result().rounds == whole.search_result().rounds
    return whole.search_result()


def process(rank: int, folder: Path) -> None:
    """One of the two."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    steps.STEPS = FIRST
    phases.console.quiet = rank > 0  # decided on import, which lies before the fork
    with (folder / f"printed by {rank}").open("w") as file, redirect_stdout(file):
        run(folder / "run", 2)
    train(folder / "ddp", per_device_train_batch_size=2)
    # accelerate knows FSDP on accelerators only; nothing beneath it minds that this one is the CPU
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    train(folder / "fsdp", per_device_train_batch_size=2, **FSDP2)
    with pytest.raises(eas.ConfigError, match=r"deep_prompt.*DDP"):
        searcher(folder / "refused", METHODS["deep_prompt"].config(num_tokens=2), **FSDP2)
    with pytest.raises(ValueError, match=r"a search without training does not work under FSDP.*search.train = true"):
        searcher(folder / "refused", trains=False, **FSDP2)
    searcher(folder / "tunes", eas.EASConfig(1, **CONFIG), trains=False, **FSDP2)


def test_two_processes_compute_what_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "STEPS", FIRST)
    run(tmp_path / "run alone", 4)
    alone = train(tmp_path / "alone")
    context = forkserver(__name__)
    both = [context.Process(target=process, args=(rank, tmp_path)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]

    def same(adapter: str, other: str) -> None:
        torch.testing.assert_close(load_file(tmp_path / adapter), load_file(tmp_path / other), rtol=1e-3, atol=1e-4)

    for kind in ("ddp", "fsdp"):
        checkpoint = tmp_path / kind / "checkpoint-4"
        rounds = json.loads((checkpoint / "search_state.json").read_text())["rounds"]
        assert [[tuple(s) for s in r["skip_sets"]] for r in rounds] == [r.skip_sets for r in alone.rounds]
        for r, expected in zip(rounds, alone.rounds, strict=True):
            assert r["losses"] == pytest.approx(expected.losses, rel=1e-5)
        same(f"{kind}/checkpoint-4/adapter.safetensors", "alone/checkpoint-4/adapter.safetensors")
        one = searcher(tmp_path / "on")  # a checkpoint of two processes, sharded or not, is one of any number
        one.train(resume_from_checkpoint=str(tmp_path / kind / "checkpoint-2"))
        same("on/checkpoint-4/adapter.safetensors", "alone/checkpoint-4/adapter.safetensors")

    for step in ("search", "tune"):
        ours, theirs = (json.loads((tmp_path / folder / f"{step}.json").read_text()) for folder in ("run", "run alone"))
        assert [e["loss"] for e in ours["log"]] == pytest.approx([e["loss"] for e in theirs["log"]], rel=1e-4)
        assert ours.get("skip_set") == theirs.get("skip_set")
    same("run/adapter/adapter.safetensors", "run alone/adapter/adapter.safetensors")
    assert "skip set" in (tmp_path / "printed by 0").read_text()
    assert (tmp_path / "printed by 1").read_text() == ""
