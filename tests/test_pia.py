"""PIA against the naive references: outputs, gradients, prompt statistics, both folds, their cost and rounding."""

import itertools
from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eas.pia import PIA, SharedFold, fold_weights, naive_fold, naive_pia, naive_prompt_state

torch.set_num_threads(1)
close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
# pooling, hidden_scale, up_groups, router_bias, router
OPTIONS = [
    o
    for o in itertools.product(("prompt", "causal", "none"), (1.0, 0.5), (1, 2), (True, False), ("input", "constant"))
    if o[4] == "input" or o[3]
]


def make(options, size=8, rank=4, dtype=torch.float32, seed=0):
    """A PIA with every weight random, the norm weight g of the FFN after it, and the generator."""
    pooling, hidden_scale, groups, router_bias, router = options
    g = torch.Generator().manual_seed(seed)
    pia = PIA(
        size,
        rank,
        pooling=pooling,
        router=router,
        hidden_scale=hidden_scale,
        up_groups=groups,
        router_bias=router_bias,
        temperature=2.0,
    ).to(dtype)
    with torch.no_grad():
        for p in pia.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.5)
    return pia, (torch.rand(size, generator=g) + 0.5).to(dtype), g


def corrected(pia, n, state, norm_weight):
    """What the linear maps after a PIA read, as the block computes it."""
    z = n + pia(n, state)
    return z if norm_weight is None else norm_weight * z


@settings(deadline=None, max_examples=60)
@given(options=st.sampled_from(OPTIONS), data=st.data())
def test_equals_the_naive_reference_in_output_and_gradient(options, data):
    size, rank = 2 * data.draw(st.integers(1, 6)), 2 * data.draw(st.integers(1, 4))
    tokens = data.draw(st.integers(1, 7))
    masks = st.lists(st.booleans(), min_size=tokens, max_size=tokens).filter(any)
    mask = torch.tensor(data.draw(st.lists(masks, min_size=1, max_size=3)))
    pia, _, g = make(options, size, rank, seed=data.draw(st.integers(0, 99)))
    n = torch.randn(*mask.shape, size, generator=g, requires_grad=True)
    weights = [*pia.parameters()]

    def fast():
        return pia(n, pia.prompt_state(n, mask))

    def naive():
        return torch.stack([naive_pia(pia, row, keep) for row, keep in zip(n, mask, strict=True)])

    close(fast(), naive())
    probe = torch.randn(n.shape, generator=g)
    for a, b in zip(*(torch.autograd.grad((f() * probe).sum(), [n, *weights]) for f in (fast, naive)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)  # sums over tokens and batch
    for state, row, keep in zip(pia.prompt_state(n, mask), n, mask, strict=True):
        alpha, c = naive_prompt_state(pia, row, keep)
        last = torch.cat([alpha, c]) if options[0] != "none" else alpha
        close(state[-1], last)  # causal: what the prompt's end has seen of it


@pytest.mark.parametrize("pooling", ["prompt", "causal"])
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e38])
def test_statistics_ignore_whatever_padding_holds(fill, pooling):
    pia, _, g = make((pooling, 1.0, 1, True, "input"))
    n = torch.randn(2, 5, 8, generator=g)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.bool)
    dirty = n.masked_fill(~mask[..., None], fill).requires_grad_()
    state = pia.prompt_state(dirty, mask)
    assert torch.equal(state, pia.prompt_state(n, mask))
    state.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in pia.parameters())
    assert dirty.grad.isfinite().all()
    assert not dirty.grad[~mask].any()


def test_starts_as_nothing():
    pia, g = PIA(8, 4, pooling="prompt"), torch.Generator().manual_seed(0)
    n = torch.randn(2, 3, 8, generator=g)
    assert not pia(n, pia.prompt_state(n, torch.ones(2, 3, dtype=torch.bool))).any()
    assert all(getattr(pia, name).weight.any() for name in ("router", "down1", "down2"))


def test_dropout_acts_on_h_while_training_only():
    pia = PIA(8, 64, pooling="prompt", dropout=0.5)
    nn.init.ones_(pia.up1.weight)
    n, mask = torch.randn(1, 3, 8), torch.ones(1, 3, dtype=torch.bool)
    state = pia.prompt_state(n, mask)
    assert not torch.equal(pia(n, state), pia(n, state))
    pia.eval()
    assert torch.equal(pia(n, state), pia(n, state))


