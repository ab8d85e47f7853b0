"""Every search rule, on planted truths and without a model."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eas.searching import FIXED, RULES, make_rule, similarity_ranking

rules = pytest.mark.parametrize("name", RULES)
sizes = st.integers(2, 24).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1)))
losses = st.floats(-5, 50)


def play(rule, truth, rounds, rng, noise=0.05):
    """Rounds of three sets with noise of their own and of the batch; the lowest k afterwards."""
    for _ in range(rounds):
        sets, batch = rule.propose(3), 0.1 * rng.standard_normal()
        rule.observe(sets, [truth(s) + batch + noise * rng.standard_normal() for s in sets])
    return set(rule.ranking()[: rule.num_skip])


def planted(name, seed, rounds, n=32, k=12):
    """Precision at k where k candidates cost nothing and the others the same, 1 together."""
    rng = np.random.default_rng([seed, 1])
    cost, redundant = np.full(n, 1 / (n - k)), rng.choice(n, k, replace=False)
    cost[redundant] = 0.0
    return len(play(make_rule(name, n, k, seed), lambda s: cost[list(s)].sum(), rounds, rng) & {*redundant}) / k


@rules
@settings(max_examples=25, deadline=None)
@given(size=sizes, m=st.integers(1, 6), seed=st.integers(0, 99), data=st.data())
def test_proposals_rankings_and_state_are_sound(name, size, m, seed, data):
    rule, other = make_rule(name, *size, seed), make_rule(name, *size, seed + 1)
    for _ in range(3):
        sets = rule.propose(m)
        assert len(sets) == len(set(sets)) == min(m, math.comb(*size))
        assert all(len(set(s)) == size[1] and list(s) == sorted(s) and s[0] >= 0 and s[-1] < size[0] for s in sets)
        rule.observe(sets, data.draw(st.lists(losses, min_size=len(sets), max_size=len(sets))))
    assert sorted(rule.ranking()) == list(range(size[0]))
    assert all(np.diff(np.asarray(rule.importances())[rule.ranking()]) >= 0)
    assert all(e is None or (math.isfinite(e) and e >= 0) for e in rule.standard_errors())
    other.load_state_dict(json.loads(json.dumps(rule.state_dict(), allow_nan=False)))
    for _ in range(2):
        sets = rule.propose(m)
        assert other.propose(m) == sets
        for one in (rule, other):
            one.observe(sets, [float(sum(s)) for s in sets])
    assert other.importances() == rule.importances()
    assert other.standard_errors() == rule.standard_errors()
    assert other.settled() == rule.settled()


@rules
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(9)), seed=st.integers(0, 99), level=st.floats(0, 3))
def test_names_of_candidates_do_not_matter_nor_does_the_batch(name, order, seed, level):
    """Relabelled sets give relabelled importances; what a round shares only scales a bandit's rewards."""
    one, relabelled, shifted = (make_rule(name, 9, 4, 0) for _ in range(3))
    rng = np.random.default_rng(seed)
    for _ in range(4):
        sets, values = make_rule("regression", 9, 4, int(rng.integers(99))).propose(3), rng.uniform(size=3)
        one.observe(sets, values)
        relabelled.observe([tuple(sorted(order[i] for i in s)) for s in sets], values)
        shifted.observe(sets, values + level)
    expected = np.asarray(one.importances())
    assert np.allclose(np.asarray(relabelled.importances())[order], expected)
    assert np.allclose(
        np.asarray(shifted.importances()) * (1.0 if one.standard_errors()[0] else math.exp(level)),
        expected,
        rtol=1e-5,
        atol=2e-3 * np.abs(expected).max() if name == "das" else 1e-8,  # its factor p (1 - p) bends it a little
    )


