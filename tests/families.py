"""Tiny random models of every kind of family, with inputs that hold an image where the family sees."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from eas import EASConfig, attach, select
from eas.models.anatomy import Anatomy, model_class
from eas.models.lavin import LavinConfig
from eas.models.meter import TASKS, MeterConfig

SEEING = [
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
    "LavinForConditionalGeneration",
]
FAMILIES = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", *SEEING]
"""Of every kind; test_more_families.py has the others."""
QUICK = ("LlamaForCausalLM", "LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
"""Text alone, with an image, and with positions of three axes."""


def quick(values: Iterable[Any], first: Container[Any]) -> list[Any]:
    """For parametrize: `make test` takes the first ones, and `make test-slow` the others."""
    return [value if value in first else _slow(value) for value in values]


def _slow(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)


every_family = pytest.mark.parametrize("family", quick(FAMILIES, QUICK))
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,  # sharp enough for attention and positions to show in the logits
}
IMAGE = 3  # the image token
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
QWEN_VISION = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def build_meter(task: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny METER with the head of a task: two layers a modality, with weights that show in the logits."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    words = {**sizes, "vocab_size": 60, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = MeterConfig(
        text_config={**words, "max_position_embeddings": 40, "layer_norm_eps": 1e-5},
        vision_config={**sizes, "patch_size": 8, "image_size": 16},
        coattention_config=words,
        num_images=2 if task == "nlvr2" else 1,
        num_answers=5,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return TASKS[task](config).eval().to(dtype)


def meter_batch(task: str = "vqa", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Two texts, one of them padded, with their images and labels."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 60, (2, 7), generator=generator)
    ids[1, 4:] = 1
    images = 2 if task == "nlvr2" else 1
    pixels = torch.randn(2, images, 3, 16, 16, generator=generator).squeeze(1).to(dtype)
    labels = torch.rand(2, 5, generator=generator) if task == "vqa" else torch.tensor([1, 0])
    return {"input_ids": ids, "attention_mask": (ids != 1).long(), "pixel_values": pixels, "labels": labels}


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **text_options: Any) -> Any:
    """A tiny random model in evaluation mode; ``text_options`` change the configuration of its language model."""
    torch.manual_seed(seed)
    vision: Any
    text = TEXT | text_options
    match family:
        case "LlamaForCausalLM":
            config = tf.LlamaConfig(**text)
        case "MistralForCausalLM":
            config = tf.MistralConfig(**{"sliding_window": 128} | text)
        case "Qwen2ForCausalLM":
            config = tf.Qwen2Config(**text)
        case "Gemma3ForCausalLM":  # norms around attention and FFN, which multiply by 1 + weight
            config = tf.Gemma3TextConfig(**text, head_dim=8, sliding_window=128)
        case "Cohere2ForCausalLM":  # attention and FFN in parallel
            config = tf.Cohere2Config(**text, sliding_window=128)
        case "LlavaForConditionalGeneration":
            config = tf.LlavaConfig(
                vision_config=tf.CLIPVisionConfig(**CLIP), text_config=tf.LlamaConfig(**text), image_token_id=IMAGE
            )
            config.vision_feature_layer = -1
        case "LlavaNextForConditionalGeneration":
            config = tf.LlavaNextConfig(
                vision_config=tf.CLIPVisionConfig(**CLIP),
                text_config=tf.MistralConfig(**{"sliding_window": None} | text),
                image_token_id=IMAGE,
                image_grid_pinpoints=[[8, 16], [16, 8]],
            )
            config.vision_feature_layer = -1
        case "Qwen2VLForConditionalGeneration":
            vision = {**QWEN_VISION, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
            config = tf.Qwen2VLConfig(text_config={**text, "rope_parameters": ROPE}, vision_config=vision)
        case "Qwen2_5_VLForConditionalGeneration":
            vision = {**QWEN_VISION, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64}
            vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
            config = tf.Qwen2_5_VLConfig(text_config={**text, "rope_parameters": ROPE}, vision_config=vision)
        case "Idefics3ForConditionalGeneration" | "SmolVLMForConditionalGeneration":
            vision = {k: v for k, v in CLIP.items() if k != "image_size"} | {"image_size": 16}
            kind = tf.Idefics3Config if family.startswith("Idefics3") else tf.SmolVLMConfig
            config = kind(
                text_config={**text, "model_type": "llama"}, vision_config=vision, scale_factor=2, image_token_id=IMAGE
            )
        case "LavinForConditionalGeneration":
            config = LavinConfig(
                vision_config=tf.CLIPVisionConfig(**CLIP),
                text_config=tf.LlamaConfig(**text),
                vision_feature_layers=[1, 2],
                projector_hidden_size=8,
                vision_adapter_rank=4,
                vision_adapter_dropout=0.0,
                image_token_id=IMAGE,
            )
        case _:
            raise ValueError(family)
    if family.startswith("Qwen2") and "VL" in family:
        config.image_token_id, config.vision_start_token_id, config.video_token_id = IMAGE, 4, 5
    config.tie_word_embeddings = text.get("tie_word_embeddings", False)
    model = model_class(family)(config).eval()
    if family in ("Gemma3ForCausalLM", "Cohere2ForCausalLM"):
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.3, 1.7)
    if family == "LavinForConditionalGeneration":  # whose vision adapters start as nothing
        for adapter in model.model.multi_modal_projector.adapters:
            torch.nn.init.normal_(adapter.up1.weight)
            torch.nn.init.normal_(adapter.up2.weight)
    kept = tuple(model._keep_in_fp32_modules_strict or ())
    for name, parameter in model.named_parameters():  # as from_pretrained; .to(dtype) would round rotary frequencies
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.to(dtype)
    model.generation_config.eos_token_id = None  # tests compare a fixed number of tokens
    model.generation_config.pad_token_id = 0
    return model


def image_inputs(family: str, count: int) -> tuple[dict[str, Tensor], int]:
    """Pixel inputs for ``count`` images and how many image tokens each takes."""
    g = torch.Generator().manual_seed(7)
    match family:
        case "LlavaForConditionalGeneration":
            return {"pixel_values": torch.randn(count, 3, 8, 8, generator=g)}, 4
        case "LlavaNextForConditionalGeneration":
            # 8 x 8 in a grid of 8 x 16: 4 base tokens, 2 x 2 unpadded tokens with a newline after each row
            sizes = torch.tensor([[8, 8]] * count)
            return {"pixel_values": torch.randn(count, 3, 3, 8, 8, generator=g), "image_sizes": sizes}, 10
        case "Qwen2VLForConditionalGeneration" | "Qwen2_5_VLForConditionalGeneration":
            pixels = torch.randn(count * 16, 3 * 2 * 4 * 4, generator=g)
            return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 4]] * count)}, 4
        case "Idefics3ForConditionalGeneration" | "SmolVLMForConditionalGeneration":
            return {"pixel_values": torch.randn(count, 1, 3, 16, 16, generator=g)}, 4
        case "LavinForConditionalGeneration":
            return {"pixel_values": torch.randn(count, 3, 8, 8, generator=g)}, 2
        case _:
            return {}, 0


def prompts(
    family: str, lengths: tuple[int, ...] = (6, 9), images: bool | tuple[bool, ...] = True, pad: str = "left"
) -> dict[str, Tensor]:
    """A padded batch of prompts of unequal length; those with an image have it in front where the family sees."""
    shown = images if isinstance(images, tuple) else (images,) * len(lengths)
    pixels, tokens = image_inputs(family, sum(shown)) if any(shown) else ({}, 0)
    if family.startswith(("Idefics3", "SmolVLM")) and any(shown):  # a row without image has one of zeros
        padded = torch.zeros(len(shown), *pixels["pixel_values"].shape[1:])
        pixels["pixel_values"] = padded.index_copy(0, torch.tensor(shown).nonzero()[:, 0], pixels["pixel_values"])
    g = torch.Generator().manual_seed(len(lengths))
    rows = [
        torch.cat([torch.tensor([1] + [IMAGE] * (tokens * show)), torch.randint(6, 64, (length,), generator=g)])
        for length, show in zip(lengths, shown, strict=True)
    ]
    size = max(len(row) for row in rows)
    ids, mask = torch.zeros(len(rows), size, dtype=torch.long), torch.zeros(len(rows), size, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(size - len(row), size) if pad == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    inputs = {"input_ids": ids, "attention_mask": mask, **pixels}
    if "image_grid_thw" in pixels:
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    return inputs


def randomise(model: nn.Module, seed: int = 1, std: float = 0.2) -> None:
    """Gives every PIA weight a random value, so that nothing is zero by initialisation."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_pia." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * std)


def attached(
    family: str, skip: tuple[int, ...] = (0, 2), config: dict[str, Any] | None = None, **build_args: Any
) -> Any:
    """A tiny model with random PIAs under a skip set."""
    base = build(family, **build_args)
    number = min(len(skip), len(Anatomy.of(base).layers) - 1)
    model = attach(base, EASConfig(**{"num_skip": number, "skip_rank": 4, "adapt_rank": 2, **(config or {})}))
    randomise(model)
    select(model, skip)
    return model


def blocks(model: Any) -> list[Any]:
    """The blocks of the language model."""
    return list(Anatomy.of(model).layers)


@torch.no_grad()
def logits(model: Any, inputs: dict[str, Any], **more: Any) -> Tensor:
    """Logits of one forward pass."""
    return model(**inputs, **more).logits
