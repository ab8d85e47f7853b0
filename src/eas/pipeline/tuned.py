"""The tuned model of a run, and the skip set that its parts must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eas.attachment.load import load
from eas.attachment.state import skip_set
from eas.config import ConfigError
from eas.pipeline.run import Run


def load_tuned(run: Run) -> Any:
    """The base with the run's adapter.

    Raises:
        ConfigError: the adapter skips another set than search.json says, which is what a report names.
    """
    folder = run.folder / "adapter"
    model = load(run.load_base(), folder)
    require_set(run, skip_set(model), folder)
    return model


def require_set(run: Run, found: Sequence[int], of: Path) -> None:
    """Refuses weights that belong to another skip set than that of search.json.

    Raises:
        ConfigError: they do.
    """
    if (record := run.record("search")) is None:  # nothing is said
        return
    said, found = sorted(record["skip_set"]), sorted(found)
    if said != found:
        option = f"-o skip_set={said}".replace(" ", "")
        raise ConfigError(
            f"{run.folder / 'search.json'}: skip_set = {said}, but {of} is for {found}; put {found} back there, or "
            f"tune {said} in another folder, with {option}"
        )
