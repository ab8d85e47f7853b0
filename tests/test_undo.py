"""A model that is given back: by detach, by disabled, and by an attach that fails."""

from __future__ import annotations

import copy
import pickle
from itertools import product

import pytest
import torch
from contract import CONFIGS, METER, METER_CONFIGS, base_of, config_of, inputs_of, method, with_weights
from families import build, logits
from trainers import arguments, rows

import eas
from eas.hf.classes import become

torch.set_num_threads(1)
LLAMA, LLAVA = "LlamaForCausalLM", "LlavaForConditionalGeneration"
EAS = eas.EASConfig(num_skip=2, skip_rank=4, adapt_rank=2)
CASES = [*product([LLAVA], CONFIGS), *((METER, label) for label in METER_CONFIGS)]
CASES = [case for case in CASES if method(case[1]) not in ("full", "head")]


def picture(model):
    """All of a model but the values of its tensors."""
    return {
        name: (
            type(module),
            set(vars(module)),
            list(module._modules),
            {key: id(value) for key, value in (*module._parameters.items(), *module._buffers.items())},
            {key: value is not None and value.requires_grad for key, value in module._parameters.items()},
            [*module._forward_pre_hooks.values(), *module._forward_hooks.values()],
        )
        for name, module in model.named_modules()
    }


def of(model):
    return picture(model), model.config.to_dict(), [tensor.clone() for tensor in model.state_dict().values()]


def same(model, before):
    structure, config, tensors = before
    now = picture(model)
    assert now.keys() == structure.keys()
    for name, parts in now.items():
        assert parts == structure[name], name
    assert model.config.to_dict() == config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), tensors, strict=True))


