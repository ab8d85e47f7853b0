"""Where each supported family keeps its language model, its projector, and in a block its attention, FFN and norms.

A new family costs one line in ``FAMILIES`` where its blocks are pre-norm (a Llama, Mistral or Qwen2 text model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from eas.hf.api import IMAGE_TEXT_TYPES
from eas.models.lavin import LavinForConditionalGeneration
from eas.models.meter import TASKS as METER
from eas.models.meter import AutoMeter

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
OWN |= {head.__name__: head for head in METER.values()}
"""Families that transformers does not have."""

# class of the model with its head -> path to its co-attention layers
COATTENTION = {head.__name__: "meter" for head in METER.values()}

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
        form: which form of the methods fits: "decoder", or "coattention" (METER).
        attentions: the attentions, where a layer has several that may be skipped singly.
        head: what belongs to a task and is not there after pretraining.
        norm: path from a layer to one of its norms.
        ffn_output: path from a layer to the FFN's last map.
    """

    text_model: PreTrainedModel
    layers: Any  # a ModuleList, whose blocks are SkippableBlocks once attached
    projector: nn.Module | None
    form: str = "decoder"
    attentions: tuple[Any, ...] = ()
    head: tuple[nn.Module, ...] = ()
    norm: str = "input_layernorm"
    ffn_output: str = "mlp.down_proj"

    def blocks(self, candidates: str) -> list[Any]:
        """The modules that may be skipped, or parts of which may be: attentions where layers have several."""
        return list(self.attentions if candidates == "mha" and self.attentions else self.layers)

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Takes a model apart.

        Raises:
            UnsupportedModelError: its family, or the class of its language model, is not supported.
        """
        family = type(model).__name__
        if family in COATTENTION:
            return cls._of_coattention(model)
        if family not in FAMILIES:
            known = ", ".join((*FAMILIES, *COATTENTION))
            raise UnsupportedModelError(f"{family} is not supported; supported are {known}")
        text_path, projector_path = FAMILIES[family]
        text_model = model.get_submodule(text_path)
        if type(text_model).__name__ not in TEXT_MODELS:
            raise UnsupportedModelError(
                f"{family} with a {type(text_model).__name__} is not supported; its language model must be one of "
                f"{', '.join(TEXT_MODELS)}"
            )
        projector = None if projector_path is None else model.get_submodule(projector_path)
        return cls(text_model, text_model.layers, projector)

    @classmethod
    def _of_coattention(cls, model: nn.Module) -> Anatomy:
        """METER: the text's layers, then the image's; of each its self attentions, then its cross attentions."""
        path = COATTENTION[type(model).__name__]
        trunk: Any = model.get_submodule(path)
        sides = (trunk.cross_modal_text_layers, trunk.cross_modal_image_layers)
        kinds = ("attention", "crossattention")
        there = ((layer, kind) for side in sides for kind in kinds for layer in side if kind in layer._modules)
        attentions = (layer.get_submodule(kind) for layer, kind in there)
        poolers = (trunk.token_type_embeddings, trunk.cross_modal_text_pooler, trunk.cross_modal_image_pooler)
        own = (module for name, module in model.named_children() if name != path)
        return cls(
            trunk,
            [layer for side in sides for layer in side],
            None,
            form="coattention",
            attentions=tuple(attentions),
            head=(*poolers, *own),
            norm="output.LayerNorm",
            ffn_output="output.dense",
        )


def paths(model: nn.Module) -> tuple[str, str | None]:
    """Where a model keeps what its layers are in, and its projector."""
    family = type(model).__name__
    return FAMILIES[family] if family in FAMILIES else (COATTENTION[family], None)


def model_class(family: str) -> Any:
    """The class of a family."""
    return OWN[family] if family in OWN else getattr(transformers, family)


def auto_class(model_type: str) -> Any:
    """The Auto class that opens models of this type with their head: image-text, or text only."""
    kind = model_type.removeprefix("eas_")  # the standalone form of a family opens as the family does
    if kind == "meter":
        return AutoMeter
    sees = {*IMAGE_TEXT_TYPES, *(cls.config_class.model_type for cls in OWN.values())}
    return AutoModelForImageTextToText if kind in sees else AutoModelForCausalLM
