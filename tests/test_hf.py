"""The room that knows transformers: nobody else names its moving parts, and what moved is refused, not computed."""

import inspect
import io
import re
import subprocess
import sys
import tokenize
import warnings
from pathlib import Path

import pytest
import torch
from families import attached, build, every_family, prompts
from transformers import DynamicCache, LlamaModel, Trainer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

import eas
from eas import EASConfig, attach
from eas.attachment import attach as surgery
from eas.attachment.twin import TOLERANCE, deviation
from eas.hf import twin, versions
from eas.hf.api import CACHE_NAME, cache_of, cached, output_cache, without_cache
from eas.hf.cache import PromptLayer, prompt_layer
from eas.hf.trainer import OpenTrainer, checkpoint_activations
from eas.hf.versions import TransformersChangedError
from eas.methods.eas_block import EASBlock

LLAMA = "LlamaForCausalLM"
SOURCE = Path(eas.__file__).parent
CONFIG = EASConfig(num_skip=1, skip_rank=4, adapt_rank=2)

# what a release of transformers may rename; only these rooms may say it
ROOMS = ("hf", "models/lavin", "models/meter")
WORDS = {
    "past_key_values",
    "cache_params",
    "DummyLayer",
    "AttentionInterface",
    "AttentionMaskInterface",
    "ALL_ATTENTION_FUNCTIONS",
    "_attn_implementation",
    "_old_forward",
    "_hf_hook",
    "_hf_peft_config_loaded",
    "_compile_all_devices",
    "gradient_checkpointing_enable",
    "rotate_half",
    "sdpa_mask",
}
MODULES = (
    r"cache_utils|masking_utils|modeling_utils|modeling_layers|initialization|trainer|trainer_utils|integrations|models"
    r"|cli"
)
TRAINER = {name for name in vars(Trainer) if name.startswith("_") and not name.startswith("__")}


def outside() -> list[Path]:
    rooms = [SOURCE / room for room in ROOMS]
    return [path for path in SOURCE.rglob("*.py") if not any(path.is_relative_to(room) for room in rooms)]