@rules
def test_a_sharp_policy_still_offers_distinct_sets(name):
    rule = make_rule(name, 12, 4, 0)
    for _ in range(40):
        sets = rule.propose(3)
        rule.observe(sets, [0.0 if s == sets[0] else 8.0 for s in sets])
    state = rule.state_dict()
    rule.load_state_dict({**state, "importance": [1e6 * i for i in range(12)]})
    assert len(set(rule.propose(50))) == 50
    assert sorted(make_rule(name, 4, 2, 0).propose(9)) == list(itertools.combinations(range(4), 2))


def test_a_round_of_regression_skips_every_candidate_about_equally_often():
    rule = make_rule("regression", 32, 12, 0)
    for _ in range(20):
        counts = np.bincount(np.concatenate(rule.propose(3)), minlength=32)
        assert counts.min() == 1
        assert counts.max() == 2


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("bandit", 0.93, 1), ("bandit_literal", 0, 0.05), ("released", 0.8, 1), ("das", 0.93, 1)]
    + [(name, 0.99, 1) for name in ("regression", "thompson", "spread", "guided")],
)
def test_planted_redundancy_is_found(name, least, most):
    assert least <= np.mean([planted(name, seed, 100) for seed in range(8)]) <= most


def test_spread_finds_the_best_set_where_redundant_candidates_need_each_other():
    """Two halves of a pair cost nothing alone and 0.3 together; additive rules on uniform sets keep both."""

    def truth(s):
        chosen = set(s)
        return sum(0.05 * (i >= 8) + 0.01 * (i > 8) for i in s) + 0.3 * sum({i, i + 1} <= chosen for i in (0, 2, 4))

    least = min(map(truth, itertools.combinations(range(16), 5)))
    regret = {}
    for name in ("regression", "spread"):
        trials = [(make_rule(name, 16, 5, seed), np.random.default_rng([seed, 1])) for seed in range(8)]
        regret[name] = np.mean([truth(sorted(play(rule, truth, 80, rng))) - least for rule, rng in trials])
    assert regret["spread"] < 0.02
    assert regret["regression"] > 2 * regret["spread"]


@pytest.mark.parametrize("name", ["regression", "thompson", "spread", "guided"])
def test_standard_errors_are_those_of_the_importances(name):
    scores, cost = [], np.linspace(0, 0.1, 16)
    for seed in range(20):
        rule = make_rule(name, 16, 6, seed)
        assert rule.standard_errors() == [None] * 16
        play(rule, lambda s: cost[list(s)].sum(), 40, np.random.default_rng([seed, 1]))
        scores += [*((np.asarray(rule.importances()) - (cost - cost.mean())) / rule.standard_errors())]
    assert 0.8 < np.sqrt(np.mean(np.square(scores))) < 1.2


def centred_rounds(rule, rng):
    """Five rounds of random losses: which of six candidates each set skipped, and its loss, both centred by round."""
    rows, values = [], []
    for _ in range(5):
        sets, y = rule.propose(3), rng.uniform(size=3)
        rule.observe(sets, y)
        x = np.array([[float(i in s) for i in range(6)] for s in sets])
        rows.append(x - x.mean(0))
        values.append(y - y.mean())
    return np.concatenate(rows), np.concatenate(values)


def test_a_guided_rule_is_ridge_regression_with_one_more_regressor():
    rule, rng = make_rule("guided", 6, 2, 0), np.random.default_rng(1)
    cosines = rng.uniform(0.5, 0.999, 6)
    rule.guide(cosines)
    x = (cosines - cosines.mean()) / cosines.std()
    seen, y = centred_rounds(rule, rng)
    seen = np.column_stack([seen, seen @ x])  # a term of each candidate's own, and the slope, whose ridge is 1 / 3**2
    augmented = np.concatenate([seen, np.diag([*[1.0] * 6, 1 / 3])]), np.concatenate([y, np.zeros(7)])
    found = np.linalg.lstsq(*augmented, rcond=None)[0]
    assert np.allclose(rule.importances(), found[:6] + found[6] * x)
    assert np.std(rule.importances() - found[:6]) > 0.01


