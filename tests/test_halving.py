"""Finalists: successive halving by itself, and as the search's second stage."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from eas.config import ConfigError
from eas.pipeline import STEPS, Run, RunConfig
from eas.searching import successive_halving

SETS = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.integers(1, 30))
def test_where_more_steps_change_nothing_the_lowest_loss_wins_and_ties_stay_in_order(losses, interval):
    asked = []

    def tuned_loss(skip_set, steps):
        asked.append((skip_set, steps))
        return losses[skip_set[0]]

    winner, rungs = successive_halving([(i,) for i in range(len(losses))], interval, tuned_loss)
    assert winner == (losses.index(min(losses)),)
    assert [len(rung.skip_sets) for rung in rungs] == [len(losses) >> i for i in range(len(losses).bit_length() - 1)]
    assert [rung.steps for rung in rungs] == [interval * (i + 1) for i in range(len(rungs))]
    assert asked == [(s, rung.steps) for rung in rungs for s in rung.skip_sets]
    assert all(rung.losses == [losses[s[0]] for s in rung.skip_sets] for rung in rungs)


def test_a_set_that_learns_slowly_is_left_behind():
    curves = {(0,): [1.0, 0.9], (1,): [0.8, 0.7], (2,): [0.9, 0.2], (3,): [1.1, 0.0]}
    winner, rungs = successive_halving(list(curves), 10, lambda skip_set, steps: curves[skip_set][steps // 10 - 1])
    assert winner == (2,)
    assert rungs[1].skip_sets == [(1,), (2,)]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no finalists"):
        successive_halving([], 10, lambda skip_set, steps: 0.0)
    with pytest.raises(ValueError, match="must be numbers"):
        successive_halving(SETS, 10, lambda skip_set, steps: float("nan"))
    for override, words in [
        ("search.finalists=1", "must be 0, for none, or at least 2"),
        ("search.finalist_steps=0", "must be at least 1"),
        ("search.finalist_batches=0", "must be at least 1"),
    ]:
        with pytest.raises(ConfigError, match=words):
            RunConfig().with_overrides([override])
    with pytest.raises(ConfigError, match="proposes one set"):
        RunConfig().with_overrides(["search.finalists=4", "search.rule=last"])


def test_a_run_goes_on_from_the_best_finalist(tmp_path):
    settings = ["method.num_skip=5", "method.skip_rank=8", "method.adapt_rank=4", "data=scenes:colour"]
    settings += ["search.warmup_steps=1", "search.interval=1", "search.batch_size=4", "search.finalists=4"]
    settings += ["search.finalist_steps=2", "search.finalist_batches=2", "train.search_steps=2", "train.tune_steps=1"]
    settings += ["train.learning_rate=0.003", "train_limit=16", "validation_limit=6", "train.batch_size=2"]
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *settings]))
    STEPS["search"](run)
    found = run.require("search")
    first, last = found["rungs"]
    assert (first["steps"], last["steps"]) == (2, 4)
    assert len(first["skip_sets"]) == 4
    assert first["skip_sets"][0] == sorted(found["ranking"][:5])
    best = sorted(range(4), key=first["losses"].__getitem__)[:2]
    assert last["skip_sets"] == [first["skip_sets"][i] for i in best]
    assert found["skip_set"] == last["skip_sets"][last["losses"].index(min(last["losses"]))]
    assert found["seconds"] > found["finals_seconds"] > 0
    assert not (tmp_path / "search" / "finals").exists()
    tuned, shared = (load_file(tmp_path / "search" / name / "adapter.safetensors") for name in ("finalist", "adapter"))
    assert json.loads((tmp_path / "search/finalist/eas_config.json").read_text())["skip_set"] == found["skip_set"]
    moved = {key.split(".")[1] for key in tuned if "skip_pia" in key and not torch.equal(tuned[key], shared[key])}
    assert moved == {str(i) for i in found["skip_set"]}  # only the PIAs of the winner were tuned on
    STEPS["tune"](run)
    pruned = json.loads((tmp_path / "adapter" / "eas_config.json").read_text())
    assert pruned["skip_set"] == found["skip_set"]
