"""Quantised bases: attached, tuned, folded into a full-precision copy and quantised again, with what that loses."""

import copy
import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import more_families
import pytest
import torch
from decoding import answered, answers, decode
from families import attached, blocks, build, every_family, logits, prompts
from torch import nn
from transformers import BitsAndBytesConfig, Trainer, TrainingArguments

import eas
from eas.attachment.load import load_base
from eas.attachment.quantised import QUANTISERS, dequantised
from eas.demo.tiny import TINY_DIR, load_tiny
from eas.models.quantisation import four_bit, quantisation
from eas.pipeline import STEPS, Run, RunConfig, run_steps
from eas.training import EASTrainer, sharded

torch.set_num_threads(1)
LLAMA, LLAVA = "LlamaForCausalLM", "LlavaForConditionalGeneration"
# 4-bit blocks of 64 inputs; bitsandbytes multiplies int8 in float16
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "dtype": torch.bfloat16}


def needs(name):
    library = name.partition("-")[0]
    missing = importlib.util.find_spec(library) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{library} is missing: pip install {library}"))


every_quantiser = pytest.mark.parametrize("name", [needs(name) for name in QUANTISERS])


def quantised(name, family=LLAMA):
    """A base whose blocks are quantised, as libraries do it: the head is left."""
    model = build(family, **SIZES)
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and ".layers." in path and "vision" not in path:
            model.set_submodule(path, QUANTISERS[name](module))
    return model


