"""Dropping attentions or layers of METER without replacement, LoRA tuning what is left.

METER is post-norm: what is dropped takes its residual and its norm along, so that what came in goes on as it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from eas.config import ConfigError
from eas.hf.classes import become
from eas.hf.skipping import SkippableBlock
from eas.methods.drop import DropConfig
from eas.methods.meter_adapters import MAPS, inject
from eas.models.anatomy import Anatomy


class DropAttention(SkippableBlock):
    """Dropped: x; kept, its attention ``LN(x + MHA(x; keys))``."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, None) if self.skip_mha else super().forward(hidden_states, *args, **kwargs)


class DropLayer(SkippableBlock):
    """Dropped: x; kept, its layer."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states if self.skip_mha else super().forward(hidden_states, *args, **kwargs)


MIXINS = {"mha": DropAttention, "layer": DropLayer}


def attach_drop(model: PreTrainedModel, config: DropConfig) -> None:
    """LoRA at every map of the co-attention layers, and attentions, or layers, that may go.

    Raises:
        ConfigError: FFNs are to be dropped.
    """
    if config.candidates not in MIXINS:
        raise ConfigError(f"DropConfig.candidates = {config.candidates!r}: on METER it must be 'mha' or 'layer'")
    for index, block in enumerate(Anatomy.of(model).blocks(config.candidates)):
        block.index, block.skip_mha, block.skip_ffn = index, False, False
        become(block, MIXINS[config.candidates])
    inject(model, list(MAPS), config.rank, config.alpha, config.dropout)


def prune_drop(model: PreTrainedModel) -> None:
    """Drops what is skipped for good."""
    anatomy = Anatomy.of(model)
    for block in (*anatomy.attentions, *anatomy.layers):
        if isinstance(block, SkippableBlock) and block.skip_mha:
            for name in list(block._modules):
                delattr(block, name)
