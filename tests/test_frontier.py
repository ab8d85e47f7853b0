"""One search serves every k: the fit, the costs, the recommendation, the command."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from eas import ConfigError, cli, select
from eas.attachment.attach import attach, fold
from eas.attachment.load import load_into
from eas.attachment.save import adapter_state
from eas.measure.count import count
from eas.pipeline import STEPS, Run, RunConfig
from eas.pipeline.frontier import Budget, fit_rounds, frontier, held_out_losses
from eas.reports.frontier import recommendation
from eas.tasks.collate import Collator

torch.set_num_threads(1)
SHORT = [
    "method.preset=null",
    "method.skip_rank=8",
    "method.adapt_rank=4",
    "method.num_skip=4",
    "search.train=true",
    "search.warmup_steps=1",
    "search.interval=1",
    "search.batch_size=3",
    "train.search_steps=4",
    "train.batch_size=2",
    "train.save_steps=2",
    "data=scenes:relation",
    "train_limit=8",
    "validation_limit=4",
]


def rounds(sizes, count=60, n=12, noise=0.02, seed=0):
    """Rounds of three random sets whose loss is the sum of planted costs, and those costs."""
    rng = np.random.default_rng(seed)
    costs, history = np.linspace(-0.1, 0.5, n)[rng.permutation(n)], []
    for _ in range(count):
        sets = [rng.choice(n, rng.integers(*sizes, endpoint=True), replace=False).tolist() for _ in range(3)]
        level = rng.normal()
        losses = [float(level + costs[s].sum() + noise * rng.normal()) for s in sets]
        history.append({"skip_sets": sets, "losses": losses})
    return history, costs


def test_sets_of_one_size_tell_differences_and_sets_of_several_the_level():
    history, costs = rounds((4, 4))
    fit, varied = fit_rounds(history, 12, 4)
    assert not varied
    assert fit.ranking() == np.argsort(costs).tolist()
    difference = np.eye(12)[3] - np.eye(12)[7]
    value, error = fit.contrast(difference)
    assert value == pytest.approx(costs[3] - costs[7], abs=4 * error + 0.02)
    history, costs = rounds((1, 9))
    fit, varied = fit_rounds(history, 12, 4)
    assert varied
    value, error = fit.contrast(np.ones(12))
    assert value == pytest.approx(costs.sum(), abs=4 * error + 0.02)  # the ridge draws a little towards 0
    assert error < 0.1


def test_after_a_guided_search_the_fit_knows_what_no_round_skipped():
    """Two of twelve candidates cost 5 and change much; a guided search never skips them, so losses do not tell."""
    rng, costs, cosines = np.random.default_rng(0), np.linspace(0, 0.5, 12), np.linspace(0.99, 0.98, 12)
    costs[10:], cosines[10:] = 5.0, (0.6, 0.7)
    sets = [[rng.choice(10, 4, replace=False).tolist() for _ in range(3)] for _ in range(30)]
    history = [{"skip_sets": some, "losses": [float(costs[s].sum()) for s in some]} for some in sets]
    assert sorted(fit_rounds(history, 12, 4)[0].ranking()[-2:]) != [10, 11]
    assert sorted(fit_rounds(history, 12, 4, cosines.tolist())[0].ranking()[-2:]) == [10, 11]
    with pytest.raises(ConfigError, match="11 cosines for 12 candidates"):
        fit_rounds(history, 12, 4, cosines.tolist()[1:])


def row(k, predicted, measured=None, **shares):
    return {"k": k, "predicted": predicted, "measured": measured, **shares}


def test_recommendation_keeps_to_every_limit():
    shares = [{"macs_share": 1 - k / 10, "kv_share": 1 - k / 4, "decode_bound": 1 + k / 10} for k in range(4)]
    rows = [row(0, 1.0, 1.0, **shares[0]), row(1, 0.9, **shares[1]), row(2, 1.2, 1.0, **shares[2])]
    rows.append(row(3, 1.1, 1.6, **shares[3]))
    rows.append(row(4, -1.3, **shares[3] | {"kv_share": 0.0}))
    assert Budget().recommend(rows, unmeasured=True) is None
    assert Budget(max_loss_increase=0.2).recommend(rows) == 2  # the lowest loss that was measured counts; the largest k
    assert Budget(max_loss_increase=0.2).recommend(rows, unmeasured=True) == 4  # to be measured next
    assert Budget(max_loss_increase=0).recommend(rows[:3]) == 2
    assert Budget(max_kv=0.75).recommend(rows) == 2
    assert Budget(max_kv=0.75).recommend(rows, unmeasured=True) == 1  # the smallest that saves enough
    assert Budget(max_macs=0.8).recommend(rows) == 2
    assert Budget(speedup=1.3).recommend(rows) == 3
    assert Budget(speedup=1.3, max_loss_increase=0.2).recommend(rows) is None


@pytest.mark.parametrize(
    ("name", "limit"),
    [*((name, limit) for name in ("max_macs", "max_kv", "speedup") for limit in (0, -1, math.nan, math.inf))]
    + [("max_loss_increase", limit) for limit in (-5, math.nan, math.inf)],
)
def test_a_budget_that_cannot_be_is_refused(name, limit):
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} {limit}: must be a finite number"):
        Budget(**{name: limit})


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a run of which only the search was done."""
    folder = tmp_path_factory.mktemp("frontier")
    STEPS["search"](Run.create(RunConfig().with_overrides([f"output_dir={folder}", *SHORT])))
    return folder


