"""The model card of a run's adapter: Hub metadata, and the content of its result.json, nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from eas.card import as_json, card_metadata, compose, on_hub, portable_result, use, write
from eas.records import CardRecord, raised_as, read_record
from eas.reports.findings import at
from eas.reports.sources import ReportError, read_json
from eas.reports.summary import NOT_MEASURED, final_accuracy, headline, remarks, summary_rows

ADAPTER = "adapter"
TASKS = {
    "MeterForVisualQuestionAnswering": "visual-question-answering",
    "MeterForNLVR2": "visual-reasoning",
    "MeterForImageTextRetrieval": "image-text-retrieval",
    "Phi4MultimodalForCausalLM": "image-text-to-text",
}
"""Of models whose class does not say it."""


def write_card(folder: Path) -> Path | None:
    """Writes ``README.md`` into the ``adapter`` folder of a run, or of a comparison's run, and returns its path; None
    where nothing was saved, or the card there is not one of eas."""
    if not (folder / ADAPTER).is_dir():
        return None
    result, path = read_json(folder / "result.json"), folder / ADAPTER / "eas_config.json"
    base: Mapping[str, Any] = {}
    if path.exists():
        with raised_as(ReportError):
            base = read_record(path, CardRecord, "run `eas tune` again")["base"]
    result = _of_comparison(result, base) if {"row", "trial"} <= result.keys() else result
    return write(folder / ADAPTER, card(result, base))


def _of_comparison(record: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """What `eas compare` leaves of one run, in the sections of a run's own result; it is not timed by itself."""
    config = record["config"]
    model = {"id": config["model"], "class": base.get("class"), "layers": base.get("num_hidden_layers")}
    model |= {"skip_set": record["skip_set"], "k": record["k"], "method": config["method"]["name"]}
    model |= {key: record.get(key) for key in ("candidates", "candidate_layers")}
    kind = "tuned" if record["fold_mode"] is None else "folded"
    task = {"data": config["data"], "metric": record["metric"], "split": "test"}
    task["examples"] = at(record, "examples", "test")
    return {**record, "model": model, "task": task} | {
        "accuracy": {kind: at(record, "score", "test")},
        "counts": {"tuned": record["counts"]},
    }


def card(result: Mapping[str, Any], base: Mapping[str, Any]) -> ModelCard:
    """The card of one run.

    Args:
        result: its ``result.json``.
        base: what the adapter's record says of its base: ``id``, ``revision``, ``class``.
    """
    named, result = at(result, "model", "id"), portable_result(result)
    model_id, method, data = at(result, "model", "id"), at(result, "model", "method"), at(result, "task", "data")
    hub = re.fullmatch(r"(?:(.+):)?hub:(.+)", data or "")
    dataset = hub[2] if hub else None
    title = f"{model_id} with {method} on {data}"
    scores = _scores(result, dataset, (hub[1] or hub[2]) if hub else str(data))
    datasets = [dataset] if dataset else None
    metadata = card_metadata(on_hub(named), method or "eas", title, datasets=datasets, eval_results=scores)
    return compose(metadata, title, _sections(result, base))


def _scores(result: Mapping[str, Any], dataset: str | None, name: str) -> list[EvalResult] | None:
    score = final_accuracy(result)
    if score is None:
        return None
    family = at(result, "model", "class") or ""
    task = TASKS.get(family, "image-text-to-text" if "ConditionalGeneration" in family else "text-generation")
    metric, split = str(at(result, "task", "metric")), at(result, "task", "split")
    return [EvalResult(task, dataset or name, name, metric, score, dataset_split=split)]


def _sections(result: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    said = [headline(result), *remarks(result)]
    rows = [row for row in summary_rows(result) if row.tuned != NOT_MEASURED]
    lines = [["", "base", "this model", "change"], ["---", "---:", "---:", "---"]]
    lines += [[row.name, "" if row.base == NOT_MEASURED else row.base, row.tuned, row.change] for row in rows]
    said.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    where = at(result, "hardware", "gpu") or at(result, "hardware", "cpu")
    if at(result, "latency") and where:
        threads = "" if at(result, "hardware", "gpu") else f", {at(result, 'hardware', 'threads')} threads"
        said.append(
            f"Times: medians (10th–90th percentile) of {at(result, 'latency', 'repeats')} repeats on {where}{threads}, "
            f"torch {at(result, 'hardware', 'torch')}, prompt of {at(result, 'latency', 'prompt_tokens')} tokens."
        )
    facts = {
        "Base": " ".join(str(v) for v in (base.get("class"), at(result, "model", "id")) if v),
        "Revision of the base": base.get("revision"),
        "Method": at(result, "model", "method"),
        "Skip set": at(result, "model", "skip_set") or None,
        "Data": at(result, "task", "data"),
        "Test examples": at(result, "task", "examples"),
        "Seed": at(result, "seed"),
        "Versions": ", ".join(f"{k} {v}" for k, v in (at(result, "versions") or {}).items()) or None,
        "Revision of eas": at(result, "git_revision"),
    }
    said.append("\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None and value != ""))
    named = at(result, "model", "id") or ""
    said += [use(None if named.startswith("…") else named), f"## Configuration\n\n{as_json(at(result, 'config'))}"]
    return said
