"""METER: CLIP's image tower, RoBERTa, and co-attention layers in which each modality attends to itself and the other.

The towers are transformers' own. Where METER departs from them: the image tower's last norm is applied to all tokens,
and neither tower pools. Names are the original's below the towers, so that a checkpoint's keys keep theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel, RobertaModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.roberta.modeling_roberta import (
    RobertaAttention,
    RobertaCrossAttention,
    RobertaIntermediate,
    RobertaOutput,
    RobertaPooler,
)
from transformers.utils import ModelOutput

from eas.models.meter.configuration import MeterConfig


@dataclass
class Stream:
    """One modality on its way through the co-attention layers.

    Args:
        tokens: ``(batch, tokens, d)``.
        mask: ``(batch, tokens)`` bool, True where a token is no padding; None where there is none.
    """

    tokens: Tensor
    mask: Tensor | None

    def bias(self) -> Tensor | None:
        """What is added to the attention scores of keys from this stream, ``(batch, 1, 1, tokens)``."""
        if self.mask is None:
            return None
        lowest = torch.finfo(self.tokens.dtype).min
        return torch.zeros_like(self.mask, dtype=self.tokens.dtype).masked_fill(~self.mask, lowest)[:, None, None]

    def with_tokens(self, tokens: Tensor) -> Stream:
        """The same padding, other tokens."""
        return Stream(tokens, self.mask)


@dataclass
class MeterOutput(ModelOutput):  # type: ignore[misc]
    """What the co-attention layers give.

    Args:
        text_states: ``(batch, text tokens, d)``.
        image_states: ``(batch, image tokens, d)``.
        pooled: ``(batch, 2 d)``, both modalities' first tokens through their poolers; what all heads but MLM read.
    """

    text_states: Any = None  # a ModelOutput's fields have defaults
    image_states: Any = None
    pooled: Any = None


class MeterLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """One modality's co-attention layer, post-norm: ``y = LN(x + MHA(x)); z = LN(y + MHA(y; other)); LN(z + FFN(z))``.

    Source: METER, BertCrossLayer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.attention = RobertaAttention(config)
        self.crossattention = RobertaAttention(config, is_cross_attention=True)
        self.intermediate = RobertaIntermediate(config)
        self.output = RobertaOutput(config)

    def forward(
        self, hidden_states: Tensor, other: Tensor, mask: Tensor | None = None, other_mask: Tensor | None = None
    ) -> Tensor:
        """The modality's next tokens, ``(batch, tokens, d)``.

        Args:
            hidden_states: x, ``(batch, tokens, d)``.
            other: the other modality's tokens as they came into its own layer, ``(batch, other tokens, d)``.
            mask: of x, as in `Stream`.
            other_mask: of the other modality.
        """
        own, across = Stream(hidden_states, mask).bias(), Stream(other, other_mask).bias()
        y, _ = self.attention(hidden_states, own)
        z, _ = self.crossattention(y, encoder_hidden_states=other, encoder_attention_mask=across)
        output: Tensor = self.output(self.intermediate(z), z)
        return output


def attend(attention: Any, queries: Tensor, keys: Stream, residual: Tensor) -> Tensor:
    """An attention whose keys and values need not be its queries, with its residual and norm.

    Args:
        attention: a ``RobertaAttention``, self or cross: their maps are the same.
        queries: ``(batch, tokens, d)``.
        keys: what is attended to.
        residual: what the output is added to, as queries.
    """
    seen, _ = RobertaCrossAttention.forward(
        attention.self, queries, encoder_hidden_states=keys.tokens, attention_mask=keys.bias()
    )
    output: Tensor = attention.output(seen, residual)
    return output


class MeterPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """Initialisation, loading, and the size of the images."""

    config_class = MeterConfig
    base_model_prefix = "meter"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("MeterLayer", "RobertaLayer", "CLIPEncoderLayer", "CLIPVisionEmbeddings", "RobertaEmbeddings")

    def resize_images(self, image_size: int) -> None:
        """Makes the model take images of another size: its position embeddings are interpolated, in place.

        Args:
            image_size: height and width in pixels, a multiple of the patch size.

        Raises:
            ValueError: it is not a multiple.
        """
        embeddings = self.base_model.vision_model.embeddings
        vision = self.config.vision_config
        if image_size % vision.patch_size or image_size <= 0:
            raise ValueError(f"image size {image_size} must be a multiple of the patch size {vision.patch_size}")
        positions = interpolate_positions(embeddings.position_embedding.weight.data, image_size // vision.patch_size)
        embeddings.position_embedding.weight = nn.Parameter(
            positions, requires_grad=embeddings.position_embedding.weight.requires_grad
        )
        count = len(positions)
        embeddings.position_embedding.num_embeddings = embeddings.num_positions = count
        embeddings.num_patches, embeddings.image_size = count - 1, image_size
        embeddings.position_ids = torch.arange(count, device=embeddings.position_ids.device).expand(1, -1)
        vision.image_size = image_size


def interpolate_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings of a square grid of patches for another grid: the class token's stays, bicubic elsewhere.

    Source: METER, adapt_position_encoding.

    Args:
        positions: ``(1 + side^2, d)``, the class token first.
        grid: patches along a side.

    Returns:
        ``(1 + grid^2, d)``.
    """
    side = round((len(positions) - 1) ** 0.5)
    if side == grid:
        return positions
    planes = positions[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(planes, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], resized[0].flatten(1).T])


class MeterModel(MeterPreTrainedModel):
    """Both towers and the co-attention layers, without a head."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        text, vision, coattention = config.text_config, config.vision_config, config.coattention_config
        coattention._attn_implementation = config._attn_implementation  # no model of its own would set it
        size, layers = coattention.hidden_size, range(coattention.num_hidden_layers)
        self.text_model = RobertaModel(text, add_pooling_layer=False)
        self.vision_model = CLIPVisionModel(vision)
        self.cross_modal_text_transform = nn.Linear(text.hidden_size, size)
        self.cross_modal_image_transform = nn.Linear(vision.hidden_size, size)
        self.token_type_embeddings = nn.Embedding(1 + config.num_images, size)  # text, then each of the images
        self.cross_modal_text_layers = nn.ModuleList(MeterLayer(coattention) for _ in layers)
        self.cross_modal_image_layers = nn.ModuleList(MeterLayer(coattention) for _ in layers)
        self.cross_modal_text_pooler = RobertaPooler(coattention)
        self.cross_modal_image_pooler = RobertaPooler(coattention)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        embeddings: nn.Module = self.text_model.get_input_embeddings()
        return embeddings

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Stream:
        """RoBERTa's tokens as the co-attention layers read them, ``(batch, text tokens, d)``."""
        states = self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        tokens = self.cross_modal_text_transform(states) + self.token_type_embeddings.weight[0]
        return Stream(tokens, None if attention_mask is None else attention_mask.bool())

    def encode_image(self, pixel_values: Tensor, number: int = 0) -> Stream:
        """CLIP's tokens as the co-attention layers read them, ``(batch, 1 + patches, d)``.

        Args:
            pixel_values: ``(batch, 3, height, width)``.
            number: which of an example's images these are; it decides the token type.
        """
        states = self.vision_model(pixel_values=pixel_values).last_hidden_state
        tokens = self.cross_modal_image_transform(self.vision_model.post_layernorm(states))
        return Stream(tokens + self.token_type_embeddings.weight[1 + number], None)

    def fuse(self, text: Stream, image: Stream) -> MeterOutput:
        """The co-attention layers and the poolers; row i of the one with row i of the other."""
        layers = zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True)
        for index, (text_layer, image_layer) in enumerate(layers):
            of_text, of_image = self.layer_inputs(index, text, image)
            text, image = text.with_tokens(text_layer(*of_text)), image.with_tokens(image_layer(*of_image))
        pooled = [self.cross_modal_text_pooler(text.tokens), self.cross_modal_image_pooler(image.tokens)]
        return MeterOutput(text.tokens, image.tokens, torch.cat(pooled, -1))

    def layer_inputs(self, index: int, text: Stream, image: Stream) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What the text's and the image's layer of this number are called with."""
        return (text.tokens, image.tokens, text.mask, image.mask), (image.tokens, text.tokens, image.mask, text.mask)

    def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> MeterOutput:
        """One image with one text.

        Args:
            input_ids: ``(batch, text tokens)``.
            pixel_values: ``(batch, 3, height, width)``.
            attention_mask: ``(batch, text tokens)``, 0 on padding.
        """
        return self.fuse(self.encode_text(input_ids, attention_mask), self.encode_image(pixel_values))
