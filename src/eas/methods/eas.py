"""EAS, the paper's method: its configuration, and how its PIAs are attached, pruned and folded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from eas.config import RANKS, ConfigError, SkipConfig, method_name, option
from eas.hf.classes import become
from eas.hf.prompt import PromptedModel, PromptedTextModel
from eas.methods.eas_block import EASBlock
from eas.methods.lora import MAPS, LoRAConfig, inject, lora_layers
from eas.methods.lora import fold as merge
from eas.methods.lora import unfold as unmerge
from eas.models.anatomy import Anatomy, norm_of
from eas.models.block import become_blocks
from eas.pia import PIA, SharedFold

PLAIN = {"form": "residual", "hidden_scale": 1.0, "dropout": 0.0, "up_groups": 1, "adapt_router_bias": True}
PAPER = {"form": "paper"}
RELEASED = {**PAPER, "hidden_scale": 0.5, "dropout": 0.1, "up_groups": 2, "adapt_router_bias": False}
PRESETS: dict[str, dict[str, Any]] = {
    "llava": {**PAPER, "skip_rank": 256, "adapt_rank": 128},
    "lavin": {**PAPER, "skip_rank": 32, "adapt_rank": 8},
    "meter": {**PAPER, "skip_rank": 144, "adapt_rank": 96},
    "released": {**RELEASED, "skip_rank": 256, "adapt_rank": 128},
}
"""Values of the paper's LLaVA (ScienceQA), LaVIN and METER runs, and of the authors' released code."""
PAPER_WIDTHS = {"llava": 4096, "lavin": 4096, "meter": 768, "released": 4096}
"""The hidden sizes that a preset's ranks are for; elsewhere they are the same share of the width."""


LORA_RANK = LoRAConfig().rank


