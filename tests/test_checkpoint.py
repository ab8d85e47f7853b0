"""Adapters and standalone folders: what is written opens bit for bit, and nothing else opens."""

import json
import os
import subprocess
import sys

import pytest
import torch
from families import SEEING, attached, blocks, build, every_family, logits, prompts
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import eas
from eas import CheckpointError, load, prune, save, save_standalone, select, skip_set
from eas.attachment.load import load_base, load_into
from eas.attachment.state import attachment
from eas.models.anatomy import auto_class, model_class

torch.set_num_threads(1)
LLAMA, LLAVA = "LlamaForCausalLM", "LlavaForConditionalGeneration"
OPTIONS = {"hidden_scale": 0.5, "up_groups": 2, "adapt_router_bias": False, "temperature": 3.0}
VARIANTS = [{}, {"tie_word_embeddings": True}, {"dtype": torch.bfloat16}]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=["plain", "tied", "bfloat16"])


def tuned(family, variant=VARIANTS[0]):
    """A model as training leaves it: PIAs and, where there is one, the projector differ from the base."""
    model = attached(family, (0, 2), OPTIONS | {"train_projector": family in SEEING}, **variant)
    if family in SEEING:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.dtype == model.dtype:
                    parameter.mul_(1.5)
    return model


def same(model, other, inputs):
    greedy = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(logits(model, inputs), logits(other, inputs))
    assert torch.equal(model.generate(**inputs, **greedy), other.generate(**inputs, **greedy))
    assert skip_set(model) == skip_set(other)
    assert not other.training


@every_variant
@every_family
def test_an_adapter_opens_on_its_base(family, variant, tmp_path):
    model, inputs = tuned(family, variant), prompts(family)
    build(family, **variant).save_pretrained(tmp_path / "base")
    assert not torch.equal(logits(model, inputs), logits(load_base(str(tmp_path / "base")), inputs))
    for pruned in (False, True):
        if pruned:
            prune(model)
        save(model, tmp_path / "adapter")
        for base in (build(family, **variant), tmp_path / "base"):
            opened = load(base, tmp_path / "adapter")
            same(model, opened, inputs)
            assert type(opened).__name__ == family
            assert attachment(opened) == attachment(model)
            pias = [p for block in blocks(opened) for n, p in block.named_parameters() if "_pia." in n]
            assert {p.dtype for p in pias} == {torch.float32}
            assert all(p.requires_grad for p in pias)
    record = json.loads((tmp_path / "adapter" / "eas_config.json").read_text())
    assert (record["skip_set"], record["pruned"], record["base"]["class"]) == ([0, 2], True, family)


@every_variant
@every_family
def test_a_standalone_folder_opens_without_its_base(family, variant, tmp_path):
    model, inputs = tuned(family, variant), prompts(family)
    prune(model)
    save_standalone(model, tmp_path / "merged")
    opened = load(tmp_path / "merged")
    same(model, opened, inputs)
    assert isinstance(opened, model_class(family))
    assert eas.parameter_counts(opened) == eas.parameter_counts(model)
    assert opened.dtype == model.dtype
    assert {p.dtype for n, p in opened.named_parameters() if "_pia." in n} == {torch.float32}
    tied = opened.lm_head.weight is opened.get_input_embeddings().weight
    assert tied == ("tie_word_embeddings" in variant)
    told = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (told["architectures"], told["eas"]["skip_set"]) == ([family], [0, 2])
    assert told.get("text_config", told)["per_layer_config"] == {str(i): {"skip": ["attention"]} for i in (0, 2)}
    # written again, by transformers in shards and by us, and opened by the Auto class
    opened.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    save_standalone(opened, tmp_path / "third")
    auto = auto_class(opened.config.model_type)
    for folder in ("again", "third"):
        same(model, auto.from_pretrained(tmp_path / folder), inputs)
    save(opened, tmp_path / "adapter")
    same(model, load(build(family, **variant), tmp_path / "adapter"), inputs)

    shards = sorted((tmp_path / "again").glob("*.safetensors"))
    assert len(shards) > 2
    shards[1].rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=f"{shards[1].name} is missing"):
        load(tmp_path / "again")


