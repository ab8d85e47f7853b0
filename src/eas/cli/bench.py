"""The verb that times variants of one model and compares them with each other and with the machine's limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from eas.cli.app import app
from eas.terminal import console


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder, GGUF file or Hub id; 'smollm2-135m', 'smol' or 'tiny'; or a shape: llava-0.5b, llava-7b, ..."
        ),
    ] = "llava-0.5b",
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="bfloat16, float32 or float16; by default bfloat16; float32 where the CPU computes that in software."
        ),
    ] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 700,
    new_tokens: Annotated[int, typer.Option(help="Tokens that one request decodes.")] = 64,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, for example 1,8,32.")] = "1",
    skip: Annotated[
        int | None,
        typer.Option(help="k: number of skipped attentions, evenly spread; by default a third of the layers."),
    ] = None,
    skip_set: Annotated[
        str | None, typer.Option(help="Attentions to skip, in place of --skip, for example 0,2,5.")
    ] = None,
    variants: Annotated[
        str | None, typer.Option(help="Variants, for example base,drop,eas_shared; all by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Number of times that each variant is timed.")] = 5,
    decode: Annotated[str, typer.Option(help="'compiled' (eas.fast_decode) or 'eager' (plain generate).")] = "compiled",
    quantise: Annotated[str | None, typer.Option(help="'int8': int8 weights in the language model (torchao).")] = None,
    output: Annotated[Path, typer.Option(help="JSON file of the results; .png and .svg are written beside it.")] = Path(
        "runs/bench.json"
    ),
) -> None:
    """Time base, LoRA, Adapter, DAS, dropped attentions and EAS in all its folds, and compare with the machine's limit.

    One run times all variants in turns; see docs/bench.md. The last line is JSON.
    """
    from eas.files import write_text
    from eas.measure.bench import BenchConfig
    from eas.measure.bench import bench as measure
    from eas.reports.bench import bench_tables, write_bench

    values = {
        "model": model,
        "device": device,
        "dtype": dtype,
        "prompt_tokens": prompt,
        "new_tokens": new_tokens,
        "batch_sizes": _numbers("--batch-sizes", batch_sizes),
        "num_skip": skip,
        "skip_set": None if skip_set is None else _numbers("--skip-set", skip_set),
        "variants": None if variants is None else variants.split(","),
        "repeats": repeats,
        "decode": decode,
        "quantise": quantise,
    }
    output.parent.mkdir(parents=True, exist_ok=True)

    def keep(result: dict[str, Any]) -> None:  # a later batch size may not fit the memory
        write_text(output, json.dumps(result, indent=1) + "\n")

    result = measure(BenchConfig.from_dict(values), title="timing", keep=keep)
    write_bench(result, output)
    for table in bench_tables(result):
        console().print(table)
    print(json.dumps({"bench": str(output), "rates": result["rates"], "rows": result["rows"]}))


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {text}: write numbers and commas, as in 1,8,32") from error