def shared(pia, norm_weight, dtype, n, state):
    fold = SharedFold(pia, norm_weight, dtype)
    return fold(n, fold.keep(state))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_folds_are_exact(options, bias):
    pia, norm_weight, g = make(options, dtype=torch.float64)
    linears = [nn.Linear(8, out, bias=bias, dtype=torch.float64) for out in (12, 5)]
    n = torch.randn(1, 5, 8, generator=g, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False, False]])
    before = [t.clone() for linear in linears for t in linear.state_dict().values()]
    g_or_none = norm_weight if options[0] != "none" else None
    tight = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        state = pia.prompt_state(n, mask).double()
        z = corrected(pia, n, state, g_or_none)
        direct = torch.cat([linear(z) for linear in linears], -1)
        tight(torch.cat([m(shared(pia, g_or_none, torch.float64, n, state)) for m in linears], -1), direct)
        scale = torch.ones_like(norm_weight) if g_or_none is None else norm_weight
        for token in range(state.shape[1]):  # with causal pooling each has a c of its own
            alpha, c = state[0, token, :2], pia.c(state)[0, token] if options[0] != "none" else None
            weight, part, from_c = fold_weights(linears, pia, alpha, g_or_none)
            whole = fold_weights(linears, pia, alpha, g_or_none, c).bias
            tight(part if c is None else part + from_c @ c, whole)
            zero = torch.zeros(4, dtype=torch.float64)
            naive = [naive_fold(m, pia, alpha, zero if c is None else c, scale) for m in linears]
            tight(weight, torch.cat([w for w, _ in naive]))
            tight(whole, torch.cat([b for _, b in naive]))
            rows = slice(None) if state.shape[1] == 1 else slice(token, token + 1)
            tight(n[:, rows] @ weight.T + whole, direct[:, rows])
    after = [t for linear in linears for t in linear.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_running_mean_goes_on_from_the_state_it_left():
    pia, _, g = make(("causal", 0.5, 2, False, "constant"), dtype=torch.float64)
    pia.running = True
    n = torch.randn(2, 9, 8, generator=g, dtype=torch.float64)
    prompt = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    tokens = torch.cat([prompt, torch.ones(2, 4, dtype=torch.bool)], 1)
    read = torch.cat([prompt, torch.zeros(2, 4, dtype=torch.bool)], 1)
    with torch.no_grad():
        at_once = pia.prompt_state(n, read, tokens)
        state = pia.prompt_state(n[:, :5], prompt, prompt)
        for new in (n[:, 5:6], n[:, 6:9]):  # one by one, or several
            state = torch.cat([state, pia.next_state(new, state[:, -1:])], 1)
        close(state, at_once)
        expected = torch.stack([naive_pia(pia, *row) for row in zip(n, read, tokens, strict=True)])
        close(pia(n, at_once), expected)
    assert state[:, -1, -1].tolist() == [8, 9]


def test_a_running_mean_counts_beyond_what_bfloat16_holds():
    pia, _, g = make(("causal", 0.5, 2, False, "constant"))
    half = deepcopy(pia).bfloat16()
    pia.running = half.running = True
    n = torch.randn(1, 600, 8, generator=g) + 1
    with torch.no_grad():
        state = half.prompt_state(n[:, :300].bfloat16(), torch.ones(1, 300, dtype=torch.bool))[:, -1:]
        for token in n[:, 300:].bfloat16().unbind(1):
            state = half.next_state(token[:, None], state)
        exact = pia.prompt_state(n, torch.ones(1, 300, dtype=torch.bool), torch.ones(1, 600, dtype=torch.bool))[:, -1:]
        assert state[0, 0, -1] == 600
        assert (state - exact).norm() < 0.02 * exact[..., :-1].norm()
        assert half(n[:, -1:].bfloat16(), state).dtype == torch.bfloat16


@pytest.mark.parametrize("pooling", ["prompt", "causal"])
def test_shared_fold_serves_a_batch(pooling):
    pia, norm_weight, g = make((pooling, 0.5, 2, True, "input"))
    n = torch.randn(3, 5, 8, generator=g)
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    with torch.no_grad():
        state = pia.prompt_state(n, mask)
        direct = corrected(pia, n, state, norm_weight)
        close(shared(pia, norm_weight, torch.float32, n, state), direct, rtol=1e-5, atol=1e-5)


def test_bfloat16_folds_add_no_more_error_than_the_plain_module():
    pia, norm_weight, g = make(("prompt", 1.0, 1, False, "input"), size=64, rank=16)
    linear = nn.Linear(64, 128, bias=False)
    n = torch.randn(1, 200, 64, generator=g)
    mask = torch.ones(1, 200, dtype=torch.bool)
    half = nn.Linear(64, 128, bias=False, dtype=torch.bfloat16)
    half.load_state_dict(linear.state_dict())
    n_half, g_half = n.bfloat16(), norm_weight.bfloat16()
    with torch.no_grad():
        exact = linear(corrected(pia, n, pia.prompt_state(n, mask), norm_weight))
        state = pia.prompt_state(n_half, mask)
        for told in (mask, None):  # None is every token
            torch.testing.assert_close(state, pia.prompt_state(n_half.float(), mask), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(state, pia.prompt_state(n_half, told), rtol=1e-5, atol=1e-6)
        plain = half(corrected(pia, n_half, state, g_half))
        paths = {"shared": half(shared(pia, g_half, torch.bfloat16, n_half, state))}
        for name, arithmetic in (("constant", None), ("per_example", torch.bfloat16)):
            folded = fold_weights([half], pia, state[0, 0, :2], g_half, pia.c(state)[0, 0], arithmetic)
            paths[name] = nn.functional.linear(n_half, folded.weight, folded.bias)
    error = (plain - exact).norm()
    assert error > 0
    for name, result in paths.items():
        assert result.dtype == torch.bfloat16
        assert (result - exact).norm() <= 2 * error, name


def test_folding_costs_the_low_rank_formula():
    size, ffn, rank = 4096, 11008, 256  # a 7B model's, on no storage
    with torch.device("meta"):
        pia = PIA(size, rank, pooling="prompt")
        gate_and_up = [nn.Linear(size, ffn, bias=False) for _ in range(2)]
        state, norm_weight = torch.empty(1, 1, 2 + rank), torch.empty(size)
    with FlopCounterMode(display=False) as counter:
        fold_weights(gate_and_up, pia, state[0, 0, :2], norm_weight, pia.c(state)[0, 0])
    macs = (
        2 * size * rank * 2 * ffn
    )  # W diag(g) U^T, then times Wd1^T; through a d x d matrix it would be d^2 (r + 2 ff)
    assert macs <= counter.get_total_flops() / 2 <= 1.1 * macs
    assert 12 * macs == pytest.approx(0.55e12, rel=0.01)
