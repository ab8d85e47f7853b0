"""The record that ``eas export`` writes into each folder: a folder of an unknown format is not opened."""

import json
from pathlib import Path

FORMAT_VERSION = 1
RECORD_FILE = "eas_export.json"


class FolderError(ValueError):
    """A folder that vLLM should not open; the message names the file and the remedy."""


def require_known(folder: Path, *, ours: bool) -> None:
    """Refuses a folder of another format.

    Args:
        folder: that vLLM was given.
        ours: whether only eas writes such folders, so that a record must be there.

    Raises:
        FolderError: the record is missing, damaged or of another version.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        if ours:
            raise FolderError(f"{path} is missing; copy the folder again, or export the model again")
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderError(f"{path} is damaged ({error}); copy the folder again, or export the model again") from error
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise FolderError(
            f"{path}: format_version = {version}, and this eas-vllm reads {FORMAT_VERSION}; install the eas-vllm that "
            "belongs to the eas that wrote it"
        )
