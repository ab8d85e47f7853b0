"""DAS (Wu et al., NeurIPS 2023, arXiv 2309.01479): whole layers are skipped, a bottleneck adapter in place of each.

As in the authors' code for LLaVA, the adapter in place of a skipped layer reads the normalised stream. Kept layers have
one adapter, before their attention; theirs have two of half its rank, before the attention and before the FFN. In a
skipped layer theirs adds the adapter's input to its output, so that an untrained skipped layer adds the normalised
stream to the stream; here it adds nothing. Theirs draws the up-projections, ours start at zero. For
LaVIN the authors have LaVIN's routed adapters in both places (preset "lavin"); here they route on the prompt's mean, as
EAS does, so that rounds can share what skip sets have in common. METER is post-norm: there the adapter in place of a
skipped layer reads the stream, and kept layers have adapters beside attentions and FFN. DAS's own search is
``SearchConfig(rule="das")``; without it DAS searches by the default rule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.config import ConfigError, SkipConfig, method_name, option
from eas.hf.classes import become
from eas.hf.prompt import PromptedModel, PromptedTextModel
from eas.hf.skipping import Request, SkippingModel, SkippingTextModel
from eas.methods.adapter import BESIDE, AdaptedInput, Bottleneck, bottleneck, put
from eas.methods.eas_block import EASBlock, given
from eas.models.anatomy import Anatomy, norm_of
from eas.models.block import Block, become_blocks
from eas.pia import PIA

PRESETS: dict[str, dict[str, Any]] = {
    "llava": {"skip_rank": 256, "adapt_rank": 128, "routed": False},
    "lavin": {"skip_rank": 32, "adapt_rank": 8, "routed": True},
    "meter": {"skip_rank": 288, "adapt_rank": 96, "routed": False},
}
"""Values of the authors' scripts for LLaVA (whose FLOPs count 512 at skipped layers), for LaVIN and for METER."""
WIDTHS = {"llava": 4096, "lavin": 4096, "meter": 768}
"""The hidden sizes that a preset's ranks are for; elsewhere they are the same share of the width."""
GROUPS = 2  # of the routed adapters' up paths


@dataclass
class DASConfig(SkipConfig):
    """A preset fills the fields that are not given; "llava" by default. ``attach`` fills in the ranks, in proportion to
    the model's width.

    Example:
        >>> import eas
        >>> eas.DASConfig(num_skip=4).candidates
        'layer'
    """

    name: str = method_name("das")
    candidates: Literal["layer"] = option("layer", "modules that may be skipped: 'layer'")
    skip_rank: int | None = option(
        None, "bottleneck of the adapter that replaces a skipped layer; by default 1/16 of the width"
    )
    adapt_rank: int | None = option(
        None, "bottleneck of the adapter before a kept layer's attention; by default 1/32 of the width"
    )
    dropout: float = option(0.0, "dropout on the bottlenecks in training")
    routed: bool = option(None, "true: LaVIN's routed adapters; false: plain adapters")
    preset: Literal["llava", "lavin", "meter"] | None = option(
        None, f"preset of published values: {', '.join(PRESETS)}"
    )

    def __post_init__(self) -> None:
        self._require("preset", self.preset in (None, *PRESETS), f"must be one of {', '.join(PRESETS)}")
        if self.routed is None:
            self.routed = PRESETS[self.preset or "llava"]["routed"]
        super().__post_init__()
        for name, rank in (("skip_rank", self.skip_rank), ("adapt_rank", self.adapt_rank)):
            self._require(name, rank is None or rank >= 1, "must be at least 1")
            even = not self.routed or rank is None or rank % GROUPS == 0
            self._require(name, even, f"must be a multiple of {GROUPS} where adapters are routed")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")

    def at_width(self, width: int) -> DASConfig:
        """With the preset's ranks where none are given: the published ones at their width, elsewhere multiples of 4."""
        preset = self.preset or "llava"
        return replace(self, **self._missing_ranks(PRESETS[preset], width, WIDTHS[preset], 4))


class DASBlock(Block):
    """Skipped: ``x += adapter(Na(x))``. Kept: ``x += MHA(n + adapter(n)); x += FFN(Nf(x))`` with n = Na(x)."""

    skip_adapter: Bottleneck | None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.skip_mha:
            return super().forward(hidden_states, *args, **kwargs)
        x = hidden_states
        for module in self.stand_ins():
            x = module(x)
        return hidden_states + x

    def stand_ins(self) -> list[nn.Module]:
        if not self.skip_mha or self.skip_adapter is None:
            return []
        norm = self.built.mha.norm
        return [self.skip_adapter] if norm is None else [getattr(self, norm), self.skip_adapter]


