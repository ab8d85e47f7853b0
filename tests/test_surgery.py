"""Attach, select, prune and fold as operations on a model, for every family."""

import copy
import gc
import inspect

import peft
import pytest
import torch
import transformers as tf
from accelerate import cpu_offload, dispatch_model
from families import SEEING, TEXT, attached, blocks, build, every_family, logits, prompts, randomise

from eas import (
    ConfigError,
    EASConfig,
    UnsupportedModelError,
    attach,
    fold,
    method_config,
    prune,
    select,
    skip_set,
    unfold,
)
from eas.attachment.state import attachment
from eas.hf.one_token import read_rows
from eas.hf.trainer import checkpoint_activations
from eas.models.anatomy import Anatomy

torch.set_num_threads(1)
LLAMA, LLAVA = "LlamaForCausalLM", "LlavaForConditionalGeneration"
PLAIN = {"skip_rank": 4, "adapt_rank": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "eas", "candidates": "mha"}, "the model has 4 attentions; at least one is kept"),
        ({"name": "eas", "candidates": "ffn"}, "the model has 4 FFNs; at least one is kept"),
        ({"name": "das"}, "the model has 4 layers; at least one is kept"),
        ({"name": "drop", "candidates": "either"}, "4 attentions and 4 FFNs; at most 3 of them are skipped, so that"),
        ({"name": "eas", "candidates": "either"}, "an attention is kept whichever they are"),
    ],
    ids=str,
)
def test_one_of_what_may_be_skipped_is_kept(options, words):
    ranks = PLAIN if options["name"] == "eas" else {}
    attach(build(LLAMA), method_config({**options, **ranks, "num_skip": 3}))
    with pytest.raises(ConfigError, match=f"num_skip = 4: .*{words}"):
        attach(build(LLAMA), method_config({**options, **ranks, "num_skip": 4}))


def training_batch(family):
    """Right-padded rows, the last four tokens of each the answer."""
    inputs = prompts(family, pad="right")
    inputs["labels"] = torch.full_like(inputs["input_ids"], -100)
    for row, length in enumerate(inputs["attention_mask"].sum(1)):
        inputs["labels"][row, length - 4 : length] = inputs["input_ids"][row, length - 4 : length]
    return inputs


def gradients(model, inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_family
def test_untrained_and_unskipped_is_the_base(family):
    model, base = build(family), build(family)
    kinds, vision = type(model), [type(m) for n, m in model.named_modules() if "vision" in n or "visual" in n]
    signatures = [inspect.signature(m.forward) for m in (model, *Anatomy.of(model).layers)]
    assert attach(model, EASConfig(**PLAIN, num_skip=2, up_groups=2)) is model
    for inputs in (prompts(family), prompts(family, images=False), training_batch(family)):
        ours, theirs = (m(**inputs, output_hidden_states=True, output_attentions=True) for m in (model, base))
        assert torch.equal(ours.logits, theirs.logits)
        for kind in ("hidden_states", "attentions"):
            assert len(ours[kind]) == len(theirs[kind])
            assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours[kind], theirs[kind], strict=True))
    assert torch.equal(ours.loss, theirs.loss)
    tokens = model.generate(**prompts(family), max_new_tokens=4)
    assert torch.equal(tokens, base.generate(**prompts(family), max_new_tokens=4))

    assert isinstance(model, kinds)
    assert type(model).__name__ == family
    assert [inspect.signature(m.forward) for m in (model, *blocks(model))] == signatures
    assert {type(block).__name__ for block in blocks(model)} <= set(model._no_split_modules)
    assert [type(m) for n, m in model.named_modules() if "vision" in n or "visual" in n] == vision


