"""Every fold mode: folded == unfolded in whatever way the model is run, and nothing is left behind."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import pytest
import torch
from decoding import answers, decode
from families import IMAGE, attached, blocks, build, logits, prompts, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from transformers.cache_utils import DynamicCache, StaticCache

import eas
from eas import ConfigError, EASConfig, count, fold, unfold
from eas.hf.api import cached
from eas.hf.cache import kv_cache_bytes, prompt_layer
from eas.methods.lora import lora_layers, unwrap
from eas.pipeline.config import RunConfig

torch.set_num_threads(1)
LLAMA, LLAVA, QWEN = "LlamaForCausalLM", "LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"
CONSTANT = {"router": "constant"}
RUNNING = {"pooling": "causal", "decode_pooling": "running"}
RELEASED = {"form": "paper", "hidden_scale": 0.5, "up_groups": 2, "adapt_router_bias": False}
CASES = {
    "shared": {},
    "shared, running": RUNNING,
    "shared, released": RELEASED,
    "shared, lora": {"adapt": "lora"},
    "per_example": {},
    "per_example, constant router": CONSTANT,
    "constant": CONSTANT,
    "constant, released": CONSTANT | RELEASED,
    "constant, causal": CONSTANT | {"pooling": "causal"},
    "constant, running": CONSTANT | RUNNING,
    "constant, none": CONSTANT | {"pooling": "none"},
    "constant, lora": CONSTANT | {"adapt": "lora"},
    "constant, either": CONSTANT | {"candidates": "either"},
}
every_case = pytest.mark.parametrize("case", CASES)


def of(case, family=LLAMA, **build_args):
    """A tiny model whose first and last attention are skipped, and the mode it is to be folded in."""
    skip = (0, 2, 4) if "either" in case else (0, 2)  # with the FFN between them
    return attached(family, skip, CASES[case], num_hidden_layers=3, **build_args), case.split(",")[0]


def lengths_of(mode):
    return ((9,),) if mode == "per_example" else ((9,), (9, 3, 7, 5, 9, 4, 6, 8))


@torch.no_grad()
def forced(model, inputs, answer, cache=None):
    """Logits of the prompt and of an answer that is forced token by token, ``(batch, tokens, vocab)``."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    seen, mask = [model(**inputs, **cached(cache)).logits], inputs["attention_mask"]
    for token in answer.T[:, :, None]:
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        seen.append(model(input_ids=token, attention_mask=mask, **cached(cache)).logits)
    return torch.cat(seen, 1)


def relative(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("family", "tokens"), [(LLAMA, 64), (LLAVA, 8), (QWEN, 8)])
@every_case
def test_prefill_and_decoding_are_exact(case, family, tokens):
    model, mode = of(case, family)
    greedy = partial(model.generate, max_new_tokens=16, do_sample=False, suppress_tokens=[IMAGE])

    def run():  # generate alone gives Qwen2.5-VL its positions
        steps = forced(model, inputs, answer) if family == LLAMA else decode(model, inputs, answer)
        return steps[real] if family == LLAMA else torch.cat([logits(model, inputs)[real], steps.flatten(0, 1)])

    for lengths in lengths_of(mode):
        inputs, answer = prompts(family, lengths), answers(len(lengths), tokens)
        real = inputs["attention_mask"].bool()
        if family == LLAMA:
            real = torch.cat([real, torch.ones_like(answer).bool()], 1)
        expected, said = run(), greedy(**inputs)
        assert eas.fold(model, mode).mode == mode
        assert relative(run(), expected) < 1e-5
        assert torch.equal(greedy(**inputs), said)
        unfold(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_case
def test_half_precision_adds_no_more_error_than_it_has_unfolded(case, dtype):
    exact, mode = of(case)
    model, _ = of(case, dtype=dtype)
    inputs, answer = prompts(LLAMA, (40,)), answers(1, 8)
    expected, unfolded = forced(exact, inputs, answer), forced(model, inputs, answer)
    fold(model, mode)
    folded = forced(model, inputs, answer)
    assert folded.dtype == dtype
    noise = (unfolded.float() - expected).norm()
    assert 0 < (folded.float() - expected).norm() < 1.5 * noise


@every_case
def test_unfolding_gives_everything_back_bit_for_bit(case):
    model, mode = of(case)
    inputs, weights = prompts(LLAMA, (5,)), copy.deepcopy(model.state_dict())
    before, names = logits(model, inputs), [name for name, _ in model.named_parameters()]
    fold(model, mode)
    with pytest.raises(ValueError, match=rf"folded already \({mode}\); call unfold"):
        fold(model, mode)
    with pytest.raises(ValueError, match=r"folded model cannot be trained; call unfold"):
        model.train()(**inputs)
    model.eval()
    folded = logits(model, inputs)
    assert torch.equal(logits(copy.deepcopy(model), inputs), folded)
    assert [name for name, _ in model.named_parameters()] == names  # no checkpoint, no optimizer sees a fold
    for again in (model.state_dict(), (unfold(model), model.state_dict())[1]):
        assert again.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in again.items())
    assert torch.equal(logits(model, inputs), before)
    assert not any(b.shared_fold or b.constant_fold or b.fold_per_example for b in blocks(model))


