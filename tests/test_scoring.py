"""One round's losses, computed together: as exact as one by one, and shared parts run once."""

from __future__ import annotations

import pytest
import torch
from decoding import answered, answers
from families import build, every_family, prompts
from transformers import TrainingArguments

import eas
from eas.attachment.save import adapter_state
from eas.methods import method_config
from eas.models.anatomy import Anatomy
from eas.searching import SearchConfig
from eas.searching.scoring import block_evaluations, score_sets
from eas.searching.similarity import cosines
from eas.training import EASTrainer

torch.set_num_threads(1)
PIA = {"skip_rank": 4, "adapt_rank": 2}
METHODS = {
    "eas": {"num_skip": 2, **PIA},
    "eas, ffn": {"num_skip": 2, **PIA, "candidates": "ffn"},
    "eas, either": {"num_skip": 3, **PIA, "candidates": "either"},
    "eas, causal": {"num_skip": 2, **PIA, "pooling": "causal"},
    "das": {"num_skip": 2, **PIA},
    "drop": {"num_skip": 2, "rank": 2},
    "drop, either": {"num_skip": 3, "rank": 2, "candidates": "either"},
}
SETS = [(1, 3), (0, 2), (2, 3), (2,), (0, 1), (), (2, 3)]  # of several sizes, one of them twice
EITHER = [(1, 6), (0, 2, 5), (2, 3, 7), (2, 7), (3,), (4, 5, 6, 7), (2, 7)]


def prepared(family="LlamaForCausalLM", label="eas", **build_options):
    """An attached model with random trained weights, a batch of two rows with answers, and sets to score."""
    config = method_config({"name": label.split(",")[0], **METHODS[label]})
    torch.manual_seed(1)
    model = eas.attach(build(family, **build_options), config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_state(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    batch = answered(prompts(family), answers(2))[0]
    return model, batch, EITHER if "either" in label else SETS


@torch.no_grad()
def one_by_one(model, batch, sets):
    losses = []
    for skip_set in sets:
        eas.select(model, skip_set)
        losses.append(float(model(**batch).loss))
    return losses


@pytest.mark.parametrize("label", METHODS)
@every_family
def test_losses_are_those_of_one_set_at_a_time(family, label):
    model, batch, sets = prepared(family, label)
    plain = one_by_one(model, batch, sets)
    assert len({round(loss, 4) for loss in plain}) >= len(sets) - 2  # the sets matter
    assert score_sets(model, batch, sets) == pytest.approx(plain, rel=1e-6)
    assert score_sets(model, batch, sets[:1]) == pytest.approx(plain[:1], rel=1e-6)


@pytest.mark.parametrize("family", ["LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"])
def test_shared_parts_run_once(family):
    model, batch, sets = prepared(family)
    anatomy = Anatomy.of(model)
    ran = dict.fromkeys(["projector", "embeddings", "rotary", *range(4)], 0)
    modules = [*anatomy.projector, model.get_input_embeddings(), anatomy.text_model.rotary_emb, *anatomy.layers]
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: rows.append(output.shape[1]))

    def counter(name):
        def hook(*_):
            ran[name] += 1

        return hook

    for name, module in zip(ran, modules, strict=True):
        module.register_forward_hook(counter(name))
    score_sets(model, batch, sets)
    # in order: (), (2, 3), (2,), (1, 3), (0, 2), (0, 1); (2, 3) twice is one
    trie = {0: 2, 1: 4, 2: 5, 3: 6}
    assert ran == {"projector": 1, "embeddings": 1, "rotary": 1, **trie}
    assert block_evaluations(model, sets) == sum(trie.values())
    assert rows == [5] * 6  # an answer of five tokens: the head reads no other column


def test_similarities_without_a_mask_or_labels_are_those_of_all_tokens():
    _, batch, _ = prepared()
    model = eas.attach(build("LlamaForCausalLM"), method_config({"name": "drop", **METHODS["drop"]})).eval()
    whole = {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}
    expected = cosines(model, [whole])
    assert cosines(model, [{"input_ids": batch["input_ids"]}]) == expected
    assert cosines(model, [{key: t[i : i + 1] for key, t in whole.items()} for i in range(2)]) == pytest.approx(
        expected, rel=1e-6
    )
    assert cosines(model, [batch]) != expected  # a row has padding


def test_every_block_gets_its_own_mask():
    kinds = ["full_attention", "sliding_attention"] * 2
    model, batch, sets = prepared("Qwen2ForCausalLM", use_sliding_window=True, sliding_window=3, layer_types=kinds)
    assert score_sets(model, batch, sets) == pytest.approx(one_by_one(model, batch, sets), rel=1e-6)


def test_answers_of_unequal_length_and_a_given_prompt_mask():
    model, batch, sets = prepared("LlavaForConditionalGeneration")
    batch["prompt_mask"] = (batch["labels"] == -100) & batch["attention_mask"].bool()
    batch["labels"][0, -2:] = -100
    assert score_sets(model, batch, sets) == pytest.approx(one_by_one(model, batch, sets), rel=1e-6)


@pytest.mark.parametrize("where", ["around", "forward"])
def test_autocast_is_the_same_for_all_sets(where):
    model, batch, sets = prepared("LlavaForConditionalGeneration")
    exact = one_by_one(model, batch, sets)
    if where == "forward":  # as accelerate wraps it for a training in mixed precision
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "around"):
        plain, shared = one_by_one(model, batch, sets), score_sets(model, batch, sets)
    assert shared == pytest.approx(plain, rel=1e-3)
    assert plain == pytest.approx(exact, rel=0.05)
    assert all(one != other for one, other in zip(shared, exact, strict=True))


