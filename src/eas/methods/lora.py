"""LoRA (Hu et al. 2022), through PEFT: low-rank updates of linear maps, merged into them for inference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from eas.config import ConfigError, MethodConfig, method_name, option
from eas.models.anatomy import Anatomy

MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

OTHER_NAMES = ("qkv_proj", "gate_up_proj", "out_proj", "w1", "w2", "w3")
"""Names of maps in families that fuse some, or call them otherwise (Phi, GLM, LFM2)."""


@dataclass
class LoRAConfig(MethodConfig):
    """The maps that get an update, and its rank; the paper's LLaVA rows have rank 16 at all maps.

    Example:
        >>> import eas
        >>> eas.LoRAConfig(rank=8, targets=["q_proj", "v_proj"]).rank
        8
    """

    name: str = method_name("lora")
    rank: int = option(16, "r: rank of the update")
    alpha: float | None = option(None, "the update is scaled by alpha / r; null: 2 r")
    dropout: float = option(0.0, "dropout on the update's input in training")
    targets: list[str] = option(None, f"maps of the language model's blocks, all by default: {', '.join(MAPS)}")

    def __post_init__(self) -> None:
        self.targets = list(MAPS) if self.targets is None else self.targets
        super().__post_init__()
        self._require("rank", self.rank >= 1, "must be at least 1")
        self._require("alpha", self.alpha is None or self.alpha > 0, "must be above 0")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")
        known = len(self.targets) > 0 and set(self.targets) <= {*MAPS, *OTHER_NAMES}
        self._require("targets", known, f"must be some of {', '.join((*MAPS, *OTHER_NAMES))}")


def attach(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Adds an update to every target map of the language model; untrained they change nothing."""
    inject(model, config.rank, config.alpha, config.dropout, config.targets)


def inject(model: PreTrainedModel, rank: int, alpha: float | None, dropout: float, targets: list[str]) -> None:
    """Puts PEFT's LoRA layers, float32 whatever the base's dtype, at the blocks' maps whose names are targets."""
    anatomy = Anatomy.of(model)
    if set(targets) == set(MAPS):  # all, whatever the family calls them
        targets = [name for branch in anatomy.branches for name in (*branch.inputs, branch.output)]
    inside = {id(module) for layer in anatomy.layers for module in layer.modules()}
    names = [n for n, m in model.named_modules() if id(m) in inside and n.rpartition(".")[2] in targets]
    if not names:
        raise ConfigError("LoRAConfig.targets: the model's blocks have no such maps")
    alpha = 2 * rank if alpha is None else alpha
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names), model)
    for layer in lora_layers(model):
        layer.train(layer.get_base_layer().training)  # PEFT's are made in training mode, with dropout
        for part in (*layer.lora_A.values(), *layer.lora_B.values()):
            part.float()


def lora_layers(model: nn.Module) -> Iterator[Any]:
    """The maps that LoRA updates."""
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def fold(model: PreTrainedModel, mode: str) -> None:
    """Merges every update into its map; the map's own weights change until ``unfold``.

    Raises:
        ValueError: a map's weights are torchao's, and PEFT was not told how to quantise them again.
    """
    if any(vars(layer).get("get_apply_tensor_subclass", layer) is None for layer in lora_layers(model)):
        raise ValueError(
            "LoRA cannot be merged into torchao's weights, as PEFT does not know how to quantise them again; use the "
            "unfolded model, or open the base with transformers' TorchAoConfig"
        )
    for layer in lora_layers(model):
        layer.merge(safe_merge=not layer.weight.is_meta)  # without storage nothing can be found infinite


def unfold(model: PreTrainedModel) -> None:
    """Removes the merged updates again, up to rounding."""
    for layer in filter(lambda layer: layer.merged, lora_layers(model)):
        layer.unmerge()


def unwrap(model: PreTrainedModel) -> None:
    """Leaves merged maps without PEFT's layers, which cost time at every step; nothing can be unfolded afterwards."""
    everywhere = model.named_modules(remove_duplicate=False)  # a folded FFN shares a map with its block
    for path, layer in [(path, m) for path, m in everywhere if isinstance(m, LoraLayer) and m.merged]:
        model.set_submodule(path, layer.get_base_layer())
