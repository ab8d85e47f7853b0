"""Checks every family of an installation: a model that skips must decode the results of its whole forward pass."""

from __future__ import annotations

from typing import Any

from eas.attachment.attach import twin_deviation
from eas.hf.twin import TOLERANCE
from eas.methods.eas import EASConfig
from eas.models.anatomy import FAMILIES, model_class

__all__ = ["FAMILIES", "TOLERANCE", "deviation"]


def deviation(family: str) -> float:
    """How far cached decoding is from the whole forward pass, for a tiny random model of a family with EAS.

    Args:
        family: a class of ``eas.models.anatomy.FAMILIES``.

    Returns:
        The difference of the logits, relative to their norm. More than ``TOLERANCE`` is wrong.

    Raises:
        TransformersChangedError: the installed transformers does not even take the cache where eas gives it.

    Example:
        >>> deviation("LlamaForCausalLM") < TOLERANCE
        True
    """
    cls = model_class(family)
    return twin_deviation(cls, cls.config_class(**MORE.get(family, {})), _METHOD)


MORE: dict[str, dict[str, Any]] = {
    "Qwen2_5OmniThinkerForConditionalGeneration": {"vision_start_token_id": 151652},
    "Qwen3OmniMoeThinkerForConditionalGeneration": {"vision_start_token_id": 151652},
    "Gemma4ForConditionalGeneration": {"vision_config": {"model_type": "gemma4_vision"}},
    "Granite4VisionForConditionalGeneration": {
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1],
        "downsample_rate": "4/8",
    },
    "AyaVisionForConditionalGeneration": {"vision_config": {"model_type": "siglip_vision_model"}},
    "FastVlmForConditionalGeneration": {"vision_config": {"model_type": "clip_vision_model"}},  # not timm's tower
    "PerceptionLMForConditionalGeneration": {
        "vision_config": {"model_type": "clip_vision_model", "model_args": {"embed_dim": 8}}
    },
}
"""What published configurations have, and the default of their class lacks."""
_METHOD = EASConfig(num_skip=1, skip_rank=4, adapt_rank=2)
