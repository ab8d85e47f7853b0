"""ONNX: the graph of the plain decoder, with keys and values of the kept attentions only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from eas.exporting.engine import Engine, Source
from eas.exporting.graph import decoder, limits, lost, names, traced, without_remarks

FILE = "model.onnx"


def write(source: Source, folder: Path, dtype: str) -> None:
    """See ``Engine.write``; the weights lie beside the graph, so that models of any size can be saved."""
    module = decoder(source)
    inputs, outputs = names(module)
    with without_remarks():
        program = torch.onnx.export(traced(module), input_names=inputs, output_names=outputs, verbose=False)
    assert program is not None
    program.save(folder / FILE, external_data=True)


ENGINE = Engine(
    "eas.runtime on ONNX Runtime",
    ("float32",),
    ("onnx", "onnxscript"),
    "onnx",
    partial(limits, engine="onnx"),
    lost,
    write,
)
