"""Whoever keeps the labels from the model: the answer is never a part of the prompt, and no row is without one."""

import pytest
import torch
import trl
from datasets import Dataset
from families import attached, build, prompts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

import eas
from eas import EASTrainer, WithPromptMask, log_likelihood

LLAMA = "LlamaForCausalLM"


def rows(count=4, tokens=12):
    g = torch.Generator().manual_seed(0)
    for ids in torch.randint(6, 64, (count, tokens), generator=g):
        labels = ids.clone()
        labels[:6] = -100
        yield {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def stack(batch):
    return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}


def arguments(folder, **more):
    return TrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=4, save_strategy="no", use_cpu=True, report_to="none",
        logging_steps=1, **more
    )  # fmt: skip


def first_loss(kind, folder, *, collator=stack, smoothing=0.0, **more):
    args = arguments(folder, label_smoothing_factor=smoothing)
    trainer = kind(attached(LLAMA), args, train_dataset=list(rows()), data_collator=collator, **more)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


def outside(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100)


def test_losses_computed_outside_are_those_of_the_model(tmp_path):
    expected = pytest.approx(first_loss(EASTrainer, tmp_path), abs=1e-5)
    assert first_loss(EASTrainer, tmp_path, smoothing=1e-9) == expected
    assert first_loss(EASTrainer, tmp_path, compute_loss_func=outside) == expected
    assert first_loss(Trainer, tmp_path) == expected
    assert first_loss(Trainer, tmp_path, smoothing=1e-9, collator=WithPromptMask(stack)) == expected


def test_a_training_step_that_cannot_know_its_prompt_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither labels nor prompt_mask.* wrap the collator in eas.WithPromptMask"):
        first_loss(Trainer, tmp_path, smoothing=1e-9)
    model = attached(LLAMA).train()
    with pytest.raises(ValueError, match="got neither labels nor prompt_mask"):
        model(**prompts(LLAMA))
    with torch.no_grad():
        model(**prompts(LLAMA))  # nothing is learnt
    model.eval()(**prompts(LLAMA))


@pytest.mark.parametrize("empty", [0, 1])
def test_a_row_without_a_prompt_token_is_refused_with_and_without_labels(empty):
    model, inputs = attached(LLAMA), prompts(LLAMA)
    mask = inputs["attention_mask"].bool()
    mask[empty] = False
    with pytest.raises(ValueError, match=f"row {empty} has no prompt token: its prompt_mask is False"):
        model(**inputs, prompt_mask=mask)
    with pytest.raises(ValueError, match=f"row {empty} has no prompt token: its prompt_mask is False"):
        model(**inputs, prompt_mask=mask, labels=inputs["input_ids"])


def evaluated(kind, folder, *, smoothing=0.0, **more):
    args = arguments(folder, label_smoothing_factor=smoothing)
    data = list(rows())
    trainer = kind(attached(LLAMA), args, train_dataset=data, eval_dataset=data, data_collator=stack, **more)
    return trainer.evaluate()["eval_loss"]


