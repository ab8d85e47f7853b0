"""The families whose blocks are Llama's under another name: what a wrong line in the tables would get wrong."""

from __future__ import annotations

import runpy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from expert_blocks import FAMILIES as EXPERTS
from families import FAMILIES as OTHERS
from families import SEEING, logits, quick, randomise
from like_llama import WITH_TIMM
from more_families import FAMILIES, QUICK, blocks, build, every_label, prompts
from torch.utils.flop_counter import FlopCounterMode

import eas
from eas import DropConfig, EASConfig
from eas.attachment.save import adapter_state
from eas.attachment.state import candidates
from eas.attachment.twin import TOLERANCE, deviation
from eas.hf.labelled import heads_all, labelled_only
from eas.measure.count import count
from eas.measure.vision import CUT, VISION_TOWERS
from eas.models import anatomy
from eas.searching.scoring import score_sets
from eas.searching.similarity import cosines

torch.set_num_threads(1)
RANKS = {"skip_rank": 4, "adapt_rank": 2}
CLOSE = {"rtol": 1e-5, "atol": 1e-4}  # logits of order one; CPUs round in another order
SETS = [(0, 2), (1,)]
OTHERWISE = ("PaliGemma 2", "Gemma4Unified")
"""What transformers itself decodes otherwise with a static cache than without."""


def attached(label: str, skip: tuple[int, ...] = (0, 2), **options: Any) -> Any:
    """With random PIAs."""
    model = eas.attach(build(label), EASConfig(len(skip), **RANKS, train_projector=None, **options))
    randomise(model)
    eas.select(model, skip)
    return model


def decoded(model: Any, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
    """The logits of four greedy tokens, ``(batch, 4, vocabulary)``."""
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, **more}
    return torch.stack(model.generate(**inputs, max_new_tokens=4, **options).logits, 1)


def answered(label: str) -> dict[str, torch.Tensor]:
    """Prompts of which the last three tokens are the answer."""
    inputs = prompts(label)
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    return {**inputs, "labels": labels}


@every_label
def test_untrained_it_is_the_base_and_a_skip_is_the_attention_left_out(label: str) -> None:
    # frozen: torch rounds a map of permuted inputs (PerceptionLM's projector) otherwise if its weights take gradients
    base, inputs = build(label).requires_grad_(False), prompts(label)
    expected = logits(base, inputs)
    model, dropped = eas.attach(base, EASConfig(2, **RANKS)), eas.attach(build(label), DropConfig(2))
    assert torch.equal(logits(model, inputs), expected)
    for skip in SETS:
        eas.select(model, skip)
        eas.select(dropped, skip)
        left_out = logits(dropped, inputs)
        assert torch.equal(logits(model, inputs), left_out)
        assert not torch.allclose(left_out, expected, atol=1e-2)


