"""Prompts of METER's two streams: trained tokens of each modality beside its own, at the input or at every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.hf.classes import become
from eas.hf.prompt_attention import PromptKeyValues, project
from eas.methods.prompts import DeepPromptConfig, ShallowPromptConfig
from eas.methods.soft_prompt import SoftPrompt, add_prompt
from eas.models.anatomy import Anatomy, attentions
from eas.models.meter.modeling import MeterOutput, Stream


class ShallowTokens(nn.Module):
    """``tokens`` ``(2, m, d)``: the text's, then the image's."""

    def __init__(self, num_tokens: int, size: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.02 * torch.randn(2, num_tokens, size))


class ShallowPrompted(nn.Module):
    """METER with tokens behind those of each modality, which run through all co-attention layers."""

    prompt: ShallowTokens

    def fuse(self, text: Stream, image: Stream) -> MeterOutput:
        texts, images = text.tokens.shape[1], image.tokens.shape[1]
        both = [_extended(stream, tokens) for stream, tokens in zip((text, image), self.prompt.tokens, strict=True)]
        fused: MeterOutput = super().fuse(*both)  # type: ignore[misc]
        return MeterOutput(fused.text_states[:, :texts], fused.image_states[:, :images], fused.pooled)


def _extended(stream: Stream, prompt: Tensor) -> Stream:
    """A stream with a prompt behind it: METER pools the first token."""
    rows = prompt.to(stream.tokens.dtype).expand(len(stream.tokens), -1, -1)
    mask = None if stream.mask is None else torch.cat([stream.mask, stream.mask.new_ones(rows.shape[:2])], 1)
    return Stream(torch.cat([stream.tokens, rows], 1), mask)


class DeepTokens(SoftPrompt):
    """``tokens`` ``(2, layers, m, d)``, the text's, then the image's: new ones at every layer. What becomes of them is
    discarded. So only their keys and values count, in the self attention of their modality and the other's cross
    attention."""

    def __init__(self, text_model: Any, num_tokens: int) -> None:
        seeing = [attention for attention, _ in attentions(text_model)]
        super().__init__(seeing, num_tokens, [m for a in seeing for m in (a.k_proj, a.v_proj)])
        self.tokens = nn.Parameter(0.02 * torch.randn(2, len(seeing) // 4, num_tokens, seeing[0].q_proj.in_features))

    def compute(self, text_model: Any) -> list[PromptKeyValues | None]:
        seen = torch.cat([self.tokens, self.tokens.flip(0)], 1).flatten(0, 1)  # in the order of the attentions
        places = zip(attentions(text_model), seen, strict=True)
        return [project(attention, tokens[None].to(norm.weight)) for (attention, norm), tokens in places]


def attach_shallow(model: PreTrainedModel, config: ShallowPromptConfig) -> None:
    """Untrained it does change the model; the paper's row has 200 tokens. They start normal: no words stand there."""
    text_model: Any = Anatomy.of(model).text_model
    types = text_model.token_type_embeddings.weight
    text_model.prompt = ShallowTokens(config.num_tokens, types.shape[1]).to(types.device)
    become(text_model, ShallowPrompted)


def attach_deep(model: PreTrainedModel, config: DeepPromptConfig) -> None:
    """Untrained it does change the model; the paper's row has 200 tokens."""
    add_prompt(model, config, DeepTokens(Anatomy.of(model).text_model, config.num_tokens))