def tuned(name, config, family=LLAMA):
    """The same with PIAs that were trained for a few steps, from random values that show in the logits."""
    model = eas.attach(quantised(name, family), eas.EASConfig(skip_rank=4, adapt_rank=2, num_skip=2, **config))
    with torch.no_grad():
        for (key, mine), other in zip(
            model.named_parameters(), attached(family, config=config, **SIZES).parameters(), strict=True
        ):
            if "_pia." in key:
                mine.copy_(other)
    eas.select(model, (0, 2))
    eas.prune(model)
    batch, _ = answered(prompts(family), answers(2))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    losses = []
    for _ in range(4):
        loss = model.train()(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return model.eval()


@every_quantiser
@pytest.mark.parametrize("config", [{}, {"router": "constant"}])
def test_tuned_on_a_quantised_base_and_folded_without_loss(name, config, tmp_path):
    model, inputs, answer = tuned(name, config), prompts(LLAMA), answers(2, 4)
    expected = decode(model, inputs, answer)
    eas.save(model, tmp_path)
    torch.testing.assert_close(decode(eas.load(quantised(name), tmp_path).eval(), inputs, answer), expected)
    chosen = eas.fold(model)
    assert chosen.mode == "shared"
    assert not config or "nothing can be folded into" in chosen.reason
    folded = decode(model, inputs, answer)
    assert (folded - expected).float().norm() < 0.05 * expected.float().norm()  # bfloat16's own noise
    eas.unfold(model)
    for mode in ("per_example", "constant") if config else ("per_example",):
        with pytest.raises(ValueError, match=r"plain linear maps, not .*; use fold\(model, 'shared'\)"):
            eas.fold(model, mode)


@every_quantiser
def test_folded_into_a_full_precision_copy_and_quantised_again(name):
    model, inputs, answer = tuned(name, {"router": "constant"}), prompts(LLAMA), answers(2, 4)
    before, steps = logits(model, inputs), decode(model, inputs, answer)
    folded, lost = eas.fold_quantised(model, inputs, name)
    assert (lost.mode, folded.eas.fold_mode) == ("constant", "constant")
    assert 0 < lost.folded < 0.05
    assert lost.folded < lost.quantised < (0.5 if name.endswith("nf4") else 0.1)
    error = (logits(folded, inputs) - before).float().norm() / before.float().norm()
    assert lost.quantised == pytest.approx(error.item(), rel=1e-3)
    assert (decode(folded, inputs, answer) - steps).float().norm() < 2 * lost.quantised * steps.float().norm()
    kinds = {type(m.weight).__module__ + type(m).__module__ for m in folded.modules() if isinstance(m, nn.Linear)}
    assert any(name.partition("-")[0] in kind for kind in kinds)
    gate_up = blocks(folded)[0].constant_fold.body.gate_up
    assert name.partition("-")[0] in type(gate_up.weight).__module__
    assert all(p.dtype == torch.float32 for key, p in folded.named_parameters() if "_pia." in key)
    assert torch.equal(logits(model, inputs), before)  # the given one is as it was
    eas.unfold(folded)
    assert (logits(folded, inputs) - before).float().norm() < 0.05 * before.float().norm()


@every_quantiser
def test_what_cannot_be_quantised_again_is_refused(name):
    model = eas.attach(quantised(name), eas.EASConfig(skip_rank=4, adapt_rank=2, num_skip=2))
    with pytest.raises(ValueError, match="new weights with every prompt, which nothing quantises; use mode 'auto'"):
        eas.fold_quantised(model, prompts(LLAMA, (9,)), name, mode="per_example")
    if (
        name.startswith("torchao") and version("peft") != "0.18.0"
    ):  # the oldest makes no LoRA on torchao's weights at all
        with pytest.raises(ValueError, match=r"cannot be merged into torchao's weights.*use the unfolded model"):
            eas.fold(eas.attach(quantised(name), eas.LoRAConfig(rank=4)))


@every_quantiser
def test_dequantised_is_what_was_computed(name):
    model = quantised(name, LLAVA)
    before = logits(model, prompts(LLAVA)).float()  # computing may pack weights in another way
    plain, names = dequantised(model)
    assert len(names) == 3 * 7
    assert {type(plain.get_submodule(path)) for path in names} == {nn.Linear}
    assert (logits(plain, prompts(LLAVA)).float() - before).norm() < 0.05 * before.norm()


@every_quantiser
def test_gradients_are_the_same_after_an_evaluation(name, tmp_path):
    """As between the rounds of a search; on CPUs with AVX512-BF16 bitsandbytes packs weights when it evaluates."""
    model, (batch, _) = tuned(name, {}), answered(prompts(LLAMA), answers(2))
    EASTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"), train_dataset=[0])

    def gradients():
        model.train().zero_grad()
        model(**batch, use_cache=False).loss.backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    assert len(before) > 10
    with torch.no_grad():
        model.eval()(**batch)
    after = gradients()
    assert after.keys() == before.keys()
    for key, gradient in before.items():
        torch.testing.assert_close(after[key], gradient)


def packing():
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


@pytest.mark.skipif(not packing(), reason="bitsandbytes packs 4-bit weights on CPUs with AVX512-BF16 only")
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_an_evaluation_packed_are_unpacked_as_they_were(double, dtype, tmp_path):
    build(LLAMA, **SIZES | {"dtype": dtype}).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=dtype)
    inputs = prompts(LLAMA)

    def packed():
        model = eas.attach(load_base(str(tmp_path), quantization_config=config), eas.EASConfig(skip_rank=4))
        return model.eval(), logits(model, inputs)

    def near(model):
        assert (logits(model, inputs) - expected).float().norm() < 0.03 * expected.float().norm()

    model, expected = packed()
    assert {layer.weight.quant_state.packing_format_for_cpu for layer in four_bit(model)} == {True}
    for _ in range(3):  # each unpacks, and the next evaluation packs anew
        model.save_pretrained(tmp_path / "saved")
        near(model)
    near(dequantised(model)[0])
    _, lost = eas.fold_quantised(model, inputs, "bitsandbytes-nf4", "shared")
    assert lost.folded < 0.03
    near(model)
    EASTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"), train_dataset=[0])
    near(model)


def test_libraries_are_imported_when_they_quantise():
    """transformers and peft import them at once, where they are installed; we do not add to that."""
    modules = Path(eas.__file__).parent.rglob("*.py")
    early = [p.name for p in modules if re.search(r"^(import|from) (torchao|bitsandbytes)", p.read_text(), re.M)]
    assert not early


def test_refusals():
    model, inputs = attached(LLAMA), prompts(LLAMA)
    with pytest.raises(ValueError, match=r"no linear map of the model is quantised; use eas.fold\(model\)"):
        eas.fold_quantised(model, inputs, copy.deepcopy)
    with pytest.raises(eas.ConfigError, match="quantise = 'int3': must be one of torchao-int8"):
        eas.fold_quantised(model, inputs, "int3")


