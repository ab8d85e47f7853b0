"""The head on labelled positions only gives the loss and the gradients of the head on all positions."""

import torch
from families import attached, every_family
from test_surgery import training_batch

from eas.hf.labelled import answer_losses, labelled_only

torch.set_num_threads(1)


def gradients(model, inputs):
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    return output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@every_family
def test_loss_and_gradients_are_those_of_all_positions(family):
    model, inputs = attached(family).train(), training_batch(family)
    whole, expected = gradients(model, inputs)
    kept, found = gradients(model, labelled_only(inputs))
    assert kept.logits.shape[1] < whole.logits.shape[1]
    torch.testing.assert_close(kept.loss, whole.loss, rtol=1e-6, atol=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_the_losses_of_answers_add_up():
    model, inputs = attached("LlamaForCausalLM"), training_batch("LlamaForCausalLM")
    with torch.no_grad():
        sums, tokens = answer_losses(model, inputs)
        loss = model(**inputs).loss
    assert tokens.tolist() == (inputs["labels"][:, 1:] != -100).sum(1).tolist()
    torch.testing.assert_close(sums.sum() / tokens.sum(), loss)