class PostNormDASBlock(DASBlock):
    """Skipped: ``x += adapter(x)``. Kept: the layer, with an adapter beside every attention and the FFN."""

    def stand_ins(self) -> list[nn.Module]:
        return [self.skip_adapter] if self.skip_mha and self.skip_adapter is not None else []


class RoutedDASBlock(EASBlock):
    """The same with routed adapters: skipped, ``x += ffn_pia(Na(x))``; kept, ``x += MHA(n + adapt_pia(n))``."""

    def forward(self, hidden_states: Tensor, *args: Any, request: Request | None = None, **kwargs: Any) -> Tensor:
        if not self.skip_mha:
            return super().forward(hidden_states, *args, request=request, **kwargs)
        assert self.ffn_pia is not None  # prune keeps it
        n = self.normed(self.built.mha, hidden_states)
        replaced: Tensor = hidden_states + self.ffn_pia(n, self.prompt_state(self.ffn_pia, n, given(request)))
        return replaced


def _ranks(config: DASConfig) -> tuple[int, int]:
    """Of the adapters of skipped and of kept layers."""
    assert config.skip_rank is not None  # at_width filled it in
    assert config.adapt_rank is not None
    return config.skip_rank, config.adapt_rank


def attach(model: PreTrainedModel, config: DASConfig) -> None:
    """Adds both adapters to every layer; untrained and with nothing skipped they change nothing."""
    if config.routed:
        _attach_routed(model, config)
        return
    anatomy = Anatomy.of(model)
    mha = anatomy.built.mha
    for layer in become_blocks(anatomy.layers, anatomy.built, DASBlock):
        norm = norm_of(layer, mha)
        layer.skip_adapter = bottleneck(norm, _ranks(config)[0], layer.training, dropout=config.dropout)
        put(getattr(layer, mha.body), AdaptedInput, norm, _ranks(config)[1], dropout=config.dropout)
    become(anatomy.text_model, SkippingTextModel)
    become(model, SkippingModel)


def attach_post_norm(model: PreTrainedModel, config: DASConfig) -> None:
    """The same on METER."""
    anatomy = Anatomy.of(model)
    for index, layer in enumerate(anatomy.layers):
        layer.skip_adapter = bottleneck(layer.mlp_norm, _ranks(config)[0], layer.training, dropout=config.dropout)
        layer.index, layer.skip_mha, layer.skip_ffn, layer.built = index, False, False, anatomy.built
        for branch in anatomy.branches:
            body, norm = layer.get_submodule(branch.body), layer.get_submodule(branch.norm)
            put(body, BESIDE[branch.part], norm, _ranks(config)[1], dropout=config.dropout)
        become(layer, PostNormDASBlock)


def _attach_routed(model: PreTrainedModel, config: DASConfig) -> None:
    anatomy = Anatomy.of(model)
    size = model.config.get_text_config().hidden_size
    if size % GROUPS:
        raise ConfigError(f"DASConfig.routed = True: the hidden size {size} is no multiple of {GROUPS}")
    skip_rank, adapt_rank = _ranks(config)
    for layer in become_blocks(anatomy.layers, anatomy.built, RoutedDASBlock):

        def pia(rank: int, layer: Any = layer) -> PIA:
            made = PIA(size, rank, pooling="none", dropout=config.dropout, up_groups=GROUPS)
            return made.to(norm_of(layer, anatomy.built.mha).weight.device).train(layer.training)

        layer.adapt_pia, layer.ffn_pia, layer.skip_pia = pia(adapt_rank), pia(skip_rank), None
        layer.unit_norm, layer.shared_fold, layer.constant_fold, layer.fold_per_example = None, None, None, False
    become(anatomy.text_model, PromptedTextModel)
    become(model, PromptedModel)


def prune(model: PreTrainedModel) -> None:
    """Removes the skip adapters of kept layers, and the adapters before the attentions of skipped layers."""
    for block in Anatomy.of(model).blocks("layer"):
        if isinstance(block, RoutedDASBlock):
            if block.skip_mha:
                block.adapt_pia = None
            else:
                block.ffn_pia = None
        elif not block.skip_mha:
            block.skip_adapter = None
