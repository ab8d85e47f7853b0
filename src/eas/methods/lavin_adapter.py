"""LaVIN's mixture-of-modality adapter (Luo et al. 2023, arXiv 2305.15023): a routed RepAdapter before every attention.

One down path, two grouped up paths, mixed by a router: the adapt form of a PIA, with which it shares its fold. LaVIN
routes on its modality token; other models have none, and the mean of the prompt takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from eas.config import ConfigError, MethodConfig, method_name, option
from eas.methods.eas_block import EASBlock
from eas.models.anatomy import Anatomy
from eas.models.prompted import PromptedModel, PromptedTextModel
from eas.models.skipping import become
from eas.pia import PIA


@dataclass
class LavinAdapterConfig(MethodConfig):
    """The values are LaVIN's own."""

    name: str = method_name("lavin_adapter")
    rank: int = option(8, "r of the down path")
    up_groups: int = option(2, "groups of the up paths")
    temperature: float = option(10.0, "of the router's softmax")
    dropout: float = option(0.0, "on the hidden state while training (0.1 in LaVIN)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("up_groups", self.up_groups >= 1, "must be at least 1")
        ok = self.rank >= 1 and self.rank % self.up_groups == 0
        self._require("rank", ok, f"must be at least 1, and a multiple of up_groups = {self.up_groups}")
        self._require("temperature", self.temperature > 0, "must be above 0")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")


def attach(model: PreTrainedModel, config: LavinAdapterConfig) -> None:
    """A routed adapter before every attention; untrained they change nothing."""
    anatomy = Anatomy.of(model)
    size = model.config.get_text_config().hidden_size
    if size % config.up_groups:
        raise ConfigError(f"LavinAdapterConfig.up_groups = {config.up_groups}: must divide the hidden size {size}")
    for index, layer in enumerate(anatomy.layers):
        pia = PIA(
            size,
            config.rank,
            pooling="none",
            temperature=config.temperature,
            dropout=config.dropout,
            up_groups=config.up_groups,
        )
        layer.adapt_pia = pia.to(layer.input_layernorm.weight.device).train(layer.training)
        layer.skip_pia = layer.ffn_pia = None
        layer.index, layer.skip_mha, layer.skip_ffn = index, False, False
        layer.shared_fold, layer.constant_fold, layer.fold_per_example = None, None, False
        become(layer, EASBlock)
    become(anatomy.text_model, PromptedTextModel)
    become(model, PromptedModel)
