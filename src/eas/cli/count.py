"""The verb that counts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from eas.cli.app import app
from eas.terminal import console

CONVENTION = "'honest': every module once, without folded PIAs. 'paper': the paper's convention; see docs/count.md."


@app.command()
def count(
    model: Annotated[
        str,
        typer.Argument(
            help="A named shape ('llava-7b'), a folder of a model (standalone too), an adapter or a run, a GGUF file, "
            "a Hub id, 'smollm2-135m', 'smol', or 'tiny'.",
            show_default=False,
        ),
    ],
    method: Annotated[str | None, typer.Option(help="Tuning method; eas if --skip is given.")] = None,
    skip: Annotated[int | None, typer.Option(help="k: number of skipped attentions.")] = None,
    skip_set: Annotated[str | None, typer.Option(help="The skipped attentions, for example 20,22,24.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Image and question tokens of the prompt.")] = 512,
    images: Annotated[int, typer.Option(help="Images that the vision tower sees.")] = 0,
    patch_grid: Annotated[str | None, typer.Option(help="Patches of an image (Qwen-VL), for example 24x32.")] = None,
    fold: Annotated[str, typer.Option(help="Fold mode of the method, 'none', or 'default'.")] = "default",
    convention: Annotated[str, typer.Option(help=CONVENTION)] = "honest",
    dtype: Annotated[str, typer.Option(help="Dtype of weights, keys and values.")] = "bfloat16",
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="A key of the method.")
    ] = None,
) -> None:
    """Count MACs, parameters and bytes of a model under any method, without its weights. The last line is JSON.

    Example: [bold]eas count llava-7b --skip 12 --prompt-tokens 676 --images 1[/]
    """
    import torch

    from eas import count as count_model  # knows standalone folders too
    from eas.attachment.load import read_adapter_record
    from eas.attachment.save import WEIGHTS_FILE
    from eas.attachment.state import attached, attachment
    from eas.config import read_assignments
    from eas.measure.count import on_meta
    from eas.methods import method_config
    from eas.models.anatomy import Anatomy
    from eas.reports.count import count_table
    from eas.reports.summary import KINDS, numbers_told
    from eas.tasks.task import candidates_of

    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if dtype not in dtypes:
        raise ValueError(f"--dtype {dtype}: must be one of {', '.join(dtypes)}")
    sizes: dict[str, Any] = {"prompt_tokens": prompt_tokens, "images": images, "dtype": dtypes[dtype]}
    sizes |= {"patch_grid": None if patch_grid is None else _numbers(patch_grid, "x", "--patch-grid", 2)}
    chosen = None if skip_set is None else _numbers(skip_set, ",", "--skip-set")
    keys = read_assignments(option or [])
    named = {"name": method or "eas", **keys} if method or keys or skip or chosen else None
    source = model
    if (Path(model) / "run.yaml").is_file():
        if named is not None:
            raise ValueError(f"{model} is a run with its own method; leave out --method, --skip, --skip-set and -o")
        source, named, skip, chosen = _run(Path(model))
    sizes["convention"] = convention
    tuned, base_id = None, source
    if named is not None:
        tuned = asdict(count_model(source, **sizes, method=named, k=skip, skip_set=chosen, fold_mode=fold))
    elif (Path(source) / WEIGHTS_FILE).is_file():
        tuned = asdict(count_model(source, **sizes, fold_mode=fold))
        base_id = read_adapter_record(Path(source))["base"]["id"]
    elif fold != "default":
        raise ValueError(f"--fold {fold}: there is no method to fold; give --method or --skip")
    base = asdict(count_model(base_id, **sizes))
    title = f"{model}: {prompt_tokens} prompt tokens, {images} images, {convention} convention"
    console().print(count_table(base, tuned, title))
    counted = on_meta(source, None)
    kind = candidates_of(attachment(counted).config if attached(counted) else method_config(named or {}))
    if layers := Anatomy.of(counted).numbered(kind):
        console().print(numbers_told(KINDS[kind], layers))
    print(json.dumps({"base": base, "tuned": tuned}))


def _run(folder: Path) -> tuple[str, dict[str, Any], int | None, tuple[int, ...] | None]:
    """The base of a run, its method, and the skip set that it found, or k where it has not found one yet."""
    from eas.pipeline import Run

    run = Run.open(folder)
    found, method = run.record("search"), run.config.method.to_dict()
    if not run.config.num_skip:
        return run.base_id, method, None, None
    return run.base_id, method, run.config.num_skip, None if found is None else tuple(found["skip_set"])


def _numbers(text: str, separator: str, flag: str, length: int | None = None) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(separator))
    except ValueError as error:
        raise ValueError(f"{flag} {text}: write whole numbers with {separator!r} between them") from error
    if length is not None and len(numbers) != length:
        raise ValueError(f"{flag} {text}: write {length} numbers with {separator!r} between them")
    return numbers
