"""The parts of tiny configurations, and of inputs with images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from families import CLIP, IMAGE, QWEN_VISION, ROPE
from families import TEXT as SIZES
from torch import Tensor

TEXT = {**SIZES, "num_hidden_layers": 3, "head_dim": 8}
MROPE = {**TEXT, "rope_parameters": ROPE}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = {**CLIP, "model_type": "pixtral", "image_size": 16, "head_dim": 16}
QWEN = {**QWEN_VISION, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64}
PINPOINTS = [[8, 16], [16, 8]]


def text(kind: str, **more: Any) -> dict[str, Any]:
    """The configuration of a language model inside of another."""
    return {**TEXT, "model_type": kind, **more}


def square(size: int, *lead: int) -> Callable[[int], dict[str, Tensor]]:
    """Images as ``(count, ..., 3, size, size)``."""
    return lambda count: {"pixel_values": torch.randn(count, *lead, 3, size, size)}


def sized(size: int, *lead: int) -> Callable[[int], dict[str, Tensor]]:
    """The same with their sizes."""
    return lambda count: square(size, *lead)(count) | {"image_sizes": torch.tensor([[size, size]] * count)}


def patches(features: int, **more: list[int]) -> Callable[[int], dict[str, Tensor]]:
    """Images as patches of a grid of 4 x 4."""

    def inputs(count: int) -> dict[str, Tensor]:
        grid = {"image_grid_thw": torch.tensor([[1, 4, 4]] * count)}
        more_of_each = {name: torch.tensor(value * count) for name, value in more.items()}
        return {"pixel_values": torch.randn(count * 16, features), **grid, **more_of_each}

    return inputs


def none(count: int) -> dict[str, Tensor]:
    return {}


def llava(cls: Any, vision: dict[str, Any], language: dict[str, Any], **more: Any) -> Any:
    return cls(vision_config=vision, text_config=language, image_token_id=IMAGE, **more)


Row = tuple[str, Callable[[], Any], int, Callable[[int], dict[str, Tensor]]]
"""Of a family: class with head, configuration, tokens of an image, and what images are to the model."""