@pytest.mark.parametrize(
    ("case", "family"),
    [*((case, LLAVA) for case in CASES), ("shared", QWEN), ("per_example", QWEN), ("constant", QWEN)],
)
def test_every_way_of_generating_gives_the_same(case, family):
    model, mode = of(case, family)
    one_by_one = mode == "per_example"
    rows, shown = ((6,), (True,)) if one_by_one else ((6, 9, 4), (True, False, True))  # padded, one without an image
    ways = {
        "greedy": {},
        "static": {"cache_implementation": "static"},
        "sampled": {"do_sample": True},
        "static, sampled": {"do_sample": True, "cache_implementation": "static"},
        "without a cache": {"use_cache": False},
    }
    if not one_by_one:
        ways |= {"beams": {"num_beams": 3}, "static beams": {"num_beams": 3, "cache_implementation": "static"}}

    def run(**more):
        torch.manual_seed(0)
        greedy = {"do_sample": False, "max_new_tokens": 6, "suppress_tokens": [IMAGE]}
        return model.generate(**prompts(family, rows, shown), **greedy | more)

    expected = {way: run(**more) for way, more in ways.items()}
    for way in ("static", "without a cache"):
        assert torch.equal(expected[way], expected["greedy"]), way
    assert torch.equal(expected["static, sampled"], expected["sampled"])
    assert not torch.equal(expected["sampled"], expected["greedy"])
    if not one_by_one:
        assert torch.equal(expected["static beams"], expected["beams"])
    fold(model, mode)
    for way, more in ways.items():
        assert torch.equal(run(**more), expected[way]), way


@pytest.mark.parametrize("case", ["constant", "constant, running", "constant, none", "shared, running"])
def test_requests_do_not_see_each_other(case):
    model, mode = of(case)
    fold(model, mode)
    requests, answer = [prompts(LLAMA, (6,)), prompts(LLAMA, (9,))], answers(2, 6)
    expected = [forced(model, inputs, answer[i : i + 1]) for i, inputs in enumerate(requests)]
    caches = [DynamicCache(), StaticCache(model.config, max_cache_len=32)]
    steps = [[logits(model, requests[i], **cached(caches[i]))] for i in (0, 1)]
    for token in range(6):
        for i in (1, 0):
            one = {"input_ids": answer[i : i + 1, token, None]}
            steps[i].append(logits(model, one, **cached(caches[i])))
    for mine, own in zip(steps, expected, strict=True):
        torch.testing.assert_close(torch.cat(mine, 1), own, rtol=1e-5, atol=1e-5)

    def run(i):
        return model.generate(**requests[i % 2], max_new_tokens=6, do_sample=False)

    alone = [run(0), run(1)]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(out, alone[i % 2]) for i, out in enumerate(pool.map(run, range(4))))


