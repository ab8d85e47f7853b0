"""The verb that hands a model to another engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from eas.cli.app import app
from eas.terminal import console, printable


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="Folder of a run, an adapter, a standalone model or a base.", show_default=False)
    ],
    to: Annotated[str | None, typer.Option(help="decilm, vllm, gguf, onnx or openvino; see docs/serve.md.")] = None,
    output: Annotated[Path | None, typer.Option(help="New folder, or that of an earlier export.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Dtype of the weights; the engine's usual one by default.")] = None,
    base: Annotated[str | None, typer.Option(help="Base of an adapter; by default the one that it names.")] = None,
    processor: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the tokenizer or processor; by default the base's.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show what each engine can take, and write nothing.")
    ] = False,
) -> None:
    """Write a tuned model as a folder that llama.cpp, vLLM, mlx-lm, ONNX Runtime or OpenVINO serves.

    PIAs are folded and LoRA is merged, so an engine finds plain weights. The last line is JSON.
    """
    from rich.table import Table

    from eas import explain as explained  # knows standalone folders too
    from eas import export as write

    if explain:
        rows = explained(model, base)
        table = Table("engine", "read by", "expressible", "why not, or what is lost", title=model)
        for row in rows:
            table.add_row(row.engine, row.serves, "no" if row.reasons else "yes", "\n".join(row.reasons or row.lost))
        console().print(table)
        print(printable(json.dumps([row._asdict() for row in rows])))
        return
    if to is None or output is None:
        raise ValueError("give --to ENGINE and --output FOLDER, or --explain")
    write(model, to, output, processor=processor, base=base, dtype=dtype)
    print(printable(json.dumps({"folder": str(output), "engine": to})))
