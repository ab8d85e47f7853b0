"""Tiny processors, of which most need torchvision, and tiny models that read what they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from families import CLIP, ROPE
from other_blocks import CONV, DELTA, GEMMA4, GLM_VISION, HYBRID, MROPE_GLM, QWEN3_5_ROPE, SLIDING, SMALL
from tiny_parts import MROPE, PIXTRAL, QWEN, SIGLIP, TEXT, text

TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
QWEN_TOKENS = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
PIXELS = {"size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}, "patch_size": 14}
SQUARE = {"size": {"height": 28, "width": 28}}


def qwen(kind: str, tokenizer: Callable[..., Any], chat: str) -> Any:
    shown = chat.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    videos = tf.Qwen3VLVideoProcessor() if kind == "Qwen3VLProcessor" else tf.Qwen2VLVideoProcessor()
    images = tf.Qwen2VLImageProcessor(**PIXELS)
    return getattr(tf, kind)(images, tokenizer(QWEN_TOKENS), videos, chat_template=shown)


def internvl(tokenizer: Callable[..., Any], chat: str) -> Any:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    images = tf.GotOcr2ImageProcessor(**SQUARE, crop_to_patches=True, min_patches=1, max_patches=4)
    videos, shown = tf.InternVLVideoProcessor(), chat.replace("IMAGE", "<IMG_CONTEXT>")
    return tf.InternVLProcessor(images, tokenizer(names), videos, image_seq_length=4, chat_template=shown)


def onevision(tokenizer: Callable[..., Any], chat: str) -> Any:
    images = tf.LlavaOnevisionImageProcessor(**SQUARE, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]])
    return tf.LlavaOnevisionProcessor(
        images,
        tokenizer(["<image>", "<video>"]),
        tf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=chat.replace("IMAGE", "<image>"),
    )


def smolvlm(tokenizer: Callable[..., Any], chat: str) -> Any:
    pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words; `make test-slow` installs it")
    images = tf.SmolVLMImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    names = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *TILES]
    shown = chat.replace("IMAGE", "<image>")
    return tf.SmolVLMProcessor(
        images, tokenizer(names), tf.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=shown
    )


def glm4v(tokenizer: Callable[..., Any], chat: str) -> Any:
    names = ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"]
    shown = chat.replace("IMAGE", "<|begin_of_image|><|image|><|end_of_image|>")
    images, videos = tf.Glm4vImageProcessor(**PIXELS), tf.Glm4vVideoProcessor()
    return tf.Glm4vProcessor(images, tokenizer(names), videos, chat_template=shown)


def gemma4(tokenizer: Callable[..., Any], chat: str) -> Any:
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>"}
    names |= {"boa_token": "<|audio>", "eoa_token": "<audio|>"}
    images, videos = tf.Gemma4ImageProcessor(patch_size=7, max_soft_tokens=70), tf.Gemma4VideoProcessor()
    hears = tf.Gemma4AudioFeatureExtractor()
    shown = "{{ bos_token }}" + chat.replace("IMAGE", "<|image|>")
    return tf.Gemma4Processor(hears, images, tokenizer(names), videos, chat_template=shown)


def mistral3(tokenizer: Callable[..., Any], chat: str) -> Any:
    images = tf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 7, "width": 7})
    return tf.PixtralProcessor(
        images,
        tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"]),
        patch_size=7,
        spatial_merge_size=2,
        chat_template="{{ bos_token }}" + chat.replace("IMAGE", "[IMG]"),
    )


def lfm2_vl(tokenizer: Callable[..., Any], chat: str) -> Any:
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 3) for column in range(1, 3)]
    names = ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *tiles]
    images = tf.Lfm2VlImageProcessor(
        tile_size=28, encoder_patch_size=7, min_image_tokens=4, max_image_tokens=4, max_tiles=4, max_num_patches=16
    )
    return tf.Lfm2VlProcessor(images, tokenizer(names), chat_template=chat.replace("IMAGE", "<image>"))


def paddle(tokenizer: Callable[..., Any], chat: str) -> Any:
    images = tf.PaddleOCRVLImageProcessor(**PIXELS)
    names = {"image_token": "<|IMAGE_PLACEHOLDER|>", "start": "<|IMAGE_START|>", "end": "<|IMAGE_END|>"}
    shown = chat.replace("IMAGE", "".join(names[part] for part in ("start", "image_token", "end")))
    return tf.PaddleOCRVLProcessor(images, tokenizer(names), chat_template=shown)


def hunyuan(tokenizer: Callable[..., Any], chat: str) -> Any:
    names = {"image_token": "<image>", "image_start_token": "<im_start>", "image_end_token": "<im_end>"}
    images = tf.HunYuanVLImageProcessor(**PIXELS)
    shown = chat.replace("IMAGE", "<im_start><image><im_end>")
    return tf.HunYuanVLProcessor(images, tokenizer(names), chat_template=shown)


def molmo2(tokenizer: Callable[..., Any], chat: str) -> Any:
    places = ["patch", "col", "start", "end", "low"]
    names = [f"<im_{place}>" for place in places] + ["<low_res_im_start>", "<frame_start>", "<frame_end>"]
    images = tf.Molmo2ImageProcessor(**SQUARE, patch_size=7, overlap_margins=[1, 1], max_crops=4)
    videos = tf.Molmo2VideoProcessor(**SQUARE, patch_size=7)
    shown = "{{ bos_token }}" + chat.replace("IMAGE", "<|image|>")
    return tf.Molmo2Processor(images, videos, tokenizer([*names, "<|image|>", "<|video|>"]), chat_template=shown)


def gemma4_unified(tokenizer: Callable[..., Any], chat: str) -> Any:
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>"}
    names |= {"boa_token": "<|audio>", "eoa_token": "<audio|>"}
    images = tf.Gemma4UnifiedImageProcessor(patch_size=7, max_soft_tokens=70)
    hears, videos = tf.Gemma4UnifiedAudioFeatureExtractor(), tf.Gemma4UnifiedVideoProcessor()
    shown = "{{ bos_token }}" + chat.replace("IMAGE", "<|image|>")
    return tf.Gemma4UnifiedProcessor(hears, images, tokenizer(names), videos, chat_template=shown)


def omni(tokenizer: Callable[..., Any], chat: str) -> Any:
    names = {f"{kind}_token": f"<|{kind.upper()}|>" for kind in ("image", "audio", "video")}
    names |= {f"{kind}_{at}_token": f"<|{kind}_{at}|>" for kind in ("vision", "audio") for at in ("bos", "eos")}
    images, videos = tf.Qwen2VLImageProcessor(**PIXELS), tf.Qwen2VLVideoProcessor()
    shown = chat.replace("IMAGE", "<|vision_bos|><|IMAGE|><|vision_eos|>")
    hears = tf.WhisperFeatureExtractor()
    return tf.Qwen2_5OmniProcessor(images, videos, hears, tokenizer(names), chat_template=shown)


def minicpm(tokenizer: Callable[..., Any], chat: str) -> Any:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    for kind in ("image", "slice", "image_id"):
        names |= {f"{kind}_start_token": f"<{kind}>", f"{kind}_end_token": f"</{kind}>"}
    images = tf.MiniCPMV4_6ImageProcessor(scale_resolution=56, patch_size=7, max_slice_nums=4)
    videos = tf.MiniCPMV4_6VideoProcessor(scale_resolution=56, patch_size=7)
    shown = chat.replace("IMAGE", "<|image_pad|>")
    return tf.MiniCPMV4_6Processor(images, videos, tokenizer(names), chat_template=shown)


VOCABULARY = {"vocab_size": 400}  # bytes, special tokens, and more


def llava(cls: Any, vision: dict[str, Any], language: dict[str, Any], **more: Any) -> Callable[[int], Any]:
    """From an image token to a model's configuration."""
    return lambda image: cls(vision_config=vision, text_config={**language, **VOCABULARY}, image_token_id=image, **more)


