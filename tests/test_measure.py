"""Counts against torch's own counter on real models of every family, and against the paper's formulas."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import torch
import transformers as tf
from families import SEEING, build, every_family, prompts, randomise
from torch.utils.flop_counter import FlopCounterMode

import eas
from eas import EASConfig
from eas.attachment.save import adapter_state
from eas.hf.api import output_cache
from eas.hf.cache import kv_cache_bytes, prompt_layer
from eas.measure.count import Counts, count
from eas.measure.latency import Latency, Spread, benchmark, git_revision, hardware

torch.set_num_threads(1)  # tiny models: threads cost more than they give
LLAVA = "LlavaForConditionalGeneration"
CONFIG = {"num_skip": 2, "skip_rank": 6, "adapt_rank": 4}


def vision(family: str) -> dict[str, Any]:
    """What one image of ``families.prompts`` is to the vision tower."""
    if family not in SEEING:
        return {}
    grid = (4, 4) if family.startswith("Qwen2") else None
    return {"images": 3 if "LlavaNext" in family else 1, "patch_grid": grid}


def torch_macs(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    """MACs as torch counts them, at 2 per MAC; eager, because it does not know the fused attention of the CPU."""
    model.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(**inputs, logits_to_keep=1)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def variant(name: str, family: str = LLAVA, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A model at one station of its way, blocks 0 and 2 skipped."""
    model = build(family, dtype=dtype)
    if name == "base":
        return model
    eas.attach(model, EASConfig(**CONFIG | options)).eval()
    randomise(model)
    eas.select(model, (0, 2))
    if name in ("pruned", "pruned shared"):
        eas.prune(model)
    if name in ("shared", "pruned shared"):
        eas.fold(model, "shared")
    if name == "per_example":
        eas.fold(model, "per_example")
    return model


@every_family
@pytest.mark.parametrize("name", ["base", "selected", "pruned shared"])
def test_macs_are_those_torch_counts(family: str, name: str) -> None:
    model, inputs = variant(name, family), prompts(family, (7,))
    assert count(model, inputs["input_ids"].shape[1], **vision(family)).macs == torch_macs(model, inputs)


@pytest.mark.parametrize("options", [{}, {"up_groups": 2, "hidden_scale": 0.5}, {"form": "paper"}])
@pytest.mark.parametrize("name", ["selected", "shared", "per_example"])
def test_macs_of_every_form_of_pia(name: str, options: dict[str, Any]) -> None:
    model, inputs = variant(name, "Qwen2ForCausalLM", **options), prompts("Qwen2ForCausalLM", (20,))
    counts, measured = count(model, inputs["input_ids"].shape[1]), torch_macs(model, inputs)
    # torch counts a product with a vector as the elementwise operation it may be: the fold's biases are not in its sum
    biases = sum(
        linear.out_features * (linear.in_features + rank)
        for layer in model.model.layers
        for linear, rank in (
            [(layer.mlp.gate_proj, 6), (layer.mlp.up_proj, 6)]
            if layer.skip_mha
            else [(layer.self_attn.q_proj, 4), (layer.self_attn.k_proj, 4), (layer.self_attn.v_proj, 4)]
        )
    )
    assert counts.macs - (biases if name == "per_example" else 0) == measured
    assert (counts.fold_macs > 0) == (counts.fold_bytes > 0) == (name == "per_example")


