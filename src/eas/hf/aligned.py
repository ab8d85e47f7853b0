"""Where weights lie in memory: those read from a file may start at any address, which slows a CPU down."""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes: of a cache line, and of what torch allocates on a CPU."""


def align(model: nn.Module) -> None:
    """Copies the weights on a CPU that do not start where torch's own do: at a multiple of 64 bytes.

    ``from_pretrained`` leaves weights in the mapped file, behind a header of any length. A bfloat16 model of 135 M
    parameters read a prompt in 61 ms with them, and in 56 with copies (Xeon with AMX, two threads).
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if type(tensor.data) is Tensor and tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
