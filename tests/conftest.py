"""Tests run side by side, one thread each, and never reach for the network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path
from typing import Any

import pytest
import torch

from eas.demo import larger

torch.set_num_threads(1)
larger.WIDTH, larger.PROMPT_TOKENS = 128, 16  # runs of tests time a narrow model; what they report is not looked at


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the drawings in them, for tests that do not look at these: drawing takes most of a page's time."""

    def written(out: Path, name: str, plot: Any) -> dict[str, Any]:
        return {**plot._asdict(), "name": name, "svg": "", "height": 1.0}

    monkeypatch.setattr("eas.reports.page._written", written)
