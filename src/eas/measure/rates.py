"""The two limits of a machine: the rate of a large matrix product, and the rate of reading memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

# side of the matrices, and numbers that are read
SIZES = {"cpu": (2048, 2**26), "cuda": (8192, 2**28)}
CALLS = {"cpu": 1, "cuda": 8}  # in one measurement: a GPU is launched and waited for once, not once a call


class Rates:
    """The rates of one device in one dtype, measured again and again between other measurements. Their median counts: a
    virtual machine shares its memory's bandwidth with others, and has twice as much at one moment as at the next.

    Args:
        device: cpu or cuda.
        dtype: of the matrices; memory is read as float32, whose sum is the fastest.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        size, read = SIZES[device.type]
        self.device = device
        self.left, self.right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        self.memory = torch.ones(read, device=device)
        self.macs_per_second: list[float] = []
        self.bytes_per_second: list[float] = []
        self.measure()
        del self.macs_per_second[:], self.bytes_per_second[:]  # that was the warm-up

    def measure(self) -> None:
        """Measures both once more, each as the best of three."""
        self.macs_per_second.append(len(self.left) ** 3 / self._seconds(lambda: self.left @ self.right))
        self.bytes_per_second.append(self.memory.nbytes / self._seconds(self.memory.sum))

    def _seconds(self, work: Callable[[], Any]) -> float:
        times, calls = [], CALLS[self.device.type]
        for _ in range(3):
            start = now(self.device)
            for _ in range(calls):
                work()
            times.append((now(self.device) - start) / calls)
        return min(times)


def now(device: torch.device) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
