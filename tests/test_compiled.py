"""Compiled calls whose keywords differ give the numbers of the model that is not compiled."""

import pytest
import torch
from contract import tuned
from families import prompts, quick

LLAMA, LAVIN = "LlamaForCausalLM", "LavinForConditionalGeneration"


@pytest.mark.parametrize(
    ("family", "label"),
    quick([(LLAMA, "eas"), (LLAMA, "eas, running"), (LAVIN, "lavin_adapter")], [(LLAMA, "eas")]),
)
def test_compiled_calls_may_differ_in_their_keywords(family, label):
    layers = {"num_hidden_layers": 3} if family == LLAMA else {}
    model, inputs = tuned(family, label, **layers).train(), prompts(family)
    labels = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 7, -100)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    for more in (
        {"labels": labels, "num_items_in_batch": torch.tensor(5)},  # as transformers.Trainer trains
        {"labels": labels},
        {"prompt_mask": inputs["attention_mask"].bool(), "use_cache": False},
    ):
        got, expected = compiled(**inputs, **more), model(**inputs, **more)
        torch.testing.assert_close(got.logits, expected.logits)
        torch.testing.assert_close(got.loss, expected.loss)