@every_label
def test_similarities_are_those_of_each_attentions_input_and_output(label: str) -> None:
    model, batch = eas.attach(build(label), DropConfig(1)).eval(), answered(label)
    found, seen = cosines(model, [batch]), {}

    def keep(block: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen[block.index] = args[0], kwargs

    hooks = [block.register_forward_hook(keep, with_kwargs=True) for block, _ in candidates(model)]
    with torch.no_grad():
        model(**batch, use_cache=False)
        for hook in hooks:
            hook.remove()
        for (block, _), cosine in zip(candidates(model), found, strict=True):
            (x, kwargs), mha = seen[block.index], block.built.mha
            after = block.attend(x, block.normed(mha, x), getattr(block, mha.body), kwargs)
            each = torch.cosine_similarity(x, after, dim=-1)[batch["attention_mask"].bool()]
            assert cosine == pytest.approx(float(each.mean()), abs=1e-5)
            assert cosine < 1 - 1e-5


@every_label
def test_it_decodes_and_folds_to_what_it_computes(label: str) -> None:
    inputs, single = prompts(label), prompts(label, (5,))
    for skip in SETS:
        model = attached(label, skip)
        plain = decoded(model, inputs)
        torch.testing.assert_close(decoded(model, inputs, use_cache=False), plain, **CLOSE)
        if label not in OTHERWISE:
            torch.testing.assert_close(decoded(model, inputs, cache_implementation="static"), plain, **CLOSE)
        alone = decoded(model, single)
        eas.fold(model, "shared")
        torch.testing.assert_close(decoded(model, inputs), plain, **CLOSE)
        eas.unfold(model)
        if label not in EXPERTS:
            eas.fold(model, "per_example")
            torch.testing.assert_close(decoded(model, single), alone, **CLOSE)
    model = attached(label, router="constant")
    plain = logits(model, inputs)
    if label in EXPERTS:
        with pytest.raises(ValueError, match="constant folding needs plain linear maps, not"):
            eas.fold(model, "constant")
        return
    eas.fold(model, "constant")
    torch.testing.assert_close(logits(model, inputs), plain, **CLOSE)


@pytest.mark.parametrize("label", FAMILIES)
def test_in_half_precision_it_folds_to_what_it_computes(label: str) -> None:
    inputs = prompts(label, image=False)
    exact, model = logits(attached(label, (0,)), inputs), attached(label, (0,)).to(torch.bfloat16)
    plain = logits(model, inputs).float()
    eas.fold(model)
    folded = logits(model, inputs)
    assert folded.dtype == torch.bfloat16
    assert not torch.equal(folded.float(), plain)
    assert (folded - exact).norm() < 2 * (plain - exact).norm() + 0.01 * exact.norm()


def test_with_a_static_cache_transformers_reads_images_of_gemma_4_unified_otherwise() -> None:
    base, inputs = build("Gemma4Unified"), prompts("Gemma4Unified")
    found, plain = decoded(base, inputs, cache_implementation="static"), decoded(base, inputs)
    assert (found - plain).abs().max() > 0.01, "the notes of docs/families.md and structure.py can go"


@every_label
def test_gradients_reach_what_is_trained(label: str) -> None:
    model, inputs = attached(label).train(), answered(label)
    loss = model(**labelled_only(inputs, heads_all(model))).loss
    torch.testing.assert_close(loss, model(**inputs).loss, rtol=1e-6, atol=1e-6)
    loss.backward()
    pias = [block.skip_pia if i in SETS[0] else block.adapt_pia for i, block in enumerate(blocks(model))]
    assert all(p.grad.abs().sum() > 0 for pia in pias for p in pia.parameters())
    if any("pixel_values" in name for name in inputs):
        projector = [p for module in anatomy.Anatomy.of(model).projector for p in module.parameters()]
        assert all(p.grad.abs().sum() > 0 for p in projector if p.ndim > 1)


@every_label
def test_it_is_saved_and_opened_bit_for_bit(label: str, tmp_path: Any) -> None:
    model, inputs = attached(label), prompts(label)
    with torch.no_grad():
        for module in anatomy.Anatomy.of(model).projector:
            for p in module.parameters():
                p.add_(0.1)
    build(label).save_pretrained(tmp_path / "base")
    eas.save(model, tmp_path / "adapter")
    expected = logits(model, inputs)
    assert torch.equal(logits(eas.load(tmp_path / "base", tmp_path / "adapter"), inputs), expected)
    eas.prune(model)
    eas.save_standalone(model, tmp_path / "standalone")
    whole = eas.load(tmp_path / "standalone")
    assert whole.config.model_type == f"eas_{build(label).config.model_type}"
    for name, p in whole.named_parameters():  # torch.matmul chooses its product by whether a weight wants gradients
        p.requires_grad_(model.get_parameter(name).requires_grad)
    assert torch.equal(logits(whole, inputs), expected)


@every_label
def test_its_macs_are_those_that_torch_counts(label: str) -> None:
    if label in ("Llama4", "Mllama"):
        pytest.skip("Llama 4 in transformers gives every token to every expert; Mllama counts as with an image")
    base, model, inputs = build(label), attached(label), prompts(label, (7,), image=False)
    eas.prune(model)
    eas.fold(model, "shared")
    for counted in (base, model):
        counted.set_attn_implementation("eager")
        counted.set_experts_implementation("eager")  # torch counts no grouped products
        counter = FlopCounterMode(display=False)
        with counter, torch.inference_mode():
            counted(**inputs, logits_to_keep=1)
        assert count(counted, 8).macs * 2 == counter.get_total_flops() + uncounted(counter, counted)


COUNTED = [label for label, (name, _, tokens, _) in FAMILIES.items() if tokens and name in VISION_TOWERS]


@pytest.mark.parametrize("label", quick(COUNTED, QUICK))
def test_the_macs_of_its_images_are_those_that_torch_counts(label: str) -> None:
    model = build(label)
    together = not isinstance(model.get_submodule(VISION_TOWERS[type(model).__name__]), tf.PixtralVisionModel)
    number = 2 if together else 1  # Pixtral multiplies images with each other and masks the products
    images = FAMILIES[label][3](number)
    model.set_attn_implementation("eager")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.get_image_features(**images)
    tiles = images["pixel_values"].shape[1] if images["pixel_values"].ndim == 5 else 1
    grid = (2, 2) if label == "Lfm2Vl" else (4, 4)
    assert (
        count(model, 4096, images=3 * tiles, patch_grid=grid).vision_macs * 2 * number == 3 * counter.get_total_flops()
    )


@pytest.mark.parametrize("label", quick(COUNTED, QUICK))
def test_a_prompt_is_at_least_as_long_as_its_images(label: str) -> None:
    model, (_, _, tokens, images) = build(label), FAMILIES[label]
    pixels, grid = images(1)["pixel_values"], (2, 2) if label == "Lfm2Vl" else (4, 4)
    tiles = pixels.shape[1] if pixels.ndim == 5 else 1

    def least() -> int:
        for n in range(1, tokens + 1):
            with suppress(ValueError):
                count(model, n, images=tiles, patch_grid=grid)
                return n
        raise AssertionError("the prompt of the test is refused")

    vision = model.config.vision_config  # of tiles that are cut the overview alone is known
    assert least() == ((vision.image_size // vision.patch_size) ** 2 if type(model).__name__ in CUT else tokens)


def uncounted(counter: FlopCounterMode, model: Any) -> int:
    """What layers without attention compute differently than they are counted: convolutions also of their padding, and
    the products of a linear attention's state."""
    total, counts = 0, counter.get_flop_counts()
    for name, module in anatomy.Anatomy.of(model).layers.named_modules():
        if name.rpartition(".")[2] in ("conv", "linear_attn") and not isinstance(module, torch.nn.Conv1d):
            flops = counts[f"{type(model).__name__}.{anatomy.paths(model)[0]}.layers.{name}"]
            convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv1d)]
            total += sum(2 * 8 * m.weight.numel() for m in convolutions)
            total -= sum(value for op, value in flops.items() if "mm" not in str(op) or "bmm" in str(op))
    return total


TWINS = sorted({name for name, *_ in FAMILIES.values()})


@pytest.mark.parametrize("family", quick(TWINS, {FAMILIES[label][0] for label in QUICK}))
def test_a_twin_of_it_decodes_what_it_computes(family: str) -> None:
    assert deviation(family) < TOLERANCE / 10


def test_every_family_is_tried_and_every_kind_by_make_test() -> None:
    built = {label: anatomy.Anatomy.of(build(label)).built for label in FAMILIES if label not in WITH_TIMM}
    assert {built[label] for label in QUICK} == {*built.values()}
    assert {name for name, *_ in FAMILIES.values()} | {*OTHERS} == {*anatomy.FAMILIES}


def test_the_page_of_families_is_current() -> None:
    root = Path(__file__).parent.parent
    page = runpy.run_path(str(root / "scripts" / "families_page.py"))
    text = page["PAGE"].read_text()
    assert page["filled"](text) == text, "run scripts/families_page.py"
    seen = {name for name, _, tokens, _ in FAMILIES.values() if tokens} | {*SEEING}
    assert {*page["SEES"]} == seen, "tried with images"
    for name in anatomy.FAMILIES:
        kind = anatomy.model_class(name).config_class.model_type
        assert anatomy.reads_images(kind) == anatomy.reads_images(f"eas_{kind}") == (name in page["SEES"]), name


@every_label
def test_sets_are_scored_as_one_by_one(label: str) -> None:
    model, inputs = attached(label), answered(label)
    losses = []
    for skip in SETS:
        eas.select(model, skip)
        losses.append(model(**inputs).loss.item())
    assert losses[0] != losses[1]
    assert score_sets(model, inputs, SETS) == pytest.approx(losses, rel=1e-6)


def test_all_modules_of_a_projector_are_trained_and_saved() -> None:
    model = attached("Qwen3VL")
    keys = {key.split(".")[0] for key in eas.attachment.save.adapter_state(model)}
    assert keys == {"layers", "projector", "projector1"}


@pytest.mark.parametrize("name", ["adapter", "parallel_adapter"])
def test_adapters_at_experts_that_give_their_scores_too(name: str) -> None:
    base, inputs = build("Llama4").requires_grad_(False), prompts("Llama4")
    expected = logits(base, inputs)
    model = eas.attach(base, eas.METHODS[name].config(rank=4))
    assert torch.equal(logits(model, inputs), expected)
    for parameter in adapter_state(model).values():
        parameter.data.add_(0.1)
    assert not torch.allclose(logits(model, inputs), expected, atol=1e-2)


def test_norms_behind_the_residual_are_refused() -> None:
    model = build("Molmo2")
    model.config.text_config.norm_after = True
    with pytest.raises(
        eas.ConfigError, match="Molmo2TextModel with norm_after = True has norms behind attention and FFN; EAS"
    ):
        eas.attach(tf.Molmo2ForConditionalGeneration(model.config), EASConfig(1, **RANKS))


def test_classes_that_do_not_fit_are_refused_with_the_reason() -> None:
    for name in anatomy.REFUSED:
        with pytest.raises(eas.UnsupportedModelError) as refusal:
            anatomy.Anatomy.of(type(name, (torch.nn.Module,), {})())
        assert str(refusal.value) == f"{name} is not supported: {anatomy.REFUSED[name]}"
        assert isinstance(getattr(tf, name), type)  # else a new name would pass by the reason
    assert not {*anatomy.REFUSED} & {*anatomy.FAMILIES}


@pytest.mark.parametrize("label", ["Gemma4", "Gemma4Unified"])
@pytest.mark.parametrize("skip", [(0,), (1,), (0, 1)], ids=str)
def test_standalone_folders_of_models_whose_layers_have_sizes_of_their_own(
    label: str, skip: tuple[int, ...], tmp_path: Path
) -> None:
    model, inputs = attached(label, skip), prompts(label)
    eas.prune(model)
    eas.save_standalone(model, tmp_path)
    opened = eas.load(tmp_path)
    assert eas.skip_set(opened) == skip
    assert torch.equal(logits(opened, inputs), logits(model, inputs))


def test_images_that_cannot_be_counted_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="DeepseekVLForConditionalGeneration takes no images, or its vision tower c"):
        count(build("DeepseekVL"), 8, images=1)
    for label in ("Mistral3", "Pixtral", "Gemma4, images"):
        with pytest.raises(ValueError, match=r"takes images of any size; give patch_grid = \(height, width\)"):
            count(build(label), 8, images=1)
