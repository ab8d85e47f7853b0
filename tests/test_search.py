"""Rules without a model, and the search phase on tiny ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from families import build
from hypothesis import given
from hypothesis import strategies as st

import eas
from eas.attachment.state import candidates
from eas.config import ConfigError
from eas.pipeline import RunConfig
from eas.searching import SearchConfig, SearchPhase, make_rule, random_skip_set


@given(n=st.integers(2, 40), data=st.data(), seed=st.integers(0, 99))
def test_proposals_fit_and_ranking_is_a_permutation(n, data, seed):
    k = data.draw(st.integers(1, n - 1))
    rule = make_rule("bandit", n, k, seed)
    for _ in range(3):
        sets = rule.propose(3)
        assert len(sets) == len(set(sets)) >= 1
        assert all(len(set(s)) == k and s == tuple(sorted(s)) and s[0] >= 0 and s[-1] < n for s in sets)
        rule.observe(sets, [float(sum(s)) / n for s in sets])
    assert sorted(rule.ranking()) == list(range(n))


def planted(seed: int, rounds: int, sign: float = 1.0) -> float:
    """Precision at k after some rounds: 12 of 32 candidates cost nothing, the others 0.05 each, noise 0.05."""
    rng, n, k = np.random.default_rng(seed), 32, 12
    cost = np.full(n, 0.05)
    redundant = rng.choice(n, k, replace=False)
    cost[redundant] = 0.0
    rule = make_rule("bandit", n, k, seed)
    for _ in range(rounds):
        sets = rule.propose(3)
        batch = 0.1 * rng.standard_normal()
        rule.observe(sets, [sign * (cost[list(s)].sum() + 0.05 * rng.standard_normal()) + batch for s in sets])
    return len(set(rule.ranking()[:k]) & set(redundant.tolist())) / k


def test_bandit_finds_planted_redundancy():
    assert np.mean([planted(seed, 100) for seed in range(10)]) >= 0.93
    assert np.mean([planted(seed, 100, sign=-1.0) for seed in range(10)]) <= 0.05  # the printed sign keeps them all


def test_rule_goes_on_from_its_state_as_if_never_stopped():
    one, other = make_rule("bandit", 12, 4, 0), make_rule("bandit", 12, 4, 1)
    for losses in ([1.0, 2.0, 3.0], [0.5, 0.1, 0.9]):
        one.observe(one.propose(3), losses)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.propose(5) == one.propose(5)
    assert other.ranking() == one.ranking()


def test_few_sets_do_not_make_it_spin():
    assert sorted(make_rule("bandit", 2, 1, 0).propose(3)) == [(0,), (1,)]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="bandit"):
        make_rule("greedy", 4, 2)
    for k in (0, 4):
        with pytest.raises(ValueError, match="num_skip"):
            make_rule("bandit", 4, k)
    rule = make_rule("bandit", 4, 2)
    with pytest.raises(ValueError, match="finite"):
        rule.observe([(0, 1), (2, 3)], [1.0, float("nan")])
    with pytest.raises(ConfigError, match="samples"):
        SearchConfig(samples=1)


def test_warm_up_sets_depend_on_seed_and_step_only():
    assert random_skip_set(12, 4, 0, 7) == random_skip_set(12, 4, 0, 7)
    drawn = np.bincount(np.concatenate([random_skip_set(12, 4, 0, step) for step in range(600)]), minlength=12)
    assert drawn.min() > 150  # 200 expected
    assert drawn.max() < 250


@pytest.mark.parametrize("name", ["bandit", "das", "regression", "spread"])
def test_sizes_are_drawn_from_a_range(name):
    rule = make_rule(name, 6, 2, 0)
    drawn = []
    for _ in range(40):
        sets = rule.propose(3, (1, 4))
        assert len(set(sets)) == 3
        drawn += [len(s) for s in sets]
        rule.observe(sets, [float(len(s)) + 0.1 * s[0] for s in sets])
    assert np.bincount(drawn, minlength=5)[1:].min() > 15  # 30 expected
    assert sum(len(rule.propose(50, sizes)) for sizes in ((1, 1), (0, 2))) == 6 + 1 + 6 + 15  # all there are
    warm = [len(random_skip_set(6, 2, 0, step, (1, 4))) for step in range(200)]
    assert np.bincount(warm)[1:].min() > 30
    assert random_skip_set(6, 2, 0, 7, (1, 4)) == random_skip_set(6, 2, 0, 7, (1, 4))


def test_impossible_ranges_are_refused():
    for sizes in ([3], [-1, 2], [3, 2], [0, 0]):
        with pytest.raises(ConfigError, match="num_skip_range"):
            SearchConfig(num_skip_range=sizes)


def test_rounds_read_the_held_out_examples_in_a_random_order_of_the_seed():
    def batches(seed):
        seen = []

        def score(sets, batch):
            seen.append(batch)
            return [float(sum(s)) for s in sets]

        model = eas.attach(build("LlamaForCausalLM"), eas.EASConfig(2, skip_rank=4, adapt_rank=2))
        config = SearchConfig(warmup_steps=0, interval=1, batch_size=4, seed=seed)
        SearchPhase(model, config, range(12), score, lambda batch: [0.5] * 4).run(4)
        return seen

    first = batches(0)
    assert sorted(i for batch in first[:3] for i in batch) == [*range(12)]
    assert first[0] == first[3] != [0, 1, 2, 3]  # the fourth round begins again
    assert batches(None) == first != batches(1)


def test_a_run_s_seed_is_its_search_s_unless_that_has_one():
    for seed in (0, 1, 2):
        assert RunConfig.from_dict({"seed": seed}).search_seed == seed
    assert RunConfig.from_dict({"seed": 1, "search": {"seed": 0}}).search_seed == 0


def test_a_guided_search_asks_for_the_similarities_once_and_keeps_them(tmp_path):
    model = eas.attach(build("LlamaForCausalLM"), eas.EASConfig(2, skip_rank=4, adapt_rank=2))
    n, asked = len(candidates(model)), []

    def cosines(batch):
        asked.append(batch)
        return [0.9 + 0.01 * i for i in range(n)]

    def phase():
        config = SearchConfig(rule="guided", warmup_steps=0, interval=1, batch_size=4)
        return SearchPhase(model, config, range(12), lambda sets, _: [float(sum(s)) for s in sets], cosines)

    whole, stopped, resumed = phase(), phase(), phase()
    whole.run(4)
    assert asked == [whole.batch(0)]
    stopped.run(2, tmp_path)
    resumed.run(4, tmp_path)
    assert len(asked) == 2
    assert resumed.rounds == whole.rounds
    assert resumed.rule.cosines == [0.9 + 0.01 * i for i in range(n)]
    damaged = json.loads((tmp_path / "search_state.json").read_text())
    damaged["rule"]["cosines"] = [0.5]
    (tmp_path / "search_state.json").write_text(json.dumps(damaged))
    with pytest.raises(ConfigError, match="cosines"):
        phase().load(tmp_path)


def test_a_state_of_another_search_is_refused_and_one_that_does_not_say_is_taken(tmp_path):
    def phase(num_skip=2, **changes):
        model = eas.attach(build("LlamaForCausalLM"), eas.EASConfig(num_skip, skip_rank=4, adapt_rank=2))
        config = SearchConfig(**{"rule": "bandit", "warmup_steps": 0, "interval": 1, "batch_size": 4} | changes)
        return SearchPhase(model, config, range(12), lambda sets, _: [float(sum(s)) for s in sets], list)

    phase().run(2, tmp_path)
    for changes in (
        {"rule": "das"},
        {"num_skip": 1},
        {"seed": 3},
        {"interval": 2},
        {"warmup_steps": 1},
        {"samples": 2},
        {"batch_size": 5},
        {"num_skip_range": [1, 2]},
    ):
        ((name, value),) = changes.items()
        with pytest.raises(ConfigError, match=rf"search with {name} = .*, and this one has {re.escape(repr(value))}"):
            phase(**changes).load(tmp_path)
    resumed = phase(score_dtype="bfloat16")
    resumed.load(tmp_path)
    assert len(resumed.rounds) == 2
    old = json.loads((tmp_path / "search_state.json").read_text())
    del old["search"]
    (tmp_path / "search_state.json").write_text(json.dumps(old))
    phase(rule="das").load(tmp_path)


def test_a_search_leaves_the_set_that_it_found():
    model = eas.attach(build("LlamaForCausalLM"), eas.EASConfig(2, skip_rank=4, adapt_rank=2))
    config = SearchConfig(rule="regression", warmup_steps=0, interval=1, batch_size=4)

    def score(sets, batch):
        for skip_set in sets:
            eas.select(model, skip_set)
        return [float(sum(s)) for s in sets]

    for seed in range(4):
        phase = SearchPhase(model, replace(config, seed=seed), range(12), score, list)
        phase.run(5)
        assert eas.skip_set(model) == phase.result().skip_set