@cache
def with_requests(mode):
    """A model in a mode, two prompts and the answers that are forced on them, and the logits of each alone."""
    model = attached(LLAMA, (0, 2), CONSTANT if mode == "constant" else {}, num_hidden_layers=3)
    if mode is not None:
        fold(model, mode)
    pieces = []
    for inputs, answer in zip((prompts(LLAMA, (6,)), prompts(LLAMA, (9,))), answers(2, 4), strict=True):
        expected = forced(model, inputs, answer[None])
        pieces.append(([inputs, *({"input_ids": token.view(1, 1)} for token in answer)], expected))
    return model, pieces


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from([None, "shared", "per_example", "constant"]),
    order=st.permutations([0] * 5 + [1] * 5),
    static=st.tuples(st.booleans(), st.booleans()),
)
def test_however_requests_take_turns_each_gets_what_it_gets_alone(mode, order, static):
    model, requests = with_requests(mode)
    caches = [StaticCache(model.config, max_cache_len=32) if s else DynamicCache(config=model.config) for s in static]
    steps = [iter(pieces) for pieces, _ in requests]
    seen = [[], []]
    for i in order:
        seen[i].append(logits(model, next(steps[i]), **cached(caches[i])))
    for mine, (_, expected) in zip(seen, requests, strict=True):
        torch.testing.assert_close(torch.cat(mine, 1), expected, rtol=1e-5, atol=1e-5)


def test_a_request_may_go_on_in_another_mode():
    model, _ = of("constant")
    inputs, answer = prompts(LLAMA, (6, 9)), answers(2, 3)
    expected, cache = forced(model, inputs, answer), DynamicCache()
    seen, mask = [logits(model, inputs, **cached(cache))], inputs["attention_mask"]
    for token, mode in zip(answer.T[:, :, None], ("constant", "shared", "constant"), strict=True):
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        fold(model, mode)
        seen.append(logits(model, {"input_ids": token, "attention_mask": mask}, **cached(cache)))
        unfold(model)
    torch.testing.assert_close(torch.cat(seen, 1), expected, rtol=1e-5, atol=1e-5)


@every_case
def test_skipped_attentions_keep_nothing_per_token(case):
    model, mode = of(case)
    fold(model, mode)
    lengths, sizes = lengths_of(mode)[-1], []
    for tokens in (1, 6):
        cache = DynamicCache(config=model.config)
        forced(model, prompts(LLAMA, lengths), answers(len(lengths), tokens), cache)
        states = prompt_layer(cache)
        assert cache.layers[0].keys is None
        assert cache.layers[2].keys is None
        assert all(tensor._base is None for tensor in (*states.states.values(), *states.kept.values()))  # no views
        sizes.append((kv_cache_bytes(cache), states.nbytes()))
    assert sizes[0][1] == sizes[1][1] == len(lengths) * count(model, 9).prompt_state_bytes
    one_layer = 2 * 2 * 8 * 4  # keys and values, heads, size, bytes: of the one attention that is kept
    assert sizes[1][0] - sizes[0][0] == 5 * len(lengths) * one_layer


def test_the_best_mode_is_chosen_and_explained():
    for config, mode, words in (
        ({}, "shared", "the router reads the input"),
        (CONSTANT, "constant", "one bias of gate and up"),
        (CONSTANT | RUNNING, "constant", "the running mean is left"),
        (CONSTANT | {"pooling": "none"}, "constant", "those of an ordinary model"),
    ):
        for asked in ("auto", None):
            model = attached(LLAMA, config=config)
            chosen = fold(model, asked)
            assert (chosen.mode, model.eas.fold_mode) == (mode, mode)
            assert words in chosen.reason
    assert fold(attached(LLAMA), "shared").reason == "asked for"
    for config, mode, words in (
        ({}, "constant", r"the router reads the input; use mode 'shared', or eas.freeze_router"),
        ({"pooling": "causal"}, "per_example", "needs one c per prompt, .* use mode 'shared'"),
    ):
        with pytest.raises(ValueError, match=words):
            fold(attached(LLAMA, config=config), mode)
    assert RunConfig.from_dict({"fold_mode": "auto"}).fold_mode == "auto"
    with pytest.raises(ConfigError, match="fold_mode = 'auto'"):  # nothing to fold
        RunConfig.from_dict({"fold_mode": "auto", "method": {"name": "adapter"}})
    with pytest.raises(ConfigError, match="decode_pooling = 'running': needs pooling 'causal', not 'prompt'"):
        EASConfig(skip_rank=4, adapt_rank=2, decode_pooling="running")


