"""The families whose blocks have other terms than Llama's, tiny."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from families import CLIP, IMAGE
from tiny_parts import QWEN, SIGLIP, TEXT, Row, llava, none, patches, square, text
from torch import Tensor

SMALL = {**TEXT, "num_hidden_layers": 4}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6}
HYBRID = {"layer_types": ["full_attention", "linear_attention", "full_attention", "full_attention"]}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
QWEN3_5_ROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [1, 1, 2],
    "mrope_interleaved": True,
    "partial_rotary_factor": 1.0,
}
CONV = {"layer_types": ["full_attention", "conv", "full_attention", "full_attention"]}
GEMMA4 = {
    **SMALL,
    "global_head_dim": 16,
    "num_global_key_value_heads": 2,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    **SLIDING,
}
MROPE_GLM = {**SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
GLM_VISION = {**QWEN, "out_hidden_size": 32, "image_size": 16, "intermediate_size": 64}


def gemma4(**more: Any) -> Any:
    return tf.Gemma4TextConfig(**{**GEMMA4, **more})


def places(count: int, side: int) -> Tensor:
    """x and y of the patches of square images."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([x, y], -1).view(1, -1, 2).expand(count, -1, -1)


def cross(count: int) -> dict[str, Tensor]:
    """Images that the text meets in layers of their own."""
    return {
        "pixel_values": torch.randn(count, 1, 1, 3, 8, 8),
        "aspect_ratio_ids": torch.ones(count, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(count, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(count, 1, 1, 1, dtype=torch.long),
    }


def packed(count: int) -> dict[str, Tensor]:
    """Images of 4 x 4 patches, all in one row of patches."""
    return {"pixel_values": torch.randn(1, 3, 4, count * 16 * 4), "target_sizes": torch.tensor([[4, 4]] * count)}


def minicpm(cls: Any) -> Any:
    language = {**SMALL, "model_type": "qwen3_5_text", "rope_parameters": QWEN3_5_ROPE, **HYBRID, **DELTA}
    marks = {"image_start_id": 4, "image_end_id": 5, "slice_start_id": 5, "slice_end_id": 5, "newline_id": 5}
    config = llava(cls, {**CLIP, "image_size": 16}, language, insert_layer_id=0)
    for name, token in marks.items():
        setattr(config, name, token)
    return config


FAMILIES: dict[str, Row] = {
    "Gemma": ("GemmaForCausalLM", lambda: tf.GemmaConfig(**SMALL), 0, none),
    "Gemma2": ("Gemma2ForCausalLM", lambda: tf.Gemma2Config(**SMALL, **SLIDING), 0, none),
    "Gemma3": ("Gemma3ForCausalLM", lambda: tf.Gemma3TextConfig(**SMALL, **SLIDING), 0, none),
    "Gemma4": ("Gemma4ForCausalLM", gemma4, 0, none),
    "Gemma4, keys as values": ("Gemma4ForCausalLM", lambda: gemma4(attention_k_eq_v=True), 0, none),
    "Gemma4, inputs by layer": (
        "Gemma4ForCausalLM",
        lambda: gemma4(hidden_size_per_layer_input=8, vocab_size_per_layer_input=64),
        0,
        none,
    ),
    "Glm4": ("Glm4ForCausalLM", lambda: tf.Glm4Config(**SMALL), 0, none),
    "Phi3": ("Phi3ForCausalLM", lambda: tf.Phi3Config(**SMALL), 0, none),
    "Phi4Multimodal": (
        "Phi4MultimodalForCausalLM",
        lambda: tf.Phi4MultimodalConfig(
            **SMALL,
            vision_config={**CLIP, "crop_size": 8, "image_token_id": IMAGE},
            audio_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "ext_pw_out_channel": 16,
                "depthwise_separable_out_channel": 16,
                "nemo_conv_channels": 4,
                "audio_token_id": 5,
            },
        ),
        5,
        lambda count: {
            "image_pixel_values": torch.randn(count, 2, 3, 8, 8),
            "image_sizes": torch.tensor([[8, 8]] * count),
            "image_attention_mask": torch.ones(count, 2, 2, 2),
        },
    ),
    "Granite": (
        "GraniteForCausalLM",
        lambda: tf.GraniteConfig(**SMALL, residual_multiplier=0.3, logits_scaling=2.0, embedding_multiplier=3.0),
        0,
        none,
    ),
    "Cohere": ("CohereForCausalLM", lambda: tf.CohereConfig(**SMALL, logit_scale=0.5), 0, none),
    "Cohere2": ("Cohere2ForCausalLM", lambda: tf.Cohere2Config(**SMALL, **SLIDING, logit_scale=0.5), 0, none),
    "Olmo2": ("Olmo2ForCausalLM", lambda: tf.Olmo2Config(**SMALL), 0, none),
    "Olmo3": ("Olmo3ForCausalLM", lambda: tf.Olmo3Config(**SMALL, **SLIDING), 0, none),
    "Exaone4": ("Exaone4ForCausalLM", lambda: tf.Exaone4Config(**SMALL, **SLIDING), 0, none),
    "Lfm2": (
        "Lfm2ForCausalLM",
        lambda: tf.Lfm2Config(**SMALL, **CONV, conv_L_cache=3, block_auto_adjust_ff_dim=False),
        0,
        none,
    ),
    "Qwen3.5": (
        "Qwen3_5ForCausalLM",
        lambda: tf.Qwen3_5TextConfig(**{**SMALL, "rope_parameters": QWEN3_5_ROPE}, **HYBRID, **DELTA),
        0,
        none,
    ),
    "Gemma3, images": (
        "Gemma3ForConditionalGeneration",
        lambda: llava(
            tf.Gemma3Config, SIGLIP, text("gemma3_text", **SLIDING | {"num_hidden_layers": 4}), mm_tokens_per_image=4
        ),
        4,
        square(8),
    ),
    "PaliGemma": (
        "PaliGemmaForConditionalGeneration",
        lambda: llava(tf.PaliGemmaConfig, {**SIGLIP, "projection_dim": 32}, text("gemma"), projection_dim=32),
        4,
        square(8),
    ),
    "PaliGemma 2": (
        "PaliGemmaForConditionalGeneration",
        lambda: llava(
            tf.PaliGemmaConfig,
            {**SIGLIP, "projection_dim": 32},
            text("gemma2", **SLIDING | {"num_hidden_layers": 4}),
            projection_dim=32,
        ),
        4,
        square(8),
    ),
    "AyaVision": (
        "AyaVisionForConditionalGeneration",
        lambda: llava(
            tf.AyaVisionConfig, SIGLIP, text("cohere2", **SLIDING | {"num_hidden_layers": 4}), downsample_factor=2
        ),
        1,
        square(8),
    ),
    "Glm4v": ("Glm4vForConditionalGeneration", lambda: llava(tf.Glm4vConfig, GLM_VISION, MROPE_GLM), 4, patches(96)),
    "Glm46V": (
        "Glm46VForConditionalGeneration",
        lambda: llava(
            tf.Glm46VConfig, {**GLM_VISION, "model_type": "glm4v_vision"}, {**MROPE_GLM, "model_type": "glm4v_text"}
        ),
        4,
        patches(96),
    ),
    "LlavaNext, Granite": (
        "LlavaNextForConditionalGeneration",
        lambda: llava(
            tf.LlavaNextConfig,
            {**CLIP, "model_type": "clip_vision_model"},
            text("granite", residual_multiplier=0.3),
            image_grid_pinpoints=[[8, 16], [16, 8]],
            vision_feature_layer=-1,
        ),
        10,
        lambda count: square(8, 3)(count) | {"image_sizes": torch.tensor([[8, 8]] * count)},
    ),
    "Granite4Vision": (
        "Granite4VisionForConditionalGeneration",
        lambda: tf.Granite4VisionConfig(
            vision_config={**SIGLIP, "image_size": 16, "hidden_size": 64},
            text_config=text("granite4_vision_text", num_hidden_layers=5, residual_multiplier=0.3),
            image_token_index=IMAGE,
            deepstack_layer_map=[[-1, 0]],
            spatial_target_layers=[1, 2, 3, 4],
            downsample_rate="2/4",
            projector_dropout=0.0,
            image_grid_pinpoints=[[16, 32], [32, 16]],
            image_seq_length=4,
            vision_feature_select_strategy="full",
            qformer_config={
                "model_type": "blip_2_qformer",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "intermediate_size": 64,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
        ),
        10,
        lambda count: square(16, 3)(count) | {"image_sizes": torch.tensor([[16, 16]] * count)},
    ),
    "Qwen3.5, images": (
        "Qwen3_5ForConditionalGeneration",
        lambda: llava(
            tf.Qwen3_5Config,
            {**QWEN, "num_position_embeddings": 16},
            {**SMALL, "rope_parameters": QWEN3_5_ROPE, **HYBRID, **DELTA},
        ),
        4,
        patches(96),
    ),
    "MiniCPM-V 4.6": ("MiniCPMV4_6ForConditionalGeneration", lambda: minicpm(tf.MiniCPMV4_6Config), 1, packed),
    "MiniCPM-V 4.7": ("MiniCPMV4_7ForConditionalGeneration", lambda: minicpm(tf.MiniCPMV4_7Config), 1, packed),
    "MiniCPM-OCR": ("MiniCPMOcrForConditionalGeneration", lambda: minicpm(tf.MiniCPMOcrConfig), 4, packed),
    "Cohere2Vision": (
        "Cohere2VisionForConditionalGeneration",
        lambda: llava(
            tf.Cohere2VisionConfig,
            SIGLIP,
            text("cohere2", **SLIDING | {"num_hidden_layers": 4}),
            downsample_factor=2,
            alignment_intermediate_size=64,
        ),
        1,
        square(8),
    ),
    "Lfm2Vl": (
        "Lfm2VlForConditionalGeneration",
        lambda: llava(
            tf.Lfm2VlConfig,
            {**CLIP, "model_type": "siglip2_vision_model", "num_patches": 4, "vision_use_head": False},
            {**SMALL, **CONV, "model_type": "lfm2", "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
            downsample_factor=2,
            projector_hidden_size=64,
        ),
        1,
        lambda count: {
            "pixel_values": torch.randn(count, 4, 48),
            "spatial_shapes": torch.tensor([[2, 2]] * count),
            "pixel_attention_mask": torch.ones(count, 4, dtype=torch.long),
        },
    ),
    "Mllama": (
        "MllamaForConditionalGeneration",
        lambda: tf.MllamaConfig(
            vision_config={
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 2,
                "intermediate_size": 64,
                "vision_output_dim": 64,
                "image_size": 8,
                "patch_size": 4,
                "max_num_tiles": 1,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
            },
            text_config={**SMALL, "num_hidden_layers": 5, "cross_attention_layers": [1]},
            image_token_index=IMAGE,
        ),
        1,
        cross,
    ),
    "Gemma4Unified": (
        "Gemma4UnifiedForConditionalGeneration",
        lambda: tf.Gemma4UnifiedConfig(
            text_config=GEMMA4,
            vision_config={
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "mm_embed_dim": 16,
                "mm_posemb_size": 4,
                "output_proj_dims": 16,
            },
            image_token_id=IMAGE,
            boi_token_id=4,
            eoi_token_id=5,
            audio_token_id=5,
        ),
        4,
        lambda count: {"pixel_values": torch.rand(count, 4, 192), "image_position_ids": places(count, 2)},
    ),
    "Gemma4, images": (
        "Gemma4ForConditionalGeneration",
        lambda: tf.Gemma4Config(
            text_config={
                **GEMMA4,
                "hidden_size_per_layer_input": 8,
                "vocab_size_per_layer_input": 64,
                "use_bidirectional_attention": "vision",
            },
            vision_config={
                **CLIP,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "global_head_dim": 16,
                "pooling_kernel_size": 2,
                "position_embedding_size": 16,
            },
            audio_config=None,
            image_token_id=IMAGE,
            boi_token_id=4,
            eoi_token_id=5,
            audio_token_id=5,
        ),
        4,
        lambda count: {"pixel_values": torch.rand(count, 16, 48), "image_position_ids": places(count, 4)},
    ),
    "Exaone4_5": (
        "Exaone4_5_ForConditionalGeneration",
        lambda: llava(
            tf.Exaone4_5_Config,
            {**QWEN, "fullatt_block_indexes": [1], "window_size": 16, "num_key_value_heads": 2},
            {**SMALL, **SLIDING, "model_type": "exaone4"},
        ),
        4,
        patches(96),
    ),
}
