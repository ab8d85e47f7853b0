"""The bases that eas knows by a name of one word, as folders, which everything else reads."""

from __future__ import annotations

from pathlib import Path

from eas.models.folder import TINY_DIR
from eas.models.gguf import SMOLLM2, folder_of_gguf
from eas.models.smol import SMOL, smol_folder


def base_folder(model: str) -> str:
    """The folder or Hub id of a base: of 'tiny', of 'smol', of a GGUF file (`folder_of_gguf`), or what is given."""
    if model == "tiny":
        return str(TINY_DIR)
    if model == SMOL:
        return smol_folder()
    given_as_file = model.endswith(".gguf") and not Path(model).is_dir()
    return folder_of_gguf(model) if model == SMOLLM2 or given_as_file else model
