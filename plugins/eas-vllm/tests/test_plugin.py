"""The plugin's own parts that need no model: run in vLLM's environment."""

import json

import pytest

pytest.importorskip("vllm", reason="needs vLLM")

from eas_vllm import MODELS, register
from eas_vllm.configuration import DeciLMConfig, EASServedConfig
from eas_vllm.record import FolderError, require_known
from transformers import AutoConfig

BLOCK = {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"no_op": False, "ffn_mult": 3.0}}
WEIGHTS = '{"format_version": 1, "files": {"model.safetensors": [4, ""], "tokenizer.json": [9, ""]}}'
OURS = {"model_type": "eas-decoder", "architectures": ["EASForCausalLM"], "num_hidden_layers": 3, "skip_set": [0, 2]}
TEXT = {**OURS, "tie_word_embeddings": False}


def folder(tmp_path, config, record='{"format_version": 1, "files": {}}'):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if record is not None:
        (tmp_path / "eas_export.json").write_text(record)
    return tmp_path


def test_a_second_call_changes_nothing():
    from vllm import ModelRegistry

    register()
    register()
    assert MODELS.keys() <= ModelRegistry.get_supported_archs()


def test_configurations_give_what_vllm_asks_for(tmp_path):
    register()
    config = AutoConfig.from_pretrained(folder(tmp_path, OURS))
    assert isinstance(config, EASServedConfig)
    assert [block.attention.no_op for block in config.block_configs] == [True, False, True]
    assert config.layers_block_type == ["mamba", "attention", "mamba"]
    assert EASServedConfig.from_dict(json.loads(json.dumps(config.to_dict()))).skip_set == [0, 2]
    config = AutoConfig.from_pretrained(folder(tmp_path, {"model_type": "nemotron-nas", "block_configs": [BLOCK]}))
    assert isinstance(config, DeciLMConfig)
    assert config.block_configs[0].attention.no_op
    assert config.to_dict()["block_configs"] == [BLOCK]


@pytest.mark.parametrize("kind", ["llava", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_models_that_read_images_have_our_language_model(kind, tmp_path):
    register()
    config = AutoConfig.from_pretrained(folder(tmp_path, {"model_type": f"eas-{kind}", "text_config": TEXT}))
    assert isinstance(config.get_text_config(), EASServedConfig)
    assert config.get_text_config().skip_set == [0, 2]
    with pytest.raises(FolderError, match=r"eas_export.json: format_version = 2"):
        AutoConfig.from_pretrained(folder(tmp_path, {"model_type": f"eas-{kind}"}, '{"format_version": 2}'))


def test_a_file_of_weights_has_its_size(tmp_path):
    folder(tmp_path, OURS, WEIGHTS)
    for wrong in (None, b"12345"):
        if wrong is not None:
            (tmp_path / "model.safetensors").write_bytes(wrong)
        with pytest.raises(FolderError, match=r"model.safetensors is missing, or is not the file that was written"):
            require_known(tmp_path, ours=True)
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    require_known(tmp_path, ours=True)


def test_a_record_that_is_not_known_is_refused(tmp_path):
    register()
    with pytest.raises(FolderError, match=r"eas_export.json: format_version = 2, and this eas-vllm reads 1"):
        AutoConfig.from_pretrained(folder(tmp_path, OURS, '{"format_version": 2}'))
    for damaged in ("{", "[]", "{}"):
        with pytest.raises(FolderError, match=r"eas_export.json( is damaged|: format_version = None)"):
            AutoConfig.from_pretrained(folder(tmp_path, OURS, damaged))
    (tmp_path / "eas_export.json").unlink()
    with pytest.raises(FolderError, match=r"eas_export.json is missing; copy the folder again"):
        AutoConfig.from_pretrained(tmp_path)


def test_a_decilm_folder_of_others_has_no_record(tmp_path):
    require_known(folder(tmp_path, {}, None), ours=False)
    with pytest.raises(FolderError, match="is missing"):
        require_known(tmp_path, ours=True)
