"""The command line: parsing and printing only. A file here is a group of verbs; importing it adds them."""
# ruff: noqa: I001  (verbs are listed in the order of these imports)

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from eas.cli import run, report, compare, data, count, reproduce, convert, bench  # noqa: F401
from eas.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: an expected error is one red line with its remedy, anything else a traceback."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        app()
    except (ValueError, TypeError, FloatingPointError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
