"""Freezing the router: the mean alpha over the data, honest losses, and a model like any other afterwards."""

import copy

import pytest
import torch
from decoding import answered, answers
from families import attached, blocks, build, logits, prompts
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import eas
from eas.pia import naive_prompt_state

torch.set_num_threads(1)
LLAMA, LLAVA = "LlamaForCausalLM", "LlavaForConditionalGeneration"


def tuned(family=LLAMA, skip=(0, 2), **config):
    model = attached(family, skip, {"temperature": 0.5, **config})  # sharp, so that alphas differ between prompts
    eas.prune(model)
    return model


def batches(family=LLAMA):
    """Two of unequal size, rows of unequal length."""
    parts = [(prompts(family, (6, 9, 4)), answers(3)), (prompts(family, (5,)), answers(1, 3, 7))]
    return [answered(inputs, answer)[0] for inputs, answer in parts]


def loss(model, data):
    """Mean cross-entropy of all answer tokens, one by one."""
    losses = []
    for batch in data:
        scores = logits(model, batch)
        for row, column in (batch["labels"][:, 1:] != -100).nonzero().tolist():
            losses.append(cross_entropy(scores[row, column], batch["labels"][row, column + 1]))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize(
    ("family", "skip", "config"),
    [(LLAVA, (0, 3), {}), (LLAMA, (0, 2, 5), {"candidates": "either"}), (LLAMA, (0, 2), {"pooling": "causal"})],
)
def test_it_becomes_the_mean_over_the_prompts(family, skip, config, tmp_path):
    model, data = tuned(family, skip, **config), batches(family)
    twin = copy.deepcopy(model)
    before = loss(model, data)
    frozen = eas.freeze_router(model, data)
    assert frozen.loss_before == pytest.approx(before, rel=1e-5)
    assert frozen.loss_after == pytest.approx(loss(model, data), rel=1e-5)
    assert frozen.loss_after != pytest.approx(frozen.loss_before, rel=1e-5)

    seen = []  # what reaches the first block's PIA
    first = blocks(twin)[0]
    first.unit_norm.register_forward_hook(lambda module, args, out: seen.append(out))
    alphas = []
    for batch in data:
        logits(twin, batch)
        prompt = (batch["labels"] == -100) & batch["attention_mask"].bool()
        alphas += [naive_prompt_state(first.skip_pia, n, mask)[0] for n, mask in zip(seen.pop(), prompt, strict=True)]
    mean = torch.stack(alphas).mean(0)
    torch.testing.assert_close(blocks(model)[0].skip_pia.alpha(), mean, rtol=1e-5, atol=1e-6)
    assert torch.stack(alphas).std(0).max() > 1e-3

    assert model.eas.config.router == "constant"
    assert model.eas.trained == {name for name, p in model.named_parameters() if p.requires_grad}
    inputs = prompts(family, (6, 9))
    expected = logits(model, inputs)
    eas.save(model, tmp_path / "adapter")
    assert torch.equal(logits(eas.load(build(family), tmp_path / "adapter").eval(), inputs), expected)
    eas.save_standalone(model, tmp_path / "model")
    opened = eas.load(tmp_path / "model")
    torch.testing.assert_close(logits(opened, inputs), expected)
    assert eas.fold(opened).mode == "constant"
    torch.testing.assert_close(logits(opened, inputs), expected, rtol=1e-5, atol=1e-5)


def test_it_leaves_the_mode_and_takes_any_loader():
    model = tuned().train()
    rows = [{key: value[0] for key, value in batches()[1].items()}] * 2
    frozen = eas.freeze_router(model, DataLoader(rows, batch_size=2))
    assert model.training
    assert frozen.loss_before == pytest.approx(frozen.loss_after, abs=1e-5)  # one prompt is its own mean


def test_refusals():
    folded = tuned()
    eas.fold(folded)
    for model, data, words in (
        (attached(LLAMA), batches(), r"call prune\(model\) first"),
        (folded, batches(), r"call unfold\(model\) first"),
        (tuned(router="constant"), batches(), "eas has no input router here"),
        (tuned(), iter(batches()), "freeze_router reads the loader twice: pass a DataLoader or a list"),
        (tuned(), [], "the loader has no batches"),
        (tuned(), [prompts(LLAMA)], "a batch has no labels"),
    ):
        with pytest.raises(ValueError, match=words):
            eas.freeze_router(model, data)
    lavin = eas.attach(build(LLAMA), eas.method_config({"name": "lavin_adapter", "rank": 2}))
    with pytest.raises(ValueError, match="lavin_adapter has no input router here"):
        eas.freeze_router(lavin, batches())