def test_windowed_vision_attention_with_cut_windows() -> None:
    family = "Qwen2_5_VLForConditionalGeneration"
    model, grid = build(family), (6, 10)  # windows of 4 x 4 patches: cut at both edges
    ids = torch.tensor([[1] + [3] * 15 + [7, 8, 9]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(60, 96),
        "image_grid_thw": torch.tensor([[1, *grid]]),
        "mm_token_type_ids": (ids == 3).long(),
    }
    assert count(model, ids.shape[1], 1, grid).macs == torch_macs(model, inputs)


def test_the_paper_s_llava_on_the_meta_device() -> None:
    """MHA(n) = 4 d^2 n + 2 d n^2, FFN(n) = 3 d ff n, 32 blocks and the head; the vision part 406.37 G at 2 per MAC."""
    d, ff, n, k = 4096, 11008, 676, 12
    text = tf.LlamaConfig(hidden_size=d, intermediate_size=ff, num_hidden_layers=32, num_attention_heads=32)
    clip = tf.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    with torch.device("meta"):
        model = tf.LlavaForConditionalGeneration(tf.LlavaConfig(text_config=text, vision_config=clip)).half()
        base = count(model, n, images=1)
        eas.attach(model, EASConfig(num_skip=k, skip_rank=128, adapt_rank=128))
        eas.select(model, range(k))
        eas.prune(model)
        eas.fold(model, "per_example")
        tuned = count(model, n, images=1)
    attention, ffn = 4 * d * d * n + 2 * d * n * n, 3 * d * ff * n
    language = 32 * (attention + ffn) + 32000 * d
    assert 2 * (base.macs - language) == pytest.approx(406.37e9, rel=1e-3)
    once = 32 * 2 * d + k * d * 128  # routers and c, on one mean per prompt
    assert base.macs - tuned.macs == k * attention - once - tuned.fold_macs
    assert base.kv_bytes_per_token - tuned.kv_bytes_per_token == k * 2 * d * 2  # 16 KiB per attention
    assert base.params_trained == base.params_total  # nothing is frozen yet
    router, down, up = 2 * d + 2, 128 * d + 128, 128 * d + d
    assert tuned.params_trained == k * (router + 2 * down + 2 * up) + (32 - k) * (router + down + 2 * up)


def test_a_decode_step_reads_what_lives() -> None:
    model = build(LLAVA)
    layers = model.model.language_model.layers
    whole = sum(p.nbytes for m in (layers, model.model.language_model.norm, model.lm_head) for p in m.parameters())
    base, attention = count(model, 8), sum(p.nbytes for p in layers[0].self_attn.parameters())
    assert base.weight_bytes == whole
    selected, pruned = count(variant("selected"), 8), count(variant("pruned"), 8)
    assert selected.weight_bytes == pruned.weight_bytes
    pias = 2 * (3 * 6 * 32 + 6 + 2 * 32) * 4 + 2 * (3 * 4 * 32 + 4 + 2 * 32) * 4
    norms = 2 * 32 * 4  # a skipped attention's; folded, the FFN's goes too
    assert selected.weight_bytes == whole - 2 * attention - norms + pias
    folded, biases = count(variant("per_example"), 8), 2 * 2 * 64 * 4 + 2 * (32 + 16 + 16) * 4
    assert folded.weight_bytes == whole - 2 * attention - 2 * norms + biases
    # the shared form keeps a row of zeros, and a one, for its up-biases
    assert count(variant("shared"), 8).weight_bytes == selected.weight_bytes + 4 * (32 + 1) * 4


def test_tied_embeddings_are_held_once_and_read_as_the_head() -> None:
    config = tf.Qwen2Config(**{**build("Qwen2ForCausalLM").config.to_dict(), "tie_word_embeddings": True})
    tied, untied = count(tf.Qwen2ForCausalLM(config), 8), count(build("Qwen2ForCausalLM"), 8)
    assert untied.params_total - tied.params_total == 64 * 32
    assert tied.weight_bytes == untied.weight_bytes
    assert tied.macs == untied.macs


@pytest.mark.parametrize("name", ["base", "selected", "shared", "per_example"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_are_those_of_a_real_cache(name: str, dtype: torch.dtype) -> None:
    model, inputs = variant(name, dtype=dtype), prompts(LLAVA, (7,))
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with torch.inference_mode():
        cache = output_cache(model(**inputs, use_cache=True))
    counts, tokens = count(model, 12), inputs["input_ids"].shape[1]
    assert kv_cache_bytes(cache) == counts.kv_bytes_per_token * tokens + counts.prompt_state_bytes
    states = prompt_layer(cache)
    folded = states.folded.values() if states is not None else []
    ours = sum(
        linear.weight.nbytes + linear.bias.nbytes
        for body in folded
        for linear in body.modules()
        if isinstance(linear, torch.nn.Linear) and not any(linear is kept for kept in model.modules())
    )
    assert counts.fold_bytes == ours


@pytest.mark.parametrize("train_projector", [False, True])
def test_trained_parameters_of_a_pruned_model(train_projector: bool) -> None:
    model = variant("pruned", train_projector=train_projector).requires_grad_(False)  # as after loading for use
    counts = count(model, 8)
    assert counts.params_trained == sum(t.numel() for t in adapter_state(model).values())
    assert counts.params_total == sum(p.numel() for p in model.parameters())


def test_images_that_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="takes no images"):
        count(build("LlamaForCausalLM"), 8, images=1)
    with pytest.raises(ValueError, match="patch_grid"):
        count(build("Qwen2VLForConditionalGeneration"), 8, images=1)
    assert isinstance(count(build("Qwen2VLForConditionalGeneration"), 8), Counts)


def test_benchmark_times_weights_that_all_start_alike() -> None:
    model, inputs = build(LLAVA), prompts(LLAVA, (7, 7))
    with torch.inference_mode():
        before = model(**inputs).logits
    for weight in model.parameters():  # as in a file, behind a header of any length
        aside = torch.empty(weight.numel() + 1)[1:].view_as(weight)
        weight.data = aside.copy_(weight.data)
    benchmark({"base": model}, inputs, new_tokens=1, repeats=1)
    assert not any(weight.data_ptr() % 64 for weight in model.parameters())
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, before)


def test_benchmark_alternates_base_and_folded() -> None:
    models, calls = {"base": build(LLAVA), "folded": variant("shared")}, []
    for name, model in models.items():
        model.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    result = benchmark(models, prompts(LLAVA, (7, 7)), new_tokens=2, repeats=2)
    assert calls == (["base"] * 3 + ["folded"] * 3) * 3
    for latency in result.values():
        assert isinstance(latency, Latency)
        for spread in (latency.prefill_ms, latency.decode_ms):
            assert 0 < spread.low <= spread.median <= spread.high


def test_a_variant_may_have_a_prompt_of_its_own() -> None:
    models, lengths = {"base": build(LLAVA), "folded": variant("shared")}, []
    for name, model in models.items():
        model.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: lengths.append((name, kwargs["input_ids"].shape[1])), with_kwargs=True
        )
    benchmark(models, prompts(LLAVA, (7,)), 0, 1, own_inputs={"folded": prompts(LLAVA, (5,))})
    assert set(lengths) == {
        ("base", prompts(LLAVA, (7,))["input_ids"].shape[1]),
        ("folded", prompts(LLAVA, (5,))["input_ids"].shape[1]),
    }
    with pytest.raises(ValueError, match="padded"):
        benchmark(models, prompts(LLAVA, (7,)), 1, 1, own_inputs={"folded": prompts(LLAVA, (5, 7))})
    with pytest.raises(ValueError, match=r"own_inputs name \['fold'\], which are no variants"):
        benchmark(models, prompts(LLAVA, (7,)), 1, 1, own_inputs={"fold": prompts(LLAVA, (5,))})