def test_options_reach_the_pias():
    options = {"temperature": 3.0, "hidden_scale": 0.25, "dropout": 0.5, "up_groups": 2, "adapt_router_bias": False}
    model = attach(build(LLAMA, dtype=torch.bfloat16), EASConfig(**PLAIN, **options))
    for block in blocks(model):
        for pia, rank in ((block.skip_pia, 4), (block.adapt_pia, 2)):
            assert (pia.temperature, pia.dropout.p, pia.training) == (3.0, 0.5, False)
            assert (pia.down1.out_features, pia.up1.weight.shape[0]) == (rank, 2)
            assert all(p.dtype == torch.float32 for p in pia.parameters())  # whatever the base's
        assert (block.skip_pia.hidden_scale, block.adapt_pia.hidden_scale) == (0.25, 1.0)  # as in the released code
        assert (block.skip_pia.router.bias is None, block.adapt_pia.router.bias is None) == (False, True)


@every_family
@pytest.mark.parametrize("train_projector", [False, True])
def test_exactly_the_pias_in_use_get_gradients(family, train_projector):
    if train_projector and family not in SEEING:
        model = build(family)
        with pytest.raises(ConfigError, match="train_projector = True: the model has no vision-language projector"):
            attach(model, EASConfig(**PLAIN, train_projector=True))
        assert all(p.requires_grad for p in model.parameters())
        attach(model, EASConfig(**PLAIN))
        return
    model = attached(family, (0, 2), {"train_projector": train_projector}).train()
    anatomy = Anatomy.of(model)
    projector = {p for module in anatomy.projector for p in module.parameters()} if train_projector else set()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {name for name, p in model.named_parameters() if "_pia." in name or p in projector}
    assert trained == expected
    _, grads = gradients(model, training_batch(family))
    unused = {
        f"{name}.{form}"
        for name, layer in model.named_modules()
        if layer in blocks(model)
        for form in (["adapt_pia"] if layer.skip_mha else ["skip_pia"])
    }
    assert len(unused) == 4
    assert grads.keys() == {name for name in trained if not any(name.startswith(f"{u}.") for u in unused)}
    assert not [name for name, grad in grads.items() if not grad.isfinite().all() or not grad.any()]


@every_family
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_active_and_changes_nothing(family, reentrant):
    model, inputs = attached(family).train(), training_batch(family)
    model.enable_input_require_grads()  # reentrant checkpointing needs it wherever the base is frozen
    loss, plain = gradients(model, inputs)
    calls = []
    for block in blocks(model):
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpoint_activations(model, reentrant)
    loss_2, recomputed = gradients(model, inputs)
    assert len(calls) == 2 * len(blocks(model))
    torch.testing.assert_close(loss, loss_2)
    assert plain.keys() == recomputed.keys()
    torch.testing.assert_close(plain, recomputed)


def test_training_under_autocast():
    model, inputs = attached(LLAVA).train(), training_batch(LLAVA)
    loss, grads = gradients(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, half = gradients(model, inputs)
    assert abs(loss - rounded) < 0.02 * loss
    assert grads.keys() == half.keys()
    for name, grad in grads.items():
        assert torch.cosine_similarity(grad.flatten(), half[name].flatten(), dim=0) > 0.95, name


def test_a_base_with_lora_of_its_own_is_refused():
    for config in (EASConfig(num_skip=1, **PLAIN), method_config({"name": "lora"})):
        base = peft.get_peft_model(build(LLAMA), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        before = logits(base, prompts(LLAMA))
        with pytest.raises(ValueError, match=r"has adapters of PEFT .*merge_and_unload\(\) gives the base"):
            attach(base.get_base_model(), config)
        merged = attach(base.merge_and_unload(), config)
        torch.testing.assert_close(logits(merged, prompts(LLAMA)), before, rtol=1e-5, atol=1e-5)


def test_refusals():
    model = attached(LLAMA)
    with pytest.raises(ValueError, match="attached already"):
        attach(model, EASConfig(**PLAIN))
    for verb in (attachment, skip_set, prune, fold, unfold, lambda m: select(m, [0])):
        with pytest.raises(ValueError, match=r"LlamaForCausalLM is not attached; call eas.attach"):
            verb(build(LLAMA))
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel is not supported; supported are Llama.*SmolVLM"):
        attach(tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8)), EASConfig(**PLAIN))
    inner = tf.LlavaConfig(text_config=tf.OlmoConfig(**TEXT), vision_config=build(LLAVA).config.vision_config)
    with pytest.raises(UnsupportedModelError, match=r"with a OlmoModel is not supported; supported are Llama.* Qwen2"):
        attach(tf.LlavaForConditionalGeneration(inner), EASConfig(**PLAIN))
    for bad, words in (({"num_skip": 4}, "num_skip = 4: the model has 4"), ({"up_groups": 3}, "up_groups = 3: must")):
        model = build(LLAMA)
        with pytest.raises(ConfigError, match=words):
            attach(model, EASConfig(**{"skip_rank": 6, "adapt_rank": 3} | bad))
        assert all(p.requires_grad for p in model.parameters())
        attach(model, EASConfig(**PLAIN))