@every_quantiser
def test_full_tuning_is_refused(name):
    model = quantised(name)
    with pytest.raises(eas.ConfigError, match="quantised weights cannot be trained; load the base unquantised, or use"):
        eas.attach(model, eas.FullConfig())
    assert not eas.attached(model)


@every_quantiser
def test_a_standalone_folder_is_refused(name, tmp_path):
    with pytest.raises(
        ValueError, match=r"the base is quantised, .* eas.load\(base, adapter\) of the unquantised base"
    ):
        eas.save_standalone(tuned(name, {}), tmp_path / "standalone")
    assert not (tmp_path / "standalone").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is missing")
def test_a_run_on_a_base_that_is_saved_quantised_is_refused(tmp_path):
    load_base("tiny", quantization_config=quantisation(TINY_DIR, 8)).save_pretrained(tmp_path / "base")
    load_tiny()[1].save_pretrained(tmp_path / "base")
    options = [f"model={tmp_path / 'base'}", "data=scenes:colour", f"output_dir={tmp_path / 'run'}"]
    for given in (["method.num_skip=2"], ["method.name=lora", "bits=8"]):
        with pytest.raises(
            eas.ConfigError, match=r"model = .*base' is saved quantised; .* unquantised .* bits = 4 or 8"
        ):
            run_steps(Run.create(RunConfig().with_overrides([*options, *given])))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is missing")
def test_a_plain_trainer_refuses_a_quantised_base_and_ours_takes_it(tmp_path):
    model = eas.attach(load_base("tiny", quantization_config=quantisation(TINY_DIR, 8)), eas.LoRAConfig(rank=2))
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="purely quantized models"):  # docs/howto.md says so
        Trainer(model, args)
    EASTrainer(model, args)


@every_quantiser
def test_sharding_is_refused(name):
    model = eas.attach(quantised(name), eas.EASConfig(skip_rank=4, adapt_rank=2))
    with pytest.raises(eas.ConfigError, match="quantised weights are not sharded; use DDP"):
        sharded.prepare(model, None)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is missing")
@every_family
def test_a_base_of_any_family_loads_with_quantised_blocks_and_nothing_else(family, tmp_path):
    base, inputs = build(family, num_hidden_layers=2), prompts(family)
    base.save_pretrained(tmp_path)
    config = quantisation(tmp_path, 8, torch.float32)
    model = load_base(str(tmp_path), quantization_config=config)
    quantised = {name for name, module in model.named_modules() if type(module).__name__ == "Linear8bitLt"}
    linear = {name for name, module in base.named_modules() if type(module) is nn.Linear}
    text = eas.models.anatomy.paths(base)[0]
    assert quantised == {name for name in linear if name.startswith(f"{text}.layers.")}
    exact = logits(base, inputs)
    assert (logits(model, inputs) - exact).norm() / exact.norm() < 0.1


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is missing")
@pytest.mark.parametrize("label", ["Phi4Multimodal", "Gemma4, inputs by layer"])
def test_what_stands_beside_the_blocks_of_a_language_model_is_not_quantised(label, tmp_path):
    base = more_families.build(label)
    base.save_pretrained(tmp_path)
    model = load_base(str(tmp_path), quantization_config=quantisation(tmp_path, 8, torch.float32))
    quantised = {name for name, module in model.named_modules() if type(module).__name__ == "Linear8bitLt"}
    linear = {name for name, module in base.named_modules() if type(module) is nn.Linear}
    assert quantised == {name for name in linear if name.startswith("model.layers.")} != linear - {"lm_head"}


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is missing")
@pytest.mark.usefixtures("undrawn")
def test_a_run_on_a_quantised_base(tmp_path):
    settings = ["bits=8", "data=scenes:colour", "skip_set=[2, 5]", "method.num_skip=2", "train.tune_steps=1"]
    settings += ["train_limit=4", "validation_limit=4", "test_limit=2", "train.batch_size=2", "dtype=float32"]
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *settings]))
    for name in ("search", "tune", "fold", "eval"):
        STEPS[name](run)
    assert run.require("fold")["mode"] == "shared"
    assert run.require("eval")["score"].keys() == {"zero_shot", "tuned", "folded"}
    assert not (tmp_path / "model").exists()
