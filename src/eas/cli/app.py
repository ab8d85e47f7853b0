"""The command line's application and the options that several verbs share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="""Effective Attention Skipping: fine-tune a multimodal LLM and make it faster.

    [bold]eas demo[/] shows the whole of it in a few minutes on a CPU. [bold]eas run[/] does it to your model and data:
    search which attentions the task does not need, tune without them, fold, evaluate, measure, report. A run lives in
    its folder: what is done stays done, and the same command goes on where it was stopped.""",
)

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Look at data before it is used.")
app.add_typer(data_app, name="data")

Folder = Annotated[Path, typer.Argument(help="A run folder, as named by --output-dir.", show_default=False)]
Model = Annotated[str | None, typer.Option(help="Folder or Hub id of a model, or 'tiny'.")]
Data = Annotated[str | None, typer.Option(help="'scenes:TASK', 'nlvr:FOLDER', or JSON(L) of your own.")]
Method = Annotated[str | None, typer.Option(help="The tuning method, eas by default; see docs/methods.md.")]
Skip = Annotated[int | None, typer.Option(help="k: how many attentions to skip.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML or JSON file of settings.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on past what is bad, and list what was left out.")]
DataOverrides = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A data_options.KEY; see docs/data.md.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="Any key of the run configuration; see `eas config`."),
]


def console() -> Console:
    """For tables: as wide as the terminal, 120 columns where the output goes elsewhere."""
    return Console(width=None if sys.stdout.isatty() else 120)
