"""The exported folder: written aside as a whole, recorded with sizes and digests, then moved to its place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eas.attachment.save import library_versions
from eas.attachment.state import attached, attachment
from eas.card import as_json, card_metadata, compose, on_hub, write
from eas.exported import (
    EXPECTED_FILE,
    FORMAT_VERSION,
    RECORD_FILE,
    Expected,
    ExportError,
    ExportRecord,
    file_digest,
    read_export,
)
from eas.exporting.engine import Source
from eas.files import writing
from eas.tasks.evaluation import ends


def require_place(output: Path) -> None:
    """Refuses a place where something else is than an earlier export.

    Raises:
        ExportError: naming the place.
    """
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / RECORD_FILE).is_file())):
        raise ExportError(f"{output} is there and holds something else; name another --output")


@contextmanager
def aside(output: Path) -> Iterator[Path]:
    """A new folder beside ``output``, which takes its place if nothing fails within.

    Raises:
        WriteError: the folder cannot be written.
    """
    partial, former = (output.with_name(f".{output.name}.{kind}") for kind in ("partial", "former"))
    with writing(output):
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
        partial.mkdir(parents=True)
        try:
            yield partial
            read_export(partial)
            if output.exists():
                shutil.rmtree(former, ignore_errors=True)
                os.replace(output, former)
            os.replace(partial, output)
            shutil.rmtree(former, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def describe(source: Source, folder: Path, engine: str, dtype: str, serves: str, expected: Expected) -> None:
    """Writes what belongs to every engine's folder: ``expected.json``, the model card, and last the record."""
    (folder / EXPECTED_FILE).write_text(json.dumps(expected) + "\n", encoding="utf-8")
    model, sizes = source.model, source.plain.sizes
    method = attachment(model).config.to_dict() if attached(model) else None
    base = {
        "id": on_hub(model.config.name_or_path),
        "revision": vars(model.config).get("_commit_hash"),
        "class": type(model).__name__,
    }
    record: ExportRecord = {
        "format_version": FORMAT_VERSION,
        "engine": engine,
        "dtype": dtype,
        "skip_set": list(sizes.skipped),
        "kept": list(sizes.kept),
        "kv_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "context": sizes.context,
        "eos": ends(source.model, source.tokenizer),
        "files": {},
        "config": method,
        "base": base,
        "versions": library_versions(),
    }
    title = f"{base['id'] or base['class']} with {'no method' if method is None else method['name']}, as {engine}"
    facts = [
        f"Read by: {serves}",
        f"Weights: {dtype}",
        f"Layers without attention: {list(sizes.skipped)} (k = {len(sizes.skipped)} of {sizes.layers})",
        f"Base: {base['class']} {base['id'] or ''}".rstrip(),
        f"`{EXPECTED_FILE}` holds a prompt and what eas answers to it: compare an engine with it once.",
    ]
    metadata = card_metadata(base["id"], "base" if method is None else method["name"], title)
    said = ["\n".join(f"- {fact}" for fact in facts)]
    write(folder, compose(metadata, title, said + ([] if method is None else [as_json(method)])))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    record["files"] = {str(path.relative_to(folder)): [path.stat().st_size, file_digest(path)] for path in files}
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