@dataclass
class EASConfig(SkipConfig):
    """What to skip and with which PIAs (paper section 4).

    A preset fills the fields that are not given. ``attach`` fills in the ranks that are not given, in proportion to
    the model's width.

    Raises:
        ConfigError: a value is impossible; the message names the field.

    Example:
        >>> import eas
        >>> eas.EASConfig(num_skip=12, preset="released").up_groups
        2
    """

    name: str = method_name("eas")
    skip_rank: int | None = option(
        None, "r: rank of the PIA that replaces a skipped attention (or FFN); null: the preset's, or width / 16"
    )
    adapt_rank: int | None = option(
        None, f"r': rank of the PIA before a kept attention; null: the preset's, or width / 32; of LoRA, {LORA_RANK}"
    )
    temperature: float = option(10.0, "tau of the router's softmax (Eq. 6)")
    hidden_scale: float = option(
        None, "factor on the hidden state h of skip PIAs; 1 by default (0.5 in the released code)"
    )
    dropout: float = option(None, "dropout on h in training; 0 by default (0.1 in the released code)")
    up_groups: int = option(None, "groups of the up-projections; 1 by default (2 in the released code)")
    router: Literal["input", "constant"] = option(
        "input", "weights of the two up paths: 'input' (Eq. 6) or 'constant' (two trained numbers)"
    )
    pooling: Literal["prompt", "causal", "none"] = option(
        "prompt",
        "tokens that a skip PIA takes the mean of: 'prompt' (all prompt tokens), "
        "'causal' (the token and those before it) or 'none' (no mean; Table 6's base)",
    )
    decode_pooling: Literal["frozen", "running"] = option(
        "frozen",
        "with pooling 'causal', the mean while the answer is decoded: 'frozen' (stays the prompt's mean) or 'running' "
        "(also takes in the answer's tokens)",
    )
    preset: Literal["llava", "lavin", "meter", "released"] | None = option(
        None, f"preset of published values: {', '.join(PRESETS)}"
    )
    adapt: Literal["pia", "lora"] = option(
        "pia",
        "what adapts kept blocks: 'pia' (an adapt PIA before each kept attention) or 'lora' (LoRA of rank adapt_rank "
        "at all maps, also of FFNs whose attention is skipped)",
    )
    adapt_router_bias: bool = option(None, "a bias in the routers of adapt PIAs; true by default (not released code)")
    form: Literal["residual", "paper"] = option(
        None,
        "what a skipped attention's PIA and FFN read: 'residual' (the stream over its rms; an untrained skip leaves "
        "the attention out) or 'paper' (Eq. 7: times the weight of the attention's norm); null: 'residual', or the "
        "preset's",
    )

    def __post_init__(self) -> None:
        fills = {preset: {**PLAIN, **values} for preset, values in (*PRESETS.items(), (None, {}))}
        at_once = {preset: {n: v for n, v in values.items() if n not in RANKS} for preset, values in fills.items()}
        given = {name: getattr(self, name) for name in PLAIN}
        for other, values in at_once.items():  # as dataclasses.replace(config, preset=...) hands them over
            if other not in (None, self.preset) and given == values != at_once.get(self.preset):
                self._require(
                    "preset",
                    self.preset is None,
                    f"the other fields hold the values of preset {other!r}; build a configuration with "
                    f"EASConfig(preset={self.preset!r}, ...) in place of replacing the preset",
                )
        self._fill(self.preset, at_once)
        super().__post_init__()
        self._require("candidates", self.candidates in ("mha", "ffn", "either"), "must be 'mha', 'ffn' or 'either'")
        ranks = {name: getattr(self, name) for name in ("skip_rank", "adapt_rank")}
        for name, rank in ranks.items():
            self._require(name, rank is None or rank >= 1, "must be at least 1")
        self._require("temperature", self.temperature >= 1e-6, "must be above 0, at least 1e-6")
        self._require("hidden_scale", 0 < self.hidden_scale <= 1000, "must be above 0 and at most 1000")
        self._require("dropout", 0 <= self.dropout < 1, "must be in [0, 1)")
        self._require("up_groups", self.up_groups >= 1, "must be at least 1")
        for name, rank in ranks.items():
            ok = rank is None or rank % self.up_groups == 0
            self._require(name, ok, f"must be a multiple of up_groups = {self.up_groups}")
        ok = self.decode_pooling == "frozen" or self.pooling == "causal"
        self._require("decode_pooling", ok, f"needs pooling 'causal', not {self.pooling!r}")

    @property
    def search_trains(self) -> bool:
        return self.form == "paper"

    def at_width(self, width: int) -> EASConfig:
        """With the ranks that are not given, the preset's (without one, "llava"'s): as in the paper at its width,
        elsewhere rounded to multiples of four (of ``up_groups``). LoRA's rank is the same at every width."""
        preset, step = self.preset or "llava", math.lcm(4, self.up_groups)
        ranks = self._missing_ranks(PRESETS[preset], width, PAPER_WIDTHS[preset], step)
        if self.adapt == "lora" and "adapt_rank" in ranks:
            ranks["adapt_rank"] = LORA_RANK
        return replace(self, **ranks)


def attach(model: PreTrainedModel, config: EASConfig) -> None:
    """Adds a skip PIA and an adapt PIA, or LoRA, always float32, to every block; untrained they change nothing."""
    anatomy = Anatomy.of(model)
    if config.adapt == "lora":
        assert config.adapt_rank is not None  # EASConfig refuses it
        inject(model, config.adapt_rank, None, config.dropout, list(MAPS))
    for layer in become_blocks(anatomy.layers, anatomy.built, EASBlock):
        norm, training = norm_of(layer, anatomy.built.mha), layer.training
        layer.skip_pia = make_pia(config, norm, training, exchange=True) if config.candidates != "ffn" else None
        layer.adapt_pia = make_pia(config, norm, training, exchange=False) if config.adapt == "pia" else None
        layer.ffn_pia = make_pia(config, norm, training, exchange=True) if config.candidates != "mha" else None
        layer.unit_norm = layer.unit_norm_of_ffn() if config.form == "residual" else None
        layer.shared_fold, layer.constant_fold, layer.fold_per_example = None, None, False
    become(anatomy.text_model, PromptedTextModel)
    become(model, PromptedModel)


