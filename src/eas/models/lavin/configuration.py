"""LaVIN's configuration: CLIP's, Llama's, and that of the parts between both."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

VIT_L_14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
VIT_L_14 |= {"image_size": 224, "patch_size": 14, "projection_dim": 768}


class LavinConfig(PreTrainedConfig):  # type: ignore[misc]
    """The defaults are those of LaVIN's scripts: CLIP ViT-L/14 at 224 pixels and LLaMA-7B.

    Args:
        vision_config: of the CLIP vision tower.
        text_config: of the language model, a Llama.
        vision_feature_layers: blocks of the tower, counted from 1, whose class token becomes a visual token.
        projector_hidden_size: width between the projector's two maps.
        vision_adapter_rank: of the routed adapter before every attention of the tower; 0, there are none.
        vision_adapter_groups: groups of its up-projections.
        vision_adapter_temperature: of its router's softmax.
        vision_adapter_dropout: on its hidden state while training.
        image_token_id: stands in the input where visual tokens go. LLaMA's byte 0, which no text has: the vocabulary
            stays as it is.

    Raises:
        ValueError: a feature layer is outside the tower, or the rank is no multiple of the groups.
    """

    model_type = "lavin"
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model", init_kwargs=VIT_L_14),
        "text_config": SubConfigSpec(AutoConfig, model_type="llama"),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_feature_layers: list[int] = field(default_factory=lambda: [4, 8, 12, 16, 20, 24])
    projector_hidden_size: int = 128
    vision_adapter_rank: int = 8
    vision_adapter_groups: int = 2
    vision_adapter_temperature: float = 10.0
    vision_adapter_dropout: float = 0.1
    image_token_id: int = 3
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        depth = self.vision_config.num_hidden_layers  # type: ignore[union-attr]
        if not self.vision_feature_layers or not all(0 < layer <= depth for layer in self.vision_feature_layers):
            raise ValueError(
                f"LavinConfig.vision_feature_layers = {self.vision_feature_layers}: must be blocks 1 to {depth}"
            )
        if self.vision_adapter_rank % self.vision_adapter_groups:
            raise ValueError(
                f"LavinConfig.vision_adapter_rank = {self.vision_adapter_rank}: must be a multiple of "
                f"vision_adapter_groups = {self.vision_adapter_groups}"
            )
