"""Opens what is to be exported or served: the folder of a run, of an adapter, or of a standalone model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, AutoTokenizer, PreTrainedModel

from eas.attachment.load import load, load_base, read_adapter_record
from eas.attachment.save import WEIGHTS_FILE, CheckpointError
from eas.models.anatomy import reads_images
from eas.models.bases import base_folder
from eas.models.dtype import chosen_dtype
from eas.models.folder import model_config
from eas.models.visual_tokens import fit_processor
from eas.records import raised_as

WORDS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
"""A folder without any of these files has no tokenizer."""


def opened(
    folder: str | Path, base: str | None = None, dtype: torch.dtype | str = torch.float32
) -> tuple[PreTrainedModel, Any]:
    """The model, and its processor or tokenizer; None where the folder has none.

    Args:
        folder: of a run, an adapter, a standalone model, or a base (or its Hub id).
        base: folder or Hub id of an adapter's base; by default what the adapter names.
        dtype: of the base's weights; "auto" is their own, or float32 where this CPU computes that in software.

    Raises:
        CheckpointError: the folder is damaged, or its base is not found.
    """
    inner = Path(folder) / "adapter"  # of a run
    adapter = inner if (inner / WEIGHTS_FILE).is_file() else Path(folder)
    if not (adapter / WEIGHTS_FILE).is_file():
        home = base_folder(str(folder))
        model = load_base(home, dtype=_dtype(dtype, home))
        return model.eval(), _fitted(processor_of(home), model)
    with raised_as(CheckpointError):
        own = read_adapter_record(adapter)["base"]
    named, revision = (own["id"], own["revision"]) if base is None else (base, None)
    if not named:
        raise CheckpointError(f"{adapter} does not name its base; give --base")
    home = base_folder(named)
    try:
        model = load(home, adapter, base_revision=revision, dtype=_dtype(dtype, home, revision))
    except OSError as error:
        raise CheckpointError(f"{adapter}: its base {named} cannot be opened ({error}); give --base") from error
    return model.eval(), _fitted(processor_of(home, revision), model)


def _dtype(dtype: torch.dtype | str, home: str, revision: str | None = None) -> torch.dtype | str:
    return chosen_dtype(dtype, model_config(home, revision)) if dtype == "auto" else dtype


def _fitted(processor: Any, model: PreTrainedModel) -> Any:
    return processor if processor is None else fit_processor(processor, model.config)


def processor_of(home: str, revision: str | None = None) -> Any:
    """The processor of a model that sees, the tokenizer of another; None where its folder has none."""
    home = base_folder(home)
    if Path(home).is_dir() and not any((Path(home) / name).is_file() for name in WORDS):
        return None
    auto = AutoProcessor if reads_images(model_config(home, revision).model_type) else AutoTokenizer
    return auto.from_pretrained(home, revision=revision, trust_remote_code=False)
