"""DAS (Wu et al., NeurIPS 2023, arXiv 2309.01479): whole layers are skipped, a bottleneck adapter in place of each.

As in the authors' code for LLaVA, kept layers have an adapter before their attention, and the adapter in place of a
skipped layer reads the normalised stream. Theirs adds that input to its output, so that an untrained skipped layer adds
the normalised stream to the stream; here it adds nothing. Theirs draws the up-projections, ours start at zero. For
LaVIN the authors have LaVIN's routed adapters in both places (preset "lavin"); here they route on the prompt's mean, as
EAS does, so that rounds can share what skip sets have in common. METER is post-norm: there the adapter in place of a
skipped layer reads the stream, and kept layers have adapters beside attentions and FFN. The search is DAS's own:
``SearchConfig(rule="das")``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.config import ConfigError, SkipConfig, method_name, option
from eas.hf.classes import become
from eas.hf.prompt import PromptedModel, PromptedTextModel
from eas.hf.skipping import Request, SkippableBlock, SkippingTextModel
from eas.methods.adapter import BESIDE, AdaptedInput, Bottleneck, bottleneck, put
from eas.methods.eas_block import EASBlock, given
from eas.models.anatomy import Anatomy
from eas.pia import PIA

PRESETS: dict[str, dict[str, Any]] = {
    "llava": {"skip_rank": 256, "adapt_rank": 128, "routed": False},
    "lavin": {"skip_rank": 32, "adapt_rank": 8, "routed": True},
    "meter": {"skip_rank": 288, "adapt_rank": 96, "routed": False},
}
"""Values of the authors' scripts for LLaVA (whose FLOPs count 512 at skipped layers), for LaVIN and for METER."""
GROUPS = 2  # of the routed adapters' up paths


@dataclass
class DASConfig(SkipConfig):
    """A preset fills the fields that are not given; "llava" by default.

    Example:
        >>> import eas
        >>> eas.DASConfig(num_skip=4).candidates
        'layer'
    """

    name: str = method_name("das")
    candidates: Literal["layer"] = option("layer", "modules that may be skipped: 'layer'")
    skip_rank: int = option(None, "bottleneck of the adapter that replaces a skipped layer; 256 by default")
    adapt_rank: int = option(None, "bottleneck of the adapter before a kept layer's attention; 128 by default")
    dropout: float = option(0.0, "dropout on the bottlenecks in training")
    routed: bool = option(None, "true: LaVIN's routed adapters; false: plain adapters")
    preset: Literal["llava", "lavin", "meter"] | None = option(
        None, f"preset of published values: {', '.join(PRESETS)}"
    )

    def __post_init__(self) -> None:
        self._fill(self.preset, {None: PRESETS["llava"], **PRESETS})
        super().__post_init__()
        for name in ("skip_rank", "adapt_rank"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
            even = not self.routed or getattr(self, name) % GROUPS == 0
            self._require(name, even, f"must be a multiple of {GROUPS} where adapters are routed")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")


class DASBlock(SkippableBlock):
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
        return [self.input_layernorm, self.skip_adapter] if self.skip_mha and self.skip_adapter is not None else []


class PostNormDASBlock(DASBlock):
    """Skipped: ``x += adapter(x)``. Kept: the layer, with an adapter beside every attention and the FFN."""

    def stand_ins(self) -> list[nn.Module]:
        return [self.skip_adapter] if self.skip_mha and self.skip_adapter is not None else []


class RoutedDASBlock(EASBlock):
    """The same with routed adapters: skipped, ``x += ffn_pia(Na(x))``; kept, ``x += MHA(n + adapt_pia(n))``."""

    def forward(self, hidden_states: Tensor, *, request: Request | None = None, **kwargs: Any) -> Tensor:
        if not self.skip_mha:
            return super().forward(hidden_states, request=request, **kwargs)
        assert self.ffn_pia is not None  # prune keeps it
        n = self.input_layernorm(hidden_states)
        replaced: Tensor = hidden_states + self.ffn_pia(n, self.prompt_state(self.ffn_pia, n, given(request)))
        return replaced


def attach(model: PreTrainedModel, config: DASConfig) -> None:
    """Adds both adapters to every layer; untrained and with nothing skipped they change nothing."""
    if config.routed:
        _attach_routed(model, config)
        return
    anatomy = Anatomy.of(model)
    for index, layer in enumerate(anatomy.layers):
        _may_be_skipped(layer, index, layer.input_layernorm, config)
        put(layer.self_attn, AdaptedInput, layer.input_layernorm, config.adapt_rank, dropout=config.dropout)
        become(layer, DASBlock)
    become(anatomy.text_model, SkippingTextModel)


def attach_post_norm(model: PreTrainedModel, config: DASConfig) -> None:
    """The same on METER."""
    anatomy = Anatomy.of(model)
    for index, layer in enumerate(anatomy.layers):
        _may_be_skipped(layer, index, layer.mlp_norm, config)
        for branch in anatomy.branches:
            body, norm = layer.get_submodule(branch.body), layer.get_submodule(branch.norm)
            put(body, BESIDE[branch.part], norm, config.adapt_rank, dropout=config.dropout)
        become(layer, PostNormDASBlock)


def _may_be_skipped(layer: Any, index: int, norm: Any, config: DASConfig) -> None:
    layer.skip_adapter = bottleneck(norm, config.skip_rank, layer.training, dropout=config.dropout)
    layer.index, layer.skip_mha, layer.skip_ffn = index, False, False


def _attach_routed(model: PreTrainedModel, config: DASConfig) -> None:
    anatomy = Anatomy.of(model)
    size = model.config.get_text_config().hidden_size
    if size % GROUPS:
        raise ConfigError(f"DASConfig.routed = True: the hidden size {size} is no multiple of {GROUPS}")
    for index, layer in enumerate(anatomy.layers):

        def pia(rank: int, layer: Any = layer) -> PIA:
            made = PIA(size, rank, pooling="none", dropout=config.dropout, up_groups=GROUPS)
            return made.to(layer.input_layernorm.weight.device).train(layer.training)

        layer.adapt_pia, layer.ffn_pia, layer.skip_pia = pia(config.adapt_rank), pia(config.skip_rank), None
        layer.index, layer.skip_mha, layer.skip_ffn = index, False, False
        layer.shared_fold, layer.constant_fold, layer.fold_per_example = None, None, False
        become(layer, RoutedDASBlock)
    become(anatomy.text_model, PromptedTextModel)
    become(model, PromptedModel)


def prune(model: PreTrainedModel) -> None:
    """Removes the skip adapters of kept layers, and the adapters before the attentions of skipped layers."""
    for block in Anatomy.of(model).layers:
        if isinstance(block, RoutedDASBlock):
            if block.skip_mha:
                block.adapt_pia = None
            else:
                block.ffn_pia = None
        elif not block.skip_mha:
            block.skip_adapter = None
