"""The fold step decodes eight tokens three ways, and stops the run where they differ."""

import json

import pytest
import torch
from families import attached, every_family, prompts
from test_pipeline import SHORT

from eas import ConfigError, fold
from eas.hf.skipping import Request
from eas.methods.eas_block import EASBlock
from eas.pipeline import STEPS, Run, RunConfig, decode_check, steps
from eas.pipeline.decode_check import NEW_TOKENS, decode, relative_error, require_small, teacher_forced


@every_family
def test_eight_tokens_are_the_same_three_ways(family):
    model, inputs = attached(family), prompts(family, (6,))
    tokens, unfolded = decode(model, inputs)
    assert tokens.shape == (1, NEW_TOKENS)
    assert relative_error(unfolded, teacher_forced(model, inputs, tokens)) < 1e-5
    fold(model, "shared")
    again, folded = decode(model, inputs, tokens)
    assert torch.equal(again, tokens)
    assert relative_error(folded, unfolded) < 1e-5


def test_settings_of_the_base_do_not_matter():
    model, inputs = attached("LlamaForCausalLM"), prompts("LlamaForCausalLM", (6,))
    tokens, logits = decode(model, inputs)
    model.generation_config.update(num_beams=3, repetition_penalty=2.0, no_repeat_ngram_size=1)
    again, same = decode(model, inputs)
    assert torch.equal(again, tokens)
    assert torch.equal(same, logits)


def test_forced_tokens_are_taken_whatever_their_logits():
    model, inputs = attached("LlamaForCausalLM"), prompts("LlamaForCausalLM", (6,))
    forced = torch.tensor([[20, 21, 22, 23, 24, 25, 26, 27]])
    tokens, logits = decode(model, inputs, forced)
    assert torch.equal(tokens, forced)
    assert relative_error(logits, teacher_forced(model, inputs, forced)) < 1e-5


def test_a_state_that_is_wrong_in_decoding_is_seen(monkeypatch):
    model, inputs = attached("LlamaForCausalLM"), prompts("LlamaForCausalLM", (6,))
    prompt_state = EASBlock.prompt_state

    def recomputed(self, pia, n, request: Request):
        return prompt_state(self, pia, n, request) if request.reading else pia.prompt_state(n)

    monkeypatch.setattr(EASBlock, "prompt_state", recomputed)
    tokens, unfolded = decode(model, inputs)
    assert relative_error(unfolded, teacher_forced(model, inputs, tokens)) > 1e-3


@pytest.mark.parametrize(
    ("dtype", "error", "refused"),
    [
        (torch.float32, 9e-4, False),
        (torch.float32, 2e-3, True),
        (torch.float32, float("nan"), True),
        (torch.bfloat16, 0.05, False),
        (torch.bfloat16, 0.2, True),
    ],
    ids=str,
)
def test_what_is_more_than_rounding_stops_with_all_numbers(dtype, error, refused):
    errors = {"of decoding": error, "of the fold": 1e-7}
    if not refused:
        require_small(errors, dtype, "shared")
        return
    with pytest.raises(ConfigError, match=rf"of decoding {error:.1e}, of the fold 1\.0e-07; .* in {str(dtype)[6:]}"):
        require_small(errors, dtype, "shared")


@pytest.mark.parametrize("wrong", ["the model", "its fold"])
def test_the_fold_step_stops_a_run_that_decodes_something_else(wrong, tmp_path, monkeypatch):
    more = ["skip_set=[0,3,5,11]", "train.tune_steps=1"]
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *SHORT, *more]))
    STEPS["search"](run)
    STEPS["tune"](run)

    def off(model, inputs, forced=None):
        tokens, logits = decode_check.decode(model, inputs, forced)
        return tokens, logits * (1.01 if (forced is not None) == (wrong == "its fold") else 1)

    monkeypatch.setattr(steps, "decode", off)
    with pytest.raises(ConfigError, match=r"does not decode what it computes .* of decoding .* of the fold .* in dec"):
        STEPS["fold"](run)
    assert not (tmp_path / "fold.json").exists()
    monkeypatch.undo()
    STEPS["fold"](run)
    assert max(json.loads((tmp_path / "fold.json").read_text())["errors"].values()) < 1e-4
