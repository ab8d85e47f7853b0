"""Tiny random models of the families that have no tests of their own, with their inputs."""

from __future__ import annotations

from typing import Any

import expert_blocks
import like_llama
import other_blocks
import pytest
import torch
import transformers as tf
from families import IMAGE, quick
from tiny_parts import Row
from torch import Tensor

from eas.models.anatomy import Anatomy

SPECIAL = {"video_token_id": 5, "vision_start_token_id": 4, "vision_end_token_id": 2, "audio_token_id": 5}
FAMILIES: dict[str, Row] = like_llama.FAMILIES | other_blocks.FAMILIES | expert_blocks.FAMILIES
"""By label."""
QUICK = (
    *("Qwen3", "LlavaOnevision", "Qwen3VL", "Molmo2", "PaliGemma", "Gemma3, images", "Gemma4, inputs by layer"),
    *(
        "Glm4v",
        "Phi3",
        "Phi4Multimodal",
        "LlavaNext, Granite",
        "AyaVision",
        "Olmo2",
        "Lfm2Vl",
        "Qwen3.5, images",
        "Mllama",
    ),
    *("Gemma4Unified", "Llama4", "Glm4vMoe"),
)
"""One of each kind of language model."""
TOLD = ("Qwen3VL", "Qwen3.5", "Glm", "PaddleOCRVL", "HunYuanVL", "Molmo2", "Gemma3", "Gemma4", "MiniCPM-V 4.7")
"""Their processors tell which tokens are an image's."""
every_label = pytest.mark.parametrize("label", quick(FAMILIES, QUICK))


def build(label: str) -> Any:
    """A model in evaluation mode; the weights of its norms are far from one, and differ."""
    if label in like_llama.WITH_TIMM:
        pytest.importorskip("timm", reason=f"the vision tower of {label} needs timm; `make test-slow` installs it")
    torch.manual_seed(0)
    name, configuration, _, _ = FAMILIES[label]
    config = configuration()
    config.tie_word_embeddings = False
    for key, value in SPECIAL.items():
        if key in config.to_dict() or "OmniThinker" in label:  # which published ones have
            setattr(config, key, value)
    model = getattr(tf, name)(config).eval()
    for module in Anatomy.of(model).text_model.modules():
        if type(module).__name__.endswith(("RMSNorm", "LayerNorm", "RMSNorm_")):
            for weight in module.parameters():  # some have none
                torch.nn.init.uniform_(weight, 0.3, 1.7)
        for name, gate in module._parameters.items():
            if name.endswith("gate"):  # of Mllama, zero at first
                torch.nn.init.constant_(gate, 0.7)
        if "layer_scalar" in module._buffers:
            torch.nn.init.uniform_(module.layer_scalar, 0.5, 1.5)
    model.generation_config.eos_token_id = None  # tests compare a fixed number of tokens
    model.generation_config.pad_token_id = 0
    model.generation_config.suppress_tokens = [0, 1, 2, IMAGE, 4, 5]
    return model


def prompts(label: str, lengths: tuple[int, ...] = (4, 7), image: bool = True) -> dict[str, Tensor]:
    """A left-padded batch, each row with an image in front where images are tried."""
    torch.manual_seed(1)
    _, _, tokens, images = FAMILIES[label]
    tokens *= image
    start = [4] if tokens and label.endswith(("OmniThinker", "4.7")) else []  # where they look for images
    rows = [torch.cat([torch.tensor([1, *start, *[IMAGE] * tokens]), torch.randint(6, 64, (n,))]) for n in lengths]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), **(images(len(rows)) if image else {})}
    if tokens and label.startswith(TOLD):
        name = "token_type_ids" if label.startswith("Gemma3") else "mm_token_type_ids"
        inputs[name] = (ids == IMAGE).long()
    return inputs


def blocks(model: Any) -> list[Any]:
    """The layers whose parts may be skipped."""
    return Anatomy.of(model).blocks("mha")