@pytest.mark.parametrize("path", outside(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_one_room_names_what_moves(path):
    text = path.read_text()
    names = [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.NAME]
    assert not WORDS.intersection(names)
    assert not re.findall(rf"from transformers\.(?:{MODULES})\b", text)
    assert not re.findall(r"\b__class__ *=[^=]", text)
    if "Trainer" in text:  # its private methods
        assert not TRAINER.intersection(names)


def test_the_words_are_words_of_the_installed_release():
    """Else the test above would look for what is not there."""
    said = " ".join(path.read_text() for room in ROOMS for path in (SOURCE / room).rglob("*.py"))
    assert not [word for word in WORDS - {"cache_params", "ALL_ATTENTION_FUNCTIONS"} if word not in said]
    assert TRAINER.intersection(vars(OpenTrainer))


def test_the_cache_has_the_name_that_models_give_it():
    assert CACHE_NAME in inspect.signature(LlamaModel.forward).parameters
    cache = DynamicCache()
    for name in (CACHE_NAME, "past_key_values"):
        kwargs = {name: cache, "use_cache": True}
        assert cache_of(kwargs) is cache
        assert without_cache(kwargs) == {"use_cache": True}
        assert kwargs == {name: cache, "use_cache": True}
    assert cache_of({}) is None


def test_no_call_of_ours_names_an_argument_of_the_past():
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = attached(LLAMA)
        model.generate(**prompts(LLAMA), max_new_tokens=3, do_sample=False)


def test_a_layer_gets_its_cache_by_name_in_checkpointed_training():
    """Checkpointing takes the cache away by name; under another name it would stay, and be filled twice."""
    model, seen = attached(LLAMA).train(), []
    checkpoint_activations(model)
    batch = prompts(LLAMA)
    layer = model.model.layers[1]

    def note(module, args, kwargs):
        seen.append(kwargs[CACHE_NAME])

    layer.self_attn.register_forward_pre_hook(lambda m, a, k: seen.append(k[CACHE_NAME]), with_kwargs=True)
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    model(**batch, labels=labels, use_cache=True).loss.backward()
    assert seen == [None, None]  # forward, and again in the backward pass


# versions


@pytest.mark.parametrize("version", ["5.22.2", "4.57.6"])
def test_an_old_release_is_refused_with_the_remedy(monkeypatch, version):
    monkeypatch.setattr(versions, "installed", lambda: version)
    with pytest.raises(ImportError, match=rf"eas needs transformers 5.23 or newer, and {version} .* pip install"):
        versions.check()


@pytest.mark.parametrize("version", ["5.25.0", "5.25.0.dev0", "6.0.0"])
def test_a_release_that_no_test_has_seen_is_told_of_once(monkeypatch, version):
    monkeypatch.setattr(versions, "installed", lambda: version)
    with pytest.warns(UserWarning, match=r"newer than the releases that eas is tested with .*`eas doctor`") as caught:
        versions.check()
    assert len(caught) == 1


@pytest.mark.parametrize("version", ["5.23.0", "5.24.0", "5.24.3"])
def test_a_tested_release_is_taken_in_silence(monkeypatch, version):
    monkeypatch.setattr(versions, "installed", lambda: version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.check()


def test_an_error_blames_the_release_only_where_no_test_has_seen_it(monkeypatch):
    for version, blamed in (("5.24.1", False), ("5.25.0.dev0", True), ("5.23.0.dev0", True)):
        monkeypatch.setattr(versions, "installed", lambda version=version: version)
        assert ("Install a tested release" in str(TransformersChangedError("it fails"))) is blamed


def test_the_range_is_the_one_that_is_installed_by():
    text = (SOURCE.parent.parent / "pyproject.toml").read_text()
    assert f'"transformers>={versions.OLDEST},<{versions.BEYOND}"' in text


def test_import_checks_the_version():
    code = """
from importlib import metadata
version = metadata.version
metadata.version = lambda name: "5.22.2" if name == "transformers" else version(name)
import eas
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: eas needs transformers 5.23 or newer, and 5.22.2 is installed" in done.stderr


# a renamed argument


def test_a_renamed_cache_argument_is_refused_before_anything_is_changed(monkeypatch):
    """To a third name, as a release to come might."""
    model = build(LLAMA)
    before = dict(model.state_dict())

    def forward(self, hidden_states, attention_mask=None, position_ids=None, kv_store=None, **kwargs):
        raise AssertionError("nothing may be computed")

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    with pytest.raises(TransformersChangedError, match=rf"LlamaDecoderLayer.forward has no argument '{CACHE_NAME}'"):
        attach(model, CONFIG)
    assert not surgery.attached(model)
    assert model.state_dict().keys() == before.keys()
    assert all(parameter.requires_grad for parameter in model.parameters())


# structural: the cache that was prepared comes back, and holds what decoding reads


def test_a_cache_that_does_not_come_back_is_refused(monkeypatch):
    model, inputs = attached(LLAMA), prompts(LLAMA)
    forward = LlamaModel.forward
    lost = lambda self, *a, **k: forward(self, *a, **{**k, CACHE_NAME: None})  # noqa: E731
    monkeypatch.setattr(LlamaModel, "forward", lost)
    with pytest.raises(TransformersChangedError, match="did not return the cache that was prepared"):
        model(**inputs, use_cache=True)


def test_a_cache_without_states_is_refused(monkeypatch):
    model, inputs = attached(LLAMA), prompts(LLAMA)
    prompt_state = EASBlock.prompt_state
    alone = lambda self, pia, n, request: prompt_state(self, pia, n, request._replace(states=None))  # noqa: E731
    monkeypatch.setattr(EASBlock, "prompt_state", alone)
    with pytest.raises(TransformersChangedError, match=r"no prompt state of blocks \[0, 1, 2, 3\]"):
        model(**inputs, use_cache=True)


def test_a_cache_without_keys_is_refused(monkeypatch):
    model, inputs = attached(LLAMA), prompts(LLAMA)
    forward = LlamaAttention.forward
    alone = lambda self, *a, **k: forward(self, *a, **{**k, CACHE_NAME: None})  # noqa: E731
    monkeypatch.setattr(LlamaAttention, "forward", alone)
    with pytest.raises(TransformersChangedError, match=r"no keys and values of layers \[1, 3\]"):
        model(**inputs, use_cache=True)


def test_a_lost_cache_is_not_taken_for_none():
    model, inputs = attached(LLAMA), prompts(LLAMA)
    model(**inputs, use_cache=True)
    one = {"input_ids": inputs["input_ids"][:, :1], "attention_mask": inputs["attention_mask"]}
    with pytest.raises(TransformersChangedError, match=r"given 1 tokens, an attention mask of 10, and no cache"):
        model(**one)


def test_a_block_in_decoding_wants_its_state():
    model, inputs = attached(LLAMA), prompts(LLAMA)
    cache = output_cache(model(**inputs, use_cache=True))
    del prompt_layer(cache).states[1]
    with pytest.raises(TransformersChangedError, match="block 1 was called in decoding without its prompt state"):
        model(input_ids=inputs["input_ids"][:, :1], **cached(cache))


def test_a_request_that_does_not_reach_the_blocks_is_refused():
    with pytest.raises(TransformersChangedError, match="does not pass the keyword 'request' to its blocks"):
        attached(LLAMA).model.layers[0](torch.zeros(1, 2, 32))


def test_a_cache_that_was_reset_takes_another_prompt():
    model, inputs = attached(LLAMA), prompts(LLAMA)
    cache = DynamicCache(config=model.config)
    expected = model(**inputs, **cached(cache)).logits
    assert isinstance(cache.layers[-1], PromptLayer)
    cache.reset()
    torch.testing.assert_close(model(**inputs, **cached(cache)).logits, expected)


# numeric: a twin decodes what it computes in one pass


@every_family
def test_a_twin_of_every_family_decodes_what_it_computes(family):
    assert deviation(family) < TOLERANCE / 10


def test_attach_tries_a_twin_and_refuses_what_decodes_wrongly(monkeypatch):
    """The states are there, the cache comes back, and what blocks make of it is wrong."""
    prompt_state = EASBlock.prompt_state

    def recomputed(self, pia, n, request):
        return prompt_state(self, pia, n, request) if request.reading else pia.prompt_state(n)

    monkeypatch.setattr(EASBlock, "prompt_state", recomputed)
    monkeypatch.setattr(surgery, "_deviations", {})
    model = build(LLAMA)
    with pytest.raises(TransformersChangedError, match=r"method eas decodes wrongly: .* by \d.*e-0[123]"):
        attach(model, CONFIG)
    assert not surgery.attached(model)


def test_a_twin_that_does_not_run_says_why(monkeypatch):
    monkeypatch.setattr(surgery, "_deviations", {})
    monkeypatch.setattr(twin, "_decoding_error", lambda model: 1 / 0)
    with pytest.raises(TransformersChangedError, match=r"LlamaForCausalLM does not run \(ZeroDivision"):
        attach(build(LLAMA), CONFIG)


def test_the_twin_leaves_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(surgery, "_deviations", {})
    torch.manual_seed(3)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    deviation(LLAMA)
    monkeypatch.undo()
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), drawn)
