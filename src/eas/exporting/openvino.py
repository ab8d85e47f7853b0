"""OpenVINO: the graph of the plain decoder, with keys and values of the kept attentions only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from eas.exporting.engine import Engine, Source
from eas.exporting.graph import decoder, limits, lost, names, traced, without_remarks

FILE = "model.xml"


def write(source: Source, folder: Path, dtype: str) -> None:
    """See ``Engine.write``."""
    import openvino

    module = decoder(source)
    with without_remarks():
        converted = openvino.convert_model(traced(module))
    for ports, given in zip((converted.inputs, converted.outputs), names(module), strict=True):
        for port, name in zip(ports, given, strict=True):
            port.get_tensor().set_names({name})
    openvino.save_model(converted, folder / FILE, compress_to_fp16=dtype == "float16")


ENGINE = Engine(
    "eas.runtime on OpenVINO",
    ("float32", "float16"),
    ("openvino",),
    "openvino",
    partial(limits, engine="openvino"),
    lost,
    write,
)
