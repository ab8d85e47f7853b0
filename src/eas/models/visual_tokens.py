"""Fewer visual tokens: the language model reads N of the tokens that the projector makes of an image.

The choice comes behind the projector and before the language model, so training, decoding and the KV cache have N
tokens of each image. "uniform" takes places spread over the image. "random" takes places at random, the same in every
image. "diverse" takes tokens that are unlike each other (DivPrune, arXiv 2503.02175): first the one whose nearest
neighbour is farthest, then again and again the one that is farthest from all that are taken. "attention" takes the
tokens that get most of the attention in the tower's next layer. VisionZip (arXiv 2412.04467) does so with the layer
before, and merges the other tokens into a few more.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from eas.config import ConfigError
from eas.models.anatomy import Anatomy
from eas.records import VisualTokens

CHOICES = ("uniform", "random", "diverse", "attention")
Processor = TypeVar("Processor")


def keep_visual_tokens(model: PreTrainedModel, number: int, choice: str = "uniform") -> None:
    """Makes a model read N tokens of each image, in place; before or after ``attach``.

    Its configuration says so from then on: ``save`` and ``save_standalone`` record it, and loading does it again. Of a
    base that was saved so, the stock class does not do it: repeat the call there, or ``attach``, which does it too.
    Prompts must have N image tokens too: see ``fit_processor``. ``detach`` does not undo it: load the base again.

    Args:
        model: a LLaVA whose images all have the same number of tokens.
        number: N; "uniform" needs rows times columns that fit into the image's.
        choice: one of ``CHOICES``.

    Raises:
        ConfigError: the model is of another family, keeps other tokens already, or has no such choice.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model, processor = load_tiny()
        >>> eas.keep_visual_tokens(model, 4)
        >>> processor = eas.fit_processor(processor, model.config)
        >>> from PIL import Image
        >>> prompt = "<image> question : what is this ? answer :"
        >>> inputs = processor(images=Image.new("RGB", (48, 48)), text=prompt, return_tensors="pt")
        >>> int((inputs["input_ids"] == model.config.image_token_index).sum())
        4
    """
    wanted = VisualTokens(number=number, choice=choice)
    if (said := kept_tokens(model)) is not None and said != wanted:
        raise ConfigError(f"the model reads {said} already; load a base that reads all tokens to choose anew")
    side = _side(model.config)
    if choice not in CHOICES:
        raise ConfigError(f"visual_choice = {choice!r}: must be one of {', '.join(CHOICES)}")
    if not 1 <= number < side**2:
        raise ConfigError(f"visual_tokens = {number}: an image has {side**2} tokens; keep fewer, and at least 1")
    if choice == "uniform":
        _grid(number, side)
    if choice == "attention":
        _next_layer(model)
    model.config.visual_tokens = wanted
    hook(model)


def kept_tokens(model: PreTrainedModel) -> VisualTokens | None:
    """How many tokens of an image the model reads, and which; None if it reads all."""
    found: VisualTokens | None = vars(model.config).get("visual_tokens")
    return found


def hook(model: PreTrainedModel) -> None:
    """Does what the configuration says, if anything, of a model that does not do it yet."""
    if (said := kept_tokens(model)) is None:
        return
    (projector,) = Anatomy.of(model).projector
    if any(isinstance(kept, _Keep) for kept in projector._forward_hooks.values()):
        return
    layer = _next_layer(model) if said["choice"] == "attention" else None
    projector.register_forward_hook(_Keep(said["number"], said["choice"], _side(model.config), layer))


class _Keep:
    """The hook of a projector. It is copied and pickled with its model, and then has the copy's layer of the tower."""

    def __init__(self, number: int, choice: str, side: int, layer: Any) -> None:
        self.number, self.choice, self.side, self.layer = number, choice, side, layer

    def __call__(self, module: nn.Module, args: Any, features: Tensor) -> Tensor:
        if self.choice == "diverse":
            places = diverse(features.detach(), self.number)
        elif self.choice == "attention":
            places = attention_each_gets(self.layer, args[0]).topk(self.number).indices.sort(-1).values
        else:
            fixed = (_grid if self.choice == "uniform" else _random)(self.number, self.side)
            places = torch.tensor(fixed, device=features.device).expand(len(features), -1)
        return features.gather(1, places[..., None].expand(-1, -1, features.shape[-1]))


def fit_processor(processor: Processor, config: Any, number: int | None = None) -> Processor:
    """The processor, changed in place so that a prompt has as many image tokens as the model reads of an image.

    Args:
        processor: LLaVA's.
        config: the model's; of a model that reads all tokens nothing is changed.
        number: of tokens, where the configuration does not say it yet.

    Raises:
        ConfigError: the model is of another family, and images are to have fewer tokens.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model, processor = load_tiny()
        >>> eas.keep_visual_tokens(model, 8, "diverse")
        >>> eas.fit_processor(processor, model.config) is processor
        True
    """
    said: VisualTokens | None = vars(config).get("visual_tokens")
    if (number := number if said is None else said["number"]) is not None:
        side = _side(config)  # before the processor is read: another family's is another
        ours: Any = processor  # which adds a number to the patches of an image, and takes one off for "default"
        default = ours.vision_feature_select_strategy == "default"
        ours.num_additional_image_tokens = number - side**2 + default
    return processor


