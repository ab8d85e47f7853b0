"""The plain weights of a tuned model: PIAs folded, LoRA merged, skipped attentions left out, all in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.exported import ExportError
from eas.exporting.decoder import Sizes
from eas.methods.eas_block import EASBlock
from eas.models.anatomy import Anatomy
from eas.models.structure import FFN, MHA
from eas.pia import fold_weights
from eas.weights import is_finite


@dataclass(frozen=True)
class Plain:
    """A decoder without anything of eas, on the CPU.

    Args:
        sizes: its shape.
        tensors: its weights by their names in the Llama format, float32.
        frequencies: of the rotary positions, ``(head_dim / 2,)``.
    """

    sizes: Sizes
    tensors: dict[str, Tensor]
    frequencies: Tensor


@torch.no_grad()
def plain(model: PreTrainedModel) -> Plain:
    """Takes the plain weights out of a model that ``eas.exporting.limits`` found expressible; the model is untouched.

    Raises:
        ExportError: a weight holds NaN or infinite numbers.
    """
    anatomy = Anatomy.of(model)
    text, config = anatomy.text_model, anatomy.text_model.config
    head: Any = model.get_output_embeddings()
    tied = head.weight is text.embed_tokens.weight
    tensors = {"model.embed_tokens.weight": text.embed_tokens.weight, "model.norm.weight": text.norm.weight}
    if not tied:
        tensors["lm_head.weight"] = _weight(head)[0]
    kept = []
    for index, layer in enumerate(anatomy.layers):
        found = _layer(layer)
        tensors |= {f"model.layers.{index}.{name}": tensor for name, tensor in found.items()}
        kept += [index] if "input_layernorm.weight" in found else []
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    if wrong := [name for name, tensor in tensors.items() if not is_finite(tensor)]:
        raise ExportError(f"{wrong[0]} holds NaN or infinite numbers; tune again with a lower learning rate")
    sizes = Sizes(
        layers=len(anatomy.layers),
        kept=tuple(kept),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim(config),
        intermediate=config.intermediate_size,
        vocab=len(tensors["model.embed_tokens.weight"]),
        eps=config.rms_norm_eps,
        context=context(config),
        rope=dict(config.rope_parameters),
        tied=tied,
        biased=any(name.endswith(".bias") for name in tensors),
        head_norms=any(name.endswith(".q_norm.weight") for name in tensors),
    )
    return Plain(sizes, tensors, text.rotary_emb.inv_freq.detach().to("cpu", torch.float32))


def head_dim(config: Any) -> int:
    """Numbers of an attention's head."""
    own = vars(config).get("head_dim")
    return int(config.hidden_size // config.num_attention_heads if own is None else own)


def window(config: Any) -> int | None:
    """How many tokens back an attention sees; None if it sees all."""
    kinds = vars(config).get("layer_types")
    size = vars(config).get("sliding_window")
    sliding = "sliding_attention" in kinds if kinds else vars(config).get("use_sliding_window", True)
    return int(size) if size and sliding else None


def context(config: Any) -> int:
    """The longest sequence in which no attention's window matters."""
    longest = int(config.max_position_embeddings)
    return min(longest, window(config) or longest)


def _layer(layer: Any) -> dict[str, Tensor]:
    """The weights of one block, by their names in it."""
    skipped = vars(layer).get("skip_mha", False)
    pia = layer.foldable_pia() if isinstance(layer, EASBlock) else None
    norm = layer.post_attention_layernorm.weight
    found: dict[str, Tensor] = {}
    if skipped:
        if pia is not None:  # the folded FFN reads x / rms(x), or the attention's norm of x
            norm = torch.ones_like(norm) if layer.unit_norm is not None else layer.input_layernorm.weight
        found |= _linears(layer.mlp, FFN.inputs, pia, layer.post_attention_layernorm.weight, "mlp")
    else:
        attention: Any = layer.self_attn
        found["input_layernorm.weight"] = layer.input_layernorm.weight
        found |= _linears(attention, MHA.inputs, pia, None, "self_attn")
        found |= _linears(attention, ("o_proj",), None, None, "self_attn")
        for name in ("q_norm", "k_norm"):
            if name in attention._modules:
                found[f"self_attn.{name}.weight"] = attention.get_submodule(name).weight
        found |= _linears(layer.mlp, FFN.inputs, None, None, "mlp")
    return {"post_attention_layernorm.weight": norm, **found, **_linears(layer.mlp, ("down_proj",), None, None, "mlp")}


def _linears(body: nn.Module, names: Sequence[str], pia: Any, norm: Tensor | None, at: str) -> dict[str, Tensor]:
    """Weights and biases of maps, with the PIA before them folded in (Eq. 8-13); and what a running mean needs.

    With z the input of a PIA with a running mean, the maps read ``W' z + b' + pool.map(mean of pool.down(z))``.
    """
    pooled: dict[str, Tensor] = {}
    maps = [_weight(body.get_submodule(name)) for name in names]
    if pia is not None:
        sizes = [len(weight) for weight, _ in maps]
        fixed = None if pia.down2 is None else pia.down2.bias  # of c; the rest of it is a mean, which is not folded
        folded = fold_weights(
            [_linear(*one) for one in maps], pia, pia.alpha(), None if norm is None else norm.float(), fixed
        )
        parts = zip(torch.split(folded.weight, sizes), torch.split(folded.bias, sizes), strict=True)
        maps = [(weight.clone(), bias.clone()) for weight, bias in parts]  # views of one storage are not saved
        if pia.down2 is not None:
            pooled[f"{at}.pool.down.weight"] = pia.down2.weight
            for name, part in zip(names, torch.split(folded.from_c, sizes), strict=True):
                pooled[f"{at}.pool.{name}.weight"] = part.clone()
    weights = {f"{at}.{name}.weight": weight for name, (weight, _) in zip(names, maps, strict=True)} | pooled
    return weights | {f"{at}.{n}.bias": bias for n, (_, bias) in zip(names, maps, strict=True) if bias is not None}


def _weight(linear: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a map in float32, LoRA merged."""
    if not isinstance(linear, LoraLayer):
        return linear.weight.float(), None if linear.bias is None else linear.bias.float()
    base = linear.get_base_layer()
    weight = base.weight.float()
    if not linear.merged:
        weight = weight + sum(linear.get_delta_weight(name).float() for name in linear.active_adapters)
    return weight, None if base.bias is None else base.bias.float()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