def test_the_command_from_a_finished_search(searched):
    done = CliRunner().invoke(cli.app, ["frontier", str(searched), "--measure", "2", "--max-kv", "0.7"])
    assert done.exit_code == 0, done.output
    last = json.loads(done.output.strip().splitlines()[-1])
    record = json.loads((searched / "frontier.json").read_text())
    rows, run = record["rows"], Run.open(searched)
    assert last["recommended"] == record["recommended"] == 4  # of 12 attentions 8 keep 67 % of the cache
    assert last["skip_set"] == rows[4]["skip_set"]
    assert (last["measured"], last["tried"]) == (rows[4]["measured"], [])
    assert "recommended: k = 4, measured loss" in done.output
    assert [row["k"] for row in rows] == list(range(12))
    assert all(set(a["skip_set"]) < set(b["skip_set"]) for a, b in pairwise(rows))
    assert {row["k"] for row in rows if row["measured"] is not None} == {0, 2, 4}
    for k in record["anchors"]:
        assert rows[k]["predicted"] == pytest.approx(rows[k]["measured"])
        assert rows[k]["standard_error"] == pytest.approx(0, abs=1e-6)
    assert (searched / "frontier.png").read_bytes()[1:4] == b"PNG"
    assert (searched / "frontier.svg").read_text().lstrip().startswith("<?xml")

    model = attach(run.load_base(), run.config.method).eval()
    load_into(model, searched / "search" / "adapter")
    batches = [[run.data("validation")[i] for i in part] for part in ([0, 1, 2], [3])]
    select(model, rows[2]["skip_set"])
    inputs = [Collator(run.processor, training=True)(part) for part in batches]
    tokens = [int((batch["labels"] != -100).sum()) for batch in inputs]
    with torch.no_grad():
        loss = sum(n * float(model(**batch).loss) for n, batch in zip(tokens, inputs, strict=True)) / sum(tokens)
    assert rows[2]["measured"] == pytest.approx(loss, rel=1e-5)
    assert held_out_losses(run, model, [tuple(rows[2]["skip_set"])], 4) == pytest.approx([loss], rel=1e-5)
    fold(model)
    assert count(model, record["prompt_tokens"], 1).macs == rows[2]["macs"]


