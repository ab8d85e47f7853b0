"""Several adapters on one base: each computes what it computes alone, and switching back and forth is exact."""

from __future__ import annotations

import pytest
import torch
from contract import CONFIGS, base_of, config_of, inputs_of, method
from families import build, logits, prompts, quick

import eas
from eas.attachment.save import adapter_state

torch.set_num_threads(1)
LLAMA, LLAVA, METER = "LlamaForCausalLM", "LlavaForConditionalGeneration", "MeterForVisualQuestionAnswering"
EAS = eas.EASConfig(num_skip=2, skip_rank=4, adapt_rank=2)


def saved(folder, family, config, skipped, seed, pruned=True):
    """An adapter with random weights, as training might leave it."""
    model = eas.attach(base_of(family), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter_state(model).values():
            tensor.add_(0.1 * torch.randn(tensor.shape))
    eas.select(model, skipped)
    if pruned:
        eas.prune(model)
    eas.save(model, folder)
    return folder


PAIRS = [*((LLAVA, label) for label in CONFIGS if method(label) not in ("full", "head")), (METER, "eas")]


@pytest.mark.parametrize(
    ("family", "label"),
    quick(PAIRS, [(family, label) for family, label in PAIRS if "," not in label]),
)
def test_each_adapter_computes_what_it_computes_alone(family, label, tmp_path):
    config, inputs = config_of(label, family), inputs_of(family)
    config.train_projector = True
    skips = [(), ()] if (number := vars(config).get("num_skip", 0)) == 0 else [range(number), range(1, number + 1)]
    folders = [
        saved(tmp_path / name, family, config, s, i) for i, (name, s) in enumerate(zip("ab", skips, strict=True))
    ]
    alone = [logits(eas.load(base_of(family), folder).eval(), inputs) for folder in folders]
    assert not torch.equal(*alone)
    model = eas.load(base_of(family), folders[0], name="a").eval()
    assert eas.load(model, folders[1], name="b") is model
    for name, expected in (("a", 0), ("b", 1), ("a", 0), ("a", 0), ("b", 1)):
        eas.set_adapter(model, name)
        assert torch.equal(logits(model, inputs), alone[expected])
        assert eas.skip_set(model) == tuple(skips[expected])
    eas.save(model, tmp_path / "again")
    assert torch.equal(logits(eas.load(base_of(family), tmp_path / "again").eval(), inputs), alone[1])


def test_each_adapter_generates_what_it_generates_alone(tmp_path):
    folders = [
        saved(tmp_path / name, LLAVA, EAS, skipped, i)
        for i, (name, skipped) in enumerate((("a", (0, 2)), ("b", (1, 3))))
    ]
    inputs = prompts(LLAVA)

    def generated(model):
        return model.eval().generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)

    alone = [generated(eas.load(build(LLAVA), folder)) for folder in folders]
    assert not torch.equal(*alone)
    model = eas.load(eas.load(build(LLAVA), folders[0], name="a"), folders[1], name="b")
    for name, expected in (("a", 0), ("b", 1), ("a", 0)):
        eas.set_adapter(model, name)
        assert torch.equal(generated(model), alone[expected])
        eas.fold(model)
        assert torch.equal(generated(model), alone[expected])
        eas.unfold(model)


def test_what_was_trained_of_an_adapter_is_there_when_it_is_active_again(tmp_path):
    other = saved(tmp_path / "b", LLAMA, eas.EASConfig(num_skip=1, skip_rank=4, adapt_rank=2), (3,), 1)
    model = eas.attach(build(LLAMA), EAS)
    eas.select(model, (0, 2))
    eas.load(model, other, name="b")
    with torch.no_grad():
        for tensor in adapter_state(model).values():
            tensor.add_(0.1)
    trained = {key: tensor.clone() for key, tensor in adapter_state(model).items()}
    eas.set_adapter(model, "b")
    assert (model.eas.config.num_skip, eas.skip_set(model)) == (1, (3,))
    eas.set_adapter(model, "default")
    assert (model.eas.config.num_skip, eas.skip_set(model)) == (2, (0, 2))
    assert all(torch.equal(tensor, trained[key]) for key, tensor in adapter_state(model).items())


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    a = saved(tmp_path / "a", LLAMA, EAS, (0, 2), 0)
    wide = saved(tmp_path / "wide", LLAMA, eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=2), (0, 2), 0)
    lora = saved(tmp_path / "lora", LLAMA, eas.LoRAConfig(rank=2), (), 0, pruned=False)
    model = eas.load(build(LLAMA), a, name="a")
    for folder, name, words in (
        (a, "a", "has an adapter 'a' already; give this one another name"),
        (wide, "b", r"this one has skip_rank = 8 \(the model: 4\); load it alone"),
        (lora, "b", r"this one has .*name = 'lora' \(the model: 'eas'\)"),
    ):
        with pytest.raises(ValueError, match=words):
            eas.load(model, folder, name=name)
    with pytest.raises(ValueError, match="has no adapter 'b'; it has a"):
        eas.set_adapter(model, "b")
    with pytest.raises(eas.CheckpointError, match="pass a freshly loaded model, or give the adapter a name"):
        eas.load(model, a)
    with pytest.raises(eas.CheckpointError, match="name = 'a' is that of an adapter; pass its folder too"):
        eas.load("tiny", name="a")
    assert not model.eas.adapters
    eas.load(model, a, name="b")
    eas.fold(model)
    with pytest.raises(ValueError, match=r"folded; call unfold\(model\) first"):
        eas.set_adapter(model, "b")
    with pytest.raises(ValueError, match=r"folded; call unfold\(model\) first"):
        eas.load(model, a, name="c")
    eas.unfold(model)
    eas.prune(model)
    with pytest.raises(ValueError, match="pruned and has no place for other skip sets; load every adapter with"):
        eas.set_adapter(model, "b")
    with pytest.raises(ValueError, match="the model is pruned and has no place"):
        eas.load(eas.load(build(LLAMA), a), a, name="b")
