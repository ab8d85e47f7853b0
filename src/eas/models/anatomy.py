"""The places of language model, projector, and a block's attention, FFN and norms in each supported family.

A new family costs one line in ``FAMILIES`` where its language model is one of ``TEXT_MODELS``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

import eas.models.efficientnet  # noqa: F401  (a LLaVA may have its tower)
from eas.hf.api import IMAGE_TEXT_TYPES
from eas.models.lavin import LavinForConditionalGeneration
from eas.models.meter import TASKS as METER
from eas.models.meter import AutoMeter

ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
FFN_INPUTS = ("gate_proj", "up_proj")

# class of the model with its head -> paths to the language model, and to the modules of the projector if there are any
FAMILIES: dict[str, tuple[str, ...]] = {
    "LlamaForCausalLM": ("model",),
    "MistralForCausalLM": ("model",),
    "Qwen2ForCausalLM": ("model",),
    "Qwen3ForCausalLM": ("model",),
    "SmolLM3ForCausalLM": ("model",),
    "Ministral3ForCausalLM": ("model",),
    "SeedOssForCausalLM": ("model",),
    "Ernie4_5ForCausalLM": ("model",),
    "LlavaForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "LlavaNextForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Qwen2VLForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "Qwen2_5_VLForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "Qwen3VLForConditionalGeneration": (
        "model.language_model",
        "model.visual.merger",
        "model.visual.deepstack_merger_list",
    ),
    "Qwen2_5OmniThinkerForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "InternVLForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Mistral3ForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "LlavaOnevisionForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "VipLlavaForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "PaddleOCRVLForConditionalGeneration": ("model.language_model", "model.projector"),
    "LightOnOcrForConditionalGeneration": ("model.language_model", "model.vision_projection"),
    "GotOcr2ForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "HunYuanVLForConditionalGeneration": ("model.language_model",),
    "Ovis2ForConditionalGeneration": ("model.language_model",),
    "VideoLlama3ForConditionalGeneration": ("model.language_model", "model.projector"),
    "DeepseekVLForConditionalGeneration": ("model.language_model", "model.aligner"),
    "Molmo2ForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Idefics2ForConditionalGeneration": ("model.text_model", "model.connector"),
    "Idefics3ForConditionalGeneration": ("model.text_model", "model.connector"),
    "SmolVLMForConditionalGeneration": ("model.text_model", "model.connector"),
    "LavinForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
}

OWN: dict[str, Any] = {"LavinForConditionalGeneration": LavinForConditionalGeneration}
OWN |= {head.__name__: head for head in METER.values()}
"""Families that transformers does not have, and those of ``eas.register_family``."""

# the same for families that generate nothing
COATTENTION: dict[str, tuple[str, ...]] = {head.__name__: ("meter",) for head in METER.values()}


class Branch(NamedTuple):
    """A part of a layer with a residual connection around it.

    Args:
        part: "mha" or "ffn".
        body: name of the attention or FFN in the layer.
        norm: name of its norm, before it or after the residual.
        across: whether keys and values are the other modality's.
    """

    part: str
    body: str
    norm: str
    across: bool = False


class TextModel(NamedTuple):
    """The structure of a language model.

    Args:
        form: "decoder", or "coattention": two modalities, each with layers of its own, that read each other (METER).
        sides: names of the lists of its layers, the text's first.
        branches: of every layer, in order.
        post_norm: whether norms come after the residuals.
        poolers: names of the modules before the head; they are new after pretraining.
        adds_between: whether it adds features of images to the hidden states between its layers (DeepStack).
    """

    form: str
    sides: tuple[str, ...]
    branches: tuple[Branch, ...]
    post_norm: bool = False
    poolers: tuple[str, ...] = ()
    adds_between: bool = False


DECODER = TextModel(
    "decoder",
    ("layers",),
    (Branch("mha", "self_attn", "input_layernorm"), Branch("ffn", "mlp", "post_attention_layernorm")),
)
TEXT_MODELS = dict.fromkeys(
    (
        "LlamaModel",
        "MistralModel",
        "Ministral3Model",
        "Qwen2Model",
        "Qwen2VLTextModel",
        "Qwen2_5_VLTextModel",
        "Qwen2_5OmniThinkerTextModel",
        "Qwen3Model",
        "SmolLM3Model",
        "SeedOssModel",
        "Ernie4_5Model",
        "PaddleOCRTextModel",
        "HunYuanVLTextModel",
        "Molmo2TextModel",
    ),
    DECODER,
)
TEXT_MODELS["Qwen3VLTextModel"] = DECODER._replace(adds_between=True)
TEXT_MODELS["MeterModel"] = TextModel(
    "coattention",
    ("cross_modal_text_layers", "cross_modal_image_layers"),
    (
        Branch("mha", "self_attn", "self_attn_norm"),
        Branch("mha", "cross_attn", "cross_attn_norm", across=True),
        Branch("ffn", "mlp", "mlp_norm"),
    ),
    post_norm=True,
    poolers=("token_type_embeddings", "cross_modal_text_pooler", "cross_modal_image_pooler"),
)
"""By class. Attentions have ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``, FFNs ``up_proj`` and ``down_proj``."""


class UnsupportedModelError(TypeError):
    """The model's class is not in the tables; the message lists the supported ones."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model.

    Args:
        text_model: the language model without its head; of METER all but the head.
        layers: its blocks, in order: the text's, then the image's where it has layers of its own.
        projector: the modules between vision tower and language model; none where the model has no projector.
        head: the modules of a task: the output head; of METER also the modules that are new after pretraining.
        built: how the language model is built.
    """

    text_model: PreTrainedModel
    layers: Any  # a ModuleList, whose blocks are SkippableBlocks once attached
    projector: tuple[nn.Module, ...]
    head: tuple[nn.Module, ...]
    built: TextModel

    @property
    def form(self) -> str:
        """Which form of the methods fits."""
        return self.built.form

    @property
    def tuned_along(self) -> tuple[nn.Module, ...]:
        """The modules of ``train_projector``: the projector; of METER, which has none, the head of the task."""
        return self.head if self.built.poolers else self.projector

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Of every layer, in order."""
        return self.built.branches

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Takes a model apart.

        Raises:
            UnsupportedModelError: its family, or the class of its language model, is not supported.
        """
        family = type(model).__name__
        if family not in FAMILIES | COATTENTION:
            raise UnsupportedModelError(f"{family} is not supported; {_remedy(family, [*FAMILIES, *COATTENTION])}")
        text_path, *projector_paths = paths(model)
        text_model: Any = model.get_submodule(text_path)
        if type(text_model).__name__ not in TEXT_MODELS:
            name = type(text_model).__name__
            known = [name for name, built in TEXT_MODELS.items() if built.form == "decoder"]
            raise UnsupportedModelError(f"{family} with a {name} is not supported; {_remedy(name, known)}")
        built = TEXT_MODELS[type(text_model).__name__]
        sides = [text_model.get_submodule(name) for name in built.sides]
        layers = sides[0] if len(sides) == 1 else [layer for side in sides for layer in side]
        projector = tuple(model.get_submodule(path) for path in projector_paths)
        head = [text_model.get_submodule(name) for name in built.poolers]
        head += [module for name, module in model.named_children() if name != text_path.partition(".")[0]]
        return cls(text_model, layers, projector, tuple(head), built)

    def bodies(self) -> Iterator[tuple[str, Any, Any]]:
        """The attentions and FFNs of layer after layer: "mha" or "ffn", the module, and its norm."""
        for layer in self.layers:
            for branch in self.branches:
                if branch.body in layer._modules:  # else it was pruned
                    yield branch.part, getattr(layer, branch.body), getattr(layer, branch.norm)

    def blocks(self, candidates: str) -> list[Any]:
        """The modules that may be skipped, or parts of which may be: attentions where layers have several."""
        several = sum(branch.part == "mha" for branch in self.branches) > 1
        if several and candidates == "mha":
            return [attention for attention, _ in attentions(self.text_model)]
        return list(self.layers)


def _remedy(name: str, known: list[str]) -> str:
    """What is supported, and which of it is nearest by its name."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    nearest = f"{' and '.join(near)} {'is' if len(near) == 1 else 'are'} nearest by name. " if near else ""
    return (
        f"supported are {', '.join(known)}. {nearest}If its blocks are built like Llama's, make the class known with "
        "eas.register_family"
    )


