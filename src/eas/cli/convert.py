"""Conversion verbs: original checkpoints of research code to Hugging Face folders."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from eas.cli.app import app
from eas.terminal import printable

convert_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="Turn an original checkpoint into a Hugging Face folder."
)
app.add_typer(convert_app, name="convert")


@convert_app.command()
def meter(
    checkpoint: Annotated[Path, typer.Argument(help="One of METER's meter_clip16_288_roberta_*.ckpt.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the model and its processor.")],
    tokenizer: Annotated[
        str, typer.Option(help="Folder or Hub id of RoBERTa's tokenizer.")
    ] = "FacebookAI/roberta-base",
    task: Annotated[
        str | None,
        typer.Option(help="Task of the head: pretraining, vqa, nlvr2 or retrieval; default: the checkpoint's own."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Image size in pixels, for example 384; default: the checkpoint's.")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(help="Folder of VQA v2.0: names the classes of the VQA head; `eas run` needs these names."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of a new head.")] = 0,
) -> None:
    """Convert a METER checkpoint; fail if a tensor does not match. The last line is JSON; see docs/meter.md."""
    import torch
    from transformers import AutoTokenizer

    from eas.convert.meter import ConversionError, convert, read_checkpoint
    from eas.models.meter import TASKS, MeterProcessor
    from eas.tasks.collate_meter import answer_classes

    if task is not None and task not in TASKS:
        raise ValueError(f"--task {task}: use one of {', '.join(TASKS)}")
    state = read_checkpoint(checkpoint)
    words = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)  # before the work: it may not be there
    classes = {} if answers is None else answer_classes(answers)
    torch.manual_seed(seed)
    try:
        model, conversion = convert(state, task, image_size, len(classes) or None)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint}: {error}") from error
    if classes:
        if not isinstance(model, TASKS["vqa"]):
            raise ValueError(f"--answers names the classes of the VQA head; this is a {type(model).__name__}")
        model.config.label2id, model.config.id2label = classes, {i: answer for answer, i in classes.items()}
    size = model.config.vision_config.image_size
    model.save_pretrained(folder)
    MeterProcessor.of_size(words, size, max_text_length=40 if task == "retrieval" else 50).save_pretrained(folder)
    print(f"{conversion.matched} of {len(state)} tensors matched")
    for what, entries in (("left out", conversion.left_out), ("new", conversion.new)):
        for reason, count in Counter(entries.values()).items():
            first = next(key for key, why in entries.items() if why == reason)
            print(printable(f"{what}: {count} ({first}{', ...' if count > 1 else ''}), {reason}"))
    shown = {"folder": str(folder), "class": type(model).__name__, "image_size": size, "matched": conversion.matched}
    print(json.dumps({**shown, "left_out": len(conversion.left_out), "new": len(conversion.new)}))


@convert_app.command()
def lavin(
    folder: Annotated[Path, typer.Argument(help="Folder of the base: new, or with a base in it.", show_default=False)],
    llama: Annotated[
        Path | None, typer.Option(help="Meta's folder with params.json, or a Hugging Face Llama folder.")
    ] = None,
    clip: Annotated[Path | None, typer.Option(help="A folder of openai/clip-vit-large-patch14.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of tokenizer.model; by default the folder --llama or its parent.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A .pth file of LaVIN's training, which is converted to an adapter.")
    ] = None,
    adapter_folder: Annotated[
        Path | None, typer.Option(help="Folder for the adapter; FOLDER/adapter by default.")
    ] = None,
    vision_adapter: Annotated[bool, typer.Option(help="Whether CLIP's blocks have LaVIN's adapters.")] = True,
    dtype: Annotated[str, typer.Option(help="Dtype of the base: float16, bfloat16 or float32.")] = "float16",
) -> None:
    """Convert LLaMA and CLIP to a base folder, and LaVIN's checkpoint to an adapter for it. The last line is JSON."""
    import torch

    from eas.convert.lavin import convert_adapter, convert_base

    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if (llama is None) != (clip is None) or (llama is None and adapter is None):
        raise ValueError("give --llama and --clip to make a base, --adapter to convert one for it, or all three")
    if dtype not in dtypes:
        raise ValueError(f"--dtype {dtype}: use one of {', '.join(dtypes)}")
    shown: dict[str, object] = {"folder": str(folder)}
    made = []
    if llama is not None and clip is not None:
        options = {"tokenizer": tokenizer, "adapter": adapter, "vision_adapter": vision_adapter}
        made.append(convert_base(llama, clip, folder, dtype=dtypes[dtype], **options))  # type: ignore[arg-type]
    if adapter is not None:
        shown["adapter"] = str(adapter_folder or folder / "adapter")
        made.append(convert_adapter(adapter, folder, adapter_folder or folder / "adapter"))
    for report in made:
        for source, count in report.matched.items():
            print(f"{count} tensors of {source} matched")
        for what, entries in (("left out", report.left_out), ("new", report.new)):
            for reason, count in Counter(entries.values()).items():
                first = next(key for key, why in entries.items() if why == reason)
                print(printable(f"{what}: {count} ({first}{', ...' if count > 1 else ''}), {reason}"))
    print(json.dumps({**shown, "matched": {k: v for report in made for k, v in report.matched.items()}}))
