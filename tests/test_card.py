"""The adapter's model card: it reads back as one, says what the run found, and nothing that it did not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import build
from huggingface_hub import ModelCard

import eas
from eas.card import MARK, on_hub, portable, portable_result
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


def test_every_saved_adapter_has_one(tmp_path: Path) -> None:
    model = eas.attach(build("LlamaForCausalLM"), eas.EASConfig(num_skip=1, skip_rank=6, adapt_rank=4))
    eas.select(model, [2])
    eas.save(model, tmp_path)
    made = ModelCard.load(tmp_path / "README.md")
    assert (made.data.library_name, made.data.tags, made.data.base_model) == ("eas", ["eas"], None)
    for fact in (
        "Base: LlamaForCausalLM",
        "Skip set: [2] (k = 1)",
        'base = "BASE"',
        '"skip_rank": 6',
        "Nothing was measured",
    ):
        assert fact in made.text, fact
    assert "Accuracy" not in made.text
    eas.select(model, [0])
    eas.save(model, tmp_path)
    assert "Skip set: [0] (k = 1)" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("my own words")
    eas.save(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"
    model.config.name_or_path = "owner/base"
    eas.save(model, tmp_path / "named")
    named = ModelCard.load(tmp_path / "named" / "README.md")
    assert (named.data.base_model, named.data.base_model_relation) == ("owner/base", "adapter")
    assert 'base = "owner/base"' in named.text


def test_folders_are_not_taken_for_names_on_the_hub(tmp_path: Path) -> None:
    assert on_hub("owner/base") == "owner/base"
    assert [on_hub(name) for name in (None, "", "tiny", "/base", "./base", str(tmp_path), "a/b/c")] == [None] * 7


def test_a_run_of_a_comparison_has_one(tmp_path: Path) -> None:
    config = {"model": "tiny", "data": "scenes:odd", "method": {"name": "eas"}}
    record = {"row": "EAS_2", "trial": False, "label": "EAS", "metric": "exact", "k": 2, "seed": 4, "config": config}
    record |= {"examples": {"test": 40}, "score": {"validation": 0.9, "test": 0.625}}
    record |= {"skip_set": [1, 5], "fold_mode": "shared"}
    record |= {"counts": RESULT["counts"]["tuned"], "versions": RESULT["versions"], "hardware": RESULT["hardware"]}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "result.json").write_text(json.dumps(record))
    kept = {"id": "tiny", "revision": None, "class": "LlavaForConditionalGeneration", "num_hidden_layers": 12}
    (tmp_path / "adapter" / "eas_config.json").write_text(json.dumps({"base": kept}))
    path = write_card(tmp_path)
    assert path is not None
    text = path.read_text()
    for fact in (
        MARK,
        "Without 2 of its 12 attentions, tiny reaches 62.5 % (47.0–75.8) on scenes:odd.",
        "[1, 5]",
        "Seed: 4",
    ):
        assert fact in text, fact
    for word in ("Times:", "faster", "None", "90"):
        assert word not in text.split("## Configuration")[0], word


def test_a_card_names_no_folder_of_this_machine() -> None:
    values = {"model": "/home/me/models/mine", "data": "vqa2:/home/me/vqa", "output_dir": "/home/me/runs/a"}
    result = {**RESULT, "config": values, "model": {**RESULT["model"], "id": values["model"]}}
    result |= {"task": {**RESULT["task"], "data": values["data"]}, "samples": [{"question": "/home/me ?"}]}
    text = str(card(result, {"id": values["model"], "class": "LlavaForConditionalGeneration"}))
    assert "/home" not in text
    assert "mine with eas on vqa2:vqa" in text
    assert portable_result(result)["samples"] == result["samples"]  # not of this machine, but of the data


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/a/b/c", "c"),
        ("~/b", "b"),
        ("nlvr:/a/b", "nlvr:b"),
        ("scienceqa:hub:/a/b", "scienceqa:hub:b"),
        ("hub:org/name", "hub:org/name"),
        ("org/name", "org/name"),
        ("runs/a", "runs/a"),
        ("eas run --output-dir '/a/b c'", "eas run --output-dir 'b c'"),
        ({"a": ["/x/y", 3, None]}, {"a": ["y", 3, None]}),
    ],
)
def test_absolute_paths_are_their_last_names(value: object, shown: object) -> None:
    assert portable(value) == shown
