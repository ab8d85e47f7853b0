"""Tiny models that read images, with the processors that vLLM needs to serve them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
import transformers as tf
from exports import EXPORTED, SIZES, shaken, words
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import eas
from eas.models.anatomy import model_class

SIDE, IMAGE, START, END, VIDEO = 16, 104, 105, 106, 107
"""Of a picture, which no processor resizes; and the tokens that no letter has."""
TEXT = {**SIZES, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
TOWER = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {**TOWER, "image_size": SIDE, "patch_size": 8, "projection_dim": 64}
SQUARE = {"size": {"height": SIDE, "width": SIDE}}
QWEN = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
WIDE = {**QWEN, "hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 96}
PATCHES = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
PIXELS = {**PATCHES, "size": {"shortest_edge": 64, "longest_edge": SIDE * SIDE}}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
TOKENS = {"image_token_id": IMAGE, "vision_start_token_id": START, "vision_end_token_id": END, "video_token_id": VIDEO}
PADS = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")


def qwen(config: Any, vision: dict[str, Any], rope: dict[str, Any] = MROPE, **text: Any) -> Any:
    own = {key: value for key, value in TEXT.items() if key != "head_dim" or "Qwen3" in config.__name__}
    return config(text_config={**own, "rope_parameters": rope, **text}, vision_config=vision, **TOKENS)


class Seeing(NamedTuple):
    """A family.

    Args:
        family: class of its model.
        config: its configuration.
        skip_set: the layers without attention.
        words: its tokens of images, as ``IMAGE``, ``START``, ``END`` and ``VIDEO``.
        images: the processor of its images, without torchvision.
        image: what vLLM's environment calls this processor.
        processor: further values in processor_config.json.
        tokens: what the processor writes for the one token of an image.
    """

    family: str
    config: Callable[[], Any]
    skip_set: tuple[int, ...]
    words: tuple[str, ...]
    images: Any
    image: str
    processor: dict[str, Any]
    tokens: list[int]


FAMILIES = {
    "LLaVA": Seeing(
        "LlavaForConditionalGeneration",
        lambda: tf.LlavaConfig(
            vision_config=tf.CLIPVisionConfig(**CLIP),
            text_config=tf.LlamaConfig(**TEXT),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
        ),
        (0, 3),
        ("<image>", "<a>", "<b>", "<video>"),
        CLIPImageProcessorPil(**SQUARE, do_center_crop=False),
        "CLIPImageProcessor",
        {
            "processor_class": "LlavaProcessor",
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        [IMAGE] * 4,
    ),
    "LLaVA-OneVision": Seeing(
        "LlavaOnevisionForConditionalGeneration",
        lambda: tf.LlavaOnevisionConfig(
            vision_config=tf.SiglipVisionConfig(**{**CLIP, "vision_use_head": False}),
            text_config=tf.Qwen2Config(**{key: value for key, value in TEXT.items() if key != "head_dim"}),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[SIDE, SIDE]],
        ),
        (0, 1),
        ("<image>", "<a>", "<b>", "<video>"),
        LlavaOnevisionImageProcessorPil(**SQUARE, image_grid_pinpoints=[[SIDE, SIDE]]),
        "LlavaOnevisionImageProcessor",
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
            "video_processor": {"video_processor_type": "LlavaOnevisionVideoProcessor", **SQUARE},
        },
        [IMAGE] * (4 + 4 + 2),
    ),
    "InternVL": Seeing(
        "InternVLForConditionalGeneration",
        lambda: tf.InternVLConfig(
            vision_config={**TOWER, "image_size": [SIDE, SIDE], "patch_size": [4, 4]},
            text_config=tf.Qwen3Config(**TEXT),
            image_token_id=IMAGE,
        ),
        (0, 4),
        ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        GotOcr2ImageProcessorPil(**SQUARE, crop_to_patches=False, min_patches=1, max_patches=1),
        "GotOcr2ImageProcessor",
        {
            "processor_class": "InternVLProcessor",
            "image_seq_length": 4,
            "video_processor": {"video_processor_type": "InternVLVideoProcessor", **SQUARE},
        },
        [START, *[IMAGE] * 4, END],
    ),
    "Qwen2-VL": Seeing(
        "Qwen2VLForConditionalGeneration",
        lambda: qwen(tf.Qwen2VLConfig, {**QWEN, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2}),
        (0, 3),
        PADS,
        Qwen2VLImageProcessorPil(**PIXELS),
        "Qwen2VLImageProcessor",
        {
            "processor_class": "Qwen2VLProcessor",
            "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor", **PIXELS},
        },
        [IMAGE] * 4,
    ),
    "Qwen2.5-VL": Seeing(
        "Qwen2_5_VLForConditionalGeneration",
        lambda: qwen(tf.Qwen2_5_VLConfig, {**WIDE, "window_size": 16, "fullatt_block_indexes": [1]}),
        (1, 4),
        PADS,
        Qwen2VLImageProcessorPil(**PIXELS),
        "Qwen2VLImageProcessor",
        {
            "processor_class": "Qwen2_5_VLProcessor",
            "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor", **PIXELS},
        },
        [IMAGE] * 4,
    ),
    "Qwen3-VL": Seeing(
        "Qwen3VLForConditionalGeneration",
        lambda: qwen(
            tf.Qwen3VLConfig,
            {**WIDE, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
            {**MROPE, "mrope_interleaved": True},
        ),
        (0, 2),
        PADS,
        Qwen2VLImageProcessorPil(**PIXELS, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        "Qwen2VLImageProcessor",
        {
            "processor_class": "Qwen3VLProcessor",
            "video_processor": {"video_processor_type": "Qwen3VLVideoProcessor", **PIXELS},
        },
        [IMAGE] * 4,
    ),
}


def tuned(row: Seeing) -> Any:
    """A model of a family with random PIAs, pruned."""
    torch.manual_seed(0)
    model = shaken(model_class(row.family)(row.config()))
    model.generation_config.eos_token_id = SIZES["eos_token_id"]
    model = shaken(eas.attach(model, eas.EASConfig(num_skip=2, **EXPORTED)))
    eas.select(model, row.skip_set)
    eas.prune(model)
    return model


def exported(row: Seeing, model: Any, folder: Path) -> Path:
    """The model's folder with its processor, which this environment may not be able to build."""
    tokenizer = words()
    tokenizer.add_special_tokens({"additional_special_tokens": list(row.words)})
    assert tokenizer.convert_tokens_to_ids(list(row.words)) == [IMAGE, START, END, VIDEO]
    eas.export(model, "vllm", folder, processor=tokenizer, dtype="float32")
    images = {**json.loads(row.images.to_json_string()), "image_processor_type": row.image}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": images, **row.processor}))
    if row.family.startswith("InternVL"):
        names = ("context_image_token", "start_image_token", "end_image_token", "video_token")
        path = folder / "tokenizer_config.json"
        config = {**json.loads(path.read_text()), "extra_special_tokens": dict(zip(names, row.words, strict=True))}
        path.write_text(json.dumps(config))
    return folder


def picture(seed: int) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=numpy.uint8))


def inputs(row: Seeing, ids: list[int], image: Image.Image | None) -> dict[str, Tensor]:
    """What eas reads of a prompt, in which an image has one token."""
    at = ids.index(IMAGE) if image is not None else 0
    ids = ids if image is None else [*ids[:at], *row.tokens, *ids[at + 1 :]]
    found = {"input_ids": torch.tensor([ids])}
    if image is None:
        return found
    seen = row.images(images=[image], return_tensors="pt")
    found |= {name: value for name, value in seen.items() if name in ("pixel_values", "image_grid_thw", "image_sizes")}
    if "image_grid_thw" in found:
        found["mm_token_type_ids"] = (found["input_ids"] == IMAGE).long()
    return found
