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
from eas.models.visual_tokens import kept_tokens

# where a family keeps the vision tower in front of its projector
VISION_TOWERS = {
    "LlavaForConditionalGeneration": "model.vision_tower",
    "LlavaNextForConditionalGeneration": "model.vision_tower",
    "LlavaOnevisionForConditionalGeneration": "model.vision_tower",
    "LlavaNextVideoForConditionalGeneration": "model.vision_tower",
    "Mistral3ForConditionalGeneration": "model.vision_tower",
    "LightOnOcrForConditionalGeneration": "model.vision_encoder",
    "Lfm2VlForConditionalGeneration": "model.vision_tower",
    "Gemma4ForConditionalGeneration": "model.vision_tower",
    "Glm4vForConditionalGeneration": "model.visual",
    "Glm46VForConditionalGeneration": "model.visual",
    "Glm4vMoeForConditionalGeneration": "model.visual",
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
ONEVISION = "LlavaOnevisionForConditionalGeneration"
ENCODERS = ("CLIPVisionModel", "LavinVisionModel", "Idefics3VisionTransformer", "SmolVLMVisionTransformer")
TOKENS_KNOWN = (
    "LlavaForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)
"""Families whose every image, or tile of one, takes as many tokens as its tower's size says."""
CUT = ("LlavaNextForConditionalGeneration", "LlavaNextVideoForConditionalGeneration", ONEVISION)
"""Families that cut the padding out of an image's tiles; its overview, one tile, stays whole."""
QWEN = ("blocks", "patch_embed.proj")
GRIDS: dict[str, tuple[str, str]] = {
    "Qwen2VisionTransformerPretrainedModel": QWEN,
    "Qwen2_5_VisionTransformerPretrainedModel": QWEN,
    "Qwen3VLVisionModel": QWEN,
    "Qwen3VLMoeVisionModel": QWEN,
    "Qwen3_5VisionModel": QWEN,
    "Qwen3_5MoeVisionModel": QWEN,
    "Glm4vVisionModel": QWEN,
    "Glm4vMoeVisionModel": QWEN,
    "PixtralVisionModel": ("transformer.layers", "patch_conv"),
    "Siglip2VisionModel": ("encoder.layers", "embeddings.patch_embedding"),
    "Gemma4VisionModel": ("encoder.layers", "patch_embedder.input_proj"),
}
"""Towers that read images of any size: the paths of their blocks and of the patch embedding."""


class UncountedError(ValueError):
    """The MACs of the model's images are not known."""


def counted(model: PreTrainedModel, images: int, grid: tuple[int, int] | None) -> int:
    """The images, or 0 where those of the model cannot be counted; METER's are counted with its layers."""
    if images and Anatomy.of(model).form == "decoder":
        try:
            image_macs(model, grid)
        except UncountedError:
            return 0
    return images


def image_macs(model: PreTrainedModel, grid: tuple[int, int] | None) -> int:
    """MACs of one image of the tower's size, or of ``grid`` = (height, width) in patches where the tower reads any.

    Raises:
        ValueError: the family takes no images, its tower is not known, or the grid is missing or impossible.
    """
    family, anatomy, config = type(model).__name__, Anatomy.of(model), model.config
    if family not in VISION_TOWERS:
        raise UncountedError(f"{family} takes no images, or its vision tower cannot be counted; leave images = 0")
    tower: Any = model.get_submodule(VISION_TOWERS[family])
    vision, kind = config.vision_config, type(tower).__name__
    if kind in GRIDS:
        if grid is None:
            raise ValueError(f"{family} takes images of any size; give patch_grid = (height, width) in patches")
        return _of_grid(model, tower, grid)
    if kind not in ENCODERS or family == "VipLlavaForConditionalGeneration":
        if family.startswith("Llava") and family != ONEVISION and kind != "LiteVisionModel":
            raise UncountedError(
                f"the vision tower {kind} cannot be counted; leave images = 0 to count the language model"
            )
        return _as_it_runs(model)[0]
    patches = tokens = (vision.image_size // vision.patch_size) ** 2
    if kind == "CLIPVisionModel":
        tokens = patches + 1  # the class token, which the projector may see or not
        projected = patches if config.vision_feature_select_strategy == "default" else tokens
    elif kind == "LavinVisionModel":
        projected = tokens = patches + 1  # its projector has adapters for all of the tower's tokens
    else:
        projected = patches // config.scale_factor**2
    blocks, embedding = tower.encoder.layers, tower.embeddings.patch_embedding
    return int(
        patches * embedding.weight.numel()
        + module_macs(blocks, tokens)
        + 2 * embedding.out_channels * len(blocks) * tokens**2
        + sum(module_macs(module, projected) for module in anatomy.projector)
    )


def _of_grid(model: Any, tower: Any, grid: tuple[int, int]) -> int:
    """One image whose patches attend to each other, and not to those of other images."""
    vision, kind = model.config.vision_config, type(tower).__name__
    blocks, embedding = (tower.get_submodule(path) for path in GRIDS[kind])
    patches, side, beside = grid[0] * grid[1], _merge(model, kind), 0
    if min(grid) < 1 or grid[0] % side or grid[1] % side:
        raise ValueError(
            f"patch_grid = {grid[0]}x{grid[1]}: {type(model).__name__} merges {side}x{side} patches; give multiples of "
            f"{side}, above 0"
        )
    pairs, width = len(blocks) * patches**2, vision.hidden_size
    match kind:
        case "Siglip2VisionModel" if vision.vision_use_head:
            raise UncountedError("a SigLIP 2 tower with a pooling head cannot be counted; leave images = 0")
        case "Siglip2VisionModel":
            beside = patches * tower.embeddings.position_embedding.weight.numel()  # resized by a product
        case "Gemma4VisionModel":
            width = vision.num_attention_heads * vision.head_dim
            beside = vision.hidden_size * patches * (patches // side**2) if side > 1 else 0  # pools by a product
    merged = patches // side**2
    if kind.startswith("Qwen2VisionTransformer"):
        width = vision.embed_dim
    if kind.startswith("Qwen2_5"):  # most of its blocks attend within windows
        window = vision.window_size // vision.patch_size // side * side
        full = len(vision.fullatt_block_indexes)
        windows = _window_pairs(grid[0], window) * _window_pairs(grid[1], window)
        pairs = full * patches**2 + (len(blocks) - full) * windows
    if kind.startswith("Glm"):
        beside = merged * tower.downsample.weight.numel()
    return int(
        patches * embedding.weight.numel()
        + module_macs(blocks, patches)
        + 2 * width * pairs
        + beside
        + sum(module_macs(module, merged) for module in Anatomy.of(model).projector)
    )


def _merge(model: Any, kind: str) -> int:
    """Patches along each side of what a tower for images of any size makes one token of."""
    config, vision = model.config, model.config.vision_config
    match kind:
        case "PixtralVisionModel":
            side = 1 if type(model).__name__ == "LlavaForConditionalGeneration" else config.spatial_merge_size
        case "Siglip2VisionModel":
            side = config.downsample_factor
        case "Gemma4VisionModel":
            side = vision.pooling_kernel_size
        case _:
            side = vision.spatial_merge_size
    return int(side)


def require_room_in_prompt(
    model: PreTrainedModel, prompt_tokens: int, images: int, grid: tuple[int, int] | None
) -> None:
    """Refuses a prompt that is shorter than its images, as far as their tokens are known.

    Raises:
        ValueError: it is.
    """
    family, config = type(model).__name__, model.config
    if not images or family not in VISION_TOWERS:
        return
    kind = type(model.get_submodule(VISION_TOWERS[family])).__name__
    if kind in GRIDS and grid is not None:
        least = grid[0] * grid[1] // _merge(model, kind) ** 2  # of one image: others may be smaller
    elif kind in GRIDS or kind == "LavinVisionModel":
        return
    elif (kept := kept_tokens(model)) is not None:
        least = images * kept["number"]
    elif family in TOKENS_KNOWN or family in CUT:
        merge = config.scale_factor if kind in ("Idefics3VisionTransformer", "SmolVLMVisionTransformer") else 1
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        least = patches // merge**2 * (1 if family in CUT else images)
    else:
        least = images * _as_it_runs(model)[1]
    if prompt_tokens < least:
        raise ValueError(
            f"prompt_tokens = {prompt_tokens}: the prompt holds its images, which are {least} tokens or more; give "
            "image and question tokens together"
        )


def _window_pairs(length: int, side: int) -> int:
    """Sum of squared window lengths along one axis; the last window may be cut."""
    return length // side * side**2 + (length % side) ** 2


def _as_it_runs(model: Any) -> tuple[int, int]:
    """MACs and tokens of one image or tile, as tower and projector run on tensors without storage."""
    size = model.config.vision_config.image_size
    size = size if isinstance(size, int) else size[0]
    with torch.device("meta"), no_init_weights():
        seeing = model_class(type(model).__name__)(copy.deepcopy(model.config))
    seeing.set_attn_implementation("eager")  # torch counts no fused attention
    pixels = torch.empty(1, 3, size, size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if type(model).__name__ == ONEVISION:  # one tile; it joins them afterwards
            features = seeing.model.multi_modal_projector(seeing.model.vision_tower(pixels).last_hidden_state)
        else:
            features = seeing.get_image_features(pixel_values=pixels).pooler_output
    return int(counter.get_total_flops()) // 2, sum(one.shape[:-1].numel() for one in features)