def distances(features: Tensor) -> Tensor:
    """One minus the cosine of any two tokens of an image, ``(images, tokens, tokens)``; infinity on the diagonal."""
    unit = normalize(features.float(), dim=-1)
    with torch.autocast(features.device.type, enabled=False):
        apart = 1 - unit @ unit.mT
    apart.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    return apart


@torch.no_grad()
def diverse(features: Tensor, number: int) -> Tensor:
    """Places of tokens that are unlike each other, ``(images, number)``, in their order.

    Args:
        features: of the tokens, ``(images, tokens, width)``.
        number: of tokens to take.
    """
    apart = distances(features)
    taken = apart.amin(-1).argmax(-1)[:, None]
    rows = torch.arange(len(features), device=features.device)
    nearest = apart[rows, taken[:, 0]]
    for _ in range(number - 1):
        nearest = nearest.scatter(1, taken, -1.0)
        after = nearest.argmax(-1)
        nearest = torch.minimum(nearest, apart[rows, after])
        taken = torch.cat([taken, after[:, None]], 1)
    return taken.sort(-1).values


@torch.no_grad()
def attention_each_gets(layer: Any, features: Tensor) -> Tensor:
    """The attention that each token of an image gets, ``(images, tokens)``: the mean over heads and over its tokens.

    Args:
        layer: of CLIP's tower, or SigLIP's.
        features: what the layer reads, without a class token, ``(images, tokens, width)``.
    """
    mha, norm = layer.self_attn, layer.layer_norm1
    with torch.autocast(features.device.type, enabled=False):
        n = norm(features.to(norm.weight.dtype))
        q, k = (linear(n).unflatten(-1, (mha.num_heads, -1)).transpose(1, 2) for linear in (mha.q_proj, mha.k_proj))
        each: Tensor = (mha.scale * q @ k.mT).softmax(-1).mean((1, 2))
    return each


def _next_layer(model: PreTrainedModel) -> Any:
    """The tower's layer that would read the features.

    Raises:
        ConfigError: the tower is another one, or the features are those of its last layer or of several layers.
    """
    tower, at = model.config.vision_config, model.config.vision_feature_layer
    if tower.model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise ConfigError(
            f"visual_choice = 'attention' knows CLIP's and SigLIP's towers, not {tower.model_type}; use 'diverse'"
        )
    after = at % (tower.num_hidden_layers + 1) if isinstance(at, int) else tower.num_hidden_layers
    if after == tower.num_hidden_layers:
        raise ConfigError(
            "visual_choice = 'attention' needs the features of one layer, and a layer of the tower after it, but "
            f"vision_feature_layer = {at}; use 'diverse'"
        )
    modules = model.base_model.vision_tower.named_modules()
    layers: Any = next(module for name, module in modules if name.endswith("encoder.layers"))
    return layers[after]


def _grid(number: int, side: int) -> list[int]:
    """The places in the middle of each cell, when the image is cut into rows times columns that are nearly as many."""
    fitting = [n for n in range(1, side + 1) if number % n == 0 and number // n <= side]
    if not fitting:
        raise ConfigError(
            f"visual_tokens = {number}: 'uniform' needs rows times columns within {side} x {side}, as "
            f"{(side // 2) ** 2} has; or use another visual_choice"
        )
    rows = min(fitting, key=lambda n: abs(n - number // n))
    columns = number // rows
    return [
        (2 * i + 1) * side // (2 * rows) * side + (2 * j + 1) * side // (2 * columns)
        for i in range(rows)
        for j in range(columns)
    ]


def _random(number: int, side: int) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    places: list[int] = torch.randperm(side**2, generator=generator)[:number].sort().values.tolist()
    return places


def _side(config: Any) -> int:
    """Tokens along one side of an image.

    Raises:
        ConfigError: the model is of another family, or the number of an image's tokens depends on its size.
    """
    if config.model_type.removeprefix("eas_") != "llava":
        raise ConfigError(f"visual_tokens fits LLaVA 1.5 (model type llava), not {config.model_type}; leave it out")
    tower = config.vision_config.model_type
    if tower == "pixtral":
        raise ConfigError("visual_tokens needs images of one size, and Pixtral's tower takes any; leave it out")
    if tower == "clip_vision_model" and config.vision_feature_select_strategy == "full":
        raise ConfigError("visual_tokens needs vision_feature_select_strategy = 'default', without a class token")
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    return side
