"""The record that ``eas export`` writes into each folder: an unknown format, or a damaged folder, is not opened."""

import json
from pathlib import Path

FORMAT_VERSION = 1
RECORD_FILE = "eas_export.json"
REMEDY = "copy the folder again, or export the model again"


class FolderError(ValueError):
    """A folder that vLLM should not open; the message names the file and the remedy."""


def require_known(folder: Path, *, ours: bool) -> None:
    """Refuses a folder of another format.

    Args:
        folder: that vLLM was given.
        ours: whether only eas writes such folders, so that a record must be there.

    Raises:
        FolderError: the record is missing, damaged or of another version; or a file of weights is not what was written.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        if ours:
            raise FolderError(f"{path} is missing; {REMEDY}")
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderError(f"{path} is damaged ({error}); {REMEDY}") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise FolderError(
            f"{path}: format_version = {version}, and this eas-vllm reads {FORMAT_VERSION}; install the eas-vllm that "
            "belongs to the eas that wrote it"
        )
    for name, (size, _) in record["files"].items():
        file = folder / name
        if file.suffix == ".safetensors" and not (file.is_file() and file.stat().st_size == size):
            raise FolderError(f"{file} is missing, or is not the file that was written; {REMEDY}")