def test_full_tuning_of_a_base_whose_head_is_tied(tmp_path):
    model, inputs = eas.attach(build(LLAMA, tie_word_embeddings=True), eas.FullConfig()), prompts(LLAMA)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    save(model, tmp_path)
    same(model, load(build(LLAMA, tie_word_embeddings=True), tmp_path), inputs)


def test_a_standalone_folder_must_be_complete(tmp_path):
    model = tuned(LLAMA)
    with pytest.raises(ValueError, match=r"prune\(model\) first"):
        save_standalone(model, tmp_path)
    prune(model)
    eas.fold(model)
    with pytest.raises(ValueError, match=r"unfold\(model\) first"):
        save_standalone(model, tmp_path)
    eas.unfold(model)
    save_standalone(model, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    tensors, whole = load_file(path), path.read_bytes()
    pia = next(key for key in tensors if "_pia." in key)
    for damaged in (
        {key: t for key, t in tensors.items() if key != pia},
        tensors | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(32, 32)},
        tensors | {pia: torch.zeros(3, 3)},
    ):
        save_file(damaged, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=rf"{tmp_path} is not a complete .*(q_proj|_pia\.)"):
            load(tmp_path)
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=rf"{tmp_path}.* truncated or damaged"):
        load(tmp_path)


def test_only_eas_opens_a_standalone_folder(tmp_path):
    for family in (LLAMA, LLAVA):
        model = tuned(family)
        prune(model)
        save_standalone(model, tmp_path / family)
    script = """if True:
        import sys, transformers
        def opens():
            for folder in sys.argv[1:]:
                family = folder.rpartition("/")[2]
                for name in ("AutoConfig", "AutoModelForCausalLM", "AutoModelForImageTextToText", family):
                    try:
                        getattr(transformers, name).from_pretrained(folder)
                        print(family, name)
                    except (OSError, ValueError):
                        pass
        opens()
        print("import eas")
        import eas
        opens()
    """
    folders = [str(tmp_path / family) for family in (LLAMA, LLAVA)]
    said = subprocess.run([sys.executable, "-c", script, *folders], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "import eas",
        f"{LLAMA} AutoConfig",
        f"{LLAMA} AutoModelForCausalLM",
        f"{LLAVA} AutoConfig",
        f"{LLAVA} AutoModelForImageTextToText",
    ]


def test_wrong_bases(tmp_path):
    model = tuned(LLAMA)
    save(model, tmp_path)
    wrong = [
        (build(LLAMA, seed=1), r"not those that the adapter was trained on: .* load the adapter onto that base"),
        (build("MistralForCausalLM"), "class = LlamaForCausalLM, this model has MistralForCausalLM"),
        (build(LLAMA, hidden_size=16), "hidden_size = 32, this model has 16"),
        (build(LLAMA, num_hidden_layers=3), "num_hidden_layers = 4, this model has 3"),
        (build(LLAMA, intermediate_size=96), "not those that the adapter was trained on"),
        (model, "attached already"),
    ]
    for base, words in wrong:
        with pytest.raises(CheckpointError, match=words):
            load(base, tmp_path)
        assert base is model or not eas.attached(base)
    for dtype in (torch.bfloat16, torch.float16):
        load(build(LLAMA, dtype=dtype), tmp_path)
    with pytest.raises(CheckpointError, match=r"holds an adapter without its base; use eas.load\(base, "):
        load(tmp_path)
    build(LLAMA).save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"was not written by eas.save_standalone; pass an adapter"):
        load(tmp_path / "base")


