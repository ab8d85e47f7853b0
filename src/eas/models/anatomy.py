"""The places of language model, projector, and a block's attention, FFN and norms in each supported family.

A new family costs one line in ``FAMILIES``, and one in ``eas.models.structure.TEXT_MODELS`` where the class of its
language model is new.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

import eas.models.efficientnet  # noqa: F401  (a LLaVA may have its tower)
from eas.hf.api import IMAGE_TEXT_TYPES
from eas.models.block import Block, has_attention
from eas.models.lavin import LavinForConditionalGeneration
from eas.models.meter import TASKS as METER
from eas.models.meter import AutoMeter
from eas.models.structure import TEXT_MODELS, Branch, TextModel

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
    "GemmaForCausalLM": ("model",),
    "Gemma2ForCausalLM": ("model",),
    "Gemma3ForCausalLM": ("model",),
    "Gemma4ForCausalLM": ("model",),
    "Glm4ForCausalLM": ("model",),
    "Phi3ForCausalLM": ("model",),
    "GraniteForCausalLM": ("model",),
    "CohereForCausalLM": ("model",),
    "Cohere2ForCausalLM": ("model",),
    "Olmo2ForCausalLM": ("model",),
    "Olmo3ForCausalLM": ("model",),
    "Exaone4ForCausalLM": ("model",),
    "Lfm2ForCausalLM": ("model",),
    "Qwen3_5ForCausalLM": ("model",),
    "Qwen3_5MoeForCausalLM": ("model",),
    "Qwen3MoeForCausalLM": ("model",),
    "MixtralForCausalLM": ("model",),
    "Llama4ForCausalLM": ("model",),
    "Phi4MultimodalForCausalLM": (
        "model",
        "model.embed_tokens_extend.image_embed.img_projection_up",
        "model.embed_tokens_extend.image_embed.img_projection_down",
    ),
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
    "Qwen3OmniMoeThinkerForConditionalGeneration": (
        "model.language_model",
        "model.visual.merger",
        "model.visual.merger_list",
    ),
    "InternVLForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "QianfanOCRForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "FastVlmForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "PerceptionLMForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Mistral3ForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "LlavaOnevisionForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "LlavaNextVideoForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "VideoLlavaForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "VipLlavaForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "PaddleOCRVLForConditionalGeneration": ("model.language_model", "model.projector"),
    "LightOnOcrForConditionalGeneration": ("model.language_model", "model.vision_projection"),
    "GotOcr2ForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "HunYuanVLForConditionalGeneration": ("model.language_model",),
    "Ovis2ForConditionalGeneration": ("model.language_model",),
    "VideoLlama3ForConditionalGeneration": ("model.language_model", "model.projector"),
    "DeepseekVLForConditionalGeneration": ("model.language_model", "model.aligner"),
    "DeepseekVLHybridForConditionalGeneration": ("model.language_model", "model.aligner"),
    "Molmo2ForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Qwen3_5ForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "Qwen3_5MoeForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "MiniCPMV4_6ForConditionalGeneration": ("model.language_model", "model.merger"),
    "MiniCPMV4_7ForConditionalGeneration": ("model.language_model", "model.merger"),
    "MiniCPMOcrForConditionalGeneration": ("model.language_model", "model.merger"),
    "Gemma3ForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Gemma4ForConditionalGeneration": ("model.language_model", "model.embed_vision"),
    "Gemma4UnifiedForConditionalGeneration": ("model.language_model",),
    "PaliGemmaForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Glm4vForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "Glm46VForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "Exaone4_5_ForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "Qwen3VLMoeForConditionalGeneration": (
        "model.language_model",
        "model.visual.merger",
        "model.visual.deepstack_merger_list",
    ),
    "Glm4vMoeForConditionalGeneration": ("model.language_model", "model.visual.merger"),
    "Granite4VisionForConditionalGeneration": (
        "model.language_model",
        "model.layerwise_projectors",
        "model.spatial_projectors",
    ),
    "AyaVisionForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Cohere2VisionForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Lfm2VlForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "MllamaForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
    "Idefics2ForConditionalGeneration": ("model.text_model", "model.connector"),
    "Idefics3ForConditionalGeneration": ("model.text_model", "model.connector"),
    "SmolVLMForConditionalGeneration": ("model.text_model", "model.connector"),
    "LavinForConditionalGeneration": ("model.language_model", "model.multi_modal_projector"),
}

TWO_BANKS = "its FFN has experts for text and others for images, and is told which token is which; Qwen3-VL-MoE fits"
STREAMS = "its residual stream is four streams that every layer mixes, so that there is no x to add to; use Gemma 4"
THINKER = "attach to its thinker, which is a model of its own: {}.from_pretrained(...)"
REFUSED = {
    "Ernie4_5_VLMoeForConditionalGeneration": TWO_BANKS,
    "Ernie4_5_VL_MoeForConditionalGeneration": TWO_BANKS,
    "Gemma3nForCausalLM": STREAMS,
    "Gemma3nForConditionalGeneration": STREAMS,
    "Llama4ForConditionalGeneration": "its own forward pass fails in transformers 5.24, with images and without; open "
    "the language model alone: Llama4ForCausalLM.from_pretrained(...)",
    "Qwen2_5OmniForConditionalGeneration": THINKER.format("Qwen2_5OmniThinkerForConditionalGeneration"),
    "Qwen3OmniMoeForConditionalGeneration": THINKER.format("Qwen3OmniMoeThinkerForConditionalGeneration"),
}
"""Classes that have been read and do not fit, and why."""

OWN: dict[str, Any] = {"LavinForConditionalGeneration": LavinForConditionalGeneration}
OWN |= {head.__name__: head for head in METER.values()}
"""Families that transformers does not have, and those of ``eas.register_family``."""

# the same for families that generate nothing
COATTENTION: dict[str, tuple[str, ...]] = {head.__name__: ("meter",) for head in METER.values()}


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

    def modules_of(self, block: Any, parts: set[str]) -> list[str]:
        """Names of the modules in a block that its skipped parts do not need; the block is a layer, or an attention
        that is skipped by itself. Norms before attention and FFN are the method's business."""
        if block not in self.layers:
            return [*self.branches[0].inputs, self.branches[0].output] if parts else []
        return [
            name
            for branch in self.branches
            if branch.part in parts
            for name in (branch.body, branch.norm if self.built.post_norm else branch.behind)
            if name is not None
        ]

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Takes a model apart.

        Raises:
            UnsupportedModelError: its family, or the class of its language model, is not supported.
        """
        family = type(model).__name__
        if family in REFUSED:
            raise UnsupportedModelError(f"{family} is not supported: {REFUSED[family]}")
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
        """The attentions and FFNs of layer after layer: "mha" or "ffn", the module, and a norm of its width."""
        for layer in self.layers:
            for branch in self.branches:
                if branch.body in layer._modules:  # else it was pruned, or another module has its place
                    yield branch.part, getattr(layer, branch.body), norm_of(layer, branch)

    def blocks(self, candidates: str) -> list[Any]:
        """The modules that may be skipped, or parts of which may be: attentions where layers have several. In hybrids
        they are the layers with an attention of their own."""
        several = sum(branch.part == "mha" for branch in self.branches) > 1
        if several and candidates == "mha":
            return [attention for attention, _ in attentions(self.text_model)]
        blocks = [layer for layer in self.layers if isinstance(layer, Block)]
        if self.form == "decoder" and not blocks:  # nothing is attached yet
            blocks = [layer for layer in self.layers if has_attention(layer, self.built)]
        return blocks if self.form == "decoder" else list(self.layers)

    def numbered(self, candidates: str) -> list[int] | None:
        """Where some layers hold no candidate, the layer of every one in the order of their numbers; None elsewhere."""
        layers = list(self.layers)
        if self.form != "decoder" or len(blocks := self.blocks(candidates)) == len(layers):
            return None
        return [layers.index(block) for block in blocks] * (2 if candidates == "either" else 1)


def _remedy(name: str, known: list[str]) -> str:
    """What is supported, and which of it is nearest by its name."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    nearest = f"{' and '.join(near)} {'is' if len(near) == 1 else 'are'} nearest by name. " if near else ""
    return (
        f"supported are {', '.join(known)}. {nearest}If its blocks are built like Llama's, make the class known with "
        "eas.register_family"
    )


