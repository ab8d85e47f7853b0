"""The verb that shows: runs and comparisons on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eas.cli.app import app


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Run folders, comparison folders or comparison.json files.", show_default=False)
    ],
    output_dir: Annotated[
        Path | None, typer.Option(help="Of the page; by default the folder itself, runs/report for several.")
    ] = None,
) -> None:
    """Write report.html and figures of one run, or of several runs and comparisons side by side.

    What a run's steps left is gathered into its result.json first. What is missing or damaged is named and left out:
    the exit status is 1 then, the page is there all the same. The last line is JSON.

    Example: [bold]eas report runs/k4 runs/k6 runs/compare --output-dir runs/report[/]
    """
    from eas.distributed import is_main
    from eas.pipeline import Run
    from eas.pipeline.run import CONFIG_FILE
    from eas.pipeline.steps import gather
    from eas.reports.page import write_page
    from eas.reports.sources import RESULT_FILE, read_json
    from eas.reports.terminal import summary_view

    readable, left_out = [], []
    for folder in folders:
        try:
            if (folder / CONFIG_FILE).is_file():
                gather(Run.open(folder))
            readable.append(folder)
        except (ValueError, KeyError, TypeError, OSError) as error:  # this folder's files; the others are fine
            left_out.append(f"{folder}: {error}")
    if not is_main():
        return
    home = folders[0] if folders[0].is_dir() else folders[0].parent
    page = write_page(readable, output_dir or (home if len(folders) == 1 else Path("runs/report")), left_out)
    out = Console()
    if len(folders) == 1 and (home / RESULT_FILE).is_file():
        out.print(summary_view(read_json(home / RESULT_FILE)))
    for message in page.left_out:
        out.print(f"left out: {message}", markup=False, highlight=False, soft_wrap=True)
    print(json.dumps({"page": str(page.path), "left_out": page.left_out}, ensure_ascii=False))
    if page.left_out:
        raise typer.Exit(1)
