"""What an attached model becomes in a pickle, under ``save_pretrained`` and in a plain Trainer's checkpoints."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contract import tuned
from families import attached, build, build_meter, logits, meter_batch, prompts, randomise
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer, TrainingArguments

import eas
import eas.attachment.load
from eas import METHODS, attach, fold, method_config, prune, select

LLAMA, LLAVA = "LlamaForCausalLM", "LlavaForConditionalGeneration"
REFUSED = r"eas_attached|open it by eas\.load\(base, folder\)"


@pytest.mark.parametrize("options", [{"name": name} for name in METHODS], ids=str)
def test_an_attached_model_can_be_pickled(options, tmp_path):
    if options["name"] in ("eas", "das", "drop"):
        options = options | {"num_skip": 2}
    if options["name"] == "eas":
        options = options | {"skip_rank": 4, "adapt_rank": 2}
    model, inputs = attach(build(LLAMA), method_config(options)), prompts(LLAMA)
    randomise(model)
    if "num_skip" in options:
        select(model, [0, 2])
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(again) is type(model)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    assert again.eas.anatomy.text_model is again.model
    again.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize("mode", ["shared", "per_example", "pruned", "standalone"])
def test_a_folded_pruned_or_standalone_model_can_be_pickled(mode, tmp_path):
    model, inputs = attached(LLAMA), prompts(LLAMA, (6,))
    if mode in ("shared", "per_example"):
        fold(model, mode)
    else:
        prune(model)
    if mode == "standalone":
        eas.save_standalone(model, tmp_path / "standalone")
        model = eas.load(tmp_path / "standalone")
    again = pickle.loads(pickle.dumps(model))  # whose tensors may be aligned otherwise than those of a mapped file
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs), rtol=0, atol=1e-6)


def test_a_model_that_saw_pictures_can_be_pickled():
    model, inputs = attached("LlavaForConditionalGeneration"), prompts("LlavaForConditionalGeneration")
    before = logits(model, inputs)  # after it, hooks of transformers record what the vision tower gives
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(again, inputs), before)
    assert torch.equal(logits(model, inputs), before)
    again = pickle.loads(pickle.dumps(model))  # with the hooks that the last pass put on
    assert torch.equal(logits(again, inputs), before)


@pytest.mark.parametrize("options", [{"name": "eas", "num_skip": 2, "preset": "meter"}, {"name": "prefix"}], ids=str)
def test_an_attached_meter_can_be_pickled(options):
    model, batch = attach(build_meter("vqa"), method_config(options)).eval(), meter_batch("vqa")
    if "num_skip" in options:
        select(model, [0, 1])
    before = model(**batch).logits
    assert torch.equal(pickle.loads(pickle.dumps(model))(**batch).logits, before)


@pytest.mark.slow
def test_another_process_opens_a_pickled_model(tmp_path):
    model, inputs = attached(LLAMA), prompts(LLAMA)
    torch.save((model, inputs, logits(model, inputs)), tmp_path / "model.pt")
    code = "import sys, torch; model, inputs, expected = torch.load(sys.argv[1], weights_only=False)\n"
    code += "assert torch.equal(model(**inputs).logits, expected)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("pruned", [False, True])
def test_save_pretrained_leaves_nothing_that_opens_as_the_stock_class(pruned, tmp_path):
    model, inputs = attached(LLAMA), prompts(LLAMA)
    if pruned:
        prune(model)
    (tmp_path / "config.json").write_text("{}")
    model.save_pretrained(tmp_path)
    for opened_by in (AutoModelForCausalLM, LlamaForCausalLM):
        with pytest.raises((StrictDataclassError, ValueError), match=REFUSED):
            opened_by.from_pretrained(tmp_path)
    again = eas.load(build(LLAMA), tmp_path)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in written.items())


@pytest.mark.parametrize("family", [LLAMA, "LlavaForConditionalGeneration"])
@pytest.mark.parametrize("options", [{"name": "eas", "num_skip": 2, "preset": "llava"}, {"name": "lora"}], ids=str)
def test_save_pretrained_of_a_part_with_the_method_in_it_is_refused(family, options, tmp_path):
    model = attach(build(family), method_config(options))
    parts = [model.model, model.model.language_model] if family.startswith("Llava") else [model.model]
    for part in parts:
        with pytest.raises(ValueError, match=r"a part of an attached model.*save the whole model \(eas\.save\)"):
            part.save_pretrained(tmp_path / "part")
    assert not (tmp_path / "part").exists()
    if family.startswith("Llava"):
        model.model.vision_tower.save_pretrained(tmp_path / "vision")
        assert (tmp_path / "vision" / "model.safetensors").is_file()
    eas.detach(model)
    parts[-1].save_pretrained(tmp_path / "part")
    assert (tmp_path / "part" / "model.safetensors").is_file()


def test_save_pretrained_of_lora_and_of_a_tuned_base(tmp_path):
    lora = attach(build(LLAMA), method_config({"name": "lora", "rank": 2}))
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises((StrictDataclassError, ValueError), match=REFUSED):
        AutoModelForCausalLM.from_pretrained(tmp_path / "lora")
    full, inputs = attach(build(LLAMA), method_config({"name": "full"})), prompts(LLAMA)
    full.save_pretrained(tmp_path / "full")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "full"), inputs), logits(full, inputs))


def rows():
    g = torch.Generator().manual_seed(0)
    for ids in torch.randint(6, 64, (16, 12), generator=g):
        labels = ids.clone()
        labels[:6] = -100
        yield {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def plain_trainer(folder: Path, steps: int, **more) -> Trainer:
    args = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, save_steps=2, use_cpu=True, report_to="none",
        lr_scheduler_type="constant", learning_rate=0.01, **more
    )  # fmt: skip
    data = list(rows())
    return Trainer(attached(LLAMA), args, train_dataset=data, eval_dataset=data[:4])


def test_a_plain_trainer_resumes_and_its_checkpoints_open(tmp_path):
    whole = plain_trainer(tmp_path / "whole", 4)
    whole.train()
    plain_trainer(tmp_path / "part", 2).train()
    resumed = plain_trainer(tmp_path / "part", 4)
    resumed.train(resume_from_checkpoint=True)
    trained, again = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in trained.items())
    opened = eas.load(build(LLAMA), tmp_path / "part" / "checkpoint-4")
    assert torch.equal(logits(opened, prompts(LLAMA)), logits(whole.model.eval(), prompts(LLAMA)))
    with pytest.raises((StrictDataclassError, ValueError), match=REFUSED):
        AutoModelForCausalLM.from_pretrained(tmp_path / "part" / "checkpoint-4")


def test_a_plain_trainer_goes_back_to_its_best_checkpoint(tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 2}
    trainer = plain_trainer(tmp_path, 4, **best)
    trainer.train()
    kept = eas.load(build(LLAMA), trainer.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in trainer.model.state_dict().items())


def test_a_base_without_all_its_weights_is_refused(tmp_path):
    build(LLAMA).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
        del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(eas.CheckpointError, match=r"no weights for model\.layers\.1\.mlp.* and 1 others.* be random"):
        eas.attachment.load.load_base(str(tmp_path))


def test_a_base_without_its_head_is_refused(tmp_path):
    build(LLAMA).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(eas.CheckpointError, match=r"no weights for lm_head\.weight"):
        eas.attachment.load.load_base(str(tmp_path))


def test_numbers_that_are_not_finite_are_not_read(tmp_path):
    eas.save(attached(LLAMA), tmp_path)
    path = tmp_path / "adapter.safetensors"
    with safe_open(path, "pt") as file:
        tensors, about = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["layers.0.skip_pia.down1.weight"][0, 0] = float("nan")
    save_file(tensors, path, about)
    with pytest.raises(ValueError, match=r"layers\.0\.skip_pia\.down1\.weight holds NaN or infinite numbers"):
        eas.load(build(LLAMA), tmp_path)


def unfrozen(label="eas", part="lm_head", **options):
    """A tuned model whose head, or another part, the user trains beside the method."""
    model = tuned(LLAMA, label, **options)
    (weight,) = [parameter for name, parameter in model.named_parameters() if part in name]
    return model, weight.requires_grad_(True)


def step(weight):
    """What an optimizer does."""
    with torch.no_grad():
        weight.add_(0.1)


BESIDE = r"lm_head\.weight \(1 in all\) is trained beside the method '{}'.* methods 'head' and 'full'.*save_standalone"


@pytest.mark.parametrize("label", ["eas", "lora", "drop", "prefix"])
def test_weights_trained_beside_the_method_are_not_lost(label, tmp_path):
    model, weight = unfrozen(label)
    step(weight)
    for write in (eas.save, type(model).save_pretrained):
        with pytest.raises(ValueError, match=rf"refused is not written: {BESIDE.format(label)}"):
            write(model, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    weight.requires_grad_(False)  # the fingerprint knows it
    with pytest.raises(ValueError, match=rf"refused is not written: {BESIDE.format(label)}"):
        eas.save(model, tmp_path / "refused")
    if eas.attachment.state.candidates(model):
        prune(model)
    eas.save_standalone(model, tmp_path / "whole")  # the remedy
    opened = eas.load(tmp_path / "whole")
    assert torch.equal(opened.lm_head.weight, weight)
    torch.testing.assert_close(logits(opened, prompts(LLAMA)), logits(model, prompts(LLAMA)), rtol=0, atol=1e-6)


def test_a_tied_head_trained_beside_the_method_is_not_lost(tmp_path):
    model, weight = unfrozen(part="embed_tokens", tie_word_embeddings=True)
    step(weight)
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight \(1 in all\) is trained beside"):
        eas.save(model, tmp_path)


def test_a_plain_trainers_checkpoint_without_all_that_it_trained_is_refused(tmp_path):
    trainer = plain_trainer(tmp_path, 2)
    trainer.model.lm_head.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=BESIDE.format("eas")):
        trainer.train()


def test_whole_weights_beside_an_adapter_are_not_passed_over(tmp_path):
    model, weight = unfrozen()
    weight.requires_grad_(False)
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        eas.load(build(LLAMA, dtype=dtype), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][7] += 1  # a row that no fingerprint knows
    save_file(tensors, path, metadata={"format": "pt"})
    for base, name in ((build(LLAMA), None), (build(LLAMA, dtype=torch.bfloat16), "a")):
        with pytest.raises(eas.CheckpointError, match=r"1 of them are neither .* first model\.embed_tokens\.weight"):
            eas.load(base, tmp_path, name=name)
        assert not eas.attached(base)


def test_the_whole_weights_beside_an_adapter_may_hold_what_it_trains(tmp_path):
    model = tuned(LLAVA, "eas")
    projector = attach(build(LLAVA), eas.EASConfig(2, skip_rank=4, adapt_rank=2, train_projector=True))
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.mul_(1.5 if parameter.requires_grad else 1)
    for each in (model, projector.eval()):
        each.save_pretrained(tmp_path)
        assert torch.equal(logits(eas.load(build(LLAVA), tmp_path), prompts(LLAVA)), logits(each, prompts(LLAVA)))