@pytest.mark.parametrize("family", [LLAMA, LLAVA])
def test_models_that_accelerate_dispatched(family):
    model, inputs = build(family), prompts(family, (6,))
    dispatch_model(model, {"": "cpu"}, force_hooks=True)  # as a device_map over several devices does
    attach(model, EASConfig(**PLAIN, num_skip=2))
    randomise(model)
    select(model, (0, 2))
    twin = attached(family, (0, 2))
    for mode in (None, "shared", "per_example"):
        for m in (model, twin) if mode else ():
            fold(m, mode)
        assert torch.equal(logits(model, inputs), logits(twin, inputs))
        tokens, expected = (m.generate(**inputs, max_new_tokens=3, do_sample=False) for m in (model, twin))
        assert torch.equal(tokens, expected)
        for m in (model, twin) if mode else ():
            unfold(m)


def test_models_whose_forward_is_out_of_reach():
    offloaded = cpu_offload(build(LLAMA), torch.device("cpu"))
    with pytest.raises(ValueError, match="layers are offloaded; load the model with a device_map that keeps all"):
        attach(offloaded, EASConfig(**PLAIN))
    for part in (lambda m: m, lambda m: m.model, lambda m: m.model.layers[2]):
        model = build(LLAMA)
        part(model).forward = torch.compile(part(model).forward)
        with pytest.raises(ValueError, match=r"\.forward was replaced on this instance; attach before compiling"):
            attach(model, EASConfig(**PLAIN))
        assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([4], r"skip set names \[4\]; the model's candidates are 0 to 3"),
        ([1, -1], r"names \[-1\]"),
        ([True], r"names \[True\]"),
        ([1.0], r"names \[1.0\]"),
        ([1, 2, 1], r"\[1, 2, 1\] names a candidate twice"),
        ([3, 2, 1, 0], "leaves no attention"),
    ],
)
def test_impossible_skip_sets(chosen, words):
    model = attached(LLAMA, (1,))
    with pytest.raises(ValueError, match=words):
        select(model, chosen)
    assert skip_set(model) == (1,)


def test_deepcopy_is_a_model_of_its_own():
    model, inputs = attached(LLAVA), prompts(LLAVA)
    before, twin = logits(model, inputs), copy.deepcopy(model)
    assert torch.equal(logits(twin, inputs), before)
    select(twin, [1])
    assert (skip_set(model), skip_set(twin)) == ((0, 2), (1,))
    assert torch.equal(logits(model, inputs), before)
    assert not torch.equal(logits(twin, inputs), before)
    assert torch.equal(
        twin.generate(**inputs, max_new_tokens=2), copy.deepcopy(twin).generate(**inputs, max_new_tokens=2)
    )


@every_family
@pytest.mark.parametrize("batch", [1, 2])
def test_the_frozen_head_reads_a_tensor_of_its_own(family, batch):
    model = attached(family)
    read_rows(model.get_output_embeddings())  # a second time changes nothing
    strides = []
    model.get_output_embeddings().register_forward_hook(lambda head, args, output: strides.append(args[0].stride()))
    inputs = prompts(family, (7,) * batch)
    kept = model(**inputs, logits_to_keep=1).logits
    every = model(**inputs).logits
    assert torch.allclose(kept, every[:, -1:], atol=1e-5)
    width = strides[0][-2]
    assert strides[0] == (width, width, 1)  # not those of seven tokens, for which torch copies the weight


