"""EAS on METER: the replacement of an attention in its post-norm co-attention layers.

The candidates are 24 attentions: the text's 6 self attentions, the text's 6 cross attentions, the image's 6 self
attentions, the image's 6 cross attentions. Here a PIA stands before a LayerNorm, not before the FFN, so it does not
fold. As in the authors' code, adapt PIAs come before the queries of kept attentions and before the FFNs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.hf.classes import become
from eas.hf.skipping import SkippableBlock
from eas.methods.eas import EASConfig, make_pia
from eas.models.anatomy import Anatomy, attentions
from eas.models.meter.modeling import Stream
from eas.pia import PIA


class EASAttention(SkippableBlock):
    """An attention that may be skipped; its layer decides what to compute. A PIA is None if it is not used."""

    skip_pia: PIA | None
    adapt_pia: PIA | None

    def stand_ins(self) -> list[nn.Module]:
        pia = self.skip_pia if self.skip_mha else self.adapt_pia
        return [] if pia is None else [pia]


class EASLayer(SkippableBlock):
    """A co-attention layer whose attentions may be skipped; x, y, z are ``(batch, tokens, d)``.

    1. Self attention: kept ``y = LN(x + MHA(A(x)))``, skipped ``y = LN(x + PIA(x; mean of x))``.
    2. Cross attention: kept ``z = LN(y + MHA(A(y); other))``, skipped ``z = LN(y + PIA(x; mean of other))``.
    3. FFN: ``LN(z + FFN(A(z)))``.

    ``A(n) = n + adapt PIA(n)``. Means exclude padding.
    """

    skip_mha = skip_ffn = False  # its attentions are skipped, not the layer
    self_attn: Any
    cross_attn: Any
    mlp: Any
    self_attn_norm: nn.Module
    cross_attn_norm: nn.Module
    mlp_norm: nn.Module
    adapt_pia: PIA

    def forward(
        self, hidden_states: Tensor, other: Tensor, mask: Tensor | None = None, other_mask: Tensor | None = None
    ) -> Tensor:
        x, across = Stream(hidden_states, mask), Stream(other, other_mask)
        y = x.with_tokens(self.self_attn_norm(x.tokens + _attended(self.self_attn, x, x, None)))
        z = x.with_tokens(self.cross_attn_norm(y.tokens + _attended(self.cross_attn, y, x, across)))
        output: Tensor = self.mlp_norm(z.tokens + self.mlp(_adapted(self.adapt_pia, z)))
        return output

    def stand_ins(self) -> list[nn.Module]:
        return [self.adapt_pia]


def _attended(attention: Any, stream: Stream, x: Stream, other: Stream | None) -> Tensor:
    """The output of one attention or of its replacement; without ``other`` it is a self attention.

    Args:
        attention: an `EASAttention`.
        stream: the input of its residual: x, or y.
        x: the input of the layer.
        other: the other modality.
    """
    pooled = x if other is None else other
    if attention.skip_mha:
        p: Tensor = attention.skip_pia(x.tokens, attention.skip_pia.prompt_state(pooled.tokens, pooled.mask))
        return p
    queries = _adapted(attention.adapt_pia, stream)
    attended: Tensor = attention(queries, pooled.bias(), None if other is None else other.tokens)[0]
    return attended


def _adapted(pia: PIA, stream: Stream) -> Tensor:
    p: Tensor = pia(stream.tokens, pia.prompt_state(stream.tokens, stream.mask))
    return stream.tokens + p


def attach(model: PreTrainedModel, config: EASConfig) -> None:
    """Adds a skip and an adapt PIA to every attention, an adapt PIA to every FFN; untrained they change nothing."""
    anatomy = Anatomy.of(model)
    for index, (attention, norm) in enumerate(attentions(anatomy.text_model)):
        attention.skip_pia = make_pia(config, norm, attention.training, exchange=True)
        attention.adapt_pia = make_pia(config, norm, attention.training, exchange=False)
        attention.index, attention.skip_mha, attention.skip_ffn = index, False, False
        become(attention, EASAttention)
    for layer in anatomy.layers:
        layer.adapt_pia = make_pia(config, layer.mlp_norm, layer.training, exchange=False)
        become(layer, EASLayer)


def prune(model: PreTrainedModel) -> None:
    """Removes the PIAs that the skip set does not use."""
    for attention, _ in attentions(Anatomy.of(model).text_model):
        if attention.skip_mha:
            attention.adapt_pia = None
        else:
            attention.skip_pia = None
