"""METER: CLIP's image tower, RoBERTa, and co-attention layers in which each modality attends to itself and the other.

The towers are transformers' own. Where METER departs from them: the image tower's last norm is applied to all tokens,
and neither tower pools. The parts of a co-attention layer have the names that decoders give theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel, RobertaModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
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
    """The outputs of the co-attention layers.

    Args:
        text_states: ``(batch, text tokens, d)``.
        image_states: ``(batch, image tokens, d)``.
        pooled: ``(batch, 2 d)``, both modalities' first tokens through their poolers; what all heads but MLM read.
    """

    text_states: Any = None  # a ModelOutput's fields have defaults
    image_states: Any = None
    pooled: Any = None


class MeterAttention(nn.Module):
    """A multi-head attention of one modality's tokens to themselves or to others.

    Args:
        config: ``coattention_config``.
        index: which of the model's attentions it is, in the order of EAS's candidates.
    """

    is_causal = False

    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.config, self.layer_idx = config, index
        self.head_dim = size // config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size) for _ in range(4))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, other: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Its output, ``(batch, tokens, d)``, without residual and norm; and the weights, where eager code has them.

        Args:
            hidden_states: ``(batch, tokens, d)``, which the queries are made of.
            attention_mask: added to the scores, as ``Stream.bias`` gives it.
            other: ``(batch, other tokens, d)``, which keys and values are made of; None: of ``hidden_states``.
            kwargs: for the attention function.
        """
        read = hidden_states if other is None else other
        parts = (self.q_proj(hidden_states), self.k_proj(read), self.v_proj(read))
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        scaling = self.head_dim**-0.5
        seen, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
        return self.dropout(self.o_proj(seen.flatten(2))), weights


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """transformers' attention function "eager": ``softmax(scaling q k^T + mask) v``, head by head."""
    scores = query @ key.mT * scaling
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class MeterMLP(nn.Module):
    """The FFN, without residual and norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act_fn, self.dropout = ACT2FN[config.hidden_act], nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.dropout(self.down_proj(self.act_fn(self.up_proj(x))))
        return output


class MeterLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """One modality's co-attention layer, post-norm: ``y = LN(x + MHA(x)); z = LN(y + MHA(y; other)); LN(z + FFN(z))``.

    Source: METER, BertCrossLayer.

    Args:
        config: ``coattention_config``.
        indices: of its two attentions.
    """

    def __init__(self, config: Any, indices: tuple[int, int]) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = (MeterAttention(config, index) for index in indices)
        self.mlp = MeterMLP(config)
        size, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn_norm, self.cross_attn_norm, self.mlp_norm = (nn.LayerNorm(size, eps=eps) for _ in range(3))

    def forward(
        self,
        hidden_states: Tensor,
        other: Tensor,
        mask: Tensor | None = None,
        other_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The modality's next tokens, ``(batch, tokens, d)``.

        Args:
            hidden_states: x, ``(batch, tokens, d)``.
            other: the other modality's tokens as they came into its own layer, ``(batch, other tokens, d)``.
            mask: of x, as in `Stream`.
            other_mask: of the other modality.
            kwargs: for the attentions.
        """
        own, across = Stream(hidden_states, mask).bias(), Stream(other, other_mask).bias()
        y = _add(self.self_attn_norm, hidden_states, self.self_attn(hidden_states, own, **kwargs)[0])
        z = _add(self.cross_attn_norm, y, self.cross_attn(y, across, other, **kwargs)[0])
        return _add(self.mlp_norm, z, self.mlp(z))


def _add(norm: nn.Module, x: Tensor, output: Tensor | None) -> Tensor:
    """Residual and norm; x where nothing is to be added, because the attention was dropped."""
    normed: Tensor = x if output is None else norm(x + output)
    return normed


class MeterPooler(nn.Module):
    """The first token through a linear map and tanh."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.dense(tokens[:, 0]).tanh()
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
        size, count = coattention.hidden_size, coattention.num_hidden_layers
        self.text_model = RobertaModel(text, add_pooling_layer=False)
        self.vision_model = CLIPVisionModel(vision)
        self.cross_modal_text_transform = nn.Linear(text.hidden_size, size)
        self.cross_modal_image_transform = nn.Linear(vision.hidden_size, size)
        self.token_type_embeddings = nn.Embedding(1 + config.num_images, size)  # text, then each of the images
        # attentions are numbered: the text's self and cross attentions, then the image's
        self.cross_modal_text_layers, self.cross_modal_image_layers = (
            nn.ModuleList(MeterLayer(coattention, (first + i, first + count + i)) for i in range(count))
            for first in (0, 2 * count)
        )
        self.cross_modal_text_pooler, self.cross_modal_image_pooler = MeterPooler(size), MeterPooler(size)
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

    def fuse(self, text: Stream, image: Stream, **kwargs: Any) -> MeterOutput:
        """The co-attention layers and the poolers; row i of the one with row i of the other.

        Args:
            text: what ``encode_text`` gave.
            image: what ``encode_image`` gave.
            kwargs: for the attentions.
        """
        for of_text, of_image in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            next_text = of_text(text.tokens, image.tokens, text.mask, image.mask, **kwargs)
            next_image = of_image(image.tokens, text.tokens, image.mask, text.mask, **kwargs)
            text, image = text.with_tokens(next_text), image.with_tokens(next_image)
        pooled = [self.cross_modal_text_pooler(text.tokens), self.cross_modal_image_pooler(image.tokens)]
        return MeterOutput(text.tokens, image.tokens, torch.cat(pooled, -1))

    def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> MeterOutput:
        """One image with one text.

        Args:
            input_ids: ``(batch, text tokens)``.
            pixel_values: ``(batch, 3, height, width)``.
            attention_mask: ``(batch, text tokens)``, 0 on padding.
        """
        return self.fuse(self.encode_text(input_ids, attention_mask), self.encode_image(pixel_values))
