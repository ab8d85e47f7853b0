"""The verb that shows runs and comparisons on one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from eas.cli.app import app
from eas.files import write_text
from eas.keys import as_typed
from eas.terminal import console, printable

PAGE = "report.html"


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Run folders, comparison folders or comparison.json files.", show_default=False)
    ],
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the page; by default the given folder, or runs/report for several folders."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write only this HTML file, for example if the run folder is read-only.")
    ] = None,
) -> None:
    """Write report.html and figures of one run, or of several runs and comparisons together.

    First the command gathers the records of a run's steps in its result.json. The page leaves out what is missing or
    damaged, and names it; the exit status is then 1. The last line is JSON.

    Example: [bold]eas report runs/k4 runs/k6 runs/compare --output-dir runs/report[/]
    """
    from eas.distributed import is_main, join

    if output is not None and output_dir is not None:
        raise ValueError("--output and --output-dir: give one of them")
    join()
    if not is_main():
        return
    home = folders[0] if folders[0].is_dir() else folders[0].parent
    out = output_dir or (home if len(folders) == 1 else Path("runs/report"))
    if output is None:
        left_out = _write(folders, out, None)
    else:
        with TemporaryDirectory() as aside:
            left_out = _write(folders, Path(aside), Path(aside))
            write_text(output, (Path(aside) / PAGE).read_text(encoding="utf-8"))
    for message in left_out:
        console().print(f"left out: {message}", highlight=False, soft_wrap=True)
    page = {"page": str(output or out / PAGE), "left_out": left_out}
    print(printable(json.dumps(page, ensure_ascii=False)))
    if left_out:
        raise typer.Exit(1)


def _write(folders: list[Path], out: Path, aside: Path | None) -> list[str]:
    """Writes the page and prints a single run's table; what was left out. Runs are gathered aside if that is given."""
    from eas.pipeline import Run
    from eas.pipeline.gathering import gather_into
    from eas.pipeline.run import CONFIG_FILE
    from eas.reports.page import write_page
    from eas.reports.sources import FRONTIER_FILE, RESULT_FILE, read_json
    from eas.reports.terminal import summary_view

    readable, left_out = [], []
    for i, folder in enumerate(folders):
        try:
            gathered = folder
            if (folder / CONFIG_FILE).is_file():
                run = Run.open(folder)
                if aside is not None:
                    gathered = aside / str(i) / folder.absolute().name
                    gathered.mkdir(parents=True)
                    if (folder / FRONTIER_FILE).is_file():
                        shutil.copyfile(folder / FRONTIER_FILE, gathered / FRONTIER_FILE)
                left_out += [f"{folder}: {as_typed(message, 'report')}" for message in gather_into(run, gathered)]
            readable.append(gathered)
        except (ValueError, KeyError, TypeError, OSError) as error:  # this folder's files; the others are fine
            left_out.append(f"{folder}: {as_typed(str(error), 'report')}")
    page = write_page(readable, out, left_out)
    if len(folders) == 1 and readable and (result := readable[0] / RESULT_FILE).is_file():
        console().print(summary_view(read_json(result)))
    return page.left_out
