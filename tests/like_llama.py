"""The families whose blocks are Llama's under another name, tiny."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from families import CLIP, IMAGE, ROPE
from tiny_parts import MROPE, PINPOINTS, PIXTRAL, QWEN, SIGLIP, TEXT, Row, llava, none, patches, sized, square, text
from torch import Tensor


def crops(count: int) -> dict[str, Tensor]:
    """Images as one crop that is seen twice, small and large, each time pooled to a token."""
    pooled = 4 * torch.arange(2 * count)[:, None] + torch.arange(4)
    grids = torch.ones(count, 4, dtype=torch.long)
    return {"pixel_values": torch.randn(2 * count, 4, 48), "image_token_pooling": pooled, "image_grids": grids}


def hunyuan(*axes: int) -> Any:
    """An image is four tokens, one behind each of their two rows, and one on either side of all."""
    return llava(
        tf.HunYuanVLConfig,
        {**CLIP, "out_hidden_size": 32, "text_hidden_size": 32, "max_image_size": 32},
        {**TEXT, "rope_parameters": {**ROPE, "mrope_section": [*axes]}},
        im_start_id=4,
        im_end_id=5,
        im_newline_id=5,
    )


FAMILIES: dict[str, Row] = {
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
        4,
        patches(96),
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
    "QianfanOCR": (
        "QianfanOCRForConditionalGeneration",
        lambda: llava(
            tf.QianfanOCRConfig,
            {**CLIP, "image_size": [16, 16], "patch_size": [4, 4], "drop_path_rate": 0.0},
            text("qwen3"),
        ),
        4,
        square(16),
    ),
    "FastVlm": (
        "FastVlmForConditionalGeneration",
        lambda: tf.FastVlmConfig(
            vision_config={
                "model_type": "timm_wrapper",
                "architecture": "fastvit_mci3",
                "hidden_size": 64,
                "model_args": {"inference_mode": True, "layers": (1,) * 5, "embed_dims": (4, 4, 8, 32, 32)},
            },
            text_config=text("qwen2"),
            image_token_index=IMAGE,
        ),
        1,
        square(64),
    ),
    "PerceptionLM": (
        "PerceptionLMForConditionalGeneration",
        lambda: llava(
            tf.PerceptionLMConfig,
            {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_tiny_patch16_384",
                "model_args": {"embed_dim": 32, "num_heads": 2, "img_size": 32, "depth": 1, "global_pool": ""},
            },
            text("llama"),
        ),
        4,
        square(32, 1),
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
    "LlavaNextVideo": (
        "LlavaNextVideoForConditionalGeneration",
        lambda: tf.LlavaNextVideoConfig(
            vision_config={**CLIP, "model_type": "clip_vision_model"},
            text_config=text("llama"),
            image_token_index=IMAGE,
            video_token_index=5,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-1,
        ),
        10,
        lambda count: square(8, 3)(count) | {"image_sizes": torch.tensor([[8, 8]] * count)},
    ),
    "VideoLlava": (
        "VideoLlavaForConditionalGeneration",
        lambda: tf.VideoLlavaConfig(
            vision_config={**CLIP, "model_type": "clip_vision_model"},
            text_config=text("llama"),
            image_token_index=IMAGE,
            video_token_index=5,
            vision_feature_layer=-1,
        ),
        4,
        lambda count: {"pixel_values_images": torch.randn(count, 3, 8, 8)},
    ),
    "DeepseekVLHybrid": (
        "DeepseekVLHybridForConditionalGeneration",
        lambda: llava(
            tf.DeepseekVLHybridConfig,
            SIGLIP,
            text("llama"),
            high_res_vision_config={
                **CLIP,
                "image_size": 32,
                "output_channels": 8,
                "window_size": 4,
                "global_attn_indexes": [1],
                "mlp_dim": 64,
            },
        ),
        4,
        lambda count: square(8)(count) | {"high_res_pixel_values": torch.randn(count, 3, 32, 32)},
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
        4,
        lambda count: patches(48)(count) | {"pixel_values": torch.randn(count * 16, 3, 4, 4)},
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
    "HunYuanVL": ("HunYuanVLForConditionalGeneration", lambda: hunyuan(1, 1, 1, 1), 8, patches(48)),
    "HunYuanVL, three axes": ("HunYuanVLForConditionalGeneration", lambda: hunyuan(1, 1, 2), 8, patches(48)),
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
                "initializer_range": 0.3,
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
                "initializer_range": 0.3,
            },
            text_config={**TEXT, "additional_vocab_size": 4},
            image_start_token_id=4,
            low_res_image_start_token_id=4,
            image_end_token_id=5,
            image_patch_id=3,
            frame_start_token_id=4,
            frame_end_token_id=5,
        ),
        2,
        crops,
    ),
}
WITH_TIMM = ("FastVlm", "PerceptionLM")
"""Their vision towers are timm's."""
