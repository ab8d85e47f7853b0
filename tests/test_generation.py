"""Generation: every way of decoding gives the numbers of training, and no request, row or answer token sees another."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import transformers as tf
from decoding import alone, answered, answers, decode, teacher_forced
from families import IMAGE, SEEING, attached, build, every_family, logits, prompts, quick
from torch._dynamo.utils import counters
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from eas import WithPromptMask, fold, select, unfold
from eas.hf.api import cached, output_cache
from eas.hf.cache import kv_cache_bytes, prompt_layer

torch.set_num_threads(1)
LLAMA, LLAVA, QWEN_VL = "LlamaForCausalLM", "LlavaForConditionalGeneration", "Qwen2VLForConditionalGeneration"
SKIP_SETS = [(), (0,), (3,), (0, 3), (0, 1, 2)]
SHOWN = (True, False, True)  # a text-only row between two with an image
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


@every_family
def test_decoding_gives_the_numbers_of_training(family):
    shown = SHOWN if family in SEEING else (False,) * 3
    model, answer = attached(family), answers(3)
    inputs = prompts(family, (6, 9, 4), shown)
    for chosen in SKIP_SETS:
        select(model, chosen)
        expected = teacher_forced(model, inputs, answer)
        close(teacher_forced(model, inputs, answer, "right"), expected)
        close(decode(model, inputs, answer), expected)
        close(decode(model, inputs, answer, cache_implementation="static"), expected)
        for row in range(3):
            close(decode(model, alone(family, inputs, row, shown), answer[row : row + 1]), expected[row : row + 1])


@every_family
def test_every_cache_gives_the_numbers_of_none(family):
    model, inputs, answer = attached(family), prompts(family), answers(2)
    expected = decode(model, inputs, answer, use_cache=False)
    close(expected, teacher_forced(model, inputs, answer))
    caches = [DynamicCache(), DynamicCache(config=model.config), StaticCache(model.config, max_cache_len=40)]
    for cache in caches:
        close(decode(model, inputs, answer, **cached(cache)), expected)
    caches[-1].reset()
    longer = prompts(family, (11, 8))
    close(decode(model, longer, answer, **cached(caches[-1])), decode(model, longer, answer))
    embeds = {"inputs_embeds": model.get_input_embeddings()(prompts(family, images=False)["input_ids"])}
    embeds["attention_mask"] = prompts(family, images=False)["attention_mask"]
    greedy = {"max_new_tokens": 5, "do_sample": False}
    tokens = model.generate(**prompts(family, images=False), **greedy)[:, -5:]
    assert torch.equal(model.generate(**embeds, **greedy), tokens)


@every_family
def test_attention_implementations_agree(family):
    model, inputs, answer = attached(family), prompts(family), answers(2)
    expected = decode(model, inputs, answer)
    model.set_attn_implementation("eager")
    close(decode(model, inputs, answer), expected)
    close(decode(model, inputs, answer, cache_implementation="static"), expected)
    close(teacher_forced(model, inputs, answer), expected)


@pytest.mark.parametrize("family", ["LlamaForCausalLM", LLAVA, QWEN_VL])
def test_beams_equal_their_recomputation(family):
    model, inputs = attached(family), prompts(family)
    # recomputing would read a generated image token as a second image
    beams = partial(
        model.generate, **inputs, max_new_tokens=8, suppress_tokens=[IMAGE], num_beams=3, num_return_sequences=2
    )
    expected = beams(use_cache=False)
    assert torch.equal(beams(), expected)
    assert torch.equal(beams(cache_implementation="static"), expected)
    assert not torch.equal(expected[::2], expected[1::2])


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("MistralForCausalLM", {"sliding_window": 4}),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    ],
)
def test_sliding_windows(family, text):
    model, inputs, answer = attached(family, **text), prompts(family, (6, 9)), answers(2, 6)
    for chosen in [*SKIP_SETS, (2, 3), (0, 2), (1, 3)]:
        select(model, chosen)
        expected = teacher_forced(model, inputs, answer)
        for more in ({}, {"cache_implementation": "static"}, cached(DynamicCache()), {"use_cache": False}):
            close(decode(model, inputs, answer, **more), expected)


@every_family
def test_what_the_cache_holds(family):
    model, inputs = attached(family, (0, 2)), prompts(family)
    cache, sizes = DynamicCache(config=model.config), []
    for tokens in (1, 5):
        cache = DynamicCache(config=model.config)
        model.generate(**inputs, **cached(cache), max_new_tokens=tokens)
        states = prompt_layer(cache)
        # r + 2 numbers of a skip PIA and 2 of an adapt PIA per sequence
        shapes = {i: tuple(state.shape) for i, state in states.states.items()}
        assert shapes == {
            0: (2, 1, 6),
            1: (2, 1, 2),
            2: (2, 1, 6),
            3: (2, 1, 2),
        }
        sizes.append(states.nbytes())
        length = inputs["input_ids"].shape[1] + tokens - 1
        kept = 2 * (2 * 2 * 2 * length * 8 * 4)  # layers, keys and values, batch, heads, tokens, head size, bytes
        assert kv_cache_bytes(cache) == kept + states.nbytes()
    assert sizes == [2 * (6 + 2 + 6 + 2) * 4] * 2
    assert all(cache.layers[i].keys is None for i in (0, 2))


def test_the_cache_follows_its_rows():
    model, inputs = attached(LLAMA), prompts(LLAMA, (6, 6))
    next_token = {"input_ids": answers(2, 1)}
    plain = logits(model, next_token, **cached(output_cache(model(**inputs, use_cache=True))))
    for follow, rows in (
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
    ):
        cache = output_cache(model(**inputs, use_cache=True))
        follow(cache)
        close(logits(model, {"input_ids": next_token["input_ids"][rows]}, **cached(cache)), plain[rows])


def test_started_caches():
    model, inputs, answer = attached(LLAMA, (0, 2)), prompts(LLAMA, (6,)), answers(1, 6)
    expected = teacher_forced(model, inputs, answer)
    cache = DynamicCache(config=model.config)
    first = model(**inputs, **cached(cache))
    close(first.logits[:, -1:], expected[:, :1])
    longer = {"input_ids": torch.cat([inputs["input_ids"], answer[:, :2]], 1)}
    with pytest.raises(ValueError, match=r"cache was started with an earlier prompt.*; pass the whole text"):
        model.generate(**longer, **cached(cache))
    first = model(**inputs, use_cache=True)
    close(model(input_ids=answer[:, :1], **cached(output_cache(first))).logits, expected[:, 1:2])
    outside = model.prepare_inputs_for_generation(answers(1, 30), **cached(DynamicCache()))
    assert outside["prompt_mask"].all()  # of a loop other than generate's

    cache = DynamicCache(config=model.config)
    model(**inputs, **cached(cache))
    select(model, (1,))
    with pytest.raises(ValueError, match=r"filled under skip set \(0, 2\), not \(1,\); start a new cache"):
        model(input_ids=answer[:, :1], **cached(cache))
    base = build(LLAMA)
    for cache in (DynamicCache(), DynamicCache(config=base.config), StaticCache(base.config, max_cache_len=20)):
        base(**inputs, **cached(cache))
        with pytest.raises(ValueError, match="filled before the model was attached or selected; start a new cache"):
            model(input_ids=answer[:, :1], **cached(cache))
    with pytest.raises(ValueError, match="has 2 layers, the model 4; start a new cache"):
        model(**inputs, **cached(DynamicCache(config=build(LLAMA, num_hidden_layers=2).config)))


@every_family
@pytest.mark.parametrize(
    ("mode", "form"),
    [("shared", "paper"), ("per_example", "paper"), ("shared", "residual"), ("per_example", "residual")],
)
def test_folded_equals_unfolded(family, mode, form):
    model, answer = attached(family, config={"hidden_scale": 0.5, "up_groups": 2, "form": form}), answers(1, 16)
    inputs = prompts(family, (6,))
    prefill, steps = logits(model, inputs), decode(model, inputs, answer)
    torch.manual_seed(0)
    sampled = model.generate(**inputs, max_new_tokens=8, do_sample=True)
    fold(model, mode)
    close(logits(model, inputs), prefill)
    for more in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        close(decode(model, inputs, answer, **more), steps)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, max_new_tokens=8, do_sample=True), sampled)
    if mode == "shared":
        unfold(model)
        inputs, answer = prompts(family), answers(2)
        steps = decode(model, inputs, answer)
        fold(model, mode)
        close(decode(model, inputs, answer), steps)


def test_per_example_folding_serves_one_sequence():
    model = attached(LLAMA)
    fold(model, "per_example")
    inputs = prompts(LLAMA, (5,))
    for run in (
        lambda: model(**prompts(LLAMA)),
        lambda: model.generate(**inputs, num_beams=2, max_new_tokens=2),
        lambda: model.generate(**inputs, num_return_sequences=2, do_sample=True, max_new_tokens=2),
    ):
        with pytest.raises(ValueError, match=r"one sequence at a time, got a batch of 2; use fold\(model, 'shared'\)"):
            run()


def test_requests_do_not_see_each_other():
    model = attached(LLAVA)
    fold(model, "per_example")
    requests = [prompts(LLAVA, (6,)), prompts(LLAVA, (9,), images=False)]
    answer = answers(2, 6)
    expected = [decode(model, inputs, answer[i : i + 1]) for i, inputs in enumerate(requests)]
    caches = [DynamicCache(), DynamicCache()]
    steps = [[logits(model, requests[i], **cached(caches[i]))[:, -1]] for i in (0, 1)]
    for token in range(5):
        for i in (1, 0):
            one = {"input_ids": answer[i : i + 1, token, None]}
            steps[i].append(logits(model, one, **cached(caches[i]))[:, -1])
    for mine, own in zip(steps, expected, strict=True):
        close(torch.stack(mine, 1), own)
    static = StaticCache(model.config, max_cache_len=32)
    for inputs, row, own in zip(requests, answer[:, None], expected, strict=True):
        static.reset()
        close(decode(model, inputs, row, **cached(static)), own)
    for mode in ("per_example", "shared", None):
        if mode != "per_example":
            unfold(model)
        if mode == "shared":
            fold(model, mode)
        for more in ({}, {"use_cache": False}):

            def run(i, more=more):
                return model.generate(**requests[i % 2], max_new_tokens=8, suppress_tokens=[IMAGE], **more)

            single = [run(0), run(1)]
            with ThreadPoolExecutor(4) as pool:
                assert all(torch.equal(out, single[i % 2]) for i, out in enumerate(pool.map(run, range(8))))


@pytest.mark.parametrize("family", [LLAMA, LLAVA, QWEN_VL])
@pytest.mark.parametrize("mode", [None, "shared", "per_example", "constant"])
def test_assisted_decoding_keeps_candidates_out_of_the_statistics(family, mode):
    config = {"router": "constant"} if mode == "constant" else {}
    model, inputs = attached(family, (0, 3), config), prompts(family, (6,))
    inputs["input_ids"][0, -3:] = inputs["input_ids"][0, -6:-3]  # something for the lookup to find in the first step
    if mode is not None:
        fold(model, mode)
    run = partial(model.generate, **inputs, max_new_tokens=12, do_sample=False, return_dict_in_generate=True)
    greedy = run()
    helpers = [{"prompt_lookup_num_tokens": 3}]
    if family == LLAMA:
        helpers += [{"assistant_model": build(LLAMA, seed=5)}, {"assistant_model": attached(LLAMA, (1,))}]
    for helper in helpers:
        assisted = run(**helper)
        assert torch.equal(assisted.sequences, greedy.sequences)
        states, expected = (prompt_layer(output_cache(out)).states for out in (assisted, greedy))
        for block, state in states.items():
            close(state, expected[block])


def test_without_prompt_statistics_continuous_batching_gives_the_tokens_of_generate():
    model = attached(LLAMA, config={"router": "constant", "pooling": "none"})
    texts = [[1, 7, 8, 9], [1, 20, 21]]
    settings = tf.GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0)
    expected = [model.generate(torch.tensor([ids]), settings)[0, len(ids) :].tolist() for ids in texts]
    small = ContinuousBatchingConfig(page_size=16, num_blocks=8, max_batch_tokens=16, allow_block_sharing=False)
    found = model.generate_batch(texts, settings, small, warmup=False)
    assert [one.generated_tokens for one in found.values()] == expected
    with pytest.raises(ValueError, match="continuous batching packs sequences into one row"):
        attached(LLAMA).model(input_ids=prompts(LLAMA)["input_ids"], prompt_mask=None, **cached(object()))


@every_family
@pytest.mark.parametrize("pad", ["left", "right"])
def test_no_answer_token_reaches_the_prompt(family, pad):
    model, inputs = attached(family).train(), prompts(family)
    seen = []
    for seed in (1, 2):
        batch, where = answered(inputs, answers(2, seed=seed), pad)
        cache = DynamicCache(config=model.config)
        out = logits(model, batch, **cached(cache), use_cache=True)
        prompt = torch.arange(out.shape[1]) <= where[:, :1]
        seen.append((out[prompt & batch["attention_mask"].bool()], prompt_layer(cache).states))
        late = out[batch["labels"] != -100]
        seen[-1] += (late,)
    (before, states, late), (after, others, different) = seen
    assert torch.equal(before, after)
    assert all(torch.equal(states[i], others[i]) for i in range(4))
    assert not torch.equal(late, different)
    told = {**batch, "prompt_mask": batch["attention_mask"].bool() & (batch["labels"] == -100)}
    del told["labels"]
    assert torch.equal(logits(model, told), out)
    batch["labels"][torch.arange(2), where[:, -1] + 1] = -100  # a second question, masked as the first was
    assert torch.equal(logits(model, batch), out)


def test_what_statistics_cannot_serve_is_refused():
    model = attached(LLAMA)
    ids, ones = answers(2, 8), torch.ones(2, 8, dtype=torch.long)
    labels = ids.clone()
    labels[0, :3] = -100
    with pytest.raises(ValueError, match=r"row 1 has no prompt token: .* Mask the prompt .* or pass prompt_mask"):
        model(input_ids=ids, labels=labels)
    labels[1, :2] = -100
    padded = ones.clone()
    padded[1, :2] = 0
    with pytest.raises(ValueError, match="row 1 has no prompt token"):
        model(input_ids=ids, labels=labels, attention_mask=padded)

    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    packed = "several sequences are packed into one row.*Turn packing and padding-free collation off"
    lengths = torch.tensor([0, 4, 8], dtype=torch.int32)
    for more in (
        {"position_ids": positions},
        {"position_ids": positions, "labels": labels[:1]},
        {"position_ids": positions, "attention_mask": ones[:1]},
        {"position_ids": positions, "prompt_mask": ones[:1] * 0 + (torch.arange(8) < 2)},
        {"position_ids": positions.repeat(4, 1, 1)},  # multimodal RoPE
        {"position_ids": positions, "mm_token_type_ids": (positions == 0).long()},  # the second begins with an image
        {"position_ids": positions.repeat(4, 1, 1), "mm_token_type_ids": (positions == 0).long()},
        {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": 4, "max_length_k": 4},
        {"seq_idx": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])},
    ):
        with pytest.raises(ValueError, match=packed):
            model(input_ids=ids[:1], **more)
    right = {"input_ids": ids[:1], "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]])}
    assert logits(model, right, position_ids=torch.tensor([[0, 1, 2, 3, 1, 1, 1, 1]])).isfinite().all()

    image_first = torch.tensor([[0, 0, 0, 0, 2, 3, 4, 5]])
    assert logits(model, {"input_ids": ids[:1]}, position_ids=image_first).isfinite().all()

    square = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    with pytest.raises(
        ValueError, match=r"give prompt_mask \(batch, tokens\) along with an attention mask that is not"
    ):
        model(input_ids=ids[:1], attention_mask=square)
    with pytest.raises(ValueError, match="an attention mask that is not two-dimensional"):
        model(input_ids=ids[:1], attention_mask=square, labels=labels[:1])
    with pytest.raises(ValueError, match="an attention mask that is not two-dimensional"):
        WithPromptMask(dict)({"attention_mask": square, "labels": labels[:1]})
    told = logits(model, {"input_ids": ids[:1]}, attention_mask=square, prompt_mask=ones[:1])
    close(told, logits(model, {"input_ids": ids[:1]}))


@every_family
def test_the_language_model_alone_needs_to_be_told_the_prompt(family):
    model, inputs = attached(family), prompts(family)
    with pytest.raises(ValueError, match="call the model with its head, or pass prompt_mask"):
        model.model(**inputs)
    hidden = model.model(**inputs, prompt_mask=inputs["attention_mask"].bool()).last_hidden_state
    close(model.lm_head(hidden), model(**inputs).logits)


@pytest.mark.parametrize("family", SEEING)
def test_a_wrong_number_of_image_tokens_is_refused(family):
    inputs = prompts(family)
    inputs["input_ids"][0, -1] = IMAGE
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"][0, -1] = 1
    with pytest.raises(ValueError, match="Image features and image tokens do not match, tokens: "):
        attached(family)(**inputs)


RUNNING = {"pooling": "causal", "decode_pooling": "running"}


@pytest.mark.parametrize(
    ("mode", "config"),
    quick(
        [
            (None, {}),
            ("shared", {}),
            ("per_example", {}),
            ("constant", {"router": "constant"}),
            ("constant", {"router": "constant", **RUNNING}),
            ("constant", {"router": "constant", "pooling": "none"}),
        ],
        [(None, {}), ("shared", {})],
    ),
)
def test_compiled_decoding_is_one_graph_for_all_requests(mode, config):
    model = attached(LLAMA, config=config)
    if mode is not None:
        fold(model, mode)
    torch._dynamo.reset()
    counters.clear()
    settings = tf.CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    settings._compile_all_devices = True
    static = {"cache_implementation": "static", "max_cache_len": 32, "compile_config": settings}
    for seed in (1, 2):
        inputs = prompts(LLAMA, (6,) if mode == "per_example" else (6, 9))
        inputs["input_ids"][:, -3:] = answers(len(inputs["input_ids"]), 3, seed)
        run = partial(model.generate, **inputs, max_new_tokens=8, do_sample=False)
        assert torch.equal(run(**static), run())
    assert counters["stats"]["unique_graphs"] == 1