def test_selecting_leaves_no_trace():
    model, inputs, sets = attached(LLAMA), prompts(LLAMA, (3,)), [(0, 2), (1,)]
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    def outputs():
        for chosen in sets:
            select(model, chosen)
            yield logits(model, inputs)

    first, attributes = list(outputs()), [sorted(vars(block)) for block in blocks(model)]
    gc.collect()
    count = len(gc.get_objects())
    for i in range(1000):
        select(model, sets[i % 2])
        if i % 100 == 0:
            logits(model, inputs)
    gc.collect()
    assert len(gc.get_objects()) - count < 50
    assert [sorted(vars(block)) for block in blocks(model)] == attributes
    assert all(torch.equal(a, b) for a, b in zip(first, outputs(), strict=True))
    assert not torch.equal(*first)
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], weights[key]) for key in weights)


@every_family
def test_prune_frees_what_the_choice_makes_dead(family):
    model, inputs = attached(family, (0, 2)), prompts(family)

    def weight(module):
        return sum(p.nbytes for p in module.parameters())

    before, total = logits(model, inputs), weight(model)
    dead = sum(
        sum(map(weight, (block.self_attn, block.adapt_pia, block.input_layernorm)))
        if block.skip_mha
        else weight(block.skip_pia)
        for block in blocks(model)
    )
    prune(model)
    assert weight(model) == total - dead
    assert torch.equal(logits(model, inputs), before)
    assert model.generate(**inputs, max_new_tokens=3).shape[1] == inputs["input_ids"].shape[1] + 3
    for verb, words in ((prune, "pruned already"), (lambda m: select(m, [1]), "its skip set is final")):
        with pytest.raises(ValueError, match=words):
            verb(model)
    assert skip_set(model) == (0, 2)


@pytest.mark.parametrize("mode", ["shared", "per_example"])
def test_folding_is_undone_bit_for_bit_and_guarded(mode):
    model, inputs = attached(LLAMA), prompts(LLAMA, (5,))
    before, weights = logits(model, inputs), copy.deepcopy(model.state_dict())
    fold(model, mode)
    assert not torch.equal(logits(model, inputs), before)  # another order of the same sums
    for verb, words in (
        (fold, rf"folded already \({mode}\); call unfold"),
        (prune, r"call unfold\(model\) before prune"),
        (lambda m: select(m, [1]), r"call unfold\(model\) before select"),
        (lambda m: m.train()(**inputs), r"folded model cannot be trained; call unfold"),
    ):
        with pytest.raises(ValueError, match=words):
            verb(model)
    model.eval()
    assert model.state_dict().keys() == weights.keys()
    unfold(model)
    assert torch.equal(logits(model, inputs), before)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="not folded"):
        unfold(model)
    with pytest.raises(ValueError, match="fold mode 'both' is unknown to eas; use 'auto' or 'shared' or 'per_example'"):
        fold(model, "both")


def test_only_plain_maps_are_folded_per_example():
    class Quantised(torch.nn.Linear):
        """Computes something else with its weight."""

    model = attached(LLAMA)
    expected = logits(model, prompts(LLAMA))
    model.model.layers[1].self_attn.v_proj.__class__ = Quantised
    with pytest.raises(ValueError, match=r"plain linear maps, not <class .*Quantised'>; use fold\(model, 'shared'\)"):
        fold(model, "per_example")
    fold(model, "shared")
    torch.testing.assert_close(logits(model, prompts(LLAMA)), expected)


@pytest.mark.parametrize("skip", [(), (1,), (0, 1, 3)])
def test_a_final_skip_set_has_num_skip_members(skip):
    model = attached(LLAMA, skip, {"num_skip": 2})  # select takes any size, as a search draws them
    words = rf"skip set \[.*\] has {len(skip)} members, but EASConfig.num_skip = 2; select 2 candidates, or attach with"
    with pytest.raises(ValueError, match=words):
        prune(model)
    assert not attachment(model).pruned
    select(model, [0, 2])
    prune(model)
