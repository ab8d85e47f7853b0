"""Weights are loaded as saved, but in float32 where the CPU computes 16 bits in software."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from eas.config import ConfigError
from eas.demo.tiny import load_tiny
from eas.exporting.opening import opened
from eas.pipeline import Run, RunConfig, fit
from eas.pipeline.savings import slow_dtype, slow_precision
from eas.pipeline.serve import served


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16."""
    folder, (model, processor) = tmp_path_factory.mktemp("base"), load_tiny()
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


CPUS = {
    "AVX2": {"architecture": "x86_64", "avx2": True},
    "AVX-512": {"architecture": "x86_64", "avx2": True, "avx512_f": True},  # as most Xeons of 2017 to 2021
    "Zen 4": {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True, "avx512_fp16": False},
    "Sapphire Rapids": {"architecture": "x86_64", "avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True},
    "ARM": {"architecture": "aarch64", "neon": True},
}


def on(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: CPUS[cpu])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run(base: Path, cpu: str, monkeypatch: pytest.MonkeyPatch, **values: object) -> Run:
    on(cpu, monkeypatch)
    return Run(RunConfig.from_dict({"model": str(base), "output_dir": str(base / "run"), **values}))


@pytest.mark.parametrize(
    ("cpu", "given", "loaded"),
    [
        ("AVX2", "auto", torch.float32),
        ("AVX-512", "auto", torch.float32),
        ("Zen 4", "auto", torch.bfloat16),
        ("ARM", "auto", torch.bfloat16),
        ("AVX2", "bfloat16", torch.bfloat16),
        ("Zen 4", "float32", torch.float32),
    ],
)
def test_the_dtype_of_a_run(
    saved: Path, cpu: str, given: str, loaded: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(saved, cpu, monkeypatch, dtype=given)
    assert made.load_base().dtype == loaded
    told = slow_dtype(made)
    assert bool(told) == (given == "auto" and loaded == torch.float32)
    assert not told or told.endswith("-o dtype=bfloat16 halves their memory")


@pytest.mark.parametrize(
    ("cpu", "loaded"), [("Zen 4", torch.float32), ("Sapphire Rapids", torch.float16), ("ARM", torch.float16)]
)
def test_a_base_in_float16(cpu: str, loaded: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A CPU may compute bfloat16 itself and float16 in software."""
    model, _ = load_tiny()
    model.to(torch.float16).save_pretrained(tmp_path)
    assert run(tmp_path, cpu, monkeypatch).load_base().dtype == loaded
    assert opened(tmp_path, dtype="auto")[0].dtype == loaded
    assert opened(tmp_path, dtype="float16")[0].dtype == torch.float16


def test_a_base_in_float32_is_told_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = Run(RunConfig(output_dir=str(tmp_path)))
    on("AVX2", monkeypatch)
    assert slow_dtype(tiny) == ""


def test_float32_that_does_not_fit_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 5 * 2**20}))
    with pytest.raises(ConfigError, match=r"dtype: the weights need .* in float32.*-o dtype=bfloat16 needs half"):
        fit.check_method(run(saved, "AVX2", monkeypatch, method={"name": "lora", "rank": 1}))
    for fits in ({"dtype": "bfloat16"}, {"bits": 4}):  # quantised blocks are not in float32
        made = run(saved, "AVX2", monkeypatch, **fits, method={"name": "lora", "rank": 1, "train_projector": False})
        fit.check_method(made)
        assert slow_dtype(made) == ""


def test_a_tied_head_is_known_before_the_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, tie_word_embeddings=True, dtype="float32", **sizes)
    config.save_pretrained(tmp_path)
    model = fit.check_method(run(tmp_path, "ARM", monkeypatch, method={"name": "lora", "rank": 1}))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with pytest.raises(ConfigError, match="tied to its input embeddings"):
        fit.check_method(run(tmp_path, "ARM", monkeypatch, method={"name": "head"}))


def test_a_base_whose_configuration_names_no_dtype(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would take the dtype of some weight, which eas would not know of."""
    base = shutil.copytree(saved, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    (base / "config.json").write_text(json.dumps(config))
    made = run(base, "Zen 4", monkeypatch)
    assert made.load_base().dtype == torch.float32
    assert made.weights_dtype == "float32"


@pytest.mark.parametrize(("cpu", "told"), [("AVX-512", "leave train.precision out"), ("Zen 4", "")])
def test_autocast_in_software_is_told(saved: Path, cpu: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(saved, cpu, monkeypatch, train={"precision": "bfloat16"})
    assert slow_precision(made).endswith(told)
    assert bool(slow_precision(made)) == bool(told)


def test_served_dtypes(saved: Path) -> None:
    with pytest.raises(ConfigError, match="dtype = 'bf16': must be one of auto, float32, bfloat16"):
        served(str(saved), dtype="bf16")