class OwnLoss(EASTrainer):
    """Takes the labels out of the batch, as recipes for distillation and weighted losses do."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = outside(outputs, labels)
        return (loss, outputs) if return_outputs else loss


def test_evaluation_and_an_own_compute_loss_know_the_prompt(tmp_path):
    expected = pytest.approx(evaluated(EASTrainer, tmp_path), abs=1e-5)
    assert evaluated(EASTrainer, tmp_path, smoothing=1e-9) == expected
    assert evaluated(EASTrainer, tmp_path, compute_loss_func=outside) == expected
    assert evaluated(OwnLoss, tmp_path) == expected
    assert first_loss(OwnLoss, tmp_path) == pytest.approx(first_loss(EASTrainer, tmp_path), abs=1e-5)


@pytest.mark.parametrize("kind", [torch.long, torch.float])
def test_a_prompt_mask_of_numbers_is_one_of_bools(kind):
    model, inputs = attached(LLAMA), prompts(LLAMA)
    mask = inputs["attention_mask"].bool()
    mask[:, -2:] = False
    expected = model(**inputs, prompt_mask=mask).logits
    assert torch.equal(model(**inputs, prompt_mask=mask.to(kind)).logits, expected)
    assert torch.equal(model.model(**inputs, prompt_mask=mask.to(kind))[0], model.model(**inputs, prompt_mask=mask)[0])


def test_a_prompt_mask_of_another_shape_and_an_empty_one_of_the_language_model_are_refused():
    model, inputs = attached(LLAMA), prompts(LLAMA)
    mask = inputs["attention_mask"]
    with pytest.raises(ValueError, match=r"prompt_mask has shape \(2, 3\), but the batch has \(2, 10\) tokens"):
        model(**inputs, prompt_mask=mask[:, :3])
    with pytest.raises(ValueError, match="row 0 has no prompt token"):
        model.model(**inputs, prompt_mask=torch.zeros_like(mask))


@pytest.mark.parametrize("missing", ["labels", "attention_mask"])
def test_a_batch_from_which_the_prompt_cannot_be_told_is_refused(missing):
    batch = {key: value for key, value in stack(list(rows())).items() if key != missing}
    with pytest.raises(ValueError, match=f"the collator returns no {missing}, so the prompt cannot be told"):
        WithPromptMask(lambda examples: batch)([0])


def tokenizer():
    words = ["<pad>", "<s>", "</s>", "<unk>", *map(str, range(58)), "user", "assistant"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] + ' ' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + ' ' }}{% endgeneration %}{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
    )
    return made


def sft(folder, data, **more):
    config = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "use_cpu": True, "report_to": "none", **more}
    args = trl.SFTConfig(output_dir=str(folder), **config)
    trainer = trl.SFTTrainer(
        model=attached(LLAMA), args=args, train_dataset=Dataset.from_list(data), processing_class=tokenizer()
    )
    trainer.data_collator = WithPromptMask(trainer.data_collator)
    return trainer


TEXT = [{"text": f"{i} {i + 1} 7 {i}"} for i in range(8)]
MESSAGES = [
    {"messages": [{"role": "user", "content": f"{i} 7"}, {"role": "assistant", "content": "9"}]} for i in range(8)
]
COMPLETION = [{"prompt": f"{i} {i + 1}", "completion": f" 7 {i}"} for i in range(8)]


@pytest.mark.parametrize(
    ("data", "more"), [(TEXT, {}), (MESSAGES, {}), (COMPLETION, {"completion_only_loss": False})], ids=str
)
def test_rows_of_which_trl_masks_nothing_are_refused_before_a_step(data, more, tmp_path):
    trainer = sft(tmp_path, data, **more)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match=r"row 0 has no prompt.* prompt and completion.*assistant_only_loss=True"):
        trainer.train()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


@pytest.mark.parametrize(("data", "more"), [(COMPLETION, {}), (MESSAGES, {"assistant_only_loss": True})], ids=str)
def test_rows_of_which_trl_masks_the_prompt_train(data, more, tmp_path):
    trainer = sft(tmp_path, data, **more)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert all(0 < loss < 20 for loss in losses)
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_what_is_not_finite_is_not_saved(tmp_path):
    model = attached(LLAMA)
    with torch.no_grad():
        model.model.layers[0].skip_pia.down1.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layers\.0\.skip_pia\.down1\.weight"):
        eas.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "adapter.safetensors").exists()


# scores


def scored(model, prompt, answer):
    ids = torch.cat([prompt, torch.tensor([answer])], 1)
    labels = ids.clone()
    labels[:, : prompt.shape[1]] = -100
    return float(log_likelihood(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}))


def test_the_likelihood_of_an_answer_is_what_generating_it_has():
    model, prompt = attached(LLAMA), torch.arange(6, 12)[None]
    out = model.generate(prompt, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    answer = out.sequences[0, prompt.shape[1] :]
    steps = torch.stack(out.logits, 1)[0].log_softmax(-1)
    expected = float(steps.gather(1, answer[:, None]).sum())
    assert scored(model, prompt, answer.tolist()) == pytest.approx(expected, abs=1e-4)
    both = [scored(model, prompt, [20, *rest]) - scored(model, prompt, [20]) for rest in ([21], [50])]
    assert both[0] != pytest.approx(both[1])


def test_rows_of_a_batch_are_scored_apart_and_padding_does_not_count():
    model, prompt = attached(LLAMA), torch.arange(6, 12)[None]
    alone = [scored(model, prompt, [20, 21]), scored(model, prompt, [30])]
    ids = torch.tensor([[*range(6, 12), 20, 21], [*range(6, 12), 30, 0]])
    labels = torch.where(torch.arange(8) < 6, -100, ids)
    labels[1, -1] = -100
    both = log_likelihood(model, {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels})
    torch.testing.assert_close(both, torch.tensor(alone), rtol=0, atol=1e-4)


def test_scoring_wants_labels_and_a_model_at_rest():
    model, ids = build(LLAMA), torch.arange(6, 12)[None]
    with pytest.raises(ValueError, match="needs labels"):
        log_likelihood(model, {"input_ids": ids})
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        log_likelihood(model.train(), {"input_ids": ids, "labels": ids})


def test_labels_that_start_with_the_answer_are_refused_by_the_model_itself():
    model, inputs = attached(LLAMA), prompts(LLAMA)
    with pytest.raises(ValueError, match="row 0 has no prompt token: its labels start with the answer"):
        model(**inputs, labels=inputs["input_ids"])