@pytest.mark.parametrize("name", ["base", "shared", "per_example"])
@every_family
def test_benchmark_decodes_what_generate_decodes(name: str, family: str) -> None:
    model, inputs, seen = variant(name, family), prompts(family, (9,)), []
    hook = model.register_forward_hook(lambda *arguments: seen.append(arguments[-1].logits[:, -1].argmax(-1)))
    benchmark({"folded": model}, inputs, new_tokens=4, repeats=1)
    hook.remove()
    generated = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(torch.stack(seen[:5], 1), generated)


def test_benchmark_refuses_what_it_cannot_time_fairly() -> None:
    with pytest.raises(ValueError, match="eval"):
        benchmark({"base": build(LLAVA).train()}, prompts(LLAVA, (5,)), 1, 1)
    with pytest.raises(ValueError, match="repeats = 0"):
        benchmark({}, {}, 1, 0)
    with pytest.raises(ValueError, match="padded"):
        benchmark({"base": build(LLAVA)}, prompts(LLAVA, (5, 7)), 1, 1)


def test_spread_is_the_median_and_the_outer_tenths() -> None:
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread.of([float(v) for v in range(11)]) == Spread(5.0, 1.0, 9.0)


def test_hardware_and_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    found = hardware()
    assert found["cpu"]
    assert found["torch"] == torch.__version__
    revision = git_revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40

    def no_git(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert git_revision() is None
