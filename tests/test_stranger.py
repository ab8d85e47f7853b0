"""A stranger's config.json: impossible values are named, and none of its code is run or asked about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import build

import eas
from eas.attachment.load import load_base
from eas.attachment.save import CheckpointError
from eas.config import ConfigError
from eas.models.folder import TINY_DIR, model_config
from eas.pipeline import Run, RunConfig
from eas.records import RecordError

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


def folder(path: Path, **values: object) -> Path:
    (path / "config.json").write_text(json.dumps({**LLAMA, **values}))
    return path


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000 must be a whole number up to 1000"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = 2 must be a whole number"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1 must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True must be a whole number"),
        ({"hidden_size": 10**9}, "hidden_size = 1000000000 must be a whole number up to 10000000"),
        ({"vocab_size": 1.5}, "vocab_size = 1.5 must be a whole number"),
        ({"model_type": "llava", "text_config": {"num_hidden_layers": 10**9}}, "text_config.num_hidden_layers = 10"),
        ({"attn_implementation": "org/kernel"}, "attn_implementation = 'org/kernel' would run code of the Hub"),
        ({"_attn_implementation": "org/kernel"}, "_attn_implementation = 'org/kernel' would run code of the Hub"),
        ({"text_config": {"attn_implementation": "org/kernel@v1:f"}}, "would run code of the Hub; take it out"),
    ],
)
def test_values_that_cannot_be_are_refused_with_file_and_key(tmp_path, values, words):
    for read in (
        model_config,
        load_base,
        lambda name: Run(RunConfig(model=name)).load_config(),
        lambda name: eas.count(name, 8),
    ):
        with pytest.raises((RecordError, CheckpointError, ConfigError)) as refused:
            read(str(folder(tmp_path, **values)))
        assert str(refused.value).startswith(f"{tmp_path / 'config.json'}: ")
        assert words in str(refused.value)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"model_type": 3}', '{"a":' * 5000, '{"model_type": "llama", "rope_scaling": 3}']
)
def test_other_files_are_refused_by_name(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, OSError)) as refused:
        model_config(str(tmp_path))
    assert str(tmp_path) in str(refused.value)


def test_code_of_a_folder_is_not_run_and_no_question_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto_map = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoProcessor", "AutoTokenizer"), "code.C")
    folder(tmp_path, model_type="mine", auto_map=auto_map)
    with pytest.raises(ValueError, match=r"config\.json is no configuration of a model"):
        load_base(str(tmp_path))
    folder(tmp_path, auto_map=auto_map)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.C", None]}}))
    with pytest.raises((ValueError, OSError)):
        _ = Run(RunConfig(model=str(tmp_path))).processor
    with pytest.raises(OSError, match="no file named"):
        load_base(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_an_implementation_that_is_asked_for_counts(tmp_path):
    named = folder(tmp_path, attn_implementation="org/kernel")
    assert model_config(str(named), own_attention=False).num_hidden_layers == 2


def test_a_damaged_generation_config_is_refused(tmp_path):
    folder(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2')
    with pytest.raises(RecordError, match=rf"{tmp_path}/generation_config\.json is damaged"):
        model_config(str(tmp_path))


def test_a_model_without_an_adapter_is_no_name():
    with pytest.raises(CheckpointError, match=r"of a LlamaForCausalLM needs an adapter's folder too: eas\.load\(base"):
        eas.load(build("LlamaForCausalLM"))


def test_values_of_a_configuration_are_none():
    with pytest.raises(ConfigError, match=r"for example eas\.method_config\(\{'name': 'lora', 'rank': 2\}\)$"):
        eas.attach(build("LlamaForCausalLM"), {"name": "lora", "rank": 2})


def test_tiny_is_a_base_and_a_name_is_no_configuration(tmp_path):
    model = load_base("tiny")
    with pytest.raises(ConfigError, match=r"attach\(model, 'lora'\): .* eas.method_config\({'name': 'lora'}\)"):
        eas.attach(model, "lora")
    eas.attach(model, eas.method_config({"name": "lora"}))
    eas.save(model, tmp_path / "adapter")
    assert (
        eas.load("tiny", tmp_path / "adapter").config.num_labels
        == eas.load(TINY_DIR, tmp_path / "adapter").config.num_labels
    )
