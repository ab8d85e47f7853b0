"""The search and tune phases inside transformers' Trainer, and TRL's in the tune phase."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from families import FAMILIES, build, prompts, quick
from trainers import CONFIG, arguments, lively, rows, searcher
from transformers import TrainingArguments

import eas
from eas.attachment.save import adapter_state
from eas.errors import DataError
from eas.hf.trainer import checkpoint_activations
from eas.models.anatomy import Anatomy
from eas.training import EASTrainer, WithPromptMask, last_checkpoint


def test_search_then_tune_leaves_the_base_untouched_and_learns(tmp_path):
    trainer = searcher(tmp_path / "search")
    model = trainer.model
    before = {k: v.clone() for k, v in model.state_dict().items() if "_pia." not in k}
    trainer.train()
    result = trainer.search_result()
    assert len(result.rounds) == 6
    assert result.skip_set == tuple(sorted(result.ranking[:2])) == eas.skip_set(model)
    assert all(len(r.losses) == 3 and r.step == 2 + 2 * i for i, r in enumerate(result.rounds))
    assert "held_out_loss" in trainer.state.log_history[-2]

    eas.select(model, result.skip_set)
    tuner = EASTrainer(model, arguments(tmp_path / "tune", max_steps=100), train_dataset=rows(8))
    tuner.train()
    losses = [entry["loss"] for entry in tuner.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert eas.skip_set(model) == result.skip_set
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_resumed_search_is_the_undisturbed_one(tmp_path):
    whole = searcher(tmp_path / "whole")
    whole.train()
    # keep the checkpoint at step 4, drop the rest: as if killed between steps 4 and 8
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "killed" / "checkpoint-4")
    (tmp_path / "killed" / "checkpoint-8").mkdir()  # half-written
    resumed = searcher(tmp_path / "killed")
    checkpoint = last_checkpoint(tmp_path / "killed")
    assert checkpoint is not None
    assert checkpoint.endswith("checkpoint-4")
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.search_result().rounds == whole.search_result().rounds
    ours, theirs = adapter_state(resumed.model), adapter_state(whole.model)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_checkpoint_of_another_configuration_or_phase_is_refused(tmp_path):
    searcher(tmp_path).train()
    model = eas.attach(lively("LlamaForCausalLM"), eas.EASConfig(3, **CONFIG))
    other = EASTrainer(model, arguments(tmp_path / "o"), train_dataset=rows(8))
    with pytest.raises(eas.CheckpointError, match="another configuration"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    (tmp_path / "checkpoint-12" / "search_state.json").unlink()
    with pytest.raises(eas.CheckpointError, match=r"search_state\.json"):
        searcher(tmp_path / "p").train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


@pytest.mark.parametrize(
    "family",
    quick(["LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"], ["LlavaForConditionalGeneration"]),
)
def test_multimodal_models_train_with_checkpointing_accumulation_and_bf16(tmp_path, family):
    torch.manual_seed(0)
    model = eas.attach(lively(family), eas.EASConfig(2, **CONFIG, train_projector=True))
    eas.select(model, (0, 3))
    batch = prompts(family, pad="right")
    batch["labels"] = torch.where(torch.arange(batch["input_ids"].shape[1]) >= 10, batch["input_ids"], -100)
    batch["labels"][batch["attention_mask"] == 0] = -100
    arguments_ = arguments(
        tmp_path,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=1,
        bf16=True,
        max_steps=20,
    )
    checkpoint_activations(model)
    trainer = EASTrainer(model, arguments_, train_dataset=[0] * 8, data_collator=lambda _: batch)
    tower = {k: v.clone() for k, v in model.state_dict().items() if "vision" in k or "visual.blocks" in k}
    (projector,) = Anatomy.of(model).projector
    was = {k: v.clone() for k, v in projector.state_dict().items()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in tower.items())
    assert any(not torch.equal(projector.state_dict()[key], value) for key, value in was.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_weighs_every_label_the_same_however_it_is_cut(tmp_path, family):
    ids = torch.randint(6, 64, (8, 12), generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([1, 7, 2, 5, 1, 3, 9, 2])[:, None]
    labels = torch.where(torch.arange(12) >= 12 - answers, ids, -100)
    examples = [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": of} for i, of in zip(ids, labels, strict=True)
    ]

    def trained(size):
        model = eas.attach(lively(family), eas.EASConfig(2, **CONFIG))
        eas.select(model, (0, 3))
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        fixed = {
            "max_steps": 1,
            "learning_rate": 1.0,
            "optim": "sgd",
            "max_grad_norm": 0.0,
            "lr_scheduler_type": "constant",
        }
        trainer = EASTrainer(model, arguments(tmp_path / str(size), **cut, **fixed), train_dataset=examples)
        before = {key: value.clone() for key, value in adapter_state(model).items()}
        trainer.train()
        return torch.cat([(value - before[key]).flatten() for key, value in adapter_state(model).items()])

    whole = trained(8)
    assert whole.norm() > 0.01
    assert (trained(2) - whole).norm() < 1e-4 * whole.norm()


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration"])  # both ways to weigh
def test_a_batch_without_a_label_adds_nothing_and_a_step_without_one_is_refused(tmp_path, family):
    examples = rows(4)
    for example in examples[:2]:
        example["labels"][:] = -100

    def trained(size, data):
        model = eas.attach(lively(family), eas.EASConfig(2, **CONFIG))
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        fixed = {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "lr_scheduler_type": "constant"}
        trainer = EASTrainer(model, arguments(tmp_path / str(size), **cut, **fixed), train_dataset=data)
        before = {key: value.clone() for key, value in adapter_state(model).items()}
        trainer.train()
        return torch.cat([(value - before[key]).flatten() for key, value in adapter_state(model).items()])

    whole = trained(4, examples)
    assert whole.norm() > 0.01
    assert (trained(1, examples) - whole).norm() < 1e-4 * whole.norm()
    with pytest.raises(DataError, match="step 0 has no label: every token of its examples is -100"):
        trained(1, examples[:2])


def test_smoothed_labels_of_a_model_with_images_are_shifted(tmp_path):
    def loss(smoothing):
        model = eas.attach(lively("LlavaForConditionalGeneration"), eas.EASConfig(2, **CONFIG))
        args = arguments(tmp_path, max_steps=1, logging_steps=1, label_smoothing_factor=smoothing)
        trainer = EASTrainer(model, args, train_dataset=rows(4), eval_dataset=rows(4))
        trainer.train()
        return trainer.state.log_history[0]["loss"], trainer.evaluate()["eval_loss"]

    torch.manual_seed(0)
    expected = loss(0.0)
    torch.manual_seed(0)
    assert loss(1e-9) == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_training_and_names_the_last_checkpoint(tmp_path):
    trainer = searcher(tmp_path)
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="learning_rate"):
        trainer.train()
    with pytest.raises(FloatingPointError, match=r"losses of the round at step 1 are \[nan, .*; lower learning_rate"):
        trainer.search_phase.round(1)
    with pytest.raises(eas.ConfigError, match="has made no round yet"):
        trainer.search_result()


def test_a_trainer_that_fails_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    model = eas.attach(build("LlamaForCausalLM"), eas.EASConfig(1, **CONFIG))
    before = set(vars(model))
    with pytest.raises(ValueError, match="eval_dataset"):
        EASTrainer(model, arguments(tmp_path, eval_strategy="steps"))
    assert set(vars(model)) == before | {"_hf_peft_config_loaded"}
    assert not model._hf_peft_config_loaded  # else nothing could be saved
    trainer = searcher(tmp_path)
    trainer.model.train()
    monkeypatch.setattr(trainer, "data_collator", None)
    for scores in (trainer.cosines, lambda few: trainer.score([(0,)], few)):
        with pytest.raises(TypeError):
            scores(rows(2))
        assert trainer.model.training


def test_processes_weigh_cosines_by_tokens(tmp_path, monkeypatch):
    trainer, examples = searcher(tmp_path), rows(5)
    for example in examples[::2]:  # of the first process
        example["attention_mask"][:5] = 0
    whole = trainer.cosines(examples)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    parts = []
    for process in (0, 1):
        monkeypatch.setattr(TrainingArguments, "process_index", process)
        monkeypatch.setattr("eas.training.trainer.from_all", lambda own: parts.append(own) or [own])
        assert trainer.cosines(examples) != pytest.approx(whole, rel=1e-4)
    monkeypatch.setattr("eas.training.trainer.from_all", lambda own: parts)
    assert trainer.cosines(examples) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("phase", ["tune", "search"])
def test_weights_that_no_checkpoint_would_hold_are_not_trained(tmp_path, phase):
    model = eas.attach(build("LlamaForCausalLM"), eas.EASConfig(num_skip=1, **CONFIG))
    model.get_input_embeddings().weight.requires_grad_(True)
    trainer = EASTrainer(model, arguments(tmp_path), phase=phase, train_dataset=rows(8), held_out=rows(8))
    with pytest.raises(ValueError, match=r"does not start: model\.embed_tokens\.weight \(1 in all\) is trained beside"):
        trainer.train()


def test_misuse_is_refused_at_construction(tmp_path):
    with pytest.raises(ValueError, match="attach"):
        EASTrainer(build("LlamaForCausalLM"), arguments(tmp_path))
    model = eas.attach(build("LlamaForCausalLM"), eas.EASConfig(0, **CONFIG))
    with pytest.raises(eas.ConfigError, match="nothing to search"):
        EASTrainer(model, arguments(tmp_path), phase="search", held_out=rows(2))
    with pytest.raises(ValueError, match="phase"):
        EASTrainer(model, arguments(tmp_path), phase="warm")
    model = eas.attach(build("LlamaForCausalLM"), eas.EASConfig(1, **CONFIG))
    with pytest.raises(eas.ConfigError, match="held-out"):
        EASTrainer(model, arguments(tmp_path), phase="search")
    for rule in ("similarity", "random", "last", "every_other"):
        with pytest.raises(eas.ConfigError, match=f"rule = '{rule}' needs no search"):
            EASTrainer(model, arguments(tmp_path), phase="search", search=eas.SearchConfig(rule), held_out=rows(2))
    several = arguments(tmp_path)
    several._n_gpu = 2
    with pytest.raises(ValueError, match=r"one process sees 2 GPUs, .* torchrun .*, or set CUDA_VISIBLE_DEVICES=0"):
        EASTrainer(model, several)
    eas.fold(model)
    with pytest.raises(ValueError, match="unfold"):
        EASTrainer(model, arguments(tmp_path))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # TRL gives it, not we
def test_trl_tunes_an_attached_model(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<s>", "</s>", *map(str, range(60))])}))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    data = Dataset.from_list([{"prompt": f"{i} {i + 1} 7", "completion": f" {i}"} for i in range(40)])
    torch.manual_seed(0)
    model = eas.attach(lively("LlamaForCausalLM"), eas.EASConfig(2, **CONFIG))
    eas.select(model, (1, 2))
    frozen = model.model.layers[0].mlp.up_proj.weight.clone()
    args = trl.SFTConfig(output_dir=str(tmp_path), max_steps=30, learning_rate=1e-2, report_to="none", use_cpu=True)
    args.logging_steps, args.save_strategy = 5, "no"
    trainer = trl.SFTTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)
    with pytest.raises(ValueError, match="prompt_mask"):
        trainer.train()
    trainer.data_collator = WithPromptMask(trainer.data_collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, frozen)
    assert json.dumps(eas.skip_set(model)) == "[1, 2]"
