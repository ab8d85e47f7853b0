"""What the export needs to know of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from eas.exporting.plain import Plain


@dataclass(frozen=True)
class Source:
    """A model on its way into a folder.

    Args:
        model: ours, attached or a base.
        processor: its processor or tokenizer; None where there is none.
        plain: its plain weights.
    """

    model: PreTrainedModel
    processor: Any
    plain: Plain

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, which a processor holds or is."""
        return vars(self.processor).get("tokenizer", self.processor) if self.processor is not None else None


@dataclass(frozen=True)
class Engine:
    """A form of exported folders.

    Args:
        serves: who reads it.
        dtypes: of the weights; the first is the default.
        needs: packages that the export imports.
        extra: the extra of eas that installs these packages.
        limits: reasons why the engine cannot take a model, with remedies; none if it can.
        lost: what the exported model lacks.
        write: writes the engine's files into a folder, in one of the dtypes.
    """

    serves: str
    dtypes: tuple[str, ...]
    needs: tuple[str, ...]
    extra: str
    limits: Callable[[PreTrainedModel], list[str]]
    lost: Callable[[PreTrainedModel], list[str]]
    write: Callable[[Source, Path, str], None]