@pytest.mark.parametrize(
    "part", ["embed_tokens", "lm_head", "model.norm", "layers.2.self_attn.v_proj", "layers.1.mlp.up_proj"]
)
def test_a_base_that_differs_in_any_part_is_another_one(part, tmp_path):
    save(tuned(LLAMA), tmp_path)
    base = build(LLAMA)
    (weight,) = [p for name, p in base.named_parameters() if part in name]
    with torch.no_grad():
        weight.add_(0.02 * torch.randn(weight.shape))  # as merged LoRA
    with pytest.raises(CheckpointError, match=rf"not those .*1 of \d+ parameters differ, first .*{part}"):
        load(base, tmp_path)


def resized(seed=0):
    base = build(LLAMA)
    torch.manual_seed(seed)
    base.resize_token_embeddings(base.config.vocab_size + 6, mean_resizing=False)
    return base


def test_a_base_that_was_resized_is_another_one(tmp_path):
    model = eas.attach(resized(), eas.EASConfig(num_skip=2, skip_rank=4, adapt_rank=2))
    save(model, tmp_path)
    for base, words in (
        (
            build(LLAMA),
            r"vocab_size = 70, this model has 64.*; if you resized its embeddings, the base is",
        ),
        (resized(seed=1), r"2 of \d+ parameters differ, first model\.embed_tokens"),  # rows of its own
    ):
        with pytest.raises(CheckpointError, match=words):
            load(base, tmp_path)
    same(model.eval(), load(resized(), tmp_path), prompts(LLAMA))
    path = tmp_path / "adapter.safetensors"
    with safe_open(path, "pt") as file:
        about = file.metadata()
    record = json.loads(about["eas"])
    del record["base"]["vocab_size"]  # as it was before
    (tmp_path / "eas_config.json").write_text(json.dumps(record))
    save_file(load_file(path), path, metadata={**about, "eas": json.dumps(record)})
    same(model, load(resized(), tmp_path), prompts(LLAMA))


def test_a_base_that_is_resized_after_attach_is_written_as_a_whole_only(tmp_path):
    model = tuned(LLAMA)
    model.resize_token_embeddings(70)
    words = r"embed_tokens\.weight has shape \(70, 32\), and had \(64, 32\) at eas\.attach.*then eas\.save_standalone"
    for write in (save, type(model).save_pretrained):
        with pytest.raises(ValueError, match=words):
            write(model, tmp_path)
    prune(model)
    save_standalone(model, tmp_path)
    same(model.eval(), load(tmp_path), prompts(LLAMA))


def test_an_adapter_with_the_fingerprint_of_before_opens_on_its_base_alone(tmp_path):
    save(model := tuned(LLAMA), tmp_path)
    path = tmp_path / "adapter.safetensors"
    tensors = load_file(path)
    rows = [layer.mlp.down_proj.weight[0, :16].bfloat16() for layer in build(LLAMA).model.layers]
    with safe_open(path, "pt") as file:
        record = {"eas": file.metadata()["eas"]}
    save_file(tensors | {"base_fingerprint": torch.stack(rows)}, path, metadata=record)
    assert torch.equal(logits(load(build(LLAMA), tmp_path), prompts(LLAMA)), logits(model, prompts(LLAMA)))
    with pytest.raises(CheckpointError, match="not those that the adapter was trained on"):
        load(build(LLAMA, seed=1), tmp_path)