@pytest.mark.parametrize(("family", "label"), CASES)
def test_detached_it_is_the_base(family, label):
    model = base_of(family)
    next(model.parameters()).requires_grad_(False)  # the others are trained before
    expected, before = logits(model, inputs_of(family)), of(model)  # a first forward leaves marks of transformers
    with_weights(model, config_of(label, family))
    if model.eas.method.fold is not None and "lora" not in label and method(label) != "drop":  # merges round
        eas.fold(model)
        with pytest.raises(ValueError, match="it was folded"):
            eas.detach(model)
        eas.unfold(model)
    assert not torch.equal(logits(model, inputs_of(family)), expected)
    assert eas.detach(model) is model
    assert not eas.attached(model)
    same(model, before)
    assert torch.equal(logits(model, inputs_of(family)), expected)
    eas.attach(model, EAS)  # it is as fresh as ever
    assert torch.equal(logits(eas.detach(model), inputs_of(family)), expected)
    same(model, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("label", ["eas", "lora"])
def test_a_copy_is_detached_by_itself(label, copied):
    model = with_weights(base_of(LLAVA), config_of(label))
    other = eas.detach(copied(model))  # before a first forward, whose hooks of transformers cannot be pickled
    expected = logits(with_weights(base_of(LLAVA), config_of(label)), inputs_of(LLAVA))
    assert torch.equal(logits(other, inputs_of(LLAVA)), logits(base_of(LLAVA), inputs_of(LLAVA)))
    assert torch.equal(logits(model, inputs_of(LLAVA)), expected)


def test_what_others_added_stays():
    model = eas.attach(base_of(LLAVA), EAS)
    seen = []
    model.note = "mine"
    model.lm_head.register_forward_pre_hook(lambda *_: seen.append("head"))
    logits(eas.detach(model), inputs_of(LLAVA))
    assert (model.note, seen) == ("mine", ["head"])


def test_detach_refuses_where_no_base_is_left():
    for config, why in (
        (eas.FullConfig(), "trained itself"),
        (eas.LoRAConfig(rank=2, train_projector=True), "trained itself"),
        (EAS, "pruned"),
    ):
        model = with_weights(base_of(LLAVA), config, pruned=True)
        expected = logits(model, inputs_of(LLAVA))
        with pytest.raises(ValueError, match=f"the base cannot be given back, it was {why}"):
            eas.detach(model)
        assert torch.equal(logits(model, inputs_of(LLAVA)), expected)
    with pytest.raises(ValueError, match="is not attached"):
        eas.detach(base_of(LLAVA))
    model = eas.attach(base_of(LLAVA), EAS)
    model.forward = model.forward
    with pytest.raises(ValueError, match=r"LlavaForConditionalGeneration\.forward was replaced on this instance"):
        eas.detach(model)


@pytest.mark.parametrize("label", ["eas", "lora"])
def test_a_base_that_was_trained_beside_the_method_is_not_given_back(label):
    model = with_weights(base_of(LLAMA), config_of(label))
    weight = model.lm_head.weight.requires_grad_(True)
    words = r"the base cannot be given back, lm_head\.weight \(1 in all\) was trained beside the method"
    with pytest.raises(ValueError, match=words):
        eas.detach(model)
    with pytest.raises(ValueError, match=words), eas.disabled(model):
        pass
    weight.requires_grad_(False)
    expected = logits(base_of(LLAMA), inputs_of(LLAMA))
    with eas.disabled(model):
        assert torch.equal(logits(model, inputs_of(LLAMA)), expected)
    with torch.no_grad():
        weight.add_(0.1)
    with pytest.raises(ValueError, match=words):
        eas.detach(model)


def test_the_base_comes_back_from_mixed_precision(tmp_path):
    model, inputs = build(LLAMA), inputs_of(LLAMA)
    before, expected = of(model), logits(model, inputs)
    eas.attach(model, EAS)
    eas.EASTrainer(model, arguments(tmp_path, max_steps=2, bf16=True), train_dataset=rows(8)).train()
    model.eval().zero_grad()
    tuned = logits(model, inputs)
    with eas.disabled(model):
        assert torch.equal(logits(model, inputs), expected)
    assert torch.equal(logits(model, inputs), tuned)
    eas.detach(model)
    assert torch.equal(logits(model, inputs), expected)
    assert before[0][""][0] is type(model)


@pytest.mark.parametrize("label", ["eas", "lora"])
def test_within_disabled_the_method_is_left_alone(label, tmp_path):
    model, inputs = with_weights(base_of(LLAMA), config_of(label)), inputs_of(LLAMA)
    expected, tuned = logits(base_of(LLAMA), inputs), logits(model, inputs)
    eas.save(model, tmp_path / "adapter")
    calls = [
        lambda: eas.save(model, tmp_path / "b"),
        lambda: eas.save_standalone(model, tmp_path / "c"),
        lambda: eas.fold(model),
        lambda: eas.unfold(model),
        lambda: eas.select(model, []),
        lambda: eas.skip_set(model),
        lambda: eas.prune(model),
        lambda: eas.detach(model),
        lambda: eas.disabled(model).__enter__(),
        lambda: eas.set_adapter(model, "default"),
        lambda: eas.load(model, tmp_path / "adapter", name="b"),
        lambda: eas.freeze_router(model, []),
        lambda: eas.search(model, [], [], list),
        lambda: eas.EASTrainer(model, arguments(tmp_path)),
    ]
    with eas.disabled(model):
        for call in calls:
            with pytest.raises(ValueError, match=r"leave `with eas\.disabled\(model\)` first"):
                call()
        assert torch.equal(logits(model, inputs), expected)
    assert torch.equal(logits(model, inputs), tuned)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(("family", "label"), [(LLAVA, "eas"), (LLAVA, "lora"), (LLAVA, "prefix"), (METER, "eas")])
def test_an_attach_that_fails_leaves_the_model_as_it_was(family, label, kind, monkeypatch):
    model = base_of(family)
    expected, before = logits(model, inputs_of(family)), of(model)  # a first forward leaves marks of transformers

    def stop(*_):
        raise kind("stopped")

    monkeypatch.setattr(
        "eas.attachment.attach.read_rows" if family == LLAVA else "eas.attachment.attach.Attachment", stop
    )
    monkeypatch.setattr("eas.attachment.attach.require_decoding", lambda *_: None)
    with pytest.raises(kind, match="stopped"):
        eas.attach(model, config_of(label, family))
    same(model, before)
    monkeypatch.undo()
    assert torch.equal(logits(model, inputs_of(family)), expected)
    eas.attach(model, config_of(label, family))


def test_an_attach_that_fails_half_way_leaves_the_model_as_it_was(monkeypatch):
    model, known = base_of(LLAVA), []

    def fails(*arguments):
        known.append(arguments)
        if len(known) == 3:
            raise RuntimeError("out of memory")
        become(*arguments)

    before = of(model)
    monkeypatch.setattr("eas.attachment.attach.require_decoding", lambda *_: None)
    monkeypatch.setattr("eas.models.block.become", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        eas.attach(model, EAS)
    same(model, before)
