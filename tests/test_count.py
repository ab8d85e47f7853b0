"""``eas.count`` by name, method and convention: against models built by hand, closed forms and torch's counter."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers as tf
from contract import CONFIGS as CONTRACT
from families import IMAGE, SEEING, build, every_family, image_inputs, prompts
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import eas
from eas import cli
from eas.config import ConfigError
from eas.demo.tiny import load_tiny
from eas.measure import shapes
from eas.measure.count import count

LLAVA = "LlavaForConditionalGeneration"
CONFIGS = {name: {k: v for k, v in CONTRACT[name].items() if k != "num_skip"} for name in eas.METHODS}
SKIPS = ("eas", "das", "drop")


def by_hand(name: str, k: int, folded: bool) -> Any:
    model = eas.attach(
        build(LLAVA), eas.method_config({"name": name, **CONFIGS[name]} | ({"num_skip": k} if k else {}))
    )
    model.eval()
    if k:
        eas.select(model, range(4 - k, 4))
        eas.prune(model)
    if folded and eas.METHODS[name].fold is not None:
        eas.fold(model)
    return model


def torch_macs(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    model.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(**inputs, logits_to_keep=1)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("folded", [False, True])
def test_a_method_counts_as_it_does_applied_by_hand(name: str, folded: bool) -> None:
    k = 2 if name in SKIPS else 0
    base = build(LLAVA)
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    counts = count(
        base,
        20,
        1,
        method={"name": name, **CONFIGS[name]},
        k=k,
        fold_mode="default" if folded else "none",
        dtype=torch.float32,
    )
    assert counts == count(by_hand(name, k, folded), 20, 1)
    assert not eas.attached(base)
    after = base.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@every_family
def test_the_twin_of_every_family(family: str) -> None:
    """Grouped queries in all; three of them with another vision tower."""
    images = {"images": 2, "patch_grid": (4, 4)} if family in SEEING else {}
    config = eas.EASConfig(num_skip=1, skip_rank=6, adapt_rank=4)
    model = eas.attach(build(family), config)
    eas.select(model, [1])
    eas.prune(model)
    eas.fold(model, "per_example")
    counts = count(
        build(family), 30, **images, method=config, skip_set=[1], fold_mode="per_example", dtype=torch.float32
    )
    assert counts == count(model, 30, **images)


def test_several_images_in_one_prompt_against_torch() -> None:
    model = build(LLAVA)
    pixels, tokens = image_inputs(LLAVA, 3)
    ids = torch.tensor([[1] + [IMAGE] * (3 * tokens) + [7, 8, 9, 10]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
    counts = count(model, ids.shape[1], images=3)
    assert counts.macs == torch_macs(model, inputs)
    assert counts.vision_macs == 3 * count(model, ids.shape[1], images=1).vision_macs > 0


@pytest.mark.parametrize("name", ["lora", "adapter", "drop", "das"])
def test_methods_against_torch(name: str) -> None:
    k = 2 if name in SKIPS else 0
    model, inputs = by_hand(name, k, False), prompts(LLAVA, (9,))
    counts = count(
        build(LLAVA), inputs["input_ids"].shape[1], 1, method={"name": name, **CONFIGS[name]}, k=k, fold_mode="none"
    )
    assert counts.macs == torch_macs(model, inputs)


def llama(layers: int = 3, tied: bool = False, **sizes: int) -> tf.LlamaForCausalLM:
    config = tf.LlamaConfig(num_hidden_layers=layers, vocab_size=1000, tie_word_embeddings=tied, **sizes)
    with torch.device("meta"):
        return tf.LlamaForCausalLM(config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("d", "ff", "heads", "kv"), [(512, 1408, 8, 8), (768, 2048, 12, 4), (320, 900, 5, 1)])
@pytest.mark.parametrize("n", [1, 37, 700])
def test_the_paper_s_closed_form_at_other_sizes(d: int, ff: int, heads: int, kv: int, n: int, tied: bool) -> None:
    """MHA(n) = (2 d^2 + 2 d d_kv) n + 2 d n^2, which is 4 d^2 n + 2 d n^2 without grouped queries."""
    model = llama(tied=tied, hidden_size=d, intermediate_size=ff, num_attention_heads=heads, num_key_value_heads=kv)
    d_kv = d // heads * kv
    attention, ffn = (2 * d * d + 2 * d * d_kv) * n + 2 * d * n * n, 3 * d * ff * n
    base = 3 * (attention + ffn) + 1000 * d
    options = {"convention": "paper", "prompt_tokens": n}
    assert count(model, **options).macs == count(model, n).macs == base
    assert count(model, k=2, **options).macs == base - 2 * attention
    assert count(model, method="lora", **options).macs == base
    assert count(model, method={"name": "adapter", "rank": 16}, **options).macs == base + 3 * 2 * d * 16 * n
    das = {"name": "das", "skip_rank": 24, "adapt_rank": 16}
    expected = base - attention - ffn + 2 * (2 * d * 16 * n) + 2 * d * 24 * n
    assert count(model, method=das, k=1, **options).macs == expected
    weights = 3 * (2 * d * d + 2 * d * d_kv + 3 * d * ff + 2 * d) + d + (1 if tied else 2) * 1000 * d
    assert count(model, n).params_total == count(model, n, method="lora").params_folded == weights
    assert count(model, n, method="lora", dtype=torch.float16).kv_bytes_per_token == 3 * 2 * d_kv * 2
    folded = count(model, n, k=2, method={"skip_rank": 256, "adapt_rank": 128}, fold_mode="per_example")
    gone, biases = 2 * (2 * d * d + 2 * d * d_kv + 2 * d), 2 * 2 * ff + (d + 2 * d_kv)
    assert folded.params_folded == weights - gone + biases
    assert folded.fold_macs > 0
    assert folded.statistics_macs == 3 * 2 * d + 2 * d * 256  # routers, and c of the skipped, on one mean each
    assert folded.macs - folded.statistics_macs - folded.fold_macs == base - 2 * attention


def test_the_paper_counts_vision_twice_and_folds_for_nothing() -> None:
    honest = count("llava-0.5b", 400, 2, k=4, fold_mode="per_example")
    paper = count("llava-0.5b", 400, 2, k=4, convention="paper")
    assert paper.macs == honest.macs + honest.vision_macs - honest.statistics_macs - honest.fold_macs
    assert (paper.vision_macs, paper.fold_macs, paper.statistics_macs) == (2 * honest.vision_macs, 0, 0)
    assert honest.fold_macs > honest.statistics_macs > 0
    assert paper.params_trained == honest.params_trained


def test_a_name_is_the_model_it_names() -> None:
    built = shapes.build("llava-0.5b", dtype=torch.bfloat16)
    assert count("llava-0.5b", 300, 1) == count(built, 300, 1)
    assert (
        count("llava-0.5b", 300).kv_bytes_per_token * 2
        == count("llava-0.5b", 300, dtype=torch.float32).kv_bytes_per_token
    )


def test_folders(tmp_path: Any) -> None:
    base = build(LLAVA)
    base.save_pretrained(tmp_path / "base")
    assert count(tmp_path / "base", 20, 1, dtype=torch.float32) == count(build(LLAVA), 20, 1)
    model = eas.attach(
        eas.attachment.load.load_base(str(tmp_path / "base")), eas.EASConfig(num_skip=2, skip_rank=6, adapt_rank=4)
    )
    eas.select(model, [0, 2])
    eas.prune(model)
    eas.save(model, tmp_path / "adapter")
    eas.save_standalone(model, tmp_path / "standalone")
    unfolded = count(model, 20, 1)
    eas.fold(model)
    for name in ("adapter", "standalone"):
        assert count(tmp_path / name, 20, 1, dtype=torch.float32) == count(model, 20, 1)
        assert count(tmp_path / name, 20, 1, dtype=torch.float32, fold_mode="none") == unfolded
    with pytest.raises(ValueError, match="holds an adapter"):
        count(tmp_path / "adapter", 20, 1, k=3)


def test_the_command_on_an_adapter(tmp_path: Any) -> None:
    base = build(LLAVA)
    base.save_pretrained(tmp_path / "base")
    config = eas.EASConfig(num_skip=2, skip_rank=6, adapt_rank=4)
    model = eas.attach(eas.attachment.load.load_base(str(tmp_path / "base")), config)
    eas.select(model, [0, 2])
    eas.save(model, tmp_path / "adapter")
    command = ["count", str(tmp_path / "adapter"), "--prompt-tokens", "20", "--images", "1", "--dtype", "float32"]
    for fold in ("default", "per_example"):
        shown = CliRunner().invoke(cli.app, [*command, "--fold", fold])
        assert shown.exit_code == 0, (shown.output, shown.exception)
        said = json.loads(shown.output.splitlines()[-1])
        assert said["base"] == vars(count(base, 20, 1))
        assert said["tuned"] == vars(count(base, 20, 1, method=config, skip_set=[0, 2], fold_mode=fold))


def test_a_twin_has_the_dtype_of_its_model() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = build(LLAVA, dtype=dtype)
        assert count(model, 20, method="drop").kv_bytes_per_token == count(model, 20).kv_bytes_per_token
        assert count(model, 20, method="lora") == count(model, 20, method="lora", dtype=dtype)


def test_a_base_that_is_saved_quantised_is_refused(tmp_path: Any) -> None:
    config = build(LLAVA).config
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config.save_pretrained(tmp_path)
    for given in ({}, {"method": "lora"}):
        with pytest.raises(ValueError, match=r"is saved quantised, .*; name its unquantised base"):
            count(tmp_path, 20, **given)


def test_a_skip_set_costs_what_its_number_costs() -> None:
    assert count("llava-0.5b", 50, skip_set=[0, 3, 9]) == count("llava-0.5b", 50, k=3)
    either = {"name": "eas", "candidates": "either"}
    fewer = count("llava-0.5b", 50, method=either, skip_set=[0, 24])  # an attention and an FFN of one block
    assert fewer.macs < count("llava-0.5b", 50, method=either, skip_set=[0, 25]).macs


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "neither a folder nor a shape; use one of llava-7b", {"model": "llava-8b"}),
        (ValueError, "convention 'fair'", {"convention": "fair"}),
        (ValueError, "prompt_tokens = 0", {"prompt_tokens": 0}),
        (ConfigError, "k = 2 and a skip_set of 1", {"k": 2, "skip_set": [1]}),
        (ConfigError, "lora skips nothing", {"method": "lora", "k": 2}),
        (ConfigError, "at least one is kept", {"k": 24}),
        (ConfigError, "give the skip_set", {"method": {"name": "eas", "candidates": "either"}, "k": 2}),
        (ConfigError, "method 'lore' is unknown", {"method": "lore"}),
        (ConfigError, "no key 'rang'", {"method": {"name": "lora", "rang": 2}}),
        (ValueError, "fold mode 'twice' is unknown", {"k": 2, "fold_mode": "twice"}),
        (ValueError, "nothing to fold", {"fold_mode": "shared"}),
        (
            ValueError,
            "a given model is counted unchanged",
            {"model": llama(hidden_size=64, num_attention_heads=4), "dtype": torch.float16},
        ),
    ],
)
def test_what_is_refused(error: type[Exception], match: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=match):
        count(**{"model": "llava-0.5b", "prompt_tokens": 50, **arguments})


def test_an_attached_model_is_counted_as_it_is() -> None:
    model = by_hand("lora", 0, False)
    assert count(model, 9).params_trained > 0
    with pytest.raises(ValueError, match="attached already"):
        count(model, 9, method="adapter")


def test_the_command() -> None:
    words = ["count", "llava-0.5b", "--skip", "8", "--prompt-tokens", "300", "--images", "1", "--fold", "per_example"]
    shown = CliRunner().invoke(cli.app, [*words, "-o", "skip_rank=64", "-o", "adapt_rank=32"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    said = json.loads(shown.output.splitlines()[-1])
    method = {"name": "eas", "skip_rank": 64, "adapt_rank": 32}
    assert said["base"] == vars(count("llava-0.5b", 300, 1))
    assert said["tuned"] == vars(count("llava-0.5b", 300, 1, method=method, k=8, fold_mode="per_example"))
    assert "of which the fold" in shown.output
    for words in (["--skip-set", "1;2"], ["--patch-grid", "3"], ["--dtype", "int8"], ["--fold", "shared"]):
        with pytest.raises(ValueError, match=words[0]):
            CliRunner().invoke(cli.app, ["count", "llava-0.5b", *words], catch_exceptions=False)


@pytest.mark.parametrize(
    ("model", "sizes", "words"),
    [
        (
            "qwen2.5-vl-3b",
            {"patch_grid": (0, 0)},
            "patch_grid = 0x0: .* merges 2x2 patches; give multiples of 2, above 0",
        ),
        ("qwen2.5-vl-3b", {"patch_grid": (-2, -4)}, "patch_grid = -2x-4"),
        ("qwen2.5-vl-3b", {"patch_grid": (25, 31)}, "patch_grid = 25x31: .* merges 2x2 patches; give multiples of 2"),
        ("qwen2.5-vl-3b", {"prompt_tokens": 191, "patch_grid": (24, 32)}, "its images, which are 192 tokens or more"),
        (
            "llava-7b",
            {"prompt_tokens": 100},
            "prompt_tokens = 100: .* its images, which are 576 tokens or more; give image",
        ),
        ("llava-7b", {"prompt_tokens": 1151, "images": 2}, "which are 1152 tokens or more"),
        ("smolvlm-500m", {"prompt_tokens": 63}, "which are 64 tokens or more"),
    ],
)
def test_images_that_no_prompt_holds_are_refused(model: str, sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        count(model, **{"prompt_tokens": 512, "images": 1, **sizes})


def test_a_prompt_may_be_nothing_but_its_images() -> None:
    assert count("llava-7b", 576, 1).vision_macs > 0
    assert count("qwen2.5-vl-3b", 192, 1, (24, 32)).vision_macs > 0
    model, _ = load_tiny()
    eas.keep_visual_tokens(model, 4)
    assert count(model, 4, 1, method="lora").vision_macs > 0
    with pytest.raises(ValueError, match="which are 4 tokens or more"):
        count(model, 3, 1)
