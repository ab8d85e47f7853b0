"""How long a phase trains: by the size of the data, shown before it starts, without a trace of the timed step."""

from __future__ import annotations

import json
import re

import pytest
import torch
from families import attached, build
from test_pipeline import SHORT

import eas
from eas.attachment.save import adapter_state
from eas.config import ConfigError
from eas.files import WriteError
from eas.pipeline import STEPS, Run, RunConfig, run_steps
from eas.pipeline.fit import check_room
from eas.pipeline.phases import attached_base, make_trainer
from eas.pipeline.plan import _seconds_of_a_step, duration, plan

TRAINS = "search.train=true"


@pytest.mark.parametrize(
    ("rows", "options", "search", "tune"),
    [
        (10, [TRAINS], 400, 100),  # the fewest: 100 of warm-up and 30 rounds of 10; 100
        (8000, [TRAINS], 750, 1500),  # 1.5 and 3 epochs of 500 steps
        (8000, [TRAINS, "train.batch_size=8", "train.accumulation=4"], 400, 750),
        (100_000, [TRAINS], 2000, 6000),  # the most
        (10, [TRAINS, "search.warmup_steps=10", "search.interval=2"], 70, 100),
        (10, [TRAINS, "search.interval=100"], 3100, 100),
        (8000, [], 290, 1500),  # without training, 20 rounds
        (8000, ["search.warmup_steps=0"], 200, 1500),
        (8000, ["search.rule=spread"], 490, 1500),  # 40
        (10, ["train.search_steps=250", "train.tune_steps=7"], 250, 7),
    ],
)
def test_steps_follow_the_data(tmp_path, monkeypatch, rows, options, search, tune):
    run = Run(RunConfig().with_overrides([f"output_dir={tmp_path}", *options]))
    monkeypatch.setattr(Run, "data", lambda self, split: range(rows))
    assert (plan(run, "search").steps, plan(run, "tune").steps) == (search, tune)


@pytest.mark.usefixtures("undrawn")
def test_epochs_and_time_are_shown_and_kept(tmp_path, capsys):
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *SHORT, "data=scenes:odd"]))
    STEPS["search"](run)
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"search: 3 steps of 4 examples, 1.5 epochs of 8; about \d+ s", said), said
    kept = json.loads((tmp_path / "search.json").read_text())["plan"]
    assert kept == {"phase": "search", "steps": 3, "batch": 4, "examples": 8, "rounds": None}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("options", "rounds"), [([], 3), (["method.form=paper"], None), (["method={name: drop, num_skip: 2, rank: 2}"], 3)]
)
def test_a_search_trains_by_default_where_untrained_skips_say_nothing(tmp_path, capsys, options, rounds):
    settings = [*SHORT, "search.train=null", "data=scenes:odd"]
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *settings, *options]))
    STEPS["search"](run)
    found = json.loads((tmp_path / "search.json").read_text())
    assert found["plan"]["rounds"] == rounds
    assert len(found["rounds"]) == 3
    assert ("search: 3 rounds, and nothing is trained; about" in " ".join(capsys.readouterr().out.split())) == (
        rounds == 3
    )
    untouched = adapter_state(attached_base(run))
    trained = adapter_state(eas.load(run.load_base(), tmp_path / "search" / "adapter"))
    assert all(torch.equal(trained[name], tensor) for name, tensor in untouched.items()) == (rounds == 3)


def test_the_timed_step_leaves_nothing_behind(tmp_path):
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *SHORT, "method.dropout=0.5"]))
    model = attached_base(run)
    trainer = make_trainer(run, model, "tune", 3)
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    assert _seconds_of_a_step(run, trainer) > 0
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training


def test_durations_are_as_one_says_them():
    assert [duration(s) for s in (0.1, 89, 90, 600, 5399, 5400, 36000)] == [
        "1 s", "89 s", "2 min", "10 min", "90 min", "1.5 h", "10.0 h",
    ]  # fmt: skip


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path, monkeypatch):
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *SHORT]))
    check_room(run)
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(WriteError, match="checkpoints and the standalone model need about"):
        run_steps(run)
    assert run.record("search") is None


@pytest.mark.parametrize(("family", "there"), [("LlamaForCausalLM", False), ("LlavaForConditionalGeneration", True)])
def test_the_projector_is_tuned_where_there_is_one(family, there):
    assert RunConfig().method.train_projector is None
    model = eas.attach(build(family), eas.method_config({"name": "lora", "train_projector": None}))
    assert model.eas.config.train_projector is there
    assert any("projector" in name for name in model.eas.trained) is there
    with pytest.raises(ConfigError, match="train_projector = 'yes': must be bool or None"):
        attached(family, (), {"train_projector": "yes", "skip_rank": 4, "adapt_rank": 2})
