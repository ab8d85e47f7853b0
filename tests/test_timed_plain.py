"""LoRA is timed as the plain maps that it merges into: PEFT's layers would cost time at every step."""

from typing import Any

import pytest

from eas.demo.tiny import load_tiny
from eas.measure.latency import benchmark
from eas.methods.lora import LoRAConfig, lora_layers
from eas.paper import compare_timing, reproduce_runs
from eas.paper.compare import compare_runs
from eas.paper.compare_config import CompareConfig
from eas.paper.reproduce import RowSpec
from eas.pipeline import Run, RunConfig, run_steps, steps

SMALL: dict[str, Any] = {
    "data": "scenes:relation",
    "train_limit": 16,
    "validation_limit": 8,
    "test_limit": 8,
    "max_new_tokens": 4,
    "method": {"name": "lora", "rank": 2},
    "train": {"tune_steps": 1, "batch_size": 4},
}


@pytest.fixture
def timed(monkeypatch) -> list[tuple[str, int]]:
    """The name of every model that is timed, and how many of PEFT's layers it has."""
    found: list[tuple[str, int]] = []

    def recorded(models, *args, **options):
        found.extend((name, len(list(lora_layers(model)))) for name, model in models.items())
        return benchmark(models, *args, **options)

    for module in (steps, compare_timing):
        monkeypatch.setattr(module, "benchmark", recorded)
    return found


def test_of_a_run(tmp_path, timed):
    run_steps(Run(RunConfig.from_dict({**SMALL, "output_dir": str(tmp_path), "benchmark_repeats": 1})))
    assert timed == [("base", 0), ("folded", 0)]


def test_of_a_comparison(tmp_path, timed):
    given = {"output_dir": str(tmp_path), "run": SMALL, "seeds": [0], "entries": [{"label": "LoRA"}]}
    compare_runs(CompareConfig.from_dict({**given, "benchmark": {"repeats": 1, "new_tokens": 1, "hidden_size": None}}))
    assert timed == [("base", 0), ("LoRA", 0)]


def test_of_the_papers_table():
    model = reproduce_runs._variant(load_tiny()[0], LoRAConfig(rank=2, train_projector=False), RowSpec(name="LoRA"))
    assert not list(lora_layers(model))
