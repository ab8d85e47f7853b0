"""LaVIN's model from transformers' CLIP and Llama: class tokens of the ViT become tokens of the language model.

A row reads ``[modality] <s> Image: v1 ... v6 question``, or ``[modality] <s> Image: N/A question`` where there is no
image. The modality token, one of two embeddings, is hidden from all others; it is there for the routers of the adapters
in LaVIN's blocks, which read it (``eas.methods.lavin_adapter``). So it depends on nothing but the modality, and runs
beside the sequence: what follows it is an ordinary Llama with six visual tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import (
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
)

from eas.costed import Costed
from eas.models.lavin.configuration import LavinConfig
from eas.pia import PIA


class VisionAdapter(PIA):
    """The routed adapter before an attention of the tower: every token is routed on itself.

    The original routes on the tokens of the batch's first image, which is the same for one image at a time.
    """

    def forward(self, n: Tensor, state: Tensor | None = None) -> Tensor:
        """``n`` plus the mixture, ``(images, tokens, d)``."""
        assert self.router is not None
        logits: Tensor = self.router(n.to(self.router.weight.dtype))
        return n + super().forward(n, (logits / self.temperature).softmax(-1))

    def macs(self, tokens: int) -> int:
        assert self.router is not None
        return super().macs(tokens) + (tokens - 1) * self.router.weight.numel()


class LavinVisionModel(CLIPVisionModel):  # type: ignore[misc]
    """The tower: class tokens of some of its blocks, with adapters that are handed in before its attentions."""

    _no_split_modules = ["LavinVisionModel"]  # noqa: RUF012  (its forward goes into the blocks)

    def forward(self, pixel_values: Tensor, layers: list[int], adapters: nn.ModuleList) -> Tensor:
        """Class tokens after the blocks ``layers``, counted from 1: ``(images, len(layers), d)``.

        Args:
            pixel_values: ``(images, 3, height, width)``.
            layers: which blocks.
            adapters: one `VisionAdapter` a block, or none at all.
        """
        hidden = self.pre_layrnorm(self.embeddings(pixel_values))
        class_tokens = {}
        for i, block in enumerate(self.encoder.layers):
            n = block.layer_norm1(hidden)
            attended, _ = block.self_attn(adapters[i](n) if adapters else n)
            hidden = hidden + attended
            hidden = hidden + block.mlp(block.layer_norm2(hidden))
            class_tokens[i + 1] = hidden[:, 0]
        return torch.stack([class_tokens[layer] for layer in layers], 1)


class LavinProjector(Costed):
    """What LaVIN trains between image and language model: the tower's adapters, and two maps around a SiLU."""

    def __init__(self, config: LavinConfig) -> None:
        super().__init__()
        vision: Any = config.vision_config
        text: Any = config.text_config
        rank = config.vision_adapter_rank
        self.visual_tokens = len(config.vision_feature_layers)
        self.adapters = nn.ModuleList(
            VisionAdapter(
                vision.hidden_size,
                rank,
                pooling="none",
                temperature=config.vision_adapter_temperature,
                dropout=config.vision_adapter_dropout,
                up_groups=config.vision_adapter_groups,
            )
            for _ in range(vision.num_hidden_layers if rank else 0)
        )
        self.down = nn.Linear(vision.hidden_size, config.projector_hidden_size)
        self.up = nn.Linear(config.projector_hidden_size, text.hidden_size)
        for linear in (self.down, self.up):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, class_tokens: Tensor) -> Tensor:
        """``(images, visual tokens, hidden size of the language model)``."""
        projected: Tensor = self.up(nn.functional.silu(self.down(class_tokens.to(self.down.weight.dtype))))
        return projected

    def macs(self, tokens: int) -> int:
        """For one image, of so many tokens in the tower."""
        adapters = sum(module.macs(tokens) for module in self.adapters.children() if isinstance(module, Costed))
        return adapters + self.visual_tokens * (self.down.weight.numel() + self.up.weight.numel())


class LavinPreTrainedModel(LlavaPreTrainedModel):  # type: ignore[misc]
    config_class = LavinConfig
    _keep_in_fp32_modules_strict = ["multi_modal_projector"]  # noqa: RUF012  (as in the original)

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        maps: list[Any] = []
        zeros: list[Any] = []
        if isinstance(module, LavinProjector):
            maps = [module.down, module.up]
        elif isinstance(module, VisionAdapter):
            maps, zeros = [module.router, module.down1], [module.up1, module.up2]
        for linear in maps:
            init.xavier_uniform_(linear.weight)
        for linear in zeros:
            init.zeros_(linear.weight)
        for linear in maps + zeros:
            init.zeros_(linear.bias)


class LavinModel(LavinPreTrainedModel, LlavaModel):  # type: ignore[misc]
    """LaVIN without its head."""

    def __init__(self, config: LavinConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)  # LlavaModel would build LLaVA's parts
        self.vision_tower = LavinVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = LavinProjector(config)
        self.language_model = LlamaModel._from_config(config.text_config)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The visual tokens of every image as ``pooler_output``, a list of ``(visual tokens, hidden size)``."""
        projector = self.multi_modal_projector
        pixels = pixel_values.to(self.vision_tower.dtype)
        class_tokens = self.vision_tower(pixels, self.config.vision_feature_layers, projector.adapters)
        return BaseModelOutputWithPooling(last_hidden_state=class_tokens, pooler_output=list(projector(class_tokens)))

    def forward(
        self, input_ids: Tensor | None = None, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As `LlavaModel`'s; the language model is told as well which rows have an image, ``(batch,)``."""
        if input_ids is not None:
            placeholders = input_ids == self.config.image_token_id
        else:
            token = self.get_input_embeddings().weight[self.config.image_token_id]
            placeholders = (inputs_embeds == token).all(-1)
        modality = placeholders.any(1).long()
        return super().forward(input_ids, *args, inputs_embeds=inputs_embeds, modality=modality, **kwargs)


class LavinForConditionalGeneration(LavinPreTrainedModel, LlavaForConditionalGeneration):  # type: ignore[misc]
    """LaVIN without adapters in its language model: those are the tuning method ``lavin_adapter``.

    ``eas`` or ``das`` take their place, as in the paper. With an untrained projector it is a plain LLaMA.
    """

    def __init__(self, config: LavinConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = LavinModel(config)
        text: Any = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()
