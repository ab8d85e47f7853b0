"""Agreement between the processes of one run. Without ``torch.distributed`` there is one process, the main one."""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")


def join() -> None:
    """Meets the other processes if ``torchrun`` or ``accelerate launch`` started this one."""
    if "LOCAL_RANK" in os.environ:
        PartialState(cpu=not torch.cuda.is_available())


def is_main() -> bool:
    """Whether this process writes and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def from_main(value: T) -> T:
    """The main process's value, in every process; all must call it."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def from_all(value: T) -> list[T]:
    """Every process's value, by rank; all must call it."""
    values = [value]
    if dist.is_initialized():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 may have sharded; all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor in the form of a parameter of its shape."""
    if not isinstance(parameter, DTensor):
        return tensor
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
