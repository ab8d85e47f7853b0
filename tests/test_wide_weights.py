"""Trained weights of 16 bits are the rounded copies of weights that an optimizer keeps in float32."""

import pytest
import torch
from torch.nn import Parameter
from torch.optim import SGD, AdamW
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import eas
from eas.training.wide_weights import keep_float32

START = torch.linspace(-2, 2, 64)


def gradients(steps, dtype):
    each = torch.Generator().manual_seed(0)
    return [(1 + torch.randn(64, generator=each)).to(dtype) for _ in range(steps)]


def tuned(start, gradients, make):
    """The weight after a step of each gradient, and its optimizer."""
    weight = Parameter(start.clone())
    optimizer = make([weight])
    keep_float32(optimizer)
    return stepped(weight, optimizer, gradients), optimizer


def stepped(weight, optimizer, gradients):
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight


MAKE = {
    "AdamW": lambda weights: AdamW(weights, lr=3e-4),
    "fused AdamW": lambda weights: AdamW(weights, lr=3e-4, fused=True),
    "SGD": lambda weights: SGD(weights, lr=3e-4, momentum=0.9),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MAKE)
def test_a_weight_is_what_float32_gives_rounded(name, dtype):
    steps, start = gradients(40, dtype), START.to(dtype)
    expected, _ = tuned(start.float(), [gradient.float() for gradient in steps], MAKE[name])
    weight, _ = tuned(start, steps, MAKE[name])
    assert weight.dtype == dtype
    assert torch.equal(weight, expected.to(dtype))
    plain = Parameter(start.clone())
    stepped(plain, MAKE[name]([plain]), steps)
    assert (plain != expected.to(dtype)).float().mean() > 0.2  # what would be lost


def test_an_optimizer_that_was_saved_continues_exactly():
    steps, make = gradients(10, torch.bfloat16), MAKE["AdamW"]
    expected, _ = tuned(START.bfloat16(), steps, make)
    half, optimizer = tuned(START.bfloat16(), steps[:5], make)
    again = Parameter(half.detach().clone())
    other = make([again])
    keep_float32(other)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(again, half)
    assert torch.equal(stepped(again, other, steps[5:]), expected)


def test_a_weight_that_was_set_from_outside_is_where_the_copy_goes_on():
    steps, make = gradients(2, torch.bfloat16), MAKE["SGD"]
    weight, optimizer = tuned(START.bfloat16(), steps[:1], make)
    with torch.no_grad():
        weight[:8] = 7
    stepped(weight, optimizer, steps[1:])
    assert torch.equal(weight[:8], torch.full((8,), 7.0).bfloat16())


def test_scaled_gradients_are_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=2, **sizes)).half()
    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    rows = [{"input_ids": torch.arange(4), "labels": torch.arange(4)}]
    trainer = eas.EASTrainer(eas.attach(model, eas.FullConfig()), args, train_dataset=rows)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(ValueError, match=r"fp16 training scales gradients, and model\..* is trained in 16 bits; load"):
        trainer.train()


@pytest.mark.parametrize("own", [False, True])
def test_full_tuning_in_bfloat16_adds_up_small_updates_and_resumes_exactly(own, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    rows = [{"input_ids": list(range(i, i + 6)), "labels": list(range(i, i + 6))} for i in range(8)]

    def trainer(folder, dtype=torch.bfloat16):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=2, **sizes)).to(dtype)
        model = eas.attach(model, eas.FullConfig())
        args = TrainingArguments(
            str(tmp_path / folder),
            max_steps=6,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            per_device_train_batch_size=2,
            save_steps=3,
            report_to="none",
            use_cpu=True,
        )
        given = {"optimizers": (AdamW(model.parameters(), lr=1e-5), None)} if own else {}
        return eas.EASTrainer(model, args, train_dataset=rows, data_collator=collate, **given)

    def collate(rows):
        return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}

    whole = trainer("a")
    before = [weight.detach().clone() for weight in whole.model.parameters()]
    whole.train()
    copies = [state["float32"] for state in whole.optimizer.state.values()]
    assert all(copy.dtype == torch.float32 for copy in copies)
    moved = [not torch.equal(copy, old) for copy, old in zip(copies, before, strict=False)]
    assert all(moved)
    again = trainer("b")
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
