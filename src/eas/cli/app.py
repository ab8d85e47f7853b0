"""The command line's application and the options that several verbs share."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from eas.terminal import console

GO_ON = ("demo", "run", "search", "tune", "compare", "reproduce", "predict")
"""Verbs that keep their finished work when they are stopped."""


class Verbs(TyperGroup):
    """Ctrl-C prints one line, which says what the same command does next."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            verb, command = ctx.invoked_subcommand, shlex.join(["eas", *sys.argv[1:]])
            does = "continues where it stopped" if verb in GO_ON else "starts over"
            if os.environ.get("RANK", "0") == "0":  # of several processes one prints
                console(stderr=True).print(f"stopped; the same command {does}: {command}", soft_wrap=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    rich_markup_mode="rich",
    help="""Effective Attention Skipping: fine-tune a multimodal LLM and make it faster.

    [bold]eas demo[/] shows all steps in a few minutes on a CPU. [bold]eas run[/] does them with your model and data:
    it searches for the attentions that the task does not need, tunes without them, folds, evaluates, measures, reports.
    A run has its folder. A finished step is not repeated, and the same command continues a stopped run.""",
)

data_app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Check data before you use it.")
app.add_typer(data_app, name="data")

Folder = Annotated[Path, typer.Argument(help="A run folder, as named by --output-dir.", show_default=False)]
Model = Annotated[
    str | None, typer.Option(help="Folder, GGUF file or Hub id of a model; 'smollm2-135m', 'smol' or 'tiny'.")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="A benchmark's NAME:FOLDER or NAME:hub:ID, 'openmoji:TASK', 'scenes:TASK', or your own file or folder."
    ),
]
Method = Annotated[str | None, typer.Option(help="Tuning method, eas by default; see docs/methods.md.")]
Skip = Annotated[int | None, typer.Option(help="k: number of attentions to skip.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML or JSON file of settings.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out what is bad, list it, and continue.")]
DataOverrides = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A data_options.KEY; see docs/data.md.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="Any key of the run configuration; see `eas config`."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from eas import __version__

        print(f"eas {__version__}")
        raise typer.Exit


@app.callback()
def _eas(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass
