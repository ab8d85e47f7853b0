"""Adapters, LoRA, prompts and full tuning on METER: the same configurations, at its co-attention layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.hf.classes import become
from eas.methods.adapter import AdapterConfig, Bottleneck, ParallelAdapterConfig
from eas.methods.full import FullConfig, HeadConfig
from eas.methods.lora import LoRAConfig, inject_at
from eas.methods.prompts import DeepPromptConfig, ShallowPromptConfig
from eas.models.anatomy import Anatomy
from eas.models.meter.modeling import MeterOutput, Stream, attend

# LoRA's names of maps, as METER calls them; it has no gate
MAPS = {
    "q_proj": ("attention.self.query", "crossattention.self.query"),
    "k_proj": ("attention.self.key", "crossattention.self.key"),
    "v_proj": ("attention.self.value", "crossattention.self.value"),
    "o_proj": ("attention.output.dense", "crossattention.output.dense"),
    "gate_proj": (),
    "up_proj": ("intermediate.dense",),
    "down_proj": ("output.dense",),
}


class AdaptedOutput(nn.Module):
    """The last map of an attention or FFN, an adapter, residual and norm: ``LN(x + dropout(y + adapter(y)))``."""

    adapter: Bottleneck
    dense: nn.Module
    dropout: nn.Module
    LayerNorm: nn.Module

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Any:
        y = self.dense(hidden_states)
        return self.LayerNorm(self.dropout(y + self.adapter(y)) + input_tensor)


class ParallelOutput(nn.Module):
    """The end of an attention or FFN with an adapter beside the whole of it: ``LN(x + adapter(x) + y)``."""

    adapter: Bottleneck

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Any:
        return super().forward(hidden_states, input_tensor + self.adapter(input_tensor))


def put(module: Any, mixin: type, rank: int, **options: float) -> None:
    """Gives the end of an attention or FFN its adapter, and the mix-in that applies it."""
    weight = module.dense.weight
    module.adapter = Bottleneck(weight.shape[0], rank, **options).to(weight.device).train(module.training)
    become(module, mixin)


def _ends(model: PreTrainedModel, placement: str) -> Iterator[Any]:
    """The ends of attentions (self and cross), FFNs or both."""
    for layer in Anatomy.of(model).layers:
        if placement in ("attention", "both"):
            yield from (layer.attention.output, layer.crossattention.output)
        if placement in ("ffn", "both"):
            yield layer.output


def attach_adapter(model: PreTrainedModel, config: AdapterConfig) -> None:
    """Adapters after FFNs, attentions or both; the paper's row has 96 after both."""
    for module in _ends(model, config.placement):
        put(module, AdaptedOutput, config.rank, dropout=config.dropout)


def attach_parallel(model: PreTrainedModel, config: ParallelAdapterConfig) -> None:
    """Adapters beside FFNs, attentions or both."""
    for module in _ends(model, config.placement):
        put(module, ParallelOutput, config.rank, scale=config.scale, dropout=config.dropout)


def attach_lora(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Updates of the co-attention layers' maps; the paper's row has rank 4 at queries and values."""
    inject(model, config.targets, config.rank, config.alpha, config.dropout)


def inject(model: PreTrainedModel, targets: list[str], rank: int, alpha: float | None, dropout: float) -> None:
    """Puts LoRA at every map of the co-attention layers that is a target."""
    layers = {id(layer) for layer in Anatomy.of(model).layers}
    paths = [name for name, module in model.named_modules() if id(module) in layers]
    maps = [f"{path}.{name}" for path in paths for target in targets for name in MAPS[target]]
    inject_at(model, maps, rank, alpha, dropout)


def attach_full(model: PreTrainedModel, config: FullConfig) -> None:
    """Trains everything, both towers too, as METER does."""
    model.requires_grad_(True)


def attach_head(model: PreTrainedModel, config: HeadConfig) -> None:
    """Trains the task's head, the poolers and the token types."""
    for module in Anatomy.of(model).head:
        module.requires_grad_(True)


def _extended(stream: Stream, prompt: Tensor) -> Stream:
    """A stream with a prompt behind it: METER pools the first token."""
    rows = prompt.to(stream.tokens.dtype).expand(len(stream.tokens), -1, -1)
    mask = None if stream.mask is None else torch.cat([stream.mask, stream.mask.new_ones(rows.shape[:2])], 1)
    return Stream(torch.cat([stream.tokens, rows], 1), mask)


class MeterPrompt(nn.Module):
    """``tokens`` ``(2, m, d)`` or ``(2, layers, m, d)``: the text's, then the image's."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.02 * torch.randn(2, *shape))


class ShallowPrompted(nn.Module):
    """METER with tokens behind those of each modality, which run through all co-attention layers."""

    prompt: MeterPrompt

    def fuse(self, text: Stream, image: Stream) -> MeterOutput:
        texts, images = text.tokens.shape[1], image.tokens.shape[1]
        both = [_extended(stream, tokens) for stream, tokens in zip((text, image), self.prompt.tokens, strict=True)]
        fused: MeterOutput = super().fuse(*both)  # type: ignore[misc]
        return MeterOutput(fused.text_states[:, :texts], fused.image_states[:, :images], fused.pooled)


class DeepPrompted(nn.Module):
    """METER with new tokens at every layer. As what becomes of them is discarded, only their keys and values count."""

    prompt: MeterPrompt

    def layer_inputs(self, index: int, text: Stream, image: Stream) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        of_text, of_image = super().layer_inputs(index, text, image)  # type: ignore[misc]
        texts, images = self.prompt.tokens[:, index]
        return (*of_text, texts, images), (*of_image, images, texts)


class DeepPromptedLayer(nn.Module):
    """A co-attention layer that sees its own modality's prompt in one attention and the other's in the other."""

    attention: nn.Module
    crossattention: nn.Module
    intermediate: nn.Module
    output: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        other: Tensor,
        mask: Tensor | None,
        other_mask: Tensor | None,
        prompt: Tensor,
        other_prompt: Tensor,
    ) -> Tensor:
        y = attend(self.attention, hidden_states, _extended(Stream(hidden_states, mask), prompt), hidden_states)
        z = attend(self.crossattention, y, _extended(Stream(other, other_mask), other_prompt), y)
        output: Tensor = self.output(self.intermediate(z), z)
        return output


def attach_shallow(model: PreTrainedModel, config: ShallowPromptConfig) -> None:
    """Untrained it does change the model; the paper's row has 200 tokens. They start normal: no words stand there."""
    trunk: Any = Anatomy.of(model).text_model
    _add_prompt(trunk, ShallowPrompted, config.num_tokens, trunk.config.coattention_config.hidden_size)


def attach_deep(model: PreTrainedModel, config: DeepPromptConfig) -> None:
    """Untrained it does change the model; the paper's row has 200 tokens."""
    anatomy = Anatomy.of(model)
    trunk: Any = anatomy.text_model
    sizes = trunk.config.coattention_config
    _add_prompt(trunk, DeepPrompted, sizes.num_hidden_layers, config.num_tokens, sizes.hidden_size)
    for layer in anatomy.layers:
        become(layer, DeepPromptedLayer)


def _add_prompt(trunk: Any, mixin: type, *shape: int) -> None:
    trunk.prompt = MeterPrompt(*shape).to(trunk.token_type_embeddings.weight.device)
    become(trunk, mixin)