def test_what_depends_on_no_prompt_is_an_ordinary_model():
    model, mode = of("constant, none")
    inputs = prompts(LLAMA, (9,))
    greedy = partial(model.generate, max_new_tokens=4, do_sample=False)
    expected = greedy(**inputs)
    for folded in (False, True):
        if folded:
            fold(model, mode)
        assert torch.equal(greedy(**inputs, prefill_chunk_size=4), expected)
        cache = DynamicCache(config=model.config)
        greedy(input_ids=inputs["input_ids"][:, :6], **cached(cache))
        cache.crop(-3)  # another request with the same beginning
        assert torch.equal(greedy(**inputs, **cached(cache)), expected)
        close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
        close(model.model(**inputs).last_hidden_state @ model.lm_head.weight.T, logits(model, inputs))


def test_a_running_mean_cannot_be_taken_back():
    model, _ = of("shared, running")
    with pytest.raises(ValueError, match=r"assisted decoding takes tokens back.*; use decode_pooling='frozen'"):
        model.generate(**prompts(LLAMA, (6,)), max_new_tokens=12, assistant_model=build(LLAMA, seed=5), do_sample=False)


def test_a_running_mean_reads_answers_but_no_padding():
    model, _ = of("shared, running")
    inputs = prompts(LLAMA, (6, 9))
    answer = answers(2, 5)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer], 1)
    ids, mask = (torch.cat([inputs[k], v], 1) for k, v in (("input_ids", answer), ("attention_mask", answer > 0)))
    at_once = logits(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    real = mask.bool()
    torch.testing.assert_close(at_once[real], forced(model, inputs, answer)[real], rtol=1e-5, atol=1e-5)
    square = torch.ones(2, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="decode_pooling='running' needs a two-dimensional attention mask"):
        model(input_ids=ids, attention_mask=square, labels=labels, prompt_mask=labels == -100)
    inner, prompt = model.model, (labels == -100) & real  # as trainers call it that fuse head and loss
    headless = inner(input_ids=ids, attention_mask=mask, prompt_mask=prompt).last_hidden_state @ model.lm_head.weight.T
    torch.testing.assert_close(headless[real], at_once[real], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="decode_pooling='running' needs a two-dimensional attention mask"):
        inner(input_ids=ids, attention_mask=square, prompt_mask=prompt)


@pytest.mark.parametrize("case", ["lora", *(case for case in CASES if "lora" in case)])
def test_merged_maps_can_do_without_their_wrappers(case):
    if case == "lora":
        model, mode = eas.attach(build(LLAMA), eas.LoRAConfig(2)), "merged"
        randomise(model)
    else:
        model, mode = of(case)
    inputs, wrapped = prompts(LLAMA), len([*lora_layers(model)])
    answer = answers(len(inputs["input_ids"]))
    unwrap(model)
    assert len([*lora_layers(model)]) == wrapped  # nothing is merged yet
    fold(model, mode)
    expected = decode(model, inputs, answer)
    unwrap(model)
    assert not any(isinstance(m, LoraLayer) for _, m in model.named_modules(remove_duplicate=False))
    assert torch.equal(decode(model, inputs, answer), expected)


def test_lora_is_not_merged_into_maps_that_are_not_plain():
    model = attached(LLAMA, (0,), CONSTANT | {"adapt": "lora", "candidates": "ffn"})

    class Quantised(torch.nn.Linear):
        pass

    next(lora_layers(model)).get_base_layer().__class__ = Quantised
    with pytest.raises(ValueError, match=r"plain linear maps, not .*Quantised"):
        fold(model, "constant")
    fold(model, "shared")
    assert not any(layer.merged for layer in lora_layers(model))
