"""Weights are loaded as saved, but in float32 where the CPU computes 16 bits in software."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eas.config import ConfigError
from eas.demo.tiny import load_tiny
from eas.pipeline import Run, RunConfig, fit
from eas.pipeline.savings import slow_dtype


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in bfloat16."""
    folder, (model, processor) = tmp_path_factory.mktemp("base"), load_tiny()
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run(base: Path, cpu: str, monkeypatch: pytest.MonkeyPatch, **values: object) -> Run:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return Run(RunConfig.from_dict({"model": str(base), "output_dir": str(base / "run"), **values}))


@pytest.mark.parametrize(
    ("cpu", "given", "loaded"),
    [
        ("AVX2", "auto", torch.float32),
        ("DEFAULT", "auto", torch.bfloat16),
        ("AVX512", "auto", torch.bfloat16),
        ("AVX2", "bfloat16", torch.bfloat16),
        ("AVX512", "float32", torch.float32),
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


def test_a_base_in_float32_is_told_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny = Run(RunConfig(output_dir=str(tmp_path)))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert slow_dtype(tiny) == ""


def test_float32_that_does_not_fit_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 5 * 2**20}))
    with pytest.raises(ConfigError, match=r"dtype: the weights need .* in float32.*-o dtype=bfloat16 needs half"):
        fit.check_method(run(saved, "AVX2", monkeypatch, method={"name": "lora", "rank": 1}))
    for fits in ({"dtype": "bfloat16"}, {"bits": 4}):  # quantised blocks are not in float32
        made = run(saved, "AVX2", monkeypatch, **fits, method={"name": "lora", "rank": 1, "train_projector": False})
        fit.check_method(made)
        assert slow_dtype(made) == ""
