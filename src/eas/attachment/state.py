"""The state of an attached model, and questions about it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Size, Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from eas.config import MethodConfig, SkipConfig
from eas.hf.changes import Change
from eas.hf.skipping import SkippableBlock
from eas.methods import Method, method_of
from eas.models.anatomy import Anatomy

# which parts of a block a candidate of each kind is; 'either' lists all attentions, then all FFNs
PARTS = {"mha": (("mha",),), "ffn": (("ffn",),), "either": (("mha",), ("ffn",)), "layer": (("mha", "ffn"),)}
SAMPLED = 16


@dataclass
class Adapter:
    """An adapter of an attached model that is not the active one: its configuration, skip set and weights."""

    config: MethodConfig
    skip_set: tuple[int, ...]
    tensors: dict[str, Tensor]


@dataclass
class Attachment:
    """State of an attached model, ``model.eas``; it never holds data of a single request.

    Args:
        config: the method's configuration.
        trained: names of the parameters that the method trains.
        overwrites: whether the method trains some of the base's own weights, so that the base changes.
        fingerprint: ``base_fingerprint`` before the method; None if the weights were not loaded yet.
        pruned: whether the skipped modules and the unused PIAs are removed for good.
        fold_mode: the present fold mode; None if not folded.
        active: name of the adapter whose weights the model holds.
        adapters: the others, by name.
        disabled: whether the model is within ``eas.disabled``, where it computes its base.
        anatomy: the model's parts.
        candidates: what the method may skip: each candidate's block, and its parts ("mha", "ffn").
        changes: what ``attach`` changed in the model's structure.
        trained_before: names of the parameters that were trained before.
        shapes: of the parameters that the method does not train, by name.
    """

    config: MethodConfig
    trained: frozenset[str]
    overwrites: bool
    fingerprint: dict[str, Tensor] | None = field(compare=False)
    anatomy: Anatomy = field(compare=False, repr=False)
    candidates: list[tuple[SkippableBlock, tuple[str, ...]]] = field(compare=False, repr=False)
    changes: list[Change] = field(compare=False, repr=False)
    trained_before: frozenset[str] = field(compare=False, repr=False)
    shapes: dict[str, Size] = field(compare=False, repr=False)
    pruned: bool = False
    fold_mode: str | None = None
    active: str = "default"
    adapters: dict[str, Adapter] = field(default_factory=dict, compare=False, repr=False)
    disabled: bool = field(default=False, compare=False, repr=False)

    @property
    def form(self) -> str:
        """Which form of the methods fits the model: "decoder", or "coattention" (METER)."""
        return self.anatomy.form

    @property
    def method(self) -> Method:
        return method_of(self.form, self.config.name)


def attached(model: PreTrainedModel) -> bool:
    """Whether the model went through ``attach``.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> eas.attached(load_tiny()[0])
        False
    """
    return "eas" in vars(model)


def attachment(model: PreTrainedModel) -> Attachment:
    """The model's ``Attachment``.

    Raises:
        ValueError: the model is not attached, or is disabled.
    """
    if not attached(model):
        raise ValueError(f"this {type(model).__name__} is not attached; call eas.attach(model, config) first")
    state: Attachment = model.eas
    if state.disabled:
        raise ValueError("the model is disabled, it is its base for a while; leave `with eas.disabled(model)` first")
    return state


def candidates(model: PreTrainedModel) -> list[tuple[SkippableBlock, tuple[str, ...]]]:
    """What an attached model may skip: each candidate's block, and its parts ("mha", "ffn"); none for most methods."""
    return attachment(model).candidates


def candidates_of(anatomy: Anatomy, config: MethodConfig) -> list[tuple[SkippableBlock, tuple[str, ...]]]:
    """The same of a model that is being attached."""
    if not isinstance(config, SkipConfig):
        return []
    blocks = anatomy.blocks(config.candidates)
    return [(block, parts) for parts in PARTS[config.candidates] for block in blocks]


def all_but_one(kind: str, blocks: int) -> str:
    """Why fewer candidates of a kind are skipped than a model has blocks, in words.

    With "either" there are twice as many candidates; but a search draws any of them, and an attention must be left.
    """
    if kind == "either":
        return (
            f"the model has {blocks} attentions and {blocks} FFNs; at most {blocks - 1} of them are skipped, so that "
            "an attention is kept whichever they are"
        )
    names = {"mha": "attentions", "ffn": "FFNs", "layer": "layers"}
    return f"the model has {blocks} {names[kind]}; at least one is kept"


def skip_set(model: PreTrainedModel) -> tuple[int, ...]:
    """The candidates that are skipped at present, ascending.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        >>> eas.skip_set(model)
        ()
    """
    return tuple(i for i, (block, parts) in enumerate(candidates(model)) if set(parts) <= block.skipped_parts())


def base_fingerprint(model: PreTrainedModel) -> dict[str, Tensor]:
    """The first 16 weights of every parameter and 16 more, spread over it, in bfloat16, by name: tells bases apart in
    whatever dtype they are loaded. What is quantised, not loaded, or trained by the method is left out."""
    trained = attachment(model).trained if attached(model) else frozenset()
    found = {}
    for name, parameter in model.named_parameters():
        # torchao's are tensors that say they were floating
        plain = parameter.is_floating_point() and not type(parameter).__module__.startswith("torchao.")
        if plain and not parameter.is_meta and name not in trained and (last := parameter.numel() - 1) >= 0:
            first = [min(i, last) for i in range(SAMPLED)]
            spread = [i * last // (SAMPLED - 1) for i in range(SAMPLED)]
            found[name] = parameter.detach().reshape(-1)[first + spread].to("cpu", torch.bfloat16)
    return found


def differ(mine: Tensor, theirs: Tensor) -> bool:
    """Whether the fingerprints of two parameters are of different ones."""
    mine, theirs = mine[: len(theirs)].float(), theirs.float()
    near = (mine - theirs).abs() <= 1e-7  # what float16 rounds beyond bfloat16
    # of rows that were added to embeddings or a head, nothing but the last number is in it
    added = bool((mine[-1] - theirs[-1]).abs() > 1e-7 + theirs[-1].abs() / 64)
    return bool(near.float().mean() < 0.6) or added


def unfrozen(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that require gradients though the method does not train them."""
    trained = attachment(model).trained
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in trained]


def overwritten(model: PreTrainedModel) -> list[str]:
    """Names of the base's parameters that are others than at ``attach``, as far as the fingerprint tells.

    Those of other shapes are left out: METER's positions follow the size of its images.
    """
    before, shapes = attachment(model).fingerprint, attachment(model).shapes
    if before is None or isinstance(model, FSDPModule):  # shards
        return []
    now = {name: own for name, own in base_fingerprint(model).items() if name in before}
    kept = [name for name in now if model.get_parameter(name).shape == shapes.get(name)]
    return [name for name in kept if differ(now[name], before[name])]


def refuse_beside(model: PreTrainedModel, names: list[str], what: str) -> None:
    """Refuses parameters that are trained beside the method.

    Raises:
        ValueError: there are names; the message begins with ``what``, and says what to do.
    """
    if names:
        raise ValueError(
            f"{what}: {names[0]} ({len(names)} in all) is trained beside the method {attachment(model).config.name!r}, "
            "whose adapter holds its own weights only. Freeze what was not trained (requires_grad_(False)); methods "
            "'head' and 'full' train weights of the base, train_projector=True the projector. To train both in a loop "
            "of your own, write the whole model: eas.prune, then eas.save_standalone"
        )