@pytest.mark.parametrize("most", [8, 2])
def test_a_recommended_k_meets_the_budget_by_a_measured_loss(searched, most, monkeypatch):
    """The predictions are far too low for all k but the run's own; measured, only k = 1 and 2 are within the budget."""
    losses = {k: 1.0 + 0.04 * k if k <= 2 else 4.0 for k in range(12)}
    seen: list[list[int]] = []

    def measured(run, model, skip_sets, examples):
        seen.append([len(skip_set) for skip_set in skip_sets])
        return [losses[len(skip_set)] for skip_set in skip_sets]

    class TooLow:
        def ranking(self):
            return list(range(12))

        num_candidates = 12

        def contrast(self, difference):
            return -9.0, 0.1

    monkeypatch.setattr("eas.pipeline.frontier.held_out_losses", measured)
    monkeypatch.setattr("eas.pipeline.frontier.fit_rounds", lambda *_: (TooLow(), False))
    monkeypatch.setattr("eas.pipeline.frontier.TRIES", most)
    record = frontier(Run.open(searched), [1], budget=Budget(max_loss_increase=0.1))
    assert seen[0] == [0, 1, 4, 4]
    assert [k for (k,) in seen[1:]] == record["tried"] == [11, 10, 9, 8, 7, 6, 5, 3][:most]
    assert record["recommended"] == 1  # k = 2 would fit, but that many were not tried
    assert [row["k"] for row in record["rows"] if row["measured"] is not None] == sorted({0, 1, 4, *record["tried"]})
    said = recommendation(record)
    assert "recommended: k = 1, measured loss 1.040, 0.040 above the lowest measured, that of k = 0; measured" in said
    record = frontier(Run.open(searched), [1], budget=Budget(max_macs=0.99, max_loss_increase=0.1))
    assert (record["recommended"], record["tried"]) == (1, [])
    record = frontier(Run.open(searched), [], budget=Budget(max_kv=0.8))
    assert (record["recommended"], record["tried"], record["rows"][3]["measured"]) == (3, [3], 4.0)


def test_what_is_measured_for_a_budget_is_the_model_of_the_search(searched):
    """Also where folding for the costs merges LoRA, which leaves the base's weights up to rounding."""
    run = Run.open(searched)
    found = frontier(run, [], examples=4, budget=Budget(speedup=1.001))
    (k,) = found["tried"]
    again = frontier(run, [k], examples=4)
    assert found["rows"][k]["measured"] == again["rows"][k]["measured"]


def test_what_cannot_be_drawn_is_refused(searched, tmp_path):
    run = Run.open(searched)
    with pytest.raises(ConfigError, match="1 to 11"):
        frontier(run, [12])
    told = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *SHORT, "skip_set=[0,1,2,3]"]))
    STEPS["search"](told)
    with pytest.raises(ConfigError, match="no rounds"):
        frontier(told)


def test_a_search_over_several_sizes_anchors_at_nothing_skipped(tmp_path):
    options = ["search.num_skip_range=[0,8]", "search.rule=spread", "search.samples=4"]
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *SHORT, *options]))
    STEPS["search"](run)
    sizes = {len(s) for r in run.require("search")["rounds"] for s in r["skip_sets"]}
    assert len(sizes) > 3
    record = frontier(run, [], examples=2)
    assert record["anchors"] == [0]
    assert [row["standard_error"] > 0 for row in record["rows"]] == [False] + [True] * 11
    options = [f"output_dir={tmp_path / 'x'}", *SHORT, "search.num_skip_range=[1,12]"]
    too_many = Run.create(RunConfig().with_overrides(options))
    with pytest.raises(ConfigError, match=r"\[1, 12\]: the model has 12 attentions; at least one is kept"):
        STEPS["search"](too_many)


def test_a_search_without_training_leaves_the_weights_and_rounds_as_many(searched, tmp_path):
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *SHORT, "search.train=false"]))
    STEPS["search"](run)
    record, trained = run.require("search"), Run.open(searched).require("search")
    assert [r["step"] for r in record["rounds"]] == [r["step"] for r in trained["rounds"]] == [1, 2, 3, 4]
    assert record["log"] == []
    assert 0 < record["round_seconds"] <= record["seconds"]
    torch.manual_seed(run.config.seed)
    fresh = adapter_state(attach(run.load_base(), run.config.method))
    left = attach(run.load_base(), run.config.method)
    load_into(left, tmp_path / "search" / "adapter")
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in adapter_state(left).items())