def test_damaged_adapters(tmp_path):
    model, path = tuned(LLAMA), tmp_path / "adapter.safetensors"
    with pytest.raises(CheckpointError, match=rf"{tmp_path} has no adapter.safetensors; name a folder written by eas"):
        load(build(LLAMA), tmp_path)
    save(model, tmp_path)
    whole, tensors = path.read_bytes(), load_file(path)
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["eas"])
    key = "layers.0.skip_pia.down1.weight"
    fits = rf"{path} does not fit its record: missing \[{{}}\].* unexpected \[{{}}\].*; save the adapter again"
    newer = {**record, "config": record["config"] | {"tau": 1}}
    cases = [
        ({k: t for k, t in tensors.items() if k != key}, record, fits.format(f"'{key}'", "")),
        (tensors | {"layers.9.x": torch.zeros(1)}, record, fits.format("", "'layers.9.x'")),
        (tensors | {key: torch.zeros(2, 2)}, record, rf"{path}: {key} has shape \(2, 2\), not \(4, 32\)"),
        ({k: t for k, t in tensors.items() if "fingerprint" not in k}, record, rf"{path} was not written by eas.save"),
        (tensors, None, rf"{path} was not written by eas.save"),
        (tensors, newer, rf"{path}: EASConfig has no key 'tau'.*; open it with eas \d.* which wrote it"),
    ]
    config = tmp_path / "eas_config.json"
    text = config.read_text()
    for damaged, said, words in cases:
        config.write_text(json.dumps(said))
        save_file(damaged, path, metadata=None if said is None else {"eas": json.dumps(said)})
        with pytest.raises(CheckpointError, match=words):
            load(build(LLAMA), tmp_path)
    for size in (len(whole) - 1, 100, 4, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"{path} is truncated or damaged .*; copy or save it again"):
            load(build(LLAMA), tmp_path)
    path.write_bytes(whole)
    config.write_text(text)
    assert torch.equal(logits(load(build(LLAMA), tmp_path), prompts(LLAMA)), logits(model, prompts(LLAMA)))


def test_an_interrupted_save_leaves_one_whole_adapter_and_a_changed_record_is_refused(tmp_path, monkeypatch):
    old, new, inputs = tuned(LLAMA), tuned(LLAMA), prompts(LLAMA)
    with torch.no_grad():
        blocks(new)[1].adapt_pia.up1.weight.add_(1)
    select(new, (1,))

    def stop(*_, **__):
        raise KeyboardInterrupt

    def stop_at_the_config(source, target, replace=os.replace):
        stop() if source.name.startswith("eas_config") else replace(source, target)

    stops = (
        (os, stop, "replace", old),
        (type(tmp_path), stop, "write_text", old),
        (os, stop_at_the_config, "replace", new),
    )
    for target, stopping, attribute, survivor in stops:
        save(old, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(target, attribute, stopping)
            with pytest.raises(KeyboardInterrupt):
                save(new, tmp_path)
        same(survivor, load(build(LLAMA), tmp_path), inputs)
    save(old, tmp_path)
    config = (tmp_path / "eas_config.json").read_text()
    for damaged in (config.replace("[\n", "[\n 0,\n"), config[:50], ""):
        (tmp_path / "eas_config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"eas_config.json is missing or does not belong to"):
            load(build(LLAMA), tmp_path)
    (tmp_path / "eas_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"eas_config.json is missing"):
        load(build(LLAMA), tmp_path)


def test_resuming_into_an_attached_model(tmp_path):
    model, inputs = tuned(LLAVA), prompts(LLAVA)
    save(model, tmp_path)
    fresh = attached(LLAVA, (1,), OPTIONS | {"train_projector": True, "num_skip": 2})
    load_into(fresh, tmp_path)
    same(model, fresh, inputs)
    other = attached(LLAVA, (1,), OPTIONS | {"train_projector": True, "skip_rank": 6})
    pruned = tuned(LLAVA)
    prune(pruned)
    for wrong in (other, pruned):
        with pytest.raises(CheckpointError, match=r"saved with another configuration; resume with that configuration"):
            load_into(wrong, tmp_path)
    with pytest.raises(ValueError, match="not attached"):
        save(build(LLAVA), tmp_path)


def test_saving_a_folded_model_saves_its_pias(tmp_path):
    model, inputs = tuned(LLAMA), prompts(LLAMA)
    expected = logits(model, inputs)
    eas.fold(model)
    save(model, tmp_path)
    assert torch.equal(logits(load(build(LLAMA), tmp_path), inputs), expected)
