"""Every family's blocks against its own forward pass with its own modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import logits, quick, randomise
from more_families import build, every_label, prompts
from torch import Tensor
from typer.testing import CliRunner

import eas
from eas import DropConfig, EASConfig, cli
from eas.models.anatomy import Anatomy
from eas.pia import PIA, naive_pia
from eas.tasks.task import task_of

torch.set_num_threads(1)
RANKS = {"skip_rank": 4, "adapt_rank": 2}
KINDS = ["sliding_attention", "full_attention"] * 3
SETS = [(0, 2), (1,)]


def skipped(model: Any, skip: tuple[int, ...]) -> list[Any]:
    """The layers that are skipped: of the layers with an attention those of these places."""
    anatomy = Anatomy.of(model)
    return [layer for i, layer in enumerate(anatomy.blocks("mha")) if i in skip]


def without_attention(model: Any, skip: tuple[int, ...]) -> Any:
    """The model as transformers has it, but that these attentions give zeros."""
    for layer in skipped(model, skip):
        attention = getattr(layer, Anatomy.of(model).built.mha.body)
        attention.forward = lambda hidden_states, **kwargs: (torch.zeros_like(hidden_states), None)
    return model


def gain(norm: Any) -> Tensor:
    """What a norm multiplies by, found by calling it."""
    x = 100 * torch.randn(1, 1, norm.weight.numel())  # beside which epsilon is nothing
    return norm(x) / (x * x.square().mean(-1, keepdim=True).rsqrt())


@every_label
@pytest.mark.parametrize("dtype", quick([torch.float32, torch.bfloat16], [torch.float32]))
def test_an_untrained_skip_is_the_familys_own_pass_without_attention(label: str, dtype: torch.dtype) -> None:
    inputs = prompts(label)
    inputs |= {name: value.to(dtype) for name, value in inputs.items() if "pixel_values" in name}

    def base() -> Any:
        return build(label).to(dtype).requires_grad_(False)  # frozen, as attached: else PerceptionLM's projector rounds

    model = eas.attach(base(), EASConfig(2, **RANKS))
    assert torch.equal(logits(model, inputs), logits(base(), inputs))
    for skip in SETS:
        eas.select(model, skip)
        expected = logits(without_attention(base(), skip), inputs)
        assert torch.equal(logits(model, inputs), expected)
    dropped = eas.attach(base(), DropConfig(1))
    eas.select(dropped, SETS[1])
    assert torch.equal(logits(dropped, inputs), expected)
    eas.prune(dropped)
    assert torch.equal(logits(dropped, inputs), expected)


@every_label
def test_the_papers_form_is_eq_7_with_the_familys_own_norms(label: str) -> None:
    inputs, model = prompts(label), eas.attach(build(label), EASConfig(1, **RANKS, form="paper"))
    eas.select(model, SETS[1])
    base = without_attention(build(label), SETS[1])
    built = Anatomy.of(base).built
    for layer in skipped(base, SETS[1]):
        if not built.parallel and built.ffn.norm is not None:
            before, g = getattr(layer, built.mha.norm), gain(getattr(layer, built.ffn.norm))
            getattr(layer, built.ffn.norm).forward = lambda x, before=before, g=g: g * before(x)
    torch.testing.assert_close(logits(model, inputs), logits(base, inputs), rtol=1e-4, atol=1e-4)


def corrected(pia: PIA, n: Tensor, mask: Tensor) -> Tensor:
    """``n + p`` row by row, p from the naive equation on the tokens that are no padding."""
    z = n.clone()
    for row, real in enumerate(mask.bool()):
        z[row, real] = n[row, real] + naive_pia(pia, n[row, real], torch.ones(int(real.sum()), dtype=torch.bool))
    return z


@every_label
def test_trained_pias_correct_what_the_equation_says(label: str) -> None:
    inputs, skip = prompts(label), SETS[0]
    model = eas.attach(build(label), EASConfig(2, **RANKS))
    randomise(model)
    eas.select(model, skip)
    base, mask = without_attention(build(label), skip), inputs["attention_mask"]
    built = Anatomy.of(base).built
    pairs = list(zip(Anatomy.of(base).blocks("mha"), Anatomy.of(model).blocks("mha"), strict=True))
    for i, (layer, block) in enumerate(pairs):
        if i in skip:
            _correct_ffn(layer, built, lambda n, pia=block.skip_pia: corrected(pia, n, mask))
        else:
            attention = getattr(layer, built.mha.body)
            attention.forward = lambda hidden_states, own=attention.forward, pia=block.adapt_pia, **kwargs: own(
                hidden_states=corrected(pia, hidden_states, mask), **kwargs
            )
    real = mask.bool()
    torch.testing.assert_close(logits(model, inputs)[real], logits(base, inputs)[real], rtol=1e-4, atol=1e-4)


def _correct_ffn(layer: Any, built: Any, correct: Callable[[Tensor], Tensor]) -> None:
    """The FFN of a layer reads ``g * (n + p)``: through its norm, or where n is what it reads, directly."""
    if built.parallel or built.ffn.norm is None:
        ffn = getattr(layer, built.ffn.body)
        ffn.forward = lambda x, own=ffn.forward: own(correct(x))
        return
    norm = getattr(layer, built.ffn.norm)
    g = gain(norm)
    norm.forward = lambda x, own=norm.forward: g * correct(own(x) / g)


def test_what_is_built_otherwise_is_refused() -> None:
    import other_blocks
    import transformers as tf

    with pytest.raises(eas.ConfigError, match="Gemma4TextModel with enable_moe_block = True has experts beside"):
        eas.attach(
            tf.Gemma4ForCausalLM(
                other_blocks.gemma4(enable_moe_block=True, num_experts=2, top_k_experts=1, moe_intermediate_size=8)
            ),
            EASConfig(1, **RANKS),
        )
    with pytest.raises(
        eas.ConfigError, match=r"'deep_prompt' does not exist for Qwen3_5TextModel.*use 'lora', 'adapter'"
    ):
        eas.attach(build("Qwen3.5"), eas.method_config({"name": "deep_prompt"}))
    model = build("Gemma4, keys as values")
    assert [layer.self_attn.v_proj is None for layer in Anatomy.of(model).layers] == [False, True] * 2


HELD = {"Qwen3.5": [0, 2, 3], "Lfm2": [0, 2, 3], "Mllama": [2, 3, 4], "Gemma3": None}


def with_attention(model: Any) -> set[int]:
    anatomy = Anatomy.of(model)
    return {i for i, layer in enumerate(anatomy.layers) if anatomy.built.mha.body in layer._modules}


@pytest.mark.parametrize("label", HELD)
def test_the_layers_of_numbered_attentions_are_known_and_told(label: str, tmp_path: Path) -> None:
    model = build(label)
    model.config.save_pretrained(tmp_path)
    task, method = task_of(model.config), EASConfig(1, **RANKS)
    assert task.candidate_layers(model.config, method) == HELD[label]
    twice = None if HELD[label] is None else 2 * HELD[label]
    assert task.candidate_layers(model.config, EASConfig(2, **RANKS, candidates="either")) == twice
    before = with_attention(model)
    eas.attach(model, method)
    eas.select(model, [1])
    eas.prune(model)
    assert before - with_attention(model) == {(HELD[label] or [0, 1])[1]}

    def count(*options: str) -> str:
        return CliRunner().invoke(cli.app, ["count", str(tmp_path), *options], env={"COLUMNS": "200"}).output

    told = count()
    layers = " ".join(map(str, HELD[label] or ()))
    assert (f"Attentions 0 1 2 are those of the model's layers {layers};" in told) == (HELD[label] is not None)
    both = f"Attentions and FFNs 0 1 2 3 4 5 are those of the model's layers {layers} {layers};"
    assert (both in count("-o", "candidates=either")) == (HELD[label] is not None)


def test_layers_that_share_keys_and_values_are_no_candidates() -> None:
    import other_blocks
    import transformers as tf

    torch.manual_seed(0)
    model = tf.Gemma4ForCausalLM(
        other_blocks.gemma4(
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=64,
            num_hidden_layers=6,
            layer_types=KINDS,
        )
    ).eval()
    shared = [
        layer.self_attn.is_kv_shared_layer or layer.self_attn.store_full_length_kv for layer in model.model.layers
    ]
    assert shared == [False, False, True, True, True, True]
    assert len(Anatomy.of(model).blocks("mha")) == 2
    ids = torch.randint(6, 64, (2, 7))
    expected = logits(model, {"input_ids": ids})
    eas.attach(model, EASConfig(1, **RANKS))
    assert torch.equal(logits(model, {"input_ids": ids}), expected)
    randomise(model)
    eas.select(model, [0])
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found = [torch.stack(model.generate(ids, use_cache=use, **options).logits) for use in (True, False)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
