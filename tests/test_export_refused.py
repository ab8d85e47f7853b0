"""Exports that cannot be right are refused before anything is written, in words that name the remedy."""

from importlib.util import find_spec

import pytest
import torch
from exports import EXPORTED, RUNNING, base, tuned
from families import build, build_meter
from transformers import GPT2Config, GPT2LMHeadModel

import eas
from eas import runtime
from eas.demo.tiny import load_tiny
from eas.exported import read_export
from eas.exporting import export as exporting
from eas.exporting.decoder import PlainDecoder
from eas.exporting.gguf_words import pattern
from eas.exporting.plain import plain
from eas.files import WriteError


def test_tokenizers_whose_splitting_llama_cpp_does_not_know_are_refused():
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert pattern({"type": "Sequence", "pretokenizers": [digits, level]}) == "smollm"
    with pytest.raises(eas.ExportError, match=r"no name for this tokenizer's splitting .*use --to decilm"):
        pattern({"type": "Whitespace"})


REFUSED = {
    "router": ({"router": "input", "pooling": "none"}, "decilm", r"call eas\.freeze_router\(model, loader\)"),
    "pooling": ({"router": "constant", "pooling": "causal"}, "onnx", r"tune with pooling='none'"),
    "frozen": ({"router": "constant", "pooling": "causal"}, "vllm", r"decode_pooling='running' or pooling='none'"),
    "mean": (RUNNING, "gguf", r"tune with pooling='none'"),
    "ffn": ({**EXPORTED, "candidates": "ffn"}, "openvino", r"an FFN is skipped; search with candidates='mha'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_plain_weights_cannot_express_is_refused_before_anything_is_written(name, tmp_path, monkeypatch):
    options, to, words = REFUSED[name]
    monkeypatch.setattr(exporting, "find_spec", lambda package: True)
    with pytest.raises(eas.ExportError, match=words):
        eas.export(tuned(config=eas.EASConfig(num_skip=2, **options)), to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_one_engine_cannot_express_another_can():
    def found(model):
        return {row.engine: "; ".join(row.reasons) for row in eas.explain(model)}

    first = found(tuned(skip_set=(0, 2)))
    assert "layer 0 has no attention, and llama.cpp needs one there" in first["gguf"]
    assert "vLLM" in first["decilm"]
    assert first["onnx"] == first["openvino"] == first["vllm"] == ""
    normed = found(tuned("Qwen3"))
    assert "the language model is a Qwen3Model" in normed["gguf"]
    assert normed["onnx"] == normed["vllm"] == ""
    gemma = found(base("Gemma", head_dim=16))
    assert all("the language model is a GemmaModel, and only LlamaModel" in why for why in gemma.values())
    assert "heads are 128 wide, not 64" in found(tuned(head_dim=32))["gguf"]
    assert "silu" in found(tuned(hidden_act="gelu"))["decilm"]
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    assert "'yarn' are not fixed" in found(tuned(rope_parameters=yarn))["onnx"]
    assert "method 'das' leaves modules of its own" in found(eas.attach(base(), eas.DASConfig(num_skip=1)))["gguf"]
    tiny = load_tiny()[0]
    assert "reads images" in found(tiny)["gguf"]
    tiny.config.vision_config.model_type = "vit"
    assert "the vision tower is a vit, and vLLM has clip_vision_model" in found(tiny)["vllm"]
    assert "the vision tower is a vit, and engines know clip_vision_model" in found(tiny)["decilm"]
    assert "vLLM's plugin has Llava, LlavaOnevision" in found(build("LlavaNextForConditionalGeneration"))["vllm"]


def test_models_of_no_engine_are_refused_in_words():
    said = {"; ".join(row.reasons)[:34] for row in eas.explain(build_meter("vqa"))}
    assert said == {"the language model is a MeterModel"}
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 16}
    with pytest.raises(eas.UnsupportedModelError, match="GPT2LMHeadModel is not supported"):
        eas.explain(GPT2LMHeadModel(GPT2Config(**sizes)))


def test_quantised_bases_are_known_whoever_quantised_them():
    told, eight_bit, of_another_class = base(), base(), base()
    told.config.quantization_config = {"quant_method": "gptq"}
    eight_bit.model.layers[4].mlp.up_proj.to(torch.float8_e4m3fn)
    of_another_class.model.layers[0].self_attn.q_proj = torch.nn.Module()
    for model in (told, eight_bit, of_another_class):
        assert {row.reasons[-1][:35] for row in eas.explain(model)} == {"the base's weights are quantised; l"}


def test_a_model_that_computes_more_than_its_weights_say_is_refused(tmp_path):
    model = tuned()
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(eas.ExportError, match="compute something else than the model"):
        eas.export(model, "decilm", tmp_path / "out")
    model = tuned()
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(eas.ExportError, match=r"model.layers.2.mlp.up_proj.weight holds NaN"):
        eas.export(model, "decilm", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_missing_weight_is_found_at_export():
    found = plain(tuned())
    tensors = {name: tensor for name, tensor in found.tensors.items() if name != "model.layers.1.mlp.down_proj.weight"}
    with pytest.raises(eas.ExportError, match=r"model.layers.1.mlp.down_proj.weight: the weights have shape None"):
        PlainDecoder(found.sizes, tensors, found.frequencies)


def test_an_interrupted_export_leaves_nothing_and_a_failed_one_the_former(tmp_path, monkeypatch):
    model, output = tuned(), tmp_path / "out"
    engine = exporting.ENGINES["decilm"]

    def stops(source, folder, dtype):
        engine.write(source, folder, dtype)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(exporting.ENGINES, "decilm", exporting.Engine(**{**vars(engine), "write": stops}))
        with pytest.raises(KeyboardInterrupt):
            eas.export(model, "decilm", output)
        assert not list(tmp_path.iterdir())
    eas.export(model, "decilm", output)

    def full(source, folder, dtype):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setitem(exporting.ENGINES, "decilm", exporting.Engine(**{**vars(engine), "write": full}))
        with pytest.raises(WriteError, match="No space left on device"):
            eas.export(model, "decilm", output)
    assert read_export(output, whole=True)["dtype"] == "bfloat16"
    killed = tmp_path / ".out.partial"
    killed.mkdir()
    (killed / "config.json").write_text("{}")
    eas.export(model, "decilm", output, dtype="float16")
    assert read_export(output, whole=True)["dtype"] == "float16"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(eas.ExportError, match="holds something else; name another --output"):
        eas.export(tuned(), "decilm", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_damaged_folders_are_refused_by_name(tmp_path):
    folder = eas.export(tuned(), "decilm", tmp_path / "out")
    with pytest.raises(eas.ExportError, match=r"is for decilm; eas.runtime opens onnx and openvino"):
        runtime.load(folder)
    record, weights = folder / "eas_export.json", folder / "model.safetensors"
    whole, text = weights.read_bytes(), record.read_text()
    weights.write_bytes(whole[:-4] + b"0000")
    read_export(folder)  # the size is right
    with pytest.raises(eas.ExportError, match=r"model.safetensors is not the file that was written"):
        read_export(folder, whole=True)
    weights.write_bytes(whole[:-4])
    with pytest.raises(eas.ExportError, match=r"model.safetensors is not the file that was written"):
        read_export(folder)
    weights.unlink()
    with pytest.raises(eas.ExportError, match=r"model.safetensors is missing; copy the folder again"):
        read_export(folder)
    record.write_text(text.replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(eas.ExportError, match=r"format_version = 2, and this eas reads 1; export the model again"):
        runtime.load(folder)
    record.write_text(text.replace('"kv_heads": 2', '"kv_heads": "2"'))
    with pytest.raises(eas.ExportError, match=r"eas_export.json: kv_heads = '2' must be int"):
        read_export(folder)
    record.unlink()
    with pytest.raises(eas.ExportError, match=r"has no eas_export.json; name a folder that `eas export` wrote"):
        runtime.load(folder)


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda package: None)
    with pytest.raises(eas.ExportError, match=r"onnx needs onnx and onnxscript; pip install 'eas\[onnx\]'"):
        eas.export(tuned(), "onnx", tmp_path / "out")
    folder = eas.export(tuned(), "decilm", tmp_path / "out")
    record = folder / "eas_export.json"
    record.write_text(record.read_text().replace('"engine": "decilm"', '"engine": "onnx"'))
    monkeypatch.setattr(runtime, "find_spec", lambda package: None)
    with pytest.raises(eas.ExportError, match=r"needs onnxruntime; pip install onnxruntime"):
        runtime.load(folder)


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(
        eas.ExportError, match="engine 'tensorrt' is unknown; use one of decilm, gguf, onnx, openvino, vllm"
    ):
        eas.export(tuned(), "tensorrt", tmp_path / "out")
    with pytest.raises(eas.ExportError, match="dtype = 'int4': gguf is written in float16 or float32"):
        eas.export(tuned(), "gguf", tmp_path / "out", dtype="int4")


@pytest.mark.skipif(find_spec("gguf") is None, reason="needs gguf")
def test_gguf_needs_a_tokenizer(tmp_path):
    with pytest.raises(eas.ExportError, match="the file holds the tokenizer, and none was found; give --processor"):
        eas.export(tuned(), "gguf", tmp_path / "out")
    assert not list(tmp_path.iterdir())