MOLMO_VISION = {
    **CLIP,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "image_size": [28, 28],
    "patch_size": 7,
    "num_position_embeddings": 16,
    "initializer_range": 0.3,
}
MOLMO_ADAPTER = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "text_hidden_size": 32,
    "vision_feature_layer": [-1],
    "initializer_range": 0.3,
}
OMNI_AUDIO = {
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "d_model": 32,
    "output_dim": 32,
}
GEMMA_VISION = {
    **CLIP,
    "patch_size": 7,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "pooling_kernel_size": 3,
    "position_embedding_size": 64,
}
FAMILIES: dict[str, tuple[Callable[..., Any], str, Callable[[int], Any]]] = {
    "qwen2.5-vl": (
        lambda *made: qwen("Qwen2_5_VLProcessor", *made),
        "Qwen2_5_VLForConditionalGeneration",
        llava(tf.Qwen2_5_VLConfig, {**QWEN, "patch_size": 14, "window_size": 28, "fullatt_block_indexes": [1]}, MROPE),
    ),
    "qwen3-vl": (
        lambda *made: qwen("Qwen3VLProcessor", *made),
        "Qwen3VLForConditionalGeneration",
        llava(
            tf.Qwen3VLConfig,
            {**QWEN, "patch_size": 14, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
            MROPE,
        ),
    ),
    "internvl": (
        internvl,
        "InternVLForConditionalGeneration",
        llava(tf.InternVLConfig, {**CLIP, "image_size": [28, 28], "patch_size": [7, 7]}, text("qwen3")),
    ),
    "llava-onevision": (
        onevision,
        "LlavaOnevisionForConditionalGeneration",
        llava(
            tf.LlavaOnevisionConfig,
            {**SIGLIP, "image_size": 28, "patch_size": 14},
            text("qwen2"),
            image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
        ),
    ),
    "smolvlm": (
        smolvlm,
        "SmolVLMForConditionalGeneration",
        llava(tf.SmolVLMConfig, {**CLIP, "image_size": 28, "patch_size": 7}, text("llama"), scale_factor=2),
    ),
    "glm-v": (
        glm4v,
        "Glm4vForConditionalGeneration",
        llava(tf.Glm4vConfig, {**GLM_VISION, "patch_size": 14, "image_size": 56}, MROPE_GLM),
    ),
    "gemma4": (
        gemma4,
        "Gemma4ForConditionalGeneration",
        llava(tf.Gemma4Config, GEMMA_VISION, GEMMA4, audio_config=None),
    ),
    "mistral3": (
        mistral3,
        "Mistral3ForConditionalGeneration",
        llava(tf.Mistral3Config, {**PIXTRAL, "image_size": 56, "patch_size": 7}, text("mistral")),
    ),
    "lfm2-vl": (
        lfm2_vl,
        "Lfm2VlForConditionalGeneration",
        llava(
            tf.Lfm2VlConfig,
            {**SIGLIP, "patch_size": 7, "model_type": "siglip2_vision_model", "num_patches": 16},
            {**SMALL, **CONV, "model_type": "lfm2", "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
            downsample_factor=2,
            projector_hidden_size=64,
        ),
    ),
    "paddleocr-vl": (
        paddle,
        "PaddleOCRVLForConditionalGeneration",
        llava(tf.PaddleOCRVLConfig, {**CLIP, "patch_size": 14, "image_size": 56}, MROPE),
    ),
    "hunyuan-vl": (
        hunyuan,
        "HunYuanVLForConditionalGeneration",
        llava(
            tf.HunYuanVLConfig,
            {**CLIP, "patch_size": 14, "out_hidden_size": 32, "text_hidden_size": 32, "max_image_size": 56},
            {**TEXT, "rope_parameters": {**ROPE, "mrope_section": [1, 1, 1, 1]}},
        ),
    ),
    "molmo2": (
        molmo2,
        "Molmo2ForConditionalGeneration",
        lambda image: tf.Molmo2Config(
            vision_config=MOLMO_VISION,
            adapter_config=MOLMO_ADAPTER,
            text_config={**TEXT, **VOCABULARY, "additional_vocab_size": 4},
            image_patch_id=image,
        ),
    ),
    "gemma4-unified": (
        gemma4_unified,
        "Gemma4UnifiedForConditionalGeneration",
        llava(
            tf.Gemma4UnifiedConfig,
            {"patch_size": 7, "mm_embed_dim": 16, "mm_posemb_size": 70, "output_proj_dims": 16},
            GEMMA4,
            audio_config=None,
        ),
    ),
    "qwen2.5-omni": (
        omni,
        "Qwen2_5OmniThinkerForConditionalGeneration",
        llava(
            tf.Qwen2_5OmniThinkerConfig,
            {**QWEN, "patch_size": 14, "window_size": 28, "fullatt_block_indexes": [1]},
            MROPE,
            audio_config=OMNI_AUDIO,
        ),
    ),
    "minicpm-v": (
        minicpm,
        "MiniCPMV4_6ForConditionalGeneration",
        llava(
            tf.MiniCPMV4_6Config,
            {**CLIP, "patch_size": 7, "image_size": 56},
            {**SMALL, "model_type": "qwen3_5_text", "rope_parameters": QWEN3_5_ROPE, **HYBRID, **DELTA},
            insert_layer_id=0,
        ),
    ),
    "exaone4.5": (
        lambda *made: qwen("Exaone4_5_Processor", *made),
        "Exaone4_5_ForConditionalGeneration",
        llava(
            tf.Exaone4_5_Config,
            {**QWEN, "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 28, "num_key_value_heads": 2},
            {**SMALL, **SLIDING, "model_type": "exaone4"},
        ),
    ),
}
"""Of each the processor, the model's class, and its configuration."""


def processor(name: str, tokenizer: Callable[..., Any], chat: str) -> Any:
    """A processor of ``tokenizer(special tokens)`` with a chat template, in which IMAGE stands for an image."""
    if name not in ("paddleocr-vl", "hunyuan-vl"):  # they have a form that PIL is enough for
        pytest.importorskip(
            "torchvision", reason=f"the processor of {name} needs torchvision; `make test-slow` installs it"
        )
    return FAMILIES[name][0](tokenizer, chat)


def model(name: str, reads: Any) -> Any:
    """A random model for a processor."""
    _, cls, configuration = FAMILIES[name]
    config = configuration(reads.image_token_ids[0] if name == "molmo2" else reads.image_token_id)
    if name != "molmo2":  # whose videos have the tokens of its images
        config.video_token_id = config.audio_token_id = 399
    if name.startswith("qwen"):
        start = "<|vision_bos|>" if name == "qwen2.5-omni" else "<|vision_start|>"
        config.vision_start_token_id = reads.tokenizer.convert_tokens_to_ids(start)
    torch.manual_seed(0)
    return getattr(tf, cls)(config).eval()
