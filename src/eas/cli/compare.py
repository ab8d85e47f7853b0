"""Verbs that compare several runs, or every k of one search."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from eas.cli.app import Folder, app
from eas.terminal import console


@app.command()
def compare(
    config: Annotated[Path, typer.Option(help="A YAML or JSON file; see docs/compare.md.", show_default=False)],
    output_dir: Annotated[Path | None, typer.Option(help="Output folder, in place of the file's output_dir.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Runs at a time, in place of the file's jobs.")] = None,
) -> None:
    """Run methods, k and seeds under equal conditions, and end with one table (comparison.json, .md, .csv, .png, .svg).

    If the command was stopped, the same command continues. It also tries failed runs again. If every run is done, it
    only rebuilds the table. The last line is JSON; the exit status is 1 if a run failed.
    """
    from eas.paper.compare import COMPARISON_FILE, compare_runs
    from eas.paper.compare_config import CompareConfig
    from eas.reports.comparison import comparison_table

    given = {"output_dir": output_dir and str(output_dir), "jobs": jobs}
    values = CompareConfig.from_file(config).to_dict()
    settings = CompareConfig.from_dict(values | {key: value for key, value in given.items() if value is not None})
    result = compare_runs(settings, command=shlex.join(["eas", *sys.argv[1:]]))
    console().print(comparison_table(result))
    path = Path(settings.output_dir) / COMPARISON_FILE
    print(json.dumps({"comparison": str(path), "runs": result["runs"], "failed": result["failed"]}))
    if result["failed"]:
        raise typer.Exit(1)


@app.command()
def frontier(
    folder: Folder,
    measure: Annotated[
        str | None, typer.Option(help="List of k to measure, for example 2,4,6; by default about five.")
    ] = None,
    examples: Annotated[int, typer.Option(help="Maximum number of validation examples to score.", min=1)] = 256,
    max_loss_increase: Annotated[
        float | None, typer.Option(help="Budget: loss above the lowest measured loss.")
    ] = None,
    max_macs: Annotated[float | None, typer.Option(help="Budget: MACs of a prefill, as a share of the base's.")] = None,
    max_kv: Annotated[float | None, typer.Option(help="Budget: KV cache, as a share of the base's.")] = None,
    speedup: Annotated[float | None, typer.Option(help="Budget: decode speed-up that the bytes read allow.")] = None,
) -> None:
    """Show what every k would cost and save, from one finished search (frontier.json, .png, .svg).

    With a budget the command recommends a k, whose loss it measures; see docs/frontier.md. The last line is JSON.
    """
    from eas.pipeline import Run
    from eas.pipeline.frontier import Budget
    from eas.pipeline.frontier import frontier as draw
    from eas.pipeline.run import working
    from eas.reports.frontier import frontier_table, recommendation

    try:
        chosen = [int(k) for k in measure.split(",")] if measure is not None else None
    except ValueError as error:
        raise ValueError(f"--measure {measure}: write numbers and commas, as in 2,4,6") from error
    budget = Budget(max_loss_increase, max_macs, max_kv, speedup)
    opened = Run.open(folder)
    with working(folder):
        result = draw(opened, chosen, examples, budget)
    console().print(frontier_table(result))
    k = result["recommended"]
    if budget != Budget():
        console().print(recommendation(result))
    row = {"skip_set": None, "measured": None} if k is None else result["rows"][k]
    found = {"recommended": k, "skip_set": row["skip_set"], "measured": row["measured"], "tried": result["tried"]}
    print(json.dumps({"frontier": str(folder / "frontier.json"), **found}))
