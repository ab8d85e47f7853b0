"""What plain weights, and each engine, cannot express, in words with the remedy; nothing is computed for it."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.attachment.state import attached, attachment
from eas.exporting.plain import head_dim, window
from eas.models.anatomy import Anatomy
from eas.models.visual_tokens import kept_tokens

METHODS = ("eas", "drop", "lora", "full", "head")
"""Methods that leave, folded or merged, the weights of an ordinary model."""
LLAMA = ("LlamaModel", "MistralModel", "Qwen2Model")
"""Language models of Llama's arithmetic: plain rotary positions, no norms of queries and keys."""
NESTED = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose weights engines know under ``vision_model``."""
ROPES = ("default", "linear", "llama3")
"""Rotary positions whose frequencies are fixed and whose attention is not scaled."""
NO_POOLING = "the skip PIAs read the mean of the prompt, which plain weights cannot; tune with pooling='none'"
NO_PROMPT = "the skip PIAs read the mean of the prompt, and vLLM has none; tune with {} or pooling='none'"
RUNNING = "pooling='causal' and decode_pooling='running'"
KEEP_FIRST = "layer 0 has no attention, and {} needs one there; search and tune with a skip set without 0"


def common(model: PreTrainedModel, texts: tuple[str, ...] = LLAMA, running: bool = False) -> list[str]:
    """Reasons why no engine can take a model; none if one can.

    Args:
        model: attached, or a base.
        texts: the classes of language models that the engine computes.
        running: whether the engine keeps a running mean.
    """
    anatomy = Anatomy.of(model)
    name, config = type(anatomy.text_model).__name__, anatomy.text_model.config
    if anatomy.form != "decoder" or name not in texts:
        return [f"the language model is a {name}, and only {', '.join(texts)} can be expressed; serve it with eas"]
    found = []
    if config.hidden_act != "silu":
        found.append(f"the FFN's activation is {config.hidden_act}, not silu; serve it with eas")
    if (rope := config.rope_parameters.get("rope_type", "default")) not in ROPES:
        found.append(f"rotary positions of type {rope!r} are not fixed; {' or '.join(ROPES)} can be expressed")
    if (kept := kept_tokens(model)) is not None:
        found.append(
            f"the model reads {kept['number']} tokens of an image, and an engine would read all; serve it with eas"
        )
    return found + (_method(model, anatomy, running) if attached(model) else []) + _quantised(model, anatomy)


def _method(model: PreTrainedModel, anatomy: Anatomy, running: bool) -> list[str]:
    name = attachment(model).config.name
    if name not in METHODS:
        return [f"method {name!r} leaves modules of its own; {', '.join(METHODS)} leave plain weights"]
    if any(vars(layer).get("skip_ffn", False) for layer in anatomy.layers):
        return ["an FFN is skipped; search with candidates='mha'"]
    pias = [pia for layer in anatomy.layers if name == "eas" and (pia := layer.foldable_pia()) is not None]
    found = []
    if any(pia.mix is None for pia in pias):
        found.append(
            "the router reads the input, so weights differ by prompt; call eas.freeze_router(model, loader), "
            "or tune with router='constant'"
        )
    if any(pia.down2 is not None and not (running and pia.running) for pia in pias):
        found.append(NO_PROMPT.format(RUNNING) if running else NO_POOLING)
    return found


def _quantised(model: PreTrainedModel, anatomy: Anatomy) -> list[str]:
    names = {name for branch in anatomy.branches for name in (*branch.inputs, branch.output)}
    maps = [body._modules[name] for _, body, _ in anatomy.bodies() for name in names & body._modules.keys()]
    plain = [linear.get_base_layer() if isinstance(linear, BaseTunerLayer) else linear for linear in maps]
    told = vars(model.config).get("quantization_config") is not None
    if told or not all(isinstance(linear, nn.Linear) and _is_plain(linear.weight) for linear in plain):
        return ["the base's weights are quantised; load the base without quantisation"]
    return []


def _is_plain(weight: Tensor) -> bool:
    """Whether it is of 16 bits or more, and no library's own; FP8 are floating-point numbers of one byte."""
    return type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point() and weight.itemsize > 1


def sees(model: PreTrainedModel) -> bool:
    """Whether the model reads images.

    Raises:
        UnsupportedModelError: eas does not support its family.
    """
    return bool(Anatomy.of(model).projector)


def text_only(model: PreTrainedModel, engine: str) -> list[str]:
    """A reason if the model reads images."""
    if not sees(model):
        return []
    return [f"the model reads images, and {engine} is exported for text models only; use vllm"]


def first_kept(model: PreTrainedModel, engine: str) -> list[str]:
    """A reason if the first attention is skipped."""
    skipped = vars(Anatomy.of(model).layers[0]).get("skip_mha", False)
    return [KEEP_FIRST.format(engine)] if skipped else []


def square(model: PreTrainedModel, engine: str) -> list[str]:
    """A reason if the heads of an attention are not as wide, together, as the model."""
    config: Any = Anatomy.of(model).text_model.config
    inner = config.num_attention_heads * head_dim(config)
    if inner == config.hidden_size:
        return []
    return [f"the attention's heads are {inner} wide, not {config.hidden_size}, which {engine} takes for granted"]


def shorter(model: PreTrainedModel) -> list[str]:
    """What is lost of the context."""
    size = window(Anatomy.of(model).text_model.config)
    return [] if size is None else [f"the context is {size} tokens: the attention's sliding window is not exported"]
