"""`eas bench` on a tiny model: what it reports follows from the counts. Fast decoding gives the tokens of generate."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import more_families
import pytest
import torch
from families import attached, build, prompts, randomise
from rich.console import Console
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import Lfm2Config, Lfm2ForCausalLM
from typer.testing import CliRunner

import eas
from eas import cli
from eas.config import ConfigError
from eas.demo.tiny import load_tiny
from eas.hf.one_token import NAME, attend_one, narrow, wide
from eas.measure import bench as bench_module
from eas.measure import rates, shapes
from eas.measure.bench import BenchConfig, bench, decode_macs
from eas.measure.count import count
from eas.measure.variants import VARIANTS, build_variant, fold_variant, quantise_variants
from eas.reports.bench import COSTS, HEAD, TIMES, bench_tables, cells, heading, markdown, notes, write_bench

torch.set_num_threads(1)
PROMPT, NEW, SKIP = 12, 6, (0, 2)
LLAMA = "LlamaForCausalLM"
ALIVE: list[Any] = []  # more models than torch compiles by default


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "tiny", lambda: shapes._llama(32, 64, 4, 4, vocab_size=64))
        patch.setitem(shapes.SHAPES, "two layers", lambda: shapes._llama(32, 64, 2, 4, vocab_size=64))
        patch.setitem(rates.SIZES, "cpu", (64, 2**16))
        yield


@pytest.fixture(scope="module")
def result(small: Any) -> dict[str, Any]:
    settings = {"model": "tiny", "dtype": "float32", "prompt_tokens": PROMPT, "new_tokens": NEW}
    config = BenchConfig(**settings, skip_set=list(SKIP), batch_sizes=[1, 2], repeats=2, decode="eager")
    return json.loads(json.dumps(bench(config)))


def rows(result: dict[str, Any], batch: int = 1) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in result["rows"] if row["batch"] == batch}


def test_every_variant_has_a_row(result: dict[str, Any]) -> None:
    assert list(rows(result)) == list(VARIANTS)
    assert set(rows(result, 2)) == set(VARIANTS) - {"eas_per_example"}
    assert list(result["left_out"]) == ["eas_per_example, batch 2"]
    assert result["config"]["skip_set"] == [0, 2]


def test_costs_are_those_that_count_gives(result: dict[str, Any]) -> None:
    base = shapes.build("tiny")  # on the meta device
    for name, row in rows(result).items():
        model = build_variant(base, name, SKIP, PROMPT)
        fold_variant(model, name)
        counts = count(model, PROMPT)
        assert row["macs"] == counts.macs, name
        assert row["weight_bytes"] == counts.weight_bytes
        assert row["kv_bytes"] == counts.kv_bytes_per_token * PROMPT + counts.prompt_state_bytes, name
        context = PROMPT + NEW // 2
        assert (
            row["decode_bytes"] == row["weight_bytes"] + context * counts.kv_bytes_per_token + counts.prompt_state_bytes
        )
        assert (row["fold_macs"] > 0) == (name == "eas_per_example")
    for name, row in rows(result, 2).items():
        assert row["macs"] == 2 * rows(result)[name]["macs"]
        assert row["kv_bytes"] == 2 * rows(result)[name]["kv_bytes"]


def test_variants_are_what_they_are_called(result: dict[str, Any]) -> None:
    macs = {name: row["macs"] for name, row in rows(result).items()}
    assert macs["lora_merged"] == macs["base"] < min(macs["lora"], macs["adapter"])
    ours = [macs[name] for name in macs if name.startswith("eas")]
    assert macs["drop"] < min(ours)
    assert max(ours) < macs["base"]
    assert macs["das"] < macs["drop"]
    assert abs(macs["das_equal_macs"] - macs["eas_shared"]) <= abs(macs["das"] - macs["eas_shared"])
    kv = {name: row["kv_bytes_per_token"] for name, row in rows(result).items()}
    assert all(kv[name] == kv["base"] // 2 for name in kv if name == "drop" or name.startswith("eas"))


def test_decode_macs_are_those_of_one_more_token() -> None:
    model = shapes.build("tiny")
    d, heads = 32, 2 * 32  # queries with keys, weights with values
    assert decode_macs(model, 20) == 4 * (4 * d * d + 3 * d * 64 + 20 * heads) + 64 * d


def test_bounds_and_ratios_follow_from_counts_and_rates(result: dict[str, Any]) -> None:
    macs, read = (result["rates"][key]["median"] for key in ("macs_per_second", "bytes_per_second"))
    base, drop = rows(result)["base"], rows(result)["drop"]
    for row in rows(result).values():
        assert row["decode_bound_ms"] == pytest.approx(
            1000 * max(row["decode_macs"] / macs, row["decode_bytes"] / read)
        )
        assert row["prefill_bound_ms"] >= 1000 * row["macs"] / macs * (1 - 1e-9)
        for key in ("prefill", "decode"):
            time, each = row[f"{key}_ms"], row[f"{key}_each_ms"]
            assert 0 < time["low"] <= time["median"] <= time["high"]
            assert time["median"] == pytest.approx(median(each), abs=1e-3)
            for other, found in ((base[f"{key}_each_ms"], "speedup"), (drop[f"{key}_each_ms"], "over_drop")):
                ratios = [b / a for a, b in zip(each, other, strict=True)]
                ratios = ratios if found == "speedup" else [1 / ratio for ratio in ratios]
                assert row[f"{key}_{found}"]["median"] == pytest.approx(median(ratios))
            bound = base[f"{key}_bound_ms"] / row[f"{key}_bound_ms"]
            assert row[f"{key}_speedup_bound"] == pytest.approx(bound)
            assert row[f"{key}_above_bound"] == (row[f"{key}_speedup"]["median"] > bench_module.TOLERANCE * bound)
            assert row[f"{key}_of_bound"] == pytest.approx(row[f"{key}_bound_ms"] / time["median"])
    folds = {name: row["fold_per_request"] for name, row in rows(result).items() if row["fold_ms"] is not None}
    merged = {"lora_merged": False, "drop": False}
    assert folds == {**merged, "eas_shared": False, "eas_per_example": True, "eas_constant": False}


needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is missing")


@needs_torchao
def test_int8_weights_are_read_as_such(result: dict[str, Any]) -> None:
    settings = {"model": "tiny", "dtype": "float32", "prompt_tokens": PROMPT, "new_tokens": NEW, "skip_set": list(SKIP)}
    variants = ["base", "drop", "eas_shared", "eas_per_example", "eas_constant"]
    got = bench(BenchConfig(**settings, variants=variants, repeats=1, decode="eager", quantise="int8"))
    assert list(got["left_out"]) == ["eas_per_example"]
    head = 64 * (32 + 4 + 1)  # int8, and a scale and a zero of every output
    attention, ffn, norms = 4 * 32 * (32 + 5), 2 * 64 * (32 + 5) + 32 * (64 + 5), 2 * 4 * 32
    assert rows(got)["base"]["weight_bytes"] == 4 * (attention + ffn + norms) + head + 4 * 32
    plain = rows(result)
    for name, row in rows(got).items():
        assert row["macs"] == plain[name]["macs"]
        assert row["decode_bytes"] - row["weight_bytes"] == plain[name]["decode_bytes"] - plain[name]["weight_bytes"]
        read = row["decode_bytes"] / got["rates"]["bytes_per_second"]["median"]
        assert row["decode_bound_ms"] == pytest.approx(
            1000 * max(read, row["decode_macs"] / got["rates"]["macs_per_second"]["median"])
        )
    pia = {name: plain[name]["weight_bytes"] - plain["drop"]["weight_bytes"] for name in ("eas_shared", "eas_constant")}
    for name, added in pia.items():  # which is not quantised
        assert rows(got)[name]["weight_bytes"] - rows(got)["drop"]["weight_bytes"] == added
    assert "int8 weights" in heading(got)


@needs_torchao
@pytest.mark.parametrize("name", ["base", "lora", "eas_shared", "eas_constant"])
def test_int8_variants_decode_fast(name: str) -> None:
    base = shapes.build("two layers", "cpu")
    base.generation_config.eos_token_id = None
    models = [build_variant(base, n, (0,), PROMPT) for n in ("eas_shared", name)]
    fold_variant(models[0], "eas_shared")
    fold_variant(models[1], name)
    inputs = {"input_ids": torch.arange(6, 12)[None]}
    plain = models[1](**inputs).logits
    quantise_variants(base, models)
    assert models[0].lm_head is models[1].lm_head  # one copy for all
    error = (models[1](**inputs).logits - plain).norm() / plain.norm()
    assert 0 < error < 0.02
    generate = eas.fast_decode(models[1], backend="eager")
    assert torch.equal(tokens(generate, inputs), tokens(models[1].generate, inputs))


def test_int8_needs_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"torchao is missing; pip install 'eas\[quantised\]'"):
        BenchConfig(quantise="int8")


@pytest.mark.parametrize(("decode", "prefill", "pays"), [(9.0, 30.0, 10), (9.0, 15.0, 0), (10.0, 30.0, None)])
def test_a_fold_per_example_pays_when_its_time_is_regained(decode: float, prefill: float, pays: int | None) -> None:
    fold, other = [
        {"prefill_ms": {"median": p}, "decode_ms": {"median": d}} for p, d in ((prefill, decode), (20.0, 10.0))
    ]
    assert bench_module._pays_after(fold, other) == pays


def test_the_report_flags_what_is_faster_than_the_bound(result: dict[str, Any], tmp_path: Path) -> None:
    drop = rows(result)["drop"]
    drop |= {"decode_above_bound": True, "prefill_above_bound": False}
    table = {row[0]: row for row in cells(result, 1)}
    assert all(len(row) == len(HEAD) for row in table.values())
    assert "!" in table["drop"][HEAD.index("decode ms") + 1]
    assert "drop" in notes(result, 1).split("!")[1].split(":")[0]
    shown = bench_tables(result)
    assert [len(each.columns) for each in shown] == [1 + len(COSTS), 1 + len(TIMES)] * 2  # a pair for each batch size
    console = Console(width=100, record=True)
    for each in shown:
        console.print(each)
    assert "…" not in console.export_text()
    ratio = rows(result)["eas_shared"]["decode_over_drop"]["median"]
    said = re.search(r"of drop's prefill and ([\d.]+) ±", notes(result, 1).split("eas_shared takes")[1])
    assert said is not None
    digits = len(said[1].partition(".")[2])  # those that its spread supports
    assert float(said[1]) == pytest.approx(ratio, abs=0.51 * 10**-digits)
    assert markdown(result, 2).count("\n| ") == len(rows(result, 2)) + 1
    write_bench(result, tmp_path / "b.json")
    assert (tmp_path / "b.png").stat().st_size > 1000
    assert "das_equal_macs" in (tmp_path / "b.svg").read_text()


def test_the_command_ends_with_json(tmp_path: Path) -> None:
    out = tmp_path / "new" / "b.json"
    options = ["--dtype", "float32", "--prompt", "8", "--new-tokens", "5", "--skip", "1", "--repeats", "1"]
    options += ["--variants", "base,eas_shared", "--decode", "eager", "--output", str(out)]
    shown = CliRunner().invoke(cli.app, ["bench", "tiny", *options])
    assert shown.exit_code == 0, shown.output
    last = json.loads(shown.stdout.splitlines()[-1])
    assert last["bench"] == str(out)
    assert last["rows"] == json.loads(out.read_text())["rows"]
    assert "eas_shared" in shown.stdout


def test_what_was_measured_is_kept_where_a_later_batch_size_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"model": "tiny", "dtype": "float32", "prompt_tokens": 8, "new_tokens": 5, "num_skip": 1, "repeats": 1}
    config = BenchConfig(**values, variants=["base"], decode="eager", batch_sizes=[1, 2])
    time, kept = bench_module._time, list[dict[str, Any]]()

    def fails(served: Any, config: Any, batch: int, *rest: Any) -> Any:
        if batch == 2:
            raise MemoryError
        return time(served, config, batch, *rest)

    monkeypatch.setattr(bench_module, "_time", fails)
    with pytest.raises(MemoryError):
        bench(config, keep=kept.append)
    assert [row["batch"] for row in kept[-1]["rows"]] == [1]


def test_a_hybrid_is_skipped_by_its_attentions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kinds = ["conv", "full_attention"] * 3
    config = Lfm2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, layer_types=kinds, conv_L_cache=3, block_auto_adjust_ff_dim=False,
    )  # fmt: skip
    Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    values = {"model": str(tmp_path), "dtype": "float32", "prompt_tokens": 8, "new_tokens": 5, "repeats": 1}
    found = bench(BenchConfig(**values, variants=["base", "das_equal_macs", "eas_shared"], decode="eager"))
    base, _, eas = found["rows"]
    assert found["config"]["skip_set"] == [0]
    assert eas["kv_bytes_per_token"] == base["kv_bytes_per_token"] * 2 / 3
    assert base["kv_bytes"] == base["kv_bytes_per_token"] * 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "llava-9b"}, "no shape; those are .*llava-0.5b"),
        ({"dtype": "int3"}, "bfloat16"),
        ({"variants": ["base", "mamba"]}, "'mamba'.* unknown; use one of base, lora"),
        ({"variants": ["drop"]}, "must name 'base'"),
        ({"decode": "magic"}, "compiled"),
        ({"quantise": "int3"}, "must be 'int8'"),
        ({"num_skip": 4, "model": "tiny"}, "at least one is kept"),
        ({"num_skip": 2, "skip_set": [1]}, "not both"),
        ({"new_tokens": 3}, "more than 3"),
        ({"batch_sizes": [0]}, "at least 1"),
    ],
)
def test_refusals_say_what_to_do(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(BenchConfig(**values))


def test_bench_refuses_a_standalone_model(tmp_path: Path) -> None:
    model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2))
    eas.select(model, [2, 5])
    eas.prune(model)
    eas.save_standalone(model, tmp_path)
    with pytest.raises(ConfigError, match=r"is a standalone model.*name its base"):
        bench(BenchConfig(model=str(tmp_path)))


def test_skip_sets() -> None:
    assert BenchConfig().skipped(24) == (0, 3, 6, 9, 12, 15, 18, 21)
    assert BenchConfig(num_skip=0).skipped(24) == ()
    assert BenchConfig(skip_set=[5, 1]).skipped(24) == (5, 1)


@pytest.mark.parametrize(("software", "dtype"), [(False, "bfloat16"), (True, "float32")])
def test_the_default_dtype(software: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "in_software", lambda _: software)
    assert BenchConfig().to_dict()["dtype"] == dtype
    assert BenchConfig(dtype="float16").dtype == "float16"


@pytest.mark.parametrize("groups", [1, 3])
def test_attention_of_one_token_is_torch_s(groups: int) -> None:
    query, key, value = torch.randn(2, 2 * groups, 1, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    mask = torch.rand(2, 1, 1, 20) < 0.7
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    assert torch.allclose(attend_one(query, key, value, mask, 0.3), expected.transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize(("inner", "outer"), [(128, 9), (9, 128), (6, 50), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thin_products_of_one_row_are_linear_maps(inner: int, outer: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(1, 1, inner).to(dtype), torch.randn(outer, inner).to(dtype)
    exact = linear(x.double(), weight.double())
    # each product may be rounded to dtype, each addition to float32, and the sum to dtype
    rounding = torch.finfo(dtype).eps / 2
    adding = inner * torch.finfo(torch.float32).eps / 2
    bound = (rounding + adding) * linear(x.double().abs(), weight.double().abs()) + rounding * exact.abs()
    for product in (narrow, wide):
        assert product(x, weight).dtype == dtype
        assert ((product(x, weight) - exact).abs() <= bound).all()


def tokens(generate: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return generate(**inputs, max_new_tokens=8, do_sample=False)


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.compiles])
def test_every_variant_is_one_graph(name: str) -> None:
    base = shapes.build("two layers", "cpu")
    base.generation_config.eos_token_id = None
    model = build_variant(base, name, (0,), PROMPT)
    ALIVE.append(model)
    fold_variant(model, name)
    inputs = {"input_ids": torch.arange(6, 12)[None]}
    expected = tokens(model.generate, inputs)
    assert torch.equal(tokens(eas.fast_decode(model, backend="eager"), inputs), expected)


@pytest.mark.parametrize("family", ["LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"])
def test_fast_decode_gives_the_tokens_of_generate(family: str) -> None:
    model = attached(family).eval()
    eas.fold(model, "shared")
    generate = eas.fast_decode(model, backend="eager")
    assert model.config.get_text_config()._attn_implementation == NAME
    for lengths in ((9, 9), (5, 9)):
        inputs = prompts(family, lengths)
        assert torch.equal(tokens(generate, inputs), tokens(model.generate, inputs))


@pytest.mark.parametrize("method", ["prefix", "deep_prompt", "llama_adapter", "mam"])
def test_fast_decode_of_prompts(method: str) -> None:
    model = eas.attach(build(LLAMA), eas.method_config({"name": method})).eval()
    randomise(model)
    inputs = prompts(LLAMA, (5, 9))
    expected = tokens(model.generate, inputs)
    assert torch.equal(tokens(eas.fast_decode(model, backend="eager"), inputs), expected)
    assert torch.equal(tokens(model.generate, inputs), expected)


def test_frozen_graphs_serve_one_request_after_the_other() -> None:
    model = attached(LLAMA, (0,), {"num_skip": 1}, num_hidden_layers=2).eval()
    eas.fold(model, "shared")
    generate = eas.fast_decode(model)
    for seed in range(2):  # the second must not write to the first one's cache
        inputs = {"input_ids": torch.randint(6, 64, (1, 7 + seed), generator=torch.Generator().manual_seed(seed))}
        assert torch.equal(tokens(generate, inputs), tokens(model.generate, inputs))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="weights were changed"):
        tokens(generate, inputs)


def test_what_cannot_be_decoded_fast() -> None:
    model = attached(LLAMA)
    with pytest.raises(ValueError, match="training"):
        eas.fast_decode(model.train())
    eas.fold(model.eval(), "per_example")
    with pytest.raises(ValueError, match="'shared' or 'constant'"):
        eas.fast_decode(model)
    with pytest.raises(ValueError, match="window"):
        eas.fast_decode(build("MistralForCausalLM"))
    refused = {"Mllama": "MllamaTextModel reads the length", "Phi4Multimodal": "looks for image tokens"}
    refused |= {"Gemma4Unified": "reads images otherwise with a static cache", "PaliGemma 2": "cannot read the masks"}
    for label, why in refused.items():
        with pytest.raises(ValueError, match=f"{why}.*; use model.generate, not fast_decode"):
            eas.fast_decode(more_families.build(label), backend="eager")


def test_the_page_shows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    page = importlib.import_module("bench_page")
    assert page.filled(page.PAGE.read_text()) == page.PAGE.read_text()
