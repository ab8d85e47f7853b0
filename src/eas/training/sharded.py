"""FSDP2 (``fully_shard``): checkpoints equal those of one process, so any number of processes can resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from eas.attachment.state import attachment
from eas.config import ConfigError
from eas.distributed import full, is_main, sharded_as
from eas.models.lavin import LavinForConditionalGeneration
from eas.models.quantisation import is_quantised

# their prompt runs through weights of many blocks outside the blocks' forward, where FSDP2 has not gathered them
WITH_PROMPT_PASS = ("shallow_prompt", "deep_prompt", "llama_adapter")


def prepare(model: PreTrainedModel, plugin: Any) -> None:
    """Refuses what cannot work, and says which modules are sharded as one.

    Args:
        model: attached.
        plugin: ``accelerate.FullyShardedDataParallelPlugin``.

    Raises:
        ConfigError: the message says what to do instead.
    """
    method = attachment(model).config.name
    modality_pass = method == "lavin_adapter" and isinstance(model, LavinForConditionalGeneration)
    if method in WITH_PROMPT_PASS or modality_pass:
        raise ConfigError(f"{method} reads weights of blocks outside their forward, where FSDP2 hides them; use DDP")
    if any(is_quantised(module) for module in model.modules()):
        raise ConfigError("quantised weights are not sharded; use DDP, where every process holds them all")
    if plugin.fsdp_version != 2:
        raise ConfigError("FSDP1 is not supported; set fsdp_version: 2 in accelerate's configuration")
    if plugin.activation_checkpointing:
        raise ConfigError("FSDP's activation checkpointing renames parameters; use gradient_checkpointing instead")
    if plugin.transformer_cls_names_to_wrap is None:  # LLaVA's own list names CLIP's text model, which it does not have
        present = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = sorted(present & {*model._no_split_modules})


def keep_class_names(model: nn.Module) -> None:
    """Gives sharded modules the name of their class again, by which families and checkpoints go."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            type(module).__name__ = type(module).__name__.removeprefix("FSDP")


def save_optimizer(optimizer: Any, path: Path) -> None:
    """Writes whole tensors, in the main process; all must call it."""
    state = optimizer.state_dict()
    state["state"] = {i: {key: full(value) for key, value in one.items()} for i, one in state["state"].items()}
    if is_main():
        torch.save(state, path)


def load_optimizer(optimizer: Any, path: Path) -> None:
    """Shards what ``save_optimizer``, or a Trainer without FSDP, wrote."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, one in state["state"].items():  # moments are of their parameter's shape, step counts are numbers
        shape = parameters[i].shape
        one.update({key: sharded_as(value, parameters[i]) for key, value in one.items() if value.shape == shape})
    optimizer.load_state_dict(state)