def norm_of(layer: Any, branch: Branch) -> Any:
    """A norm of a branch, which tells its width and device: the one before it, or else the one behind it."""
    return getattr(layer, branch.norm or branch.behind or "")


def attentions(text_model: Any) -> list[tuple[Any, Any]]:
    """The attentions of a language model and their norms, in the order of ``layer_idx``: of each modality the self
    attentions, then the cross attentions."""
    built = TEXT_MODELS[type(text_model).__name__]
    return [
        (getattr(layer, branch.body), norm_of(layer, branch))
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


SEE = {"phi4_multimodal"}
"""Types whose models read images, and which transformers opens as models that read text."""


def reads_images(model_type: str) -> bool:
    """Whether models of this type need a processor; a tokenizer is enough for others."""
    return model_type.removeprefix("eas_") in SEE or auto_class(model_type) is not AutoModelForCausalLM


def auto_class(model_type: str) -> Any:
    """The Auto class that opens models of this type with their head: image-text, or text only."""
    kind = model_type.removeprefix("eas_")  # the standalone form of a family opens as the family does
    if kind == "meter":
        return AutoMeter
    seeing = [cls for name, cls in OWN.items() if name in FAMILIES and len(FAMILIES[name]) > 1]
    sees = {*IMAGE_TEXT_TYPES, *(cls.config_class.model_type for cls in seeing)}
    return AutoModelForImageTextToText if kind in sees else AutoModelForCausalLM
