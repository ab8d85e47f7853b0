"""Where each supported family keeps its language model, its projector, and in a block its attention, FFN and norms.

A new family costs one line in ``FAMILIES`` where its blocks are pre-norm (a Llama, Mistral or Qwen2 text model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from eas.models.lavin import LavinForConditionalGeneration

ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
FFN_INPUTS = ("gate_proj", "up_proj")

# class of the model with its head -> (path to the language model, path to the projector or None)
FAMILIES: dict[str, tuple[str, str | None]] = {
    "LlamaForCausalLM": ("model", None),
    "MistralForCausalLM": ("model", None),
    "Qwen2ForCausalLM": ("model", None),
    "LlavaForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "LlavaNextForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Qwen2VLForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "Qwen2_5_VLForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "Idefics3ForConditionalGeneration": ("model.text_model", "model.connector"),
    "SmolVLMForConditionalGeneration": ("model.text_model", "model.connector"),
    "LavinForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
}

OWN: dict[str, Any] = {"LavinForConditionalGeneration": LavinForConditionalGeneration}
"""Families that transformers does not have."""

# language models whose layers have self_attn, mlp, input_layernorm and post_attention_layernorm, pre-norm, RMS norms
TEXT_MODELS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen2VLTextModel", "Qwen2_5_VLTextModel")


class UnsupportedModelError(TypeError):
    """The model's class is not in the tables; the message lists the supported ones."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model.

    Args:
        text_model: the language model without its head.
        layers: its blocks, in order.
        projector: the module between vision tower and language model, if the model has one.
    """

    text_model: PreTrainedModel
    layers: Any  # a ModuleList, whose blocks are SkippableBlocks once attached
    projector: nn.Module | None

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Takes a model apart.

        Raises:
            UnsupportedModelError: its family, or the class of its language model, is not supported.
        """
        family = type(model).__name__
        if family not in FAMILIES:
            raise UnsupportedModelError(f"{family} is not supported; supported are {', '.join(FAMILIES)}")
        text_path, projector_path = FAMILIES[family]
        text_model = model.get_submodule(text_path)
        if type(text_model).__name__ not in TEXT_MODELS:
            raise UnsupportedModelError(
                f"{family} with a {type(text_model).__name__} is not supported; its language model must be one of "
                f"{', '.join(TEXT_MODELS)}"
            )
        projector = None if projector_path is None else model.get_submodule(projector_path)
        return cls(text_model, text_model.layers, projector)


def model_class(family: str) -> Any:
    """The class of a family."""
    return OWN[family] if family in OWN else getattr(transformers, family)


def auto_class(model_type: str) -> Any:
    """The Auto class that opens models of this type with their head: image-text, or text only."""
    kind = model_type.removeprefix("eas_")  # the standalone form of a family opens as the family does
    sees = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *(cls.config_class.model_type for cls in OWN.values())}
    return AutoModelForImageTextToText if kind in sees else AutoModelForCausalLM
