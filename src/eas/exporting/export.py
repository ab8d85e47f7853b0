"""``eas.export``: a model as a folder that another engine serves, and which engines can take it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from eas.exported import ExportError
from eas.exporting import decilm, gguf, onnx, openvino, vllm
from eas.exporting.decoder import PlainDecoder
from eas.exporting.engine import Engine, Source
from eas.exporting.expected import expected, require_equal
from eas.exporting.folder import aside, describe, require_place
from eas.exporting.opening import opened, processor_of
from eas.exporting.plain import plain
from eas.tasks.collate import templated
from eas.tasks.evaluation import as_scored

ENGINES: dict[str, Engine] = {
    "decilm": decilm.ENGINE,
    "gguf": gguf.ENGINE,
    "onnx": onnx.ENGINE,
    "openvino": openvino.ENGINE,
    "vllm": vllm.ENGINE,
}


REVISION = 2
"""Raised by every change of what a folder holds, so that `eas serve` keeps no folder of before."""


class Explained(NamedTuple):
    """Whether an engine can take a model.

    Args:
        engine: the name for ``eas.export``.
        serves: who reads its folders.
        reasons: why it cannot take the model, with remedies; empty if it can.
        lost: what the exported model lacks.
    """

    engine: str
    serves: str
    reasons: list[str]
    lost: list[str]


def export(
    model: PreTrainedModel | str | Path,
    to: str,
    output: str | Path,
    *,
    processor: Any = None,
    base: str | None = None,
    dtype: str | None = None,
) -> Path:
    """Writes a model as a folder of plain weights, in which another engine finds no trace of eas.

    PIAs are folded in and LoRA is merged, in float32. Everything is written aside and moved when it is complete: an
    export that was stopped leaves no folder. The model is not changed.

    Args:
        model: a tuned model or a base; or the folder of a run, an adapter or a standalone model.
        to: "decilm" (vLLM, SGLang, mlx-lm), "vllm" (vLLM with the plugin eas-vllm), "gguf" (llama.cpp), "onnx" or
            "openvino" (``eas.runtime``).
        output: the folder; an earlier export in it is replaced.
        processor: the model's processor or tokenizer, or its folder or Hub id; a folder of a model brings its own.
        base: folder or Hub id of an adapter's base; by default what the adapter names.
        dtype: of the weights that are written; by default the engine's usual one.

    Returns:
        The folder.

    Raises:
        ExportError: the engine cannot express the model, or a package is missing; nothing was written.
        CheckpointError: the folder of the model is damaged.
        WriteError: the output cannot be written; an earlier export in it is intact.

    Example:
        >>> import eas, torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
        >>> options = {"router": "constant", "pooling": "none", "skip_rank": 8, "adapt_rank": 4}
        >>> model = eas.attach(model, eas.EASConfig(num_skip=1, **options))
        >>> eas.select(model, [1])
        >>> eas.export(model, "decilm", "served").name
        'served'
    """
    engine, output = engine_of(to), Path(output)
    require_place(output)
    if dtype is not None and dtype not in engine.dtypes:
        raise ExportError(f"dtype = {dtype!r}: {to} is written in {' or '.join(engine.dtypes)}")
    if missing := [package for package in engine.needs if find_spec(package) is None]:
        raise ExportError(f"{to} needs {' and '.join(missing)}; pip install 'eas[{engine.extra}]'")
    if not isinstance(model, PreTrainedModel):
        model, own = opened(model, base)
        processor = own if processor is None else processor
    if isinstance(processor, str | Path):
        processor = processor_of(str(processor))
    processor = None if processor is None else templated(processor)
    if reasons := engine.limits(model):
        raise ExportError(f"{to}: {'; '.join(reasons)}. `eas export --explain` shows every engine")
    source = Source(model, processor, plain(model))
    PlainDecoder(source.plain.sizes, source.plain.tensors, source.plain.frequencies)  # every weight is there
    settings = as_scored(model, source.tokenizer)
    want = expected(model, source.tokenizer, settings["eos_token_id"], source.plain.sizes.context)
    require_equal(source.plain, want)
    with aside(output) as folder:
        if processor is not None:
            processor.save_pretrained(folder)
        if model.generation_config is not None:
            # save_pretrained refuses what some published models have, a temperature without sampling for example
            generation = json.loads(model.generation_config.to_json_string()) | settings
            (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
        engine.write(source, folder, dtype or engine.dtypes[0])
        describe(source, folder, to, dtype or engine.dtypes[0], engine.serves, want)
    return output


def explain(model: PreTrainedModel | str | Path, base: str | None = None) -> list[Explained]:
    """Which engines can take a model, why others cannot, and what is lost; nothing is written.

    Args:
        model: as for ``export``.
        base: as for ``export``.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> [row.engine for row in eas.explain(load_tiny()[0]) if not row.reasons]
        ['decilm', 'vllm']
    """
    if not isinstance(model, PreTrainedModel):
        model, _ = opened(model, base)
    return [
        Explained(name, engine.serves, reasons := engine.limits(model), [] if reasons else engine.lost(model))
        for name, engine in ENGINES.items()
    ]


def engine_of(name: str) -> Engine:
    """An engine by its name.

    Raises:
        ExportError: there is none of that name.
    """
    if name not in ENGINES:
        raise ExportError(f"engine {name!r} is unknown; use one of {', '.join(ENGINES)}")
    return ENGINES[name]
