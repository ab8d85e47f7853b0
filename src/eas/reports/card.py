"""The model card of a run's adapter: Hub metadata, and what its result.json says; nothing that is not there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from eas.files import write_text
from eas.reports.summary import NOT_MEASURED, at, final_accuracy, headline, summary_rows

ADAPTER = "adapter"


def write_card(folder: Path) -> Path | None:
    """Writes ``README.md`` into a run's ``adapter`` folder, and returns its path; None where nothing was saved."""
    if not (folder / ADAPTER).is_dir():
        return None
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    record = folder / ADAPTER / "eas_config.json"
    base = json.loads(record.read_text(encoding="utf-8"))["base"] if record.is_file() else {}
    path = folder / ADAPTER / "README.md"
    write_text(path, str(card(result, base)))
    return path


def card(result: Mapping[str, Any], base: Mapping[str, Any]) -> ModelCard:
    """The card of one run.

    Args:
        result: its ``result.json``.
        base: what the adapter's record says of its base: ``id``, ``revision``, ``class``.
    """
    model_id, method, data = at(result, "model", "id"), at(result, "model", "method"), at(result, "task", "data")
    # only what names something on the Hub: a folder of this machine or the embedded model names nothing there
    on_hub = model_id if model_id and model_id.count("/") == 1 and not Path(model_id).exists() else None
    hub = re.fullmatch(r"(?:(.+):)?hub:(.+)", data or "")
    dataset = hub[2] if hub else None
    title = f"{model_id} with {method} on {data}"
    metadata = ModelCardData(
        base_model=on_hub,
        base_model_relation="adapter" if on_hub else None,
        datasets=[dataset] if dataset else None,
        library_name="eas",
        tags=sorted({"eas", method or "eas"}),
        model_name=title,
        eval_results=_scores(result, dataset, (hub[1] or hub[2]) if hub else str(data)),
    )
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n# {title}\n\n" + "\n\n".join(_sections(result, base)) + "\n")


def _scores(result: Mapping[str, Any], dataset: str | None, name: str) -> list[EvalResult] | None:
    score = final_accuracy(result)
    if score is None:
        return None
    sees = at(result, "model", "class") is not None and "ConditionalGeneration" in result["model"]["class"]
    task = "image-text-to-text" if sees else "text-generation"
    metric, split = str(at(result, "task", "metric")), at(result, "task", "split")
    return [EvalResult(task, dataset or name, name, metric, score, dataset_split=split)]


def _sections(result: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    said = [headline(result)]
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
    known = at(result, "model", "id")
    said.append(
        f'## Use\n\n```python\nimport eas\n\nbase = "{known or "BASE"}"  # folder or Hub id\n'
        'model = eas.load(base, "FOLDER")  # this folder\n```'
    )
    said.append(f"## Configuration\n\n```json\n{json.dumps(at(result, 'config'), indent=1)}\n```")
    return said