def test_what_cannot_be_shared_is_refused_and_leaves_no_hook():
    model, batch, sets = prepared()
    with pytest.raises(ValueError, match="eval"):
        score_sets(model.train(), batch, sets)
    model.eval()
    with pytest.raises(ValueError, match="labels"):
        score_sets(model, {"input_ids": batch["input_ids"]}, sets)
    added = Anatomy.of(model).layers[1].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    with pytest.raises(ValueError, match="between blocks"):
        score_sets(model, batch, sets)
    added.remove()
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in Anatomy.of(model).layers)


@pytest.mark.parametrize("precision", ["float32", "training in bfloat16", "rounds in bfloat16"])
def test_rounds_of_a_trainer(tmp_path, precision):
    model, batch, _ = prepared("LlavaForConditionalGeneration")
    own = precision.startswith("training")
    args = TrainingArguments(str(tmp_path), max_steps=1, learning_rate=0.0, bf16=own, use_cpu=True)
    args.report_to, args.save_strategy, args.disable_tqdm = [], "no", True
    dtype = "bfloat16" if precision.startswith("rounds") else None
    trainer = EASTrainer(
        model,
        args,
        phase="search",
        search=SearchConfig(warmup_steps=0, interval=1, score_dtype=dtype),
        held_out=[0],
        train_dataset=[0],
        data_collator=lambda examples: batch,
    )
    trainer.train()
    assert model.training
    (found,) = trainer.search_result().rounds
    low = precision != "float32"
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        plain = one_by_one(model.eval(), batch, found.skip_sets)
    assert found.losses == pytest.approx(plain, rel=1e-3 if low else 1e-6)
    assert (found.losses == pytest.approx(one_by_one(prepared(type(model).__name__)[0], batch, found.skip_sets))) != low


def test_a_round_of_unequal_examples_is_scored_in_parts_of_about_one_length(tmp_path, monkeypatch):
    model, _, sets = prepared("LlamaForCausalLM")
    sizes = [3, 40, 4, 38, 5, 3, 6, 41, 4, 5, 3, 6, 7, 4, 5, 6]
    held_out = [torch.randint(3, 20, (size,), generator=torch.Generator().manual_seed(size)) for size in sizes]
    read = []

    def collate(examples):
        longest = max(map(len, examples))
        ids = torch.stack([torch.nn.functional.pad(ids, (longest - len(ids), 0)) for ids in examples])
        mask = torch.stack([torch.arange(longest) >= longest - len(ids) for ids in examples]).long()
        labels = ids.masked_fill(torch.arange(longest) < longest - 2, -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def counted(model, inputs, sets):
        read.append(inputs["input_ids"].numel())
        return score_sets(model, inputs, sets)

    monkeypatch.setattr("eas.training.trainer.score_sets", counted)
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to=[])
    trainer = EASTrainer(model, args, phase="search", held_out=held_out, train_dataset=[0], data_collator=collate)
    assert trainer.score(sets, held_out) == pytest.approx(one_by_one(model.eval(), collate(held_out), sets), rel=1e-5)
    assert len(read) == 2
    assert sum(read) == 8 * 5 + 8 * 41
    read.clear()
    trainer.score(sets, held_out[8:])  # alike
    assert len(read) == 1
