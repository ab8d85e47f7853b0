"""EAS and DAS on METER: what stands in for an attention, or a layer, of its post-norm co-attention.

Candidates of EAS are 24 attentions: of each of 6 layers the text's self, then the text's cross, the image's self and
the image's cross attentions. A PIA stands before a LayerNorm here, not before the FFN, so it does not fold. As in the
authors' code, adapt PIAs sit before the kept attentions' queries and before the FFNs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.config import ConfigError
from eas.hf.classes import become
from eas.hf.skipping import SkippableBlock
from eas.methods.adapter import Bottleneck
from eas.methods.das import DASConfig
from eas.methods.eas import EASConfig
from eas.methods.meter_adapters import ParallelOutput, put
from eas.models.anatomy import Anatomy
from eas.models.meter.modeling import Stream, attend
from eas.pia import PIA


class EASAttention(SkippableBlock):
    """An attention that may be skipped; its layer decides what to compute. A PIA is None where it has no use."""

    skip_pia: PIA | None
    adapt_pia: PIA | None

    def stand_ins(self) -> list[nn.Module]:
        pia = self.skip_pia if self.skip_mha else self.adapt_pia
        return [] if pia is None else [pia]


class EASLayer(nn.Module):
    """Self attention ``y = LN(x + MHA(A(x)))``, skipped ``LN(x + PIA(x; x))``; cross attention ``z = LN(y + MHA(A(y);
    other))``, skipped ``LN(y + PIA(x; other))``; ``LN(z + FFN(A(z)))``. A is an adapt PIA with its input added; what
    follows PIA's semicolon is pooled over its tokens, padding left out."""

    attention: Any
    crossattention: Any
    intermediate: nn.Module
    output: nn.Module
    adapt_pia: PIA

    def forward(
        self, hidden_states: Tensor, other: Tensor, mask: Tensor | None = None, other_mask: Tensor | None = None
    ) -> Tensor:
        x, across = Stream(hidden_states, mask), Stream(other, other_mask)
        y = x.with_tokens(_attended(self.attention, x, x, None))
        z = x.with_tokens(_attended(self.crossattention, y, x, across))
        output: Tensor = self.output(self.intermediate(_adapted(self.adapt_pia, z)), z.tokens)
        return output


def _attended(attention: Any, stream: Stream, x: Stream, other: Stream | None) -> Tensor:
    """One attention with its residual and norm, or what stands in for it; without ``other`` it is over itself.

    Args:
        attention: an `EASAttention`.
        stream: what it adds to: x, or y.
        x: what came into the layer.
        other: the other modality.
    """
    if attention.skip_mha:
        pooled = x if other is None else other
        p = attention.skip_pia(x.tokens, attention.skip_pia.prompt_state(pooled.tokens, pooled.mask))
        normed: Tensor = attention.output.LayerNorm(stream.tokens + p)
        return normed
    queries = _adapted(attention.adapt_pia, stream)
    return attend(attention, queries, stream.with_tokens(queries) if other is None else other, stream.tokens)


def _adapted(pia: PIA, stream: Stream) -> Tensor:
    p: Tensor = pia(stream.tokens, pia.prompt_state(stream.tokens, stream.mask))
    return stream.tokens + p


def attach_eas(model: PreTrainedModel, config: EASConfig) -> None:
    """A skip PIA and an adapt PIA at every attention, an adapt PIA at every FFN; untrained they change nothing.

    Raises:
        ConfigError: candidates are not attentions, pooling is causal, or a scale is to be trained.
    """
    anatomy = Anatomy.of(model)
    if config.candidates != "mha":
        raise ConfigError(f"EASConfig.candidates = {config.candidates!r}: of METER attentions may be skipped ('mha')")
    if config.pooling == "causal":
        raise ConfigError("EASConfig.pooling = 'causal': METER's tokens have no order; use 'prompt' or 'none'")
    if config.train_scale:
        raise ConfigError("EASConfig.train_scale = True: METER's PIAs stand before a LayerNorm, which has a scale")
    size = model.config.coattention_config.hidden_size
    if size % config.up_groups:
        raise ConfigError(f"EASConfig.up_groups = {config.up_groups}: must divide the model's hidden size {size}")

    def pia(layer: Any, rank: Any, pooling: str) -> PIA:
        made = PIA(
            size,
            rank,
            pooling=pooling,
            router=config.router,
            temperature=config.temperature,
            hidden_scale=config.hidden_scale,
            dropout=config.dropout,
            up_groups=config.up_groups,
        )
        return made.to(layer.output.dense.weight.device).train(layer.training)

    for index, attention in enumerate(anatomy.blocks("mha")):
        attention.skip_pia = pia(attention, config.skip_rank, config.pooling)
        attention.adapt_pia = pia(attention, config.adapt_rank, "none")
        attention.index, attention.skip_mha, attention.skip_ffn = index, False, False
        become(attention, EASAttention)
    for layer in anatomy.layers:
        layer.adapt_pia = pia(layer, config.adapt_rank, "none")
        become(layer, EASLayer)


def prune_eas(model: PreTrainedModel) -> None:
    """Drops the maps of skipped attentions, and the PIAs that the skip set leaves without use."""
    for attention in Anatomy.of(model).blocks("mha"):
        if attention.skip_mha:
            del attention.self, attention.output.dense
            attention.adapt_pia = None
        else:
            attention.skip_pia = None


class DASLayer(SkippableBlock):
    """Skipped: ``x + adapter(x)``; kept, its layer, with parallel adapters beside attentions and FFN."""

    skip_adapter: Bottleneck | None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.skip_mha:
            assert self.skip_adapter is not None  # prune sees to it
            return hidden_states + self.skip_adapter(hidden_states)
        return super().forward(hidden_states, *args, **kwargs)

    def stand_ins(self) -> list[nn.Module]:
        return [self.skip_adapter] if self.skip_mha and self.skip_adapter is not None else []


def attach_das(model: PreTrainedModel, config: DASConfig) -> None:
    """Both kinds of adapters at every layer, the text's first; preset "meter" has the paper's ranks.

    Raises:
        ConfigError: adapters are to be routed.
    """
    if config.routed:
        raise ConfigError("DASConfig.routed = True: on METER the adapters are plain; use preset 'meter'")
    for index, layer in enumerate(Anatomy.of(model).layers):
        weight = layer.output.dense.weight
        adapter = Bottleneck(weight.shape[0], config.skip_rank, dropout=config.dropout)
        layer.skip_adapter = adapter.to(weight.device).train(layer.training)
        layer.index, layer.skip_mha, layer.skip_ffn = index, False, False
        for module in (layer.attention.output, layer.crossattention.output, layer.output):
            put(module, ParallelOutput, config.adapt_rank, dropout=config.dropout)
        become(layer, DASLayer)


def prune_das(model: PreTrainedModel) -> None:
    """Drops skipped layers, and the adapters in their place where they are kept."""
    for layer in Anatomy.of(model).layers:
        if layer.skip_mha:
            del layer.attention, layer.crossattention, layer.intermediate, layer.output
        else:
            layer.skip_adapter = None
