"""The model card of a saved adapter: metadata for the Hub and the adapter's record; a run adds its measurements."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from eas.files import write_text

CARD_FILE = "README.md"
MARK = "<!-- written by eas and replaced by it; remove this line to keep a text of your own -->"


def adapter_card(record: Mapping[str, Any]) -> ModelCard:
    """The card of an adapter of which nothing was measured.

    Args:
        record: of ``eas_config.json``: "config", "skip_set", "base", "versions".
    """
    base, config = record["base"], record["config"]
    method, model_id = config["name"], on_hub(base["id"])
    title = f"{model_id or base['class']} with {method}"
    said = "\n".join(f"- {line}" for line in (*facts(record), "Nothing was measured when it was saved."))
    metadata = card_metadata(model_id, method, title)
    return compose(metadata, title, [said, use(model_id), f"## Configuration\n\n{as_json(config)}"])


def facts(record: Mapping[str, Any]) -> list[str]:
    """What an adapter's record tells of it."""
    base, skip_set = record["base"], record["skip_set"]
    found = {
        "Base": f"{base['class']} {on_hub(base['id']) or ''}".strip(),
        "Revision of the base": base["revision"],
        "Method": record["config"]["name"],
        "Skip set": f"{skip_set} (k = {len(skip_set)})" if skip_set else None,
        "Versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
    return [f"{name}: {value}" for name, value in found.items() if value]


def on_hub(name: str | None) -> str | None:
    """A name that is one on the Hub: a folder of this machine names nothing there."""
    return (
        name
        if name and name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
        else None
    )


def portable(value: Any) -> Any:
    """Configuration values, commands and names with nothing of this machine: an absolute path is its last name."""
    if isinstance(value, Mapping):
        return {key: portable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [portable(part) for part in value]
    if not isinstance(value, str):
        return value
    if value.startswith("eas "):
        return shlex.join(portable(word) for word in shlex.split(value))
    prefix, path = re.fullmatch(r"((?:\w+:)*)(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
    return prefix + Path(path).name if path.startswith(("/", "~")) else value


def portable_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A run's result as cards and pages show it; questions and answers do not change."""
    shown = ("config", "command", "model", "task")
    return {key: portable(value) if key in shown else value for key, value in result.items()}


def card_metadata(model_id: str | None, method: str, title: str, **more: Any) -> ModelCardData:
    """What the Hub reads."""
    return ModelCardData(
        base_model=model_id,
        base_model_relation="adapter" if model_id else None,
        library_name="eas",
        tags=sorted({"eas", method}),
        model_name=title,
        **more,
    )


def use(base: str | None) -> str:
    """How the adapter is opened."""
    return (
        f'## Use\n\n```python\nimport eas\n\nbase = "{base or "BASE"}"  # folder or Hub id\n'
        'model = eas.load(base, "FOLDER")  # this folder\n```'
    )


def as_json(values: Any) -> str:
    return f"```json\n{json.dumps(values, indent=1)}\n```"


def compose(metadata: ModelCardData, title: str, sections: Sequence[str]) -> ModelCard:
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n{MARK}\n\n# {title}\n\n" + "\n\n".join(sections) + "\n")


def write(folder: Path, card: ModelCard) -> Path | None:
    """Writes ``README.md``; one that somebody else wrote is left alone, and None returned.

    Raises:
        WriteError: the folder cannot be written.
    """
    path = folder / CARD_FILE
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    write_text(path, str(card))
    return path
