"""LaVIN's mixture-of-modality adapter (Luo et al. 2023, arXiv 2305.15023): a routed RepAdapter before every attention.

One down path, two grouped up paths, mixed by a router: the adapt form of a PIA, with which it shares its fold. On LaVIN
itself the router reads the modality token, as it is before each block; other models have none, and the mean of the
prompt takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.config import ConfigError, MethodConfig, method_name, option
from eas.costed import Costed
from eas.hf.api import cache_of
from eas.hf.cache import reads_prompt_from
from eas.hf.classes import become
from eas.hf.prompt import PromptedModel, PromptedTextModel
from eas.methods.eas_block import EASBlock
from eas.models.anatomy import Anatomy
from eas.models.block import become_blocks
from eas.models.lavin import LavinForConditionalGeneration
from eas.pia import PIA


@dataclass
class LavinAdapterConfig(MethodConfig):
    """The values are LaVIN's own, except the dropout, which is off.

    Example:
        >>> import eas
        >>> eas.LavinAdapterConfig(rank=8).name
        'lavin_adapter'
    """

    name: str = method_name("lavin_adapter")
    rank: int = option(8, "r: rank of the down path")
    up_groups: int = option(2, "groups of the up paths")
    temperature: float = option(10.0, "temperature of the router's softmax")
    dropout: float = option(0.0, "dropout on the hidden state in training (0.1 in LaVIN)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("up_groups", self.up_groups >= 1, "must be at least 1")
        ok = self.rank >= 1 and self.rank % self.up_groups == 0
        self._require("rank", ok, f"must be at least 1, and a multiple of up_groups = {self.up_groups}")
        self._require("temperature", self.temperature >= 1e-6, "must be above 0, at least 1e-6")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")


class ModalityToken(Costed):
    """LaVIN's modality token on its way through the blocks: it sees itself alone, and no other token sees it.

    In the original it is the first of every sequence, masked from the others. Run beside the sequence, it leaves
    lengths, masks and caches as they are, and the numbers are the same. ``embeddings``: without and with an image.
    """

    def __init__(self, layers: Any, hidden_size: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(2, hidden_size)
        bodies = [body for layer in layers for body in (layer.self_attn, layer.mlp)]
        maps = [m for body in bodies for m in body.modules() if isinstance(m, nn.Linear)]
        self.own_macs = sum(m.in_features * m.out_features for m in maps)
        self.own_macs += sum(2 * layer.self_attn.q_proj.out_features + layer.adapt_pia.macs(1) for layer in layers)

    def macs(self, tokens: int) -> int:
        return self.own_macs

    def decode_bytes(self) -> int:
        return 0  # it has done its work when the prompt ends

    def routes(self, text_model: Any, modality: Tensor) -> list[Tensor]:
        """What the router of every block makes of it, ``(batch, 1, 2)`` each.

        Args:
            text_model: whose blocks are `EASBlock` with adapt PIAs.
            modality: ``(batch,)``, 1 on rows with an image, 0 on the others.
        """
        hidden = self.embeddings(modality[:, None]).to(text_model.layers[0].input_layernorm.weight)
        rotary = text_model.rotary_emb(hidden, hidden.new_zeros(1, 1))
        routes: list[Tensor] = []
        for layer in text_model.layers:  # not the block's forward: a fold per example would be made for this token too
            hidden = hidden.to(layer.input_layernorm.weight.device)
            n = layer.input_layernorm(hidden)
            routes.append(layer.adapt_pia.prompt_state(n))
            z = n + layer.adapt_pia(n, routes[-1])
            attended, _ = layer.self_attn(hidden_states=z, position_embeddings=rotary, attention_mask=None)
            hidden = hidden + attended
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return routes


class ModalityRoutedTextModel(PromptedTextModel):
    """The language model of LaVIN: its routers read the modality token, which is the cache's business after that."""

    modality_token: ModalityToken

    def forward(self, *args: Any, modality: Tensor | None = None, **kw: Any) -> Any:
        if reads_prompt_from(cache_of(kw)):
            return super().forward(*args, **kw)
        if modality is None:
            raise ValueError("the language model alone cannot tell which rows have an image; call LaVIN as a whole")
        return super().forward(*args, **{**kw, "routes": self.modality_token.routes(self, modality)})


def attach(model: PreTrainedModel, config: LavinAdapterConfig) -> None:
    """Adds a routed adapter before every attention, and on LaVIN the modality token; untrained they change nothing."""
    anatomy = Anatomy.of(model)
    size = model.config.get_text_config().hidden_size
    if size % config.up_groups:
        raise ConfigError(f"LavinAdapterConfig.up_groups = {config.up_groups}: must divide the hidden size {size}")
    for layer in become_blocks(anatomy.layers, anatomy.built, EASBlock):
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
        layer.unit_norm, layer.shared_fold, layer.constant_fold, layer.fold_per_example = None, None, None, False
    if isinstance(model, LavinForConditionalGeneration):
        token = ModalityToken(anatomy.layers, size)
        anatomy.text_model.modality_token = token.to(anatomy.layers[0].input_layernorm.weight.device)
        become(anatomy.text_model, ModalityRoutedTextModel)
    else:
        become(anatomy.text_model, PromptedTextModel)
    become(model, PromptedModel)
