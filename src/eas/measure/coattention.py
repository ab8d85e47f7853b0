"""The costs of METER in its present state: towers, co-attention layers with a method's modules, poolers and head.

As everywhere, a linear map costs in x out per token, an attention 2 d times queries times keys on top of its maps, and
norms, activations and embeddings are free. Every image of an example meets the text in its own pass; the text
tower runs once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from eas.attachment.save import adapter_state
from eas.attachment.state import attached
from eas.measure.maps import module_macs
from eas.measure.modules import Counts, block_macs, live, unused_params
from eas.methods.meter_prompts import DeepTokens, ShallowTokens
from eas.models.anatomy import Anatomy


def count_coattention(model: PreTrainedModel, text_tokens: int, images: int) -> Counts:
    """Counts METER with a head, base, attached, selected or pruned; on the meta device too.

    Args:
        model: with its head.
        text_tokens: of one text, padding included; METER: 50, and 40 for retrieval.
        images: passes of an image with the text, at least 1.

    Returns:
        ``weight_bytes`` are what one pass reads; there are no keys and values to keep, and nothing decodes.

    Raises:
        ValueError: no image is given.
    """
    if images < 1:
        raise ValueError(f"images = {images}: METER reads at least one image with a text; give images = 1")
    anatomy, config = Anatomy.of(model), model.config
    trunk: Any = anatomy.text_model
    vision, text = trunk.vision_model, trunk.text_model.encoder
    patches, tokens = _patches(config), _patches(config) + 1
    image = (
        patches * vision.embeddings.patch_embedding.weight.numel()
        + module_macs(vision.encoder, tokens)
        + 2 * config.vision_config.hidden_size * tokens**2 * len(vision.encoder.layers)
        + module_macs(trunk.cross_modal_image_transform, tokens)
    )
    words = module_macs(text, text_tokens) + module_macs(trunk.cross_modal_text_transform, text_tokens)
    words += 2 * config.text_config.hidden_size * text_tokens**2 * len(text.layer)
    behind = sum(sum(parts) for parts in layer_macs(model, text_tokens, images))
    poolers = module_macs(trunk.cross_modal_text_pooler, 1) + module_macs(trunk.cross_modal_image_pooler, 1)
    heads = sum(module_macs(child, 1) for child in model.children() if child is not trunk)
    total = sum(p.numel() for p in model.parameters())
    computed = [module for layer in anatomy.layers for module in live(layer, anatomy.built)]
    embeddings = [module for module in trunk.modules() if isinstance(module, nn.Embedding)]
    return Counts(
        macs=images * (image + poolers) + behind + words + heads,
        params_total=total,
        params_trained=sum(t.numel() for t in adapter_state(model).values())
        if attached(model)
        else sum(p.numel() for p in model.parameters() if p.requires_grad),
        weight_bytes=_bytes([model]) - _bytes(embeddings) - _bytes(anatomy.layers) + _bytes(computed),
        kv_bytes_per_token=0,
        prompt_state_bytes=0,
        params_folded=total - sum(unused_params(layer, anatomy.built) for layer in anatomy.layers),
        vision_macs=images * image,
    )


def layer_macs(model: PreTrainedModel, text_tokens: int, images: int) -> list[tuple[int, int, int]]:
    """MACs of every co-attention layer, the text's first: of its attentions, its FFN, and what stands beside them.

    Arguments are those of `count_coattention`.
    """
    anatomy = Anatomy.of(model)
    trunk: Any = anatomy.text_model
    texts, tokens, more = text_tokens, _patches(model.config) + 1, 0
    prompt = trunk._modules.get("prompt")
    if isinstance(prompt, ShallowTokens):
        texts, tokens = texts + prompt.tokens.shape[1], tokens + prompt.tokens.shape[1]
    elif prompt is not None:
        more = prompt.num_tokens
    sides = ((trunk.cross_modal_text_layers, texts, tokens), (trunk.cross_modal_image_layers, tokens, texts))
    made = isinstance(prompt, DeepTokens)
    each = [block_macs(la, anatomy.built, own, other, more, made) for las, own, other in sides for la in las]
    return [(images * mha, images * ffn, images * beside) for mha, ffn, beside in each]


def _patches(config: Any) -> int:
    """Of one image."""
    patches: int = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return patches


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum(p.nbytes for module in modules for p in module.parameters())
