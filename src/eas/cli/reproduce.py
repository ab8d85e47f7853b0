"""The verb that compares the paper's tables with our figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from eas.cli.app import app
from eas.terminal import console


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="table1 ... table8, fig4, or all.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="Folder of the written tables.")] = Path("runs/reproduce"),
    shape: Annotated[str | None, typer.Option(help="Shape in place of the table's; see `eas count`.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Prompt length in place of the table's.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time every row on this machine, in full size.")] = False,
    share_blocks: Annotated[
        bool,
        typer.Option("--share-blocks", help="With --measure: all blocks hold one block's weights, to save memory."),
    ] = False,
    repeats: Annotated[int, typer.Option(help="Timed repetitions.", min=1)] = 10,
    new_tokens: Annotated[int, typer.Option(help="Tokens that one repetition decodes.", min=1)] = 16,
    train: Annotated[bool, typer.Option("--train", help="Run every row's recipe: search, tune, evaluate.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Model to train in place of the recipe's; 'tiny' comes with eas.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data in place of the recipe's, for example 'scenes:textures'.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Seed of the training; repeat for the mean and standard deviation of several."),
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Measure or train this row only; repeat for several.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="Any key of the recipes' runs.")
    ] = None,
) -> None:
    """Show the paper's figures beside ours: parameters and FLOPs; on request latency and accuracy (docs/reproduce.md).

    Marks show the figures that no consistent counting gives. The last line is JSON.
    """
    from eas.paper.reproduce import TABLES, reproduce_table
    from eas.paper.reproduce_runs import add_latency, add_training, require_possible
    from eas.reports.reproduce import reproduction_table, write_reproduction

    if not train and (model or data or option or seed):
        raise ValueError("--model, --data, --seed and -o change what is trained; add --train")
    if share_blocks and not measure:
        raise ValueError("--share-blocks changes what is timed; add --measure")
    written: dict[str, list[str]] = {}
    verdicts: dict[str, int] = {}
    tables = TABLES if table == "all" else [table]
    training: dict[str, Any] = {
        "output_dir": output_dir,
        "model": model,
        "data": data,
        "options": option or [],
        "seeds": seed or (),
    }
    for name in tables:
        require_possible(name, row, measure, training if train else None)
    for name in tables:
        result = reproduce_table(name, shape, prompt_tokens)
        if measure:
            add_latency(result, row, repeats, new_tokens, share_blocks)
        if train:
            add_training(result, row, **training)
        console().print(reproduction_table(result))
        written[name] = [str(path) for path in write_reproduction(result, output_dir)]
        for verdict in (v for r in result["rows"] for v in r["verdict"].values()):
            verdicts[verdict] = verdicts.get(verdict, 0) + 1
    print(json.dumps({"written": written, "figures": verdicts}))
