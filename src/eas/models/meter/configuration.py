"""METER's configuration (Dou et al. 2022, arXiv 2111.02387): two towers and the co-attention layers on top of them."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, PreTrainedConfig, RobertaConfig


@strict
class MeterConfig(PreTrainedConfig):  # type: ignore[misc]
    """METER-CLIP16-RoBERTa by default, at 288 pixels as it was pretrained.

    Args:
        text_config: the RoBERTa tower.
        vision_config: the CLIP tower; METER leaves out its last block, so that 11 of 12 are left of ViT-B/16.
        coattention_config: the co-attention layers, as a RoBERTa configuration: ``num_hidden_layers`` of them for each
            modality. METER takes RoBERTa's defaults, whose layer-norm epsilon is 1e-12 and not the towers' 1e-5.
        num_images: images of an example; NLVR2 has 2, and a token type for each.
        num_answers: classes of the VQA head.
    """

    model_type = "meter"
    sub_configs_defaults = {  # noqa: RUF012  (transformers' own form)
        "text_config": RobertaConfig,
        "vision_config": CLIPVisionConfig,
        "coattention_config": RobertaConfig,
    }

    text_config: Any = None
    vision_config: Any = None
    coattention_config: Any = None
    num_images: int = 1
    num_answers: int = 3129
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            sizes = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
            self.text_config = {**sizes, "layer_norm_eps": 1e-5}
        if self.vision_config is None:
            self.vision_config = {"num_hidden_layers": 11, "patch_size": 16, "image_size": 288}
        if self.coattention_config is None:
            self.coattention_config = {"vocab_size": 50265, "num_hidden_layers": 6}
        super().__post_init__(**kwargs)
