"""The families whose FFNs choose experts, so that only the shared fold fits, tiny."""

from __future__ import annotations

import transformers as tf
from families import CLIP
from other_blocks import DELTA, GLM_VISION, HYBRID, MROPE_GLM, QWEN3_5_ROPE, SMALL
from tiny_parts import MROPE, QWEN, Row, llava, none, patches, square, text

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}

FAMILIES: dict[str, Row] = {
    "InternVL, Qwen3Moe": (
        "InternVLForConditionalGeneration",
        lambda: llava(
            tf.InternVLConfig, {**CLIP, "image_size": [16, 16], "patch_size": [4, 4]}, text("qwen3_moe", **MOE)
        ),
        4,
        square(16),
    ),
    "Qwen3.5-MoE": (
        "Qwen3_5MoeForCausalLM",
        lambda: tf.Qwen3_5MoeTextConfig(**{**SMALL, "rope_parameters": QWEN3_5_ROPE}, **HYBRID, **DELTA, **MOE),
        0,
        none,
    ),
    "Qwen3.5-MoE, images": (
        "Qwen3_5MoeForConditionalGeneration",
        lambda: llava(
            tf.Qwen3_5MoeConfig,
            {**QWEN, "num_position_embeddings": 16},
            {**SMALL, "rope_parameters": QWEN3_5_ROPE, **HYBRID, **DELTA, **MOE},
        ),
        4,
        patches(96),
    ),
    "Qwen3OmniThinker": (
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        lambda: llava(
            tf.Qwen3OmniMoeThinkerConfig,
            {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
            {**MROPE, **MOE, "num_hidden_layers": 4},
            audio_config={
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 64,
                "d_model": 32,
                "output_dim": 32,
                "downsample_hidden_size": 8,
            },
        ),
        4,
        patches(96),
    ),
    "Qwen3Moe": ("Qwen3MoeForCausalLM", lambda: tf.Qwen3MoeConfig(**SMALL, **MOE, mlp_only_layers=[0]), 0, none),
    "Mixtral": ("MixtralForCausalLM", lambda: tf.MixtralConfig(**SMALL, num_local_experts=4), 0, none),
    "Qwen3VLMoe": (
        "Qwen3VLMoeForConditionalGeneration",
        lambda: llava(
            tf.Qwen3VLMoeConfig,
            {**QWEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
            {**MROPE, **MOE, "num_hidden_layers": 4},
        ),
        4,
        patches(96),
    ),
    "Llama4": (
        "Llama4ForCausalLM",
        lambda: tf.Llama4TextConfig(
            **SMALL, num_local_experts=4, intermediate_size_mlp=64, moe_layers=[0, 2], attention_chunk_size=8
        ),
        0,
        none,
    ),
    "Glm4vMoe": (
        "Glm4vMoeForConditionalGeneration",
        lambda: llava(
            tf.Glm4vMoeConfig,
            GLM_VISION,
            {
                **MROPE_GLM,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [1, 1, 0],
                },
                "moe_intermediate_size": 32,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_group": 1,
                "topk_group": 1,
            },
        ),
        4,
        patches(96),
    ),
}