def test_a_guided_rule_finds_early_what_the_similarity_tells_and_loses_nothing_where_it_tells_nothing():
    rng = np.random.default_rng(0)
    cost = rng.exponential(size=30)
    told = {"true": 1 - cost / 100, "reversed": cost / 100, "random": rng.uniform(0.5, 0.999, 30)}
    best = np.sort(cost)[:10].sum()

    def regret(cosines, rounds):
        found = []
        for seed in range(12):
            rule = make_rule("guided", 30, 10, seed)
            if cosines is not None:
                rule.guide(cosines)
            chosen = play(rule, lambda s: cost[list(s)].sum(), rounds, np.random.default_rng([seed, 1]), noise=0.3)
            found.append(cost[[*chosen]].sum() - best)
        return np.mean(found)

    untold = {rounds: regret(None, rounds) for rounds in (4, 20)}
    assert regret(told["true"], 4) < 0.3 * untold[4]
    assert regret(told["reversed"], 4) < 0.3 * untold[4]  # the slope may have any sign
    assert regret(told["random"], 20) < 1.2 * untold[20]


def test_a_guided_rule_takes_cosines_of_one_and_equal_ones_and_refuses_too_few():
    plain, rule = make_rule("spread", 4, 2, 0), make_rule("guided", 4, 2, 0)
    rule.guide([0.7] * 4)
    assert rule.propose(3) == plain.propose(3)  # equal ones say nothing
    rule.guide([1.0, 1.0000001, -0.5, 0.9])
    assert np.isfinite(rule.prior).all()
    for wrong in ([0.5] * 3, [0.5, float("nan"), 0.5, 0.5]):
        with pytest.raises(ValueError, match="cosines"):
            rule.guide(wrong)


def test_regression_is_ridge_regression_on_centred_rounds():
    rule = make_rule("regression", 6, 2, 0)
    seen, y = centred_rounds(rule, np.random.default_rng(1))
    augmented = np.concatenate([seen, np.eye(6)]), np.concatenate([y, np.zeros(6)])
    assert np.allclose(rule.importances(), np.linalg.lstsq(*augmented, rcond=None)[0])


@pytest.mark.parametrize("name", ["bandit", "regression", "thompson", "spread"])
def test_settled_says_no_to_noise_and_yes_to_a_gap(name):
    def rounds_until_settled(cost, noise):
        rule, rng = make_rule(name, 12, 4, 0), np.random.default_rng(1)
        for t in range(1, 101):
            play(rule, lambda s: cost[list(s)].sum(), 1, rng, noise)
            if rule.settled():
                return t
        return None

    assert rounds_until_settled(np.repeat([0.0, 0.5], [4, 8]), 0.01) is not None
    assert rounds_until_settled(np.zeros(12), 0.4) is None


def test_fixed_rankings():
    assert FIXED["last"](6, 2, 0) == [5, 4, 3, 2, 1, 0]
    assert FIXED["every_other"](6, 2, 0) == [5, 3, 1, 4, 2, 0]
    assert FIXED["every_other"](5, 4, 0) == [4, 2, 0, 3, 1]
    assert FIXED["random"](9, 3, 1) == FIXED["random"](9, 3, 1) != FIXED["random"](9, 3, 2)
    assert all(sorted(ranking(9, 3, 0)) == list(range(9)) for ranking in FIXED.values())
    assert similarity_ranking([0.2, 0.9, 0.9, -1.0]) == [1, 2, 0, 3]


@rules
def test_bad_input_is_refused(name):
    for k in (0, 4, 5):
        with pytest.raises(ValueError, match="num_skip"):
            make_rule(name, 4, k)
    rule = make_rule(name, 4, 2)
    for bad in ([1.0, float("nan")], [1.0, float("inf")], [1.0]):
        with pytest.raises(ValueError, match="losses"):
            rule.observe([(0, 1), (2, 3)], bad)
    assert rule.importances() == [0.0] * 4
    with pytest.raises(ValueError, match=name):
        make_rule("greedy", 4, 2)
    with pytest.raises(ValueError, match="cosines"):
        similarity_ranking([0.1, float("nan")])
