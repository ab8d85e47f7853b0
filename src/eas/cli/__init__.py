"""The command line: parsing and printing only. A file here is a group of verbs; importing it adds them."""
# ruff: noqa: I001  (verbs are listed in the order of these imports)

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
import warnings
from functools import partial

from rich.text import Text

from eas.cli import run, predict, serve, export, report, compare, data, count, reproduce, convert, bench, doctor  # noqa: F401
from eas.cli.app import app
from eas.keys import as_typed
from eas.terminal import console, printable

__all__ = ["app", "main"]


NOISE = {
    "torchao": ("Failed to load", "Skipping import of cpp"),  # its CUDA libraries, without GPU or of another torch
    "torch.utils._pytree": ("register_constant",),  # torchao registers enums in the old way
    "torch.onnx._internal.exporter._registration": ("torchvision is not installed",),
    "bitsandbytes.backends.cpu.ops": ("kernels-community",),  # an optional package of its own
}
"""Logger -> its remarks on extras that are installed, or are not; users cannot do anything about these."""


def quiet() -> None:
    """Keeps other packages' remarks off the terminal: they do not concern the user's command."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name, words in NOISE.items():
        logging.getLogger(name).addFilter(partial(_keeps, words))


def _keeps(words: tuple[str, ...], record: logging.LogRecord) -> bool:
    return not any(said in record.getMessage() for said in words)


def main() -> None:
    """Entry point: an expected error is one red line with its remedy, anything else a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a letter still shows the rest
    warnings.showwarning = _warn
    quiet()
    try:
        app()
    except (ValueError, TypeError, FloatingPointError, OSError) as error:
        said = as_typed(str(error), next(iter(sys.argv[1:]), ""))
        console(stderr=True).print(Text("error: ", "red").append(said, "default"), highlight=False, soft_wrap=True)
        sys.exit(1)
    except Exception:  # not expected: a bug report needs all of it
        sys.stderr.write(printable(traceback.format_exc()))
        sys.exit(1)


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    print(printable(f"{category.__name__}: {message}"), file=sys.stderr)
