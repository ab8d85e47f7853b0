"""MACs of one image: patch embedding, the tower's blocks, the projector.

Towers that read images of one size are counted by torch as they run, on tensors without storage. Where the grid of
patches decides the work, which torch cannot follow without values, it is counted by the tower's equations.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from eas.hf.api import no_init_weights
from eas.measure.maps import module_macs
from eas.models.anatomy import Anatomy, model_class

# where a family keeps the vision tower in front of its projector
VISION_TOWERS = {
    "LlavaForConditionalGeneration": "model.vision_tower",
    "LlavaNextForConditionalGeneration": "model.vision_tower",
    "Qwen2VLForConditionalGeneration": "model.visual",
    "Qwen2_5_VLForConditionalGeneration": "model.visual",
    "Qwen3VLForConditionalGeneration": "model.visual",
    "Qwen3VLMoeForConditionalGeneration": "model.visual",
    "Qwen3_5ForConditionalGeneration": "model.visual",
    "Qwen3_5MoeForConditionalGeneration": "model.visual",
    "Idefics3ForConditionalGeneration": "model.vision_model",
    "SmolVLMForConditionalGeneration": "model.vision_model",
    "LavinForConditionalGeneration": "model.vision_tower",
    "InternVLForConditionalGeneration": "model.vision_tower",
    "QianfanOCRForConditionalGeneration": "model.vision_tower",
    "VipLlavaForConditionalGeneration": "model.vision_tower",
    "GotOcr2ForConditionalGeneration": "model.vision_tower",
    "Ovis2ForConditionalGeneration": "model.vision_tower",
    "Gemma3ForConditionalGeneration": "model.vision_tower",
    "PaliGemmaForConditionalGeneration": "model.vision_tower",
    "AyaVisionForConditionalGeneration": "model.vision_tower",
    "Cohere2VisionForConditionalGeneration": "model.vision_tower",
}
ENCODERS = ("CLIPVisionModel", "LavinVisionModel", "Idefics3VisionTransformer", "SmolVLMVisionTransformer")
GRIDS = (
    "Qwen2VisionTransformerPretrainedModel",
    "Qwen2_5_VisionTransformerPretrainedModel",
    "Qwen3VLVisionModel",
    "Qwen3VLMoeVisionModel",
    "Qwen3_5VisionModel",
    "Qwen3_5MoeVisionModel",
)


def image_macs(model: PreTrainedModel, grid: tuple[int, int] | None) -> int:
    """MACs of one image of the tower's size, or of ``grid`` = (height, width) in patches where the tower reads any.

    Raises:
        ValueError: the family takes no images, its tower is not known, or the grid is missing.
    """
    family, anatomy, config = type(model).__name__, Anatomy.of(model), model.config
    if family not in VISION_TOWERS:
        raise ValueError(f"{family} takes no images, or its vision tower cannot be counted; leave images = 0")
    tower = model.get_submodule(VISION_TOWERS[family])
    vision, kind = config.vision_config, type(tower).__name__
    if kind in ENCODERS and family != "VipLlavaForConditionalGeneration":
        blocks, embedding = tower.encoder.layers, tower.embeddings.patch_embedding
        grid = (vision.image_size // vision.patch_size,) * 2
    elif kind in GRIDS:
        blocks, embedding = tower.blocks, tower.patch_embed.proj
        if grid is None:
            raise ValueError(f"{family} takes images of any size; give patch_grid = (height, width) in patches")
    elif family.startswith("Llava") and kind != "LiteVisionModel":
        raise ValueError(f"the vision tower {kind} cannot be counted; leave images = 0 to count the language model")
    else:
        return _as_it_runs(model, vision)
    patches = tokens = grid[0] * grid[1]
    if kind == "CLIPVisionModel":
        tokens = patches + 1  # the class token, which the projector may see or not
        projected = patches if config.vision_feature_select_strategy == "default" else tokens
    elif kind == "LavinVisionModel":
        projected = tokens = patches + 1  # its projector has adapters for all of the tower's tokens
    elif kind in GRIDS:
        projected = patches // vision.spatial_merge_size**2
    else:
        projected = patches // config.scale_factor**2
    pairs = len(blocks) * tokens**2
    if kind.startswith("Qwen2_5"):  # most of its blocks attend within windows
        side = vision.window_size // vision.patch_size // vision.spatial_merge_size * vision.spatial_merge_size
        full = len(vision.fullatt_block_indexes)
        pairs = full * tokens**2 + (len(blocks) - full) * _window_pairs(grid[0], side) * _window_pairs(grid[1], side)
    return int(
        patches * embedding.weight.numel()
        + module_macs(blocks, tokens)
        + 2 * embedding.out_channels * pairs
        + sum(module_macs(module, projected) for module in anatomy.projector)
    )


def _window_pairs(length: int, side: int) -> int:
    """Sum of squared window lengths along one axis; the last window may be cut."""
    return length // side * side**2 + (length % side) ** 2


def _as_it_runs(model: Any, vision: Any) -> int:
    """Counted by torch while tower and projector run on tensors without storage."""
    size = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    with torch.device("meta"), no_init_weights():
        seeing = model_class(type(model).__name__)(copy.deepcopy(model.config))
    seeing.set_attn_implementation("eager")  # torch counts no fused attention
    pixels = torch.empty(1, 3, size, size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        seeing.get_image_features(pixel_values=pixels)
    return int(counter.get_total_flops()) // 2
