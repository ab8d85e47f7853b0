"""The releases of transformers that eas is tested with, and the error if another release behaves differently."""

from __future__ import annotations

import warnings
from importlib import metadata

from packaging.version import Version

OLDEST, BEYOND = "5.23", "5.25"
"""Tested are the releases from OLDEST up to, and without, BEYOND."""
INSTALL = f"pip install 'transformers>={OLDEST},<{BEYOND}'"


class TransformersChangedError(RuntimeError):
    """transformers does not behave as eas needs; the message names the difference, and a tested release to install, or
    that the installed one is tested.

    Example:
        >>> print(TransformersChangedError("LlamaModel loses the cache"))  # doctest: +ELLIPSIS
        LlamaModel loses the cache. Installed is transformers ...
    """

    def __init__(self, what: str) -> None:
        version = installed()
        if Version(OLDEST) <= Version(version) and Version(Version(version).base_version) < Version(BEYOND):
            remedy = "which eas is tested with: this model or setting may be the cause"
        else:
            remedy = (
                f"and eas is tested with {OLDEST} up to, not including, {BEYOND}. Install a tested release: {INSTALL}"
            )
        super().__init__(f"{what}. Installed is transformers {version}, {remedy}. `eas doctor` checks an installation.")


def installed() -> str:
    """The installed version of transformers."""
    return metadata.version("transformers")


def check() -> None:
    """Refuses a release that is too old, and warns of one that no test has seen.

    Raises:
        ImportError: transformers is older than eas can work with; the message has the remedy.
    """
    try:
        version = installed()
    except metadata.PackageNotFoundError:  # eas.runtime needs none; what needs it says so when it is imported
        return
    if Version(version) < Version(OLDEST):
        raise ImportError(f"eas needs transformers {OLDEST} or newer, and {version} is installed. Run: {INSTALL}")
    if Version(Version(version).base_version) >= Version(BEYOND):
        warnings.warn(
            f"transformers {version} is newer than the releases that eas is tested with ({OLDEST} up to, not "
            f"including, {BEYOND}). Run `eas doctor` to see whether it works, or install a tested one: {INSTALL}",
            stacklevel=3,
        )
