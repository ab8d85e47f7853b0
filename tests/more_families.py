"""Tiny random models of the families whose blocks are Llama's under another name, with their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from families import CLIP, IMAGE, QWEN_VISION, ROPE
from families import TEXT as SIZES
from torch import Tensor

from eas.models.anatomy import Anatomy

TEXT = {**SIZES, "num_hidden_layers": 3, "head_dim": 8}
MROPE = {**TEXT, "rope_parameters": ROPE}
SIGLIP = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = {**CLIP, "model_type": "pixtral", "image_size": 16, "head_dim": 16}
QWEN = {**QWEN_VISION, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64}
PINPOINTS = [[8, 16], [16, 8]]
SPECIAL = {"video_token_id": 5, "vision_start_token_id": 4, "vision_end_token_id": 2, "audio_token_id": 5}


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


# label -> class with head, configuration, tokens of an image, and what images are to the model
FAMILIES: dict[str, tuple[str, Callable[[], Any], int, Callable[[int], dict[str, Tensor]]]] = {
    "Qwen3": ("Qwen3ForCausalLM", lambda: tf.Qwen3Config(**TEXT), 0, none),
    "SmolLM3": ("SmolLM3ForCausalLM", lambda: tf.SmolLM3Config(**TEXT, no_rope_layers=[1, 0, 1]), 0, none),
    "Ministral3": ("Ministral3ForCausalLM", lambda: tf.Ministral3Config(**TEXT), 0, none),
    "SeedOss": (
        "SeedOssForCausalLM",
        lambda: tf.SeedOssConfig(**TEXT, attention_dropout=0.0, residual_dropout=0.0),
        0,
        none,
    ),
    "Ernie4_5": ("Ernie4_5ForCausalLM", lambda: tf.Ernie4_5Config(**TEXT), 0, none),
    "Pixtral": (
        "LlavaForConditionalGeneration",
        lambda: llava(tf.LlavaConfig, PIXTRAL, text("mistral"), vision_feature_select_strategy="full"),
        16,
        sized(16),
    ),
    "Qwen3VL": (
        "Qwen3VLForConditionalGeneration",
        lambda: llava(
            tf.Qwen3VLConfig, {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}, MROPE
        ),
        4,
        patches(96),
    ),
    "Qwen2_5OmniThinker": (
        "Qwen2_5OmniThinkerForConditionalGeneration",
        lambda: llava(
            tf.Qwen2_5OmniThinkerConfig,
            {**QWEN, "fullatt_block_indexes": [1], "window_size": 16},
            MROPE,
            audio_config={
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 64,
                "d_model": 32,
                "output_dim": 32,
            },
        ),
        0,
        none,
    ),
    "InternVL": (
        "InternVLForConditionalGeneration",
        lambda: llava(tf.InternVLConfig, {**CLIP, "image_size": [16, 16], "patch_size": [4, 4]}, text("qwen3")),
        4,
        square(16),
    ),
    "InternVL, Llama": (
        "InternVLForConditionalGeneration",
        lambda: llava(tf.InternVLConfig, {**CLIP, "image_size": [16, 16], "patch_size": [4, 4]}, text("llama")),
        4,
        square(16),
    ),
    "Mistral3": (
        "Mistral3ForConditionalGeneration",
        lambda: llava(tf.Mistral3Config, PIXTRAL, text("mistral")),
        4,
        sized(16),
    ),
    "Mistral3, Ministral3": (
        "Mistral3ForConditionalGeneration",
        lambda: llava(tf.Mistral3Config, PIXTRAL, text("ministral3")),
        4,
        sized(16),
    ),
    "LlavaOnevision": (
        "LlavaOnevisionForConditionalGeneration",
        lambda: llava(tf.LlavaOnevisionConfig, SIGLIP, text("qwen2"), image_grid_pinpoints=PINPOINTS),
        10,
        lambda count: square(8, 3)(count) | {"image_sizes": torch.tensor([[8, 8]] * count)},
    ),
    "VipLlava": (
        "VipLlavaForConditionalGeneration",
        lambda: llava(
            tf.VipLlavaConfig, {**CLIP, "model_type": "clip_vision_model"}, text("llama"), vision_feature_layer=[-1, -2]
        ),
        4,
        square(8),
    ),
    "PaddleOCRVL": (
        "PaddleOCRVLForConditionalGeneration",
        lambda: llava(tf.PaddleOCRVLConfig, CLIP, MROPE),
        0,
        none,
    ),
    "LightOnOcr": (
        "LightOnOcrForConditionalGeneration",
        lambda: llava(tf.LightOnOcrConfig, PIXTRAL, text("qwen3")),
        4,
        sized(16),
    ),
    "GotOcr2": (
        "GotOcr2ForConditionalGeneration",
        lambda: llava(
            tf.GotOcr2Config,
            {
                **CLIP,
                "image_size": 32,
                "output_channels": 8,
                "window_size": 4,
                "global_attn_indexes": [1],
                "mlp_dim": 64,
                "initializer_range": 0.1,
            },
            text("qwen2"),
        ),
        4,
        square(32),
    ),
    "HunYuanVL": (
        "HunYuanVLForConditionalGeneration",
        lambda: llava(
            tf.HunYuanVLConfig,
            {**CLIP, "out_hidden_size": 32, "text_hidden_size": 32, "max_image_size": 32},
            MROPE,
            im_start_id=4,
            im_end_id=5,
            im_newline_id=5,
        ),
        0,
        none,
    ),
    "Ovis2": (
        "Ovis2ForConditionalGeneration",
        lambda: llava(
            tf.Ovis2Config,
            {**CLIP, "vocab_size": 37},
            text("qwen2"),
            hidden_size=32,
            vocab_size=64,
            visual_indicator_token_ids=[4, 4, 4, 4, 4],
        ),
        4,
        square(8),
    ),
    "VideoLlama3": (
        "VideoLlama3ForConditionalGeneration",
        lambda: llava(tf.VideoLlama3Config, CLIP, text("qwen2")),
        4,
        patches(48, image_merge_sizes=[2]),
    ),
    "DeepseekVL": (
        "DeepseekVLForConditionalGeneration",
        lambda: llava(tf.DeepseekVLConfig, SIGLIP, text("llama")),
        4,
        square(8),
    ),
    "Idefics2": (
        "Idefics2ForConditionalGeneration",
        lambda: llava(
            tf.Idefics2Config,
            {**CLIP, "image_size": 16},
            text("mistral"),
            perceiver_config={
                "hidden_size": 32,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 8,
                "num_key_value_heads": 1,
            },
        ),
        4,
        square(16, 1),
    ),
    "Molmo2": (
        "Molmo2ForConditionalGeneration",
        lambda: tf.Molmo2Config(
            vision_config={
                **CLIP,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "image_size": [8, 8],
                "num_position_embeddings": 4,
            },
            adapter_config={
                "hidden_size": 32,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "intermediate_size": 64,
                "text_hidden_size": 32,
                "vision_feature_layer": [-1],
            },
            text_config={**TEXT, "additional_vocab_size": 4},
            image_start_token_id=4,
            low_res_image_start_token_id=4,
            image_end_token_id=5,
            image_patch_id=3,
            frame_start_token_id=4,
            frame_end_token_id=5,
        ),
        0,
        none,
    ),
}


def build(label: str) -> Any:
    """A model in evaluation mode; the weights of its norms are far from one, and differ."""
    torch.manual_seed(0)
    name, configuration, _, _ = FAMILIES[label]
    config = configuration()
    config.tie_word_embeddings = False
    for key, value in SPECIAL.items():
        if key in config.to_dict() or label == "Qwen2_5OmniThinker":  # which published ones have
            setattr(config, key, value)
    model = getattr(tf, name)(config).eval()
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            torch.nn.init.uniform_(module.weight, 0.3, 1.7)
    model.generation_config.eos_token_id = None  # tests compare a fixed number of tokens
    model.generation_config.pad_token_id = 0
    model.generation_config.suppress_tokens = [0, 1, 2, IMAGE, 4, 5]
    return model


def prompts(label: str, lengths: tuple[int, ...] = (4, 7), image: bool = True) -> dict[str, Tensor]:
    """A left-padded batch, each row with an image in front where images are tried."""
    torch.manual_seed(1)
    _, _, tokens, images = FAMILIES[label]
    tokens *= image
    rows = [torch.cat([torch.tensor([1, *[IMAGE] * tokens]), torch.randint(6, 64, (n,))]) for n in lengths]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), **(images(len(rows)) if image else {})}
    if "image_grid_thw" in inputs and label.startswith("Qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    return inputs


def layers(model: Any) -> list[Any]:
    return list(Anatomy.of(model).layers)
