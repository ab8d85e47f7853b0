"""Exported folders hold the model whole, in the form that engines read, or are refused before anything is written."""

import json
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from exports import (
    EXPORTED,
    LLAMA3,
    RUNNING,
    SIZES,
    base,
    llama2_words,
    read_decilm,
    require_expected,
    shaken,
    tuned,
    words,
)
from safetensors.torch import load_file
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, LlavaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from typer.testing import CliRunner
from vllm_seeing import FAMILIES, exported
from vllm_seeing import tuned as seeing

import eas
from eas.cli import app
from eas.demo.tiny import load_tiny
from eas.example import Example
from eas.exported import read_expected, read_export
from eas.exporting.decoder import PlainDecoder
from eas.exporting.plain import plain
from eas.hf import versions
from eas.tasks.collate import Collator

needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="needs gguf")
PAPER = {"form": "paper", **EXPORTED}
MODELS = {
    "residual": lambda: tuned(),
    "paper": lambda: tuned("Qwen2", config=eas.EASConfig(num_skip=2, **PAPER)),
    "not pruned": lambda: tuned("Mistral", pruned=False, sliding_window=None),
    "groups and scale": lambda: tuned(config=eas.EASConfig(num_skip=2, up_groups=2, hidden_scale=0.5, **EXPORTED)),
    "nothing skipped": lambda: tuned(skip_set=()),
    "heads are normalised": lambda: tuned("Qwen3"),
    "biases": lambda: tuned(attention_bias=True, mlp_bias=True),
    "tied": lambda: tuned(tie_word_embeddings=True),
    "llama3": lambda: tuned(rope_parameters=LLAMA3),
    "running mean": lambda: tuned(config=eas.EASConfig(num_skip=2, **RUNNING)),
    "running mean, paper": lambda: tuned(config=eas.EASConfig(num_skip=2, form="paper", **RUNNING)),
    "LoRA beside PIAs": lambda: tuned(config=eas.EASConfig(num_skip=2, adapt="lora", **EXPORTED)),
    "drop": lambda: tuned(config=eas.DropConfig(num_skip=2, rank=4)),
    "lora": lambda: tuned(config=eas.LoRAConfig(rank=4), skip_set=()),
    "base": lambda: base(),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_plain_weights_compute_what_the_model_computes(name):
    model = MODELS[name]()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = plain(model)
    decoder = PlainDecoder(found.sizes, found.tensors, found.frequencies)
    ids = torch.arange(40).view(2, 20) * 7 % 128
    logits, present = decoder(ids, torch.zeros(2, dtype=torch.long), torch.arange(20), decoder.empty(2))
    want = model(input_ids=ids).logits
    assert want.std() > 0.3
    assert (logits - want).abs().max() < 1e-4
    skipped = len(eas.skip_set(model)) if eas.attached(model) else 0
    assert len(present) == 2 * (5 - skipped)  # keys and values of the kept attentions alone
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@torch.no_grad()
def test_lora_that_is_merged_already_is_not_added_twice():
    model = tuned(config=eas.LoRAConfig(rank=4), skip_set=())
    apart = plain(model).tensors
    eas.fold(model)
    for name, tensor in plain(model).tensors.items():
        torch.testing.assert_close(tensor, apart[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_batch_of_unequal_prompts_and_steps_with_keys_and_values():
    model = tuned()
    found = plain(model)
    decoder, ids = PlainDecoder(found.sizes, found.tensors, found.frequencies), torch.arange(3, 15)
    rows = torch.stack([ids, torch.cat([torch.zeros(4, dtype=torch.long), ids[:8]])])
    padding, last = torch.tensor([0, 4]), torch.tensor([0])
    _, past = decoder(rows[:, :11], padding, last, decoder.empty(2))
    logits, _ = decoder(rows[:, 11:], padding, last, past)
    for row, alone in enumerate((ids, ids[:8])):
        assert (logits[row, 0] - model(input_ids=alone[None]).logits[0, -1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["residual", "paper", "biases", "tied", "drop", "base"])
def test_a_decilm_folder_read_by_its_description_is_the_model(name, tmp_path):
    folder = eas.export(MODELS[name](), "decilm", tmp_path / "out", processor=words(), dtype="float32")
    want = read_expected(folder)
    log_probs = read_decilm(folder, [*want["prompt_tokens"], *want["tokens"][:-1]])
    require_expected(log_probs[len(want["prompt_tokens"]) - 1 :], want)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    skipped = [i for i, block in enumerate(config["block_configs"]) if block["attention"]["no_op"]]
    assert skipped == read_export(folder, whole=True)["skip_set"] == ([] if name == "base" else [1, 3])
    assert not [key for key in weights for i in skipped if key.startswith(f"model.layers.{i}.") and "attn" in key]
    maps = [key.removesuffix(".weight") for key in weights if key.endswith("_proj.weight")]
    biased = name not in ("drop", "base")  # all have every bias, or none has one
    assert all((f"{key}.bias" in weights) == biased for key in maps)
    assert (folder / "tokenizer.json").is_file()
    assert (folder / "generation_config.json").is_file()
    assert "k = " in (folder / "README.md").read_text()


def opened_config(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    mapping = {**CONFIG_MAPPING._extra_content}
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=True)  # the code is ours
    finally:
        CONFIG_MAPPING._extra_content = mapping


def test_the_configuration_of_decilm_has_blocks_with_attributes_and_gives_json_back(tmp_path, monkeypatch):
    folder = eas.export(tuned(), "decilm", tmp_path / "out")
    config = opened_config(folder, tmp_path, monkeypatch)
    assert [block.attention.no_op for block in config.block_configs] == [False, True, False, True, False]
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.block_configs == config.block_configs
    assert again.block_configs[0].attention.n_heads_in_group == 2


def test_scaled_rotary_positions_do_not_stop_the_configuration(tmp_path, monkeypatch):
    folder = eas.export(tuned(rope_parameters=LLAMA3), "decilm", tmp_path / "out")
    config = opened_config(folder, tmp_path, monkeypatch)
    assert config.rope_parameters == LLAMA3


def test_llava_has_the_names_that_engines_know(tmp_path, monkeypatch):
    model, processor = load_tiny()
    eas.attach(model, eas.EASConfig(num_skip=2, **EXPORTED))
    eas.select(model, [2, 5])
    eas.prune(shaken(model))
    folder = eas.export(model, "decilm", tmp_path / "out", processor=processor, dtype="float32")
    want, names = read_expected(folder), load_file(folder / "model.safetensors")
    log_probs = read_decilm(folder, [*want["prompt_tokens"], *want["tokens"][:-1]])[len(want["prompt_tokens"]) - 1 :]
    found = log_probs.gather(1, torch.tensor(want["likeliest"]))
    assert (found - torch.tensor(want["log_probs"])).abs().max() < 1e-3
    kinds = {".".join(name.split(".")[:2]) for name in names}
    assert kinds >= {"vision_tower.vision_model", "multi_modal_projector.linear_1", "language_model.model"}
    assert {name.split(".")[0] for name in names} == {"vision_tower", "multi_modal_projector", "language_model"}
    floats = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    seeing = [name for name in names if not name.startswith("language_model.")]
    inside = [name for name in model.state_dict() if "vision_tower" in name or "projector" in name]
    assert floats
    assert len(seeing) == len([name for name in inside if model.state_dict()[name].is_floating_point()])
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["text_config"]["architectures"] == ["DeciLMForCausalLM"]
    assert (folder / "processor_config.json").is_file()
    assert str(Path(model.config.name_or_path).parent) not in (folder / "config.json").read_text()
    seen = opened_config(folder, tmp_path, monkeypatch)
    assert isinstance(seen, LlavaConfig)
    assert [i for i, block in enumerate(seen.text_config.block_configs) if block.attention.no_op] == [2, 5]


def test_an_export_ends_answers_where_eas_does(tmp_path):
    tokenizer = words()
    tokenizer.eos_token = "is"
    folder = eas.export(MODELS["base"](), "vllm", tmp_path / "out", processor=tokenizer, dtype="float32")
    both = [SIZES["eos_token_id"], tokenizer.eos_token_id]
    assert read_export(folder, whole=True)["eos"] == both
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == both


@pytest.mark.parametrize("tokenizer", [words, llama2_words])
def test_an_export_without_a_chat_template_has_the_prompts_of_tuning(tokenizer, tmp_path):
    own = tokenizer()
    own.chat_template, own.pad_token = None, "</s>"
    folder = eas.export(tuned(vocab_size=512), "vllm", tmp_path / "out", processor=own)
    assert own.chat_template is None
    turns = [("system", "be"), ("user", "the cat"), ("assistant", "is"), ("user", "an ant")]
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    (want,) = Collator(own, training=False)([Example("a", tuple(parts), "")])["input_ids"].tolist()
    written = AutoTokenizer.from_pretrained(folder)
    for turn in (parts, [{"role": role, "content": text} for role, text in turns]):
        assert written.apply_chat_template(turn, add_generation_prompt=True)["input_ids"] == want


def test_an_exported_processor_without_a_chat_template_has_the_prompts_of_tuning(tmp_path):
    model, own = load_tiny()
    own.chat_template = None
    folder = eas.export(model, "decilm", tmp_path / "out", processor=own)
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this ?"}]}
    written = AutoProcessor.from_pretrained(folder).apply_chat_template([turn], add_generation_prompt=True)
    assert written.removeprefix(own.tokenizer.bos_token) == f"USER: {own.image_token}\nwhat is this ? ASSISTANT:"


def test_an_export_has_no_penalties_of_its_base(tmp_path):
    model = tuned()
    model.generation_config.update(repetition_penalty=3.0, no_repeat_ngram_size=1, min_new_tokens=9, do_sample=True)
    folder = eas.export(model, "decilm", tmp_path / "out", processor=words())
    settings = json.loads((folder / "generation_config.json").read_text())
    assert [settings[name] for name in ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")] == [1.0, 0, 0]
    assert settings["do_sample"]


@pytest.mark.parametrize("name", ["residual", "heads are normalised", "base"])
def test_the_folder_of_vllms_plugin_names_what_is_there(name, tmp_path):
    folder = eas.export(MODELS[name](), "vllm", tmp_path / "out", processor=words(), dtype="float32")
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert config["skip_set"] == read_export(folder, whole=True)["skip_set"] == ([] if name == "base" else [1, 3])
    assert config["head_norms"] == ("model.layers.0.self_attn.q_norm.weight" in weights) == ("heads" in name)
    assert config["intermediate_size"] == len(weights["model.layers.1.mlp.up_proj.weight"]) == 96  # not widened
    maps = [key.removesuffix(".weight") for key in weights if key.endswith("_proj.weight")]
    assert all((f"{key}.bias" in weights) == config["mlp_bias"] == config["attention_bias"] for key in maps)
    assert config["mlp_bias"] == (name != "base")
    assert not list(folder.glob("*.py"))  # no code: the plugin has it


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_that_reads_images_keeps_all_but_the_skipped_attentions(name, tmp_path):
    row, model = FAMILIES[name], seeing(FAMILIES[name])
    folder = exported(row, model, tmp_path / "out")
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert config["architectures"] == [f"EAS{row.family}"]
    assert config["model_type"] == f"eas-{model.config.model_type}"
    assert config["text_config"]["skip_set"] == list(row.skip_set)
    sizes = [
        sorted(tensor.numel() for key, tensor in found if ".language_model.layers." not in key)
        for found in (weights.items(), model.named_parameters())
    ]
    assert sizes[0] == sizes[1]


@needs_gguf
def test_a_gguf_file_has_no_heads_where_attentions_are_skipped(tmp_path):
    import gguf

    folder = eas.export(tuned(rope_parameters=LLAMA3), "gguf", tmp_path / "out", processor=words(), dtype="q8_0")
    reader = gguf.GGUFReader(folder / "model.gguf")
    field = {name: field.contents() for name, field in reader.fields.items()}
    assert field["general.architecture"] == "deci"
    assert field["deci.attention.head_count"] == [4, 0, 4, 0, 4]
    assert field["deci.attention.head_count_kv"] == [2, 0, 2, 0, 2]
    assert (field["tokenizer.ggml.pre"], field["tokenizer.ggml.tokens"][3:5]) == ("gpt-2", ["!", '"'])
    assert len(field["tokenizer.ggml.tokens"]) == 128
    assert (field["tokenizer.chat_template"], field["tokenizer.ggml.eos_token_id"]) == ("{{ messages }}", 1)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert {"blk.1.ffn_up.bias", "blk.0.attn_q.bias", "rope_freqs.weight"} <= tensors.keys()
    assert not [name for name in tensors if name.startswith("blk.1.attn")]
    kinds = {name: tensors[name].tensor_type.name for name in ("blk.0.attn_q.weight", "blk.0.attn_norm.weight")}
    assert kinds == {"blk.0.attn_q.weight": "Q8_0", "blk.0.attn_norm.weight": "F32"}


def test_a_sliding_window_shortens_the_context():
    model = tuned("Mistral", sliding_window=32)
    assert eas.explain(model)[1].lost == ["the context is 32 tokens: the attention's sliding window is not exported"]
    assert plain(model).sizes.context == 32


@pytest.mark.parametrize(("context", "read", "answered"), [(64, 19, 24), (24, 19, 5), (8, 7, 1)])
@pytest.mark.parametrize("limit", ["sliding_window", "max_position_embeddings"])
def test_the_model_is_asked_within_its_context(limit, context, read, answered, tmp_path):
    model = tuned("Mistral", **{"sliding_window": None, limit: context})
    folder = eas.export(model, "decilm", tmp_path / "out", processor=words(), dtype="float32")
    want = read_expected(folder)
    assert (len(want["prompt_tokens"]), len(want["tokens"])) == (read, answered)
    assert (want["prompt"] is None) == (context == 8)
    log_probs = read_decilm(folder, [*want["prompt_tokens"], *want["tokens"][:-1]])[read - 1 :]
    found = log_probs.gather(1, torch.tensor(want["likeliest"]))
    assert (found - torch.tensor(want["log_probs"])).abs().max() < 1e-3


def test_the_runtime_loads_neither_torch_nor_transformers():
    code = "import sys; from eas import runtime; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_runtime_needs_no_transformers(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions.metadata, "version", missing)
    versions.check()


def test_a_folder_of_an_adapter_and_a_standalone_folder_are_exported_by_the_command(tmp_path):
    model = base()
    model.save_pretrained(tmp_path / "base")
    words().save_pretrained(tmp_path / "base")
    model = eas.attach(type(model).from_pretrained(tmp_path / "base"), eas.EASConfig(num_skip=2, **EXPORTED))
    eas.select(model, [1, 3])
    eas.prune(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 0, 0.2)
    eas.save(model, tmp_path / "run" / "adapter")
    eas.save_standalone(model, tmp_path / "alone")
    found = []
    for name, more in (("run", []), ("alone", ["--processor", str(tmp_path / "base")])):
        told = ["export", str(tmp_path / name), "--to", "decilm", "--output", str(tmp_path / f"{name}-out"), *more]
        answer = CliRunner().invoke(app, told, catch_exceptions=False)
        assert json.loads(answer.stdout.splitlines()[-1])["folder"] == str(tmp_path / f"{name}-out")
        found.append(load_file(tmp_path / f"{name}-out" / "model.safetensors"))
        assert read_expected(tmp_path / f"{name}-out")["prompt"] == "The capital of France is"
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    shown = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--explain"], catch_exceptions=False)
    rows = json.loads(shown.stdout.splitlines()[-1])
    assert [row["engine"] for row in rows] == ["decilm", "gguf", "onnx", "openvino", "vllm"]
    assert "use vLLM" in rows[0]["lost"][0]
