"""Full-size models by name, without their weights: for counting on the meta device, and for timing.

Values are those of the published configurations; ``llava-0.5b`` is LLaVA scaled to what two CPU cores can time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
    SmolVLMConfig,
)

from eas.hf.api import no_init_weights
from eas.models.anatomy import Anatomy, auto_class


def _sizes(width: int, ffn: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**sizes, **more}


CLIP_L = _sizes(1024, 4096, 24, 16, image_size=336, patch_size=14, projection_dim=768)
CLIP_B = _sizes(768, 3072, 12, 12, image_size=224, patch_size=16, projection_dim=512)


def _llava(text: LlamaConfig, vision: dict[str, Any], image_token: int = 31999) -> LlavaConfig:
    tower = CLIPVisionConfig(**vision)
    tokens = (tower.image_size // tower.patch_size) ** 2
    return LlavaConfig(text_config=text, vision_config=tower, image_token_id=image_token, image_seq_length=tokens)


def _llama(*sizes: int, vocab_size: int = 32000, **more: Any) -> LlamaConfig:
    return LlamaConfig(**_sizes(*sizes, vocab_size=vocab_size, **more))


def _llava_15() -> LlavaConfig:
    text = _llama(4096, 11008, 32, 32, vocab_size=32064, max_position_embeddings=4096, rms_norm_eps=1e-5)
    return _llava(text, CLIP_L, image_token=32000)


def _qwen2_5_vl_3b() -> Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    text = _sizes(2048, 11008, 36, 16, num_key_value_heads=2, vocab_size=151936, rms_norm_eps=1e-6)
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
    return Qwen2_5_VLConfig(
        text_config={**text, "max_position_embeddings": 128000, "rope_parameters": rope},
        vision_config=vision,
        tie_word_embeddings=True,
    )


def _smolvlm_500m() -> SmolVLMConfig:
    rope = {"rope_type": "default", "rope_theta": 1e5}
    text = _sizes(960, 2560, 32, 15, num_key_value_heads=5, vocab_size=49280, rms_norm_eps=1e-5)
    return SmolVLMConfig(
        text_config={**text, "model_type": "llama", "max_position_embeddings": 8192, "rope_parameters": rope},
        vision_config=_sizes(768, 3072, 12, 12, image_size=512, patch_size=16),
        scale_factor=4,
        image_token_id=49190,
    )


def _qwen3(*sizes: int, **more: Any) -> dict[str, Any]:
    return _sizes(*sizes, num_key_value_heads=8, head_dim=128, vocab_size=151936, rms_norm_eps=1e-6, **more)


def _qwen3_vl_2b() -> Qwen3VLConfig:
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_theta": 5e6}
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048}
    return Qwen3VLConfig(
        text_config=_qwen3(2048, 6144, 28, 16, rope_parameters=rope),
        vision_config={**vision, "patch_size": 16, "deepstack_visual_indexes": [5, 11, 17]},
        tie_word_embeddings=True,
    )


def _internvl_3_5_8b() -> InternVLConfig:
    return InternVLConfig(
        text_config=_qwen3(4096, 12288, 36, 32, model_type="qwen3"),
        vision_config=_sizes(1024, 4096, 24, 16, image_size=[448, 448], patch_size=[14, 14]),
        image_token_id=151671,
        tie_word_embeddings=False,
    )


def _gemma_3_4b() -> Gemma3Config:
    text = _sizes(2560, 10240, 34, 8, num_key_value_heads=4, head_dim=256, vocab_size=262208, sliding_window=1024)
    vision = _sizes(1152, 4304, 27, 16, image_size=896, patch_size=14, vision_use_head=False)
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=256)


def _mistral_small_3_1() -> Mistral3Config:
    text = _sizes(5120, 32768, 40, 32, num_key_value_heads=8, head_dim=128, vocab_size=131072, sliding_window=None)
    vision = _sizes(1024, 4096, 24, 16, image_size=1540, patch_size=14, head_dim=64)
    return Mistral3Config(
        text_config={**text, "model_type": "mistral"},
        vision_config={**vision, "model_type": "pixtral"},
        tie_word_embeddings=False,
    )


def _llava_onevision_7b() -> LlavaOnevisionConfig:
    text = _sizes(3584, 18944, 28, 28, num_key_value_heads=4, vocab_size=152128, rms_norm_eps=1e-6)
    vision = _sizes(1152, 4304, 26, 16, image_size=384, patch_size=14, vision_use_head=False)
    return LlavaOnevisionConfig(
        text_config={**text, "model_type": "qwen2"}, vision_config={**vision, "model_type": "siglip_vision_model"}
    )


SHAPES: dict[str, Callable[[], Any]] = {
    "llava-7b": lambda: _llava(_llama(4096, 11008, 32, 32), CLIP_L),  # the paper's: Vicuna-7B, CLIP-L/14-336
    "llava-13b": lambda: _llava(_llama(5120, 13824, 40, 40), CLIP_L),
    "llava-1.5-7b": _llava_15,
    "lavin-7b": lambda: _llama(4096, 11008, 32, 32),  # LLaMA-7B; LaVIN's image is six tokens of its prompt
    "qwen2.5-vl-3b": _qwen2_5_vl_3b,
    "smolvlm-500m": _smolvlm_500m,
    "qwen3-vl-2b": _qwen3_vl_2b,
    "internvl3.5-8b": _internvl_3_5_8b,
    "gemma-3-4b": _gemma_3_4b,
    "mistral-small-3.1": _mistral_small_3_1,
    "llava-onevision-7b": _llava_onevision_7b,
    "llava-0.5b": lambda: _llava(_llama(1024, 2816, 24, 16), CLIP_B),
}
"""Name -> configuration."""


def build(
    name: str,
    device: str | torch.device = "meta",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    share_blocks: bool = False,
) -> PreTrainedModel:
    """The model of one of ``SHAPES`` in evaluation mode: without storage on the meta device, else with random weights.

    Random weights are one pseudo-random vector laid out over all matrices: filling 7 B of them takes seconds, and the
    time of a step does not depend on them. Norms are one, biases zero, RoPE is correct.

    Args:
        name: one of ``SHAPES``.
        device: of the weights.
        dtype: of the weights.
        seed: of the random ones.
        share_blocks: all blocks of the language model hold the weights of the first: full depth and full work in the
            memory of one block.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in SHAPES:
        raise ValueError(f"shape {name!r} is unknown; use one of {', '.join(SHAPES)}")
    config = SHAPES[name]()
    depth = config.get_text_config().num_hidden_layers
    if share_blocks:
        config.get_text_config().num_hidden_layers = 1
    with torch.device(device), no_init_weights():
        model: PreTrainedModel = auto_class(config.model_type).from_config(config, dtype=dtype)
    model.tie_weights()
    if share_blocks:
        _repeat_block(model, depth)
    if torch.device(device).type != "meta":
        # its length is no multiple of a width, so that no two rows are alike
        noise = 0.02 * torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
        _fill(model, noise.to(device, dtype))
    return model.eval()


def _repeat_block(model: PreTrainedModel, depth: int) -> None:
    """Sets the first block's twins, which share its weights, behind it."""
    text = Anatomy.of(model).text_model
    first = text.layers[0]
    for index in range(1, depth):
        twin = copy.deepcopy(first, {id(kept): kept for kept in (*first.parameters(), text.config)})
        twin.self_attn.layer_idx = index
        text.layers.append(twin)
    text.config.num_hidden_layers = model.config.get_text_config().num_hidden_layers = depth


@torch.no_grad()
def _fill(model: PreTrainedModel, noise: Tensor) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        flat = parameter.view(-1)
        whole = len(flat) // len(noise) * len(noise)
        flat[:whole].view(-1, len(noise)).copy_(noise.expand(whole // len(noise), -1))
        flat[whole:].copy_(noise[: len(flat) - whole])
