"""What ``generate`` cannot do on a model that skips or knows its prompt is refused by name, whoever asks for it."""

import copy

import pytest
import torch
import transformers as tf
from contract import config_of, with_weights
from families import attached, build, prompts

torch.set_num_threads(1)
LLAMA = "LlamaForCausalLM"


def of_its_own(model, **options):
    """The model with options of generation of its own, which transformers puts where a call has none."""
    copied = copy.deepcopy(model)
    copied.generation_config.update(**options)
    return copied


def test_chunked_prefill_and_continuous_batching_are_refused():
    model, inputs = attached(LLAMA), prompts(LLAMA)
    settings = tf.GenerationConfig(prefill_chunk_size=4, max_new_tokens=2)
    for run in (
        lambda: model.generate(**inputs, prefill_chunk_size=4),
        lambda: model.generate(inputs["input_ids"], settings),
        lambda: model.generate(**inputs, generation_config=settings),
        lambda: of_its_own(model, prefill_chunk_size=4).generate(**inputs, generation_config=tf.GenerationConfig()),
    ):
        with pytest.raises(ValueError, match=r"chunked prefill cannot be used .* unset prefill_chunk_size"):
            run()
    for run in (
        model.init_continuous_batching,
        lambda: model.generate_batch([[1, 7, 8]], max_new_tokens=2),
        lambda: model.generate(inputs["input_ids"], cache_implementation="paged", max_new_tokens=2),
    ):
        with pytest.raises(ValueError, match=r"continuous batching packs .*; use generate with padded batches"):
            run()
    settings.prefill_chunk_size = None
    assert model.generate(inputs["input_ids"], settings).shape == (2, 12)


@pytest.mark.parametrize("label", ["eas", "das", "drop", "lora"])
def test_drafting_with_the_first_layers_is_refused_where_layers_may_be_skipped(label):
    model, inputs = with_weights(build(LLAMA), config_of(label)), prompts(LLAMA, (6,))
    few = {"max_new_tokens": 4, "do_sample": False}
    greedy = model.generate(**inputs, **few)
    for run in (
        lambda: model.generate(**inputs, **few, assistant_early_exit=2),
        lambda: model.generate(inputs["input_ids"], tf.GenerationConfig(**few, assistant_early_exit=2)),
        lambda: of_its_own(model, assistant_early_exit=2).generate(**inputs, **few),
    ):
        if label == "lora":
            assert torch.equal(run(), greedy)
            continue
        with pytest.raises(ValueError, match=r"assistant_early_exit drafts .* use prompt_lookup_num_tokens"):
            run()
    assert model.config.num_hidden_layers == 4
    assert torch.equal(model.generate(**inputs, **few), greedy)