def make_pia(config: EASConfig, norm: Any, training: bool, *, exchange: bool) -> PIA:
    """A skip PIA (``exchange``) or an adapt PIA, as wide as a norm and on its device.

    Raises:
        ConfigError: the width has no such groups.
    """
    size, rank = len(norm.weight), config.skip_rank if exchange else config.adapt_rank
    assert rank is not None  # EASConfig refuses it
    if size % config.up_groups:
        raise ConfigError(f"EASConfig.up_groups = {config.up_groups}: must divide the model's hidden size {size}")
    pia = PIA(
        size,
        rank,
        pooling=config.pooling if exchange else "none",
        running=config.decode_pooling == "running",
        router=config.router,
        temperature=config.temperature,
        hidden_scale=config.hidden_scale if exchange else 1.0,
        dropout=config.dropout,
        up_groups=config.up_groups,
        router_bias=config.adapt_router_bias or exchange,
    )
    return pia.to(norm.weight.device).train(training)


def prune(model: PreTrainedModel) -> None:
    """Removes the PIAs that the skip set does not use."""
    anatomy = Anatomy.of(model)
    for block in anatomy.blocks("mha"):
        if not (block.skip_mha and not block.skip_ffn):
            block.skip_pia = None
        if block.skip_mha:
            block.adapt_pia = None
        if not block.skip_ffn:
            block.ffn_pia = None
        if block.unit_norm is not None and block.skip_mha:
            setattr(block, anatomy.built.mha.norm or "", None)  # the unit norm takes its place


def best_fold(model: PreTrainedModel) -> tuple[str, str]:
    """The mode that leaves least to do per token, for batches of any size, and why."""
    pias = [pia for pia in (block.foldable_pia() for block in Anatomy.of(model).blocks("mha")) if pia is not None]
    if any(pia.mix is None for pia in pias):
        return "shared", "the router reads the input, so every sequence has its own mixing weights"
    if (other := _unfoldable(model)) is not None:
        return "shared", f"nothing can be folded into {other.__name__}"
    if not any(pia.reads_prompt for pia in pias):
        return "constant", "nothing depends on the prompt: the folded weights are those of an ordinary model"
    if any(pia.running for pia in pias):
        return "constant", "the router is constant; per token the running mean is left, as a bias of gate and up"
    return "constant", "the router is constant; what a prompt adds is one bias of gate and up"


def fold(model: PreTrainedModel, mode: str) -> None:
    """See ``eas.fold``."""
    blocks = [block for block in Anatomy.of(model).blocks("mha") if block.foldable_pia() is not None]
    if mode == "per_example" and any(block.foldable_pia().causal for block in blocks):
        raise ValueError("per_example folding needs one c per prompt, but pooling is 'causal'; use mode 'shared'")
    if mode == "constant" and any(block.foldable_pia().mix is None for block in blocks):
        raise ValueError(
            "constant folding needs mixing weights that are the same for all inputs, but the router reads the input; "
            "use mode 'shared', or eas.freeze_router(model, loader) first"
        )
    if (other := _unfoldable(model)) is None:
        merge(model, "merged")
    elif mode != "shared":  # quantised, ...
        raise ValueError(f"{mode} folding needs plain linear maps, not {other}; use fold(model, 'shared')")
    for block in blocks:
        if mode == "per_example":
            block.fold_per_example = True
        elif mode == "constant":
            block.fold_constant()
        else:
            gain = block.gain() if block.skip_mha else None
            block.shared_fold = SharedFold(block.foldable_pia(), gain, block.dtype())


def _unfoldable(model: PreTrainedModel) -> type | None:
    """The class of a map that a PIA cannot be folded into, None if there is none."""
    for block in [block for block in Anatomy.of(model).blocks("mha") if block.foldable_pia() is not None]:
        body, names = block.reader()
        if not names:  # experts
            return type(body)
        for linear in map(body.get_submodule, names):
            linear = linear.get_base_layer() if isinstance(linear, LoraLayer) else linear
            if type(linear) is not nn.Linear or type(linear.weight) is not nn.Parameter:
                return type(linear) if type(linear) is not nn.Linear else type(linear.weight)
    plain = (nn.Linear, nn.Parameter)  # also where only FFNs are skipped, and no PIA is folded
    others = (layer.get_base_layer() for layer in lora_layers(model))
    return next((type(m) for m in others if (type(m), type(m.weight)) != plain), None)


def unfold(model: PreTrainedModel) -> None:
    """See ``eas.unfold``."""
    for block in Anatomy.of(model).blocks("mha"):
        block.shared_fold, block.constant_fold, block.fold_per_example = None, None, False
    unmerge(model)
