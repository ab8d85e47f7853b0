"""Mix-and-Match (He et al. 2022, arXiv 2110.04366): a short prefix at attention, a scaled parallel adapter at the FFN.

The authors train the prefix through an MLP, 800 wide (213 M parameters in a 7B model); here it is trained directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from eas.config import MethodConfig, method_name, option
from eas.methods.adapter import BESIDE, put_at
from eas.methods.prefix import Prefix
from eas.methods.soft_prompt import add_prompt
from eas.models.anatomy import Anatomy

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"num_tokens": 30, "rank": 512, "scale": 4.0},
    "llava": {"num_tokens": 0, "rank": 128, "scale": 4.0},
}
"""He et al.'s own values, and those whose cost is that of MAM in the EAS paper's LLaVA tables: no prefix."""


@dataclass
class MAMConfig(MethodConfig):
    """Length of the prefix and width of the adapters. A preset fills the fields that are not given; "paper" by default.

    Raises:
        ConfigError: a value is impossible; the message names the field.

    Example:
        >>> import eas
        >>> eas.MAMConfig(num_tokens=20, rank=64).rank
        64
    """

    name: str = method_name("mam")
    num_tokens: int = option(None, "m: keys and values in front of every attention's own; 30 by default, 0 for none")
    rank: int = option(None, "r: bottleneck of the adapters; 512 by default")
    scale: float = option(None, "factor on the adapters' output; 4 by default")
    dropout: float = option(0.0, "dropout on the bottleneck in training")
    preset: str | None = option(None, f"preset of published values: {', '.join(PRESETS)}")

    def __post_init__(self) -> None:
        self._fill(self.preset, {None: PRESETS["paper"], **PRESETS})
        super().__post_init__()
        self._require("num_tokens", self.num_tokens >= 0, "must be at least 0")
        self._require("rank", self.rank >= 1, "must be at least 1")
        self._require("scale", self.scale > 0, "must be above 0")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")


def attach(model: PreTrainedModel, config: MAMConfig) -> None:
    """Adds prefix and adapters. Untrained, only the prefix changes the model: its keys take part in the softmax."""
    if config.num_tokens > 0:
        add_prompt(model, config, Prefix(Anatomy.of(model).text_model, config.num_tokens, reparameterise=None))
    put_at(model, "ffn", BESIDE, config.rank, scale=config.scale, dropout=config.dropout)
