"""The adapter's model card: it reads back as one, says what the run found, and nothing that it did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from eas.reports.card import card, write_card

BASE = {"id": "llava-hf/llava-1.5-7b-hf", "revision": "abc123", "class": "LlavaForConditionalGeneration"}
SPREAD = {"median": 20.0, "low": 19.0, "high": 21.0}
RESULT: dict[str, Any] = {
    "versions": {"eas": "0.1.0", "torch": "2.13.0"},
    "git_revision": None,
    "hardware": {"cpu": "some CPU", "threads": 2, "gpu": None, "torch": "2.13.0"},
    "config": {"model": BASE["id"], "seed": 5},
    "seed": 5,
    "model": {"id": BASE["id"], "class": BASE["class"], "layers": 32, "skip_set": [3, 7], "k": 2, "method": "eas"},
    "task": {"data": "slake:hub:OctoMed/SLAKE", "split": "test", "examples": 100, "metric": "slake"},
    "accuracy": {"zero_shot": 0.25, "tuned": 0.75, "folded": 0.74},
    "counts": {
        "base": {"macs": 4000, "params_total": 1000, "kv_bytes_per_token": 32, "weight_bytes": 512},
        "tuned": {"macs": 3000, "params_trained": 10, "kv_bytes_per_token": 30, "weight_bytes": 500},
    },
    "latency": {
        "repeats": 7,
        "prompt_tokens": 44,
        "variants": {name: {"prefill_ms": SPREAD, "decode_ms": SPREAD} for name in ("base", "folded")},
    },
}


def test_metadata_and_figures() -> None:
    made = card(RESULT, BASE)
    data = ModelCard(str(made)).data  # as the Hub reads it
    assert data.base_model == BASE["id"]
    assert data.base_model_relation == "adapter"
    assert data.datasets == ["OctoMed/SLAKE"]
    assert data.library_name == "eas"
    assert data.tags == ["eas"]
    assert f'base = "{BASE["id"]}"' in made.text
    (score,) = data.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_split) == ("slake", 0.74, "test")
    text = made.text
    for fact in ("[3, 7]", "abc123", "Seed: 5", "7 repeats on some CPU, 2 threads", "44 tokens", "74.0 %", "k = 2"):
        assert fact in text, fact


def test_what_is_missing_is_not_invented() -> None:
    bare = {key: RESULT[key] for key in ("config", "seed", "versions")}
    bare |= {"model": {**RESULT["model"], "id": "tiny"}, "task": {"data": "scenes:odd", "metric": "exact"}}
    bare |= {"accuracy": None, "counts": None, "latency": None, "hardware": None, "git_revision": None}
    made = card(bare, {})
    assert made.data.eval_results is None
    assert made.data.base_model is None
    assert made.data.datasets is None
    assert "not measured" not in made.text.split("|", 1)[1]
    for word in ("Times:", "Revision", "None", "Accuracy", "MACs"):
        assert word not in made.text.split("## Use")[0], word


def test_it_lies_beside_the_adapter(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    assert write_card(tmp_path) is None
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "eas_config.json").write_text(json.dumps({"base": BASE}))
    path = write_card(tmp_path)
    assert path == tmp_path / "adapter" / "README.md"
    assert ModelCard.load(path).data.base_model == BASE["id"]