def attentions(text_model: Any) -> list[tuple[Any, Any]]:
    """The attentions of a language model and their norms, in the order of ``layer_idx``: of each modality the self
    attentions, then the cross attentions."""
    built = TEXT_MODELS[type(text_model).__name__]
    return [
        (getattr(layer, branch.body), getattr(layer, branch.norm))
        for side in built.sides
        for branch in built.branches
        if branch.part == "mha"
        for layer in text_model.get_submodule(side)
        if branch.body in layer._modules
    ]


def paths(model: nn.Module) -> tuple[str, ...]:
    """Where a model keeps what its layers are in, and the modules of its projector."""
    return (FAMILIES | COATTENTION)[type(model).__name__]


def model_class(family: str) -> Any:
    """The class of a family."""
    return OWN[family] if family in OWN else getattr(transformers, family)


def auto_class(model_type: str) -> Any:
    """The Auto class that opens models of this type with their head: image-text, or text only."""
    kind = model_type.removeprefix("eas_")  # the standalone form of a family opens as the family does
    if kind == "meter":
        return AutoMeter
    seeing = [cls for name, cls in OWN.items() if name in FAMILIES and len(FAMILIES[name]) > 1]
    sees = {*IMAGE_TEXT_TYPES, *(cls.config_class.model_type for cls in seeing)}
    return AutoModelForImageTextToText if kind in sees else AutoModelForCausalLM
