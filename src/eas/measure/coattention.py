"""What METER costs as it stands: both towers, the co-attention layers with what a method put there, poolers and head.

As everywhere, a linear map costs in x out per token, an attention 2 d times queries times keys on top of its maps, and
norms, activations and embeddings are free. Every image of an example meets the text in a pass of its own; the text
tower runs once.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from eas.checkpoint import adapter_state
from eas.hf.skipping import SkippableBlock
from eas.measure.modules import Counts, module_macs
from eas.methods.meter_adapters import DeepPrompted, ShallowPrompted
from eas.methods.meter_drop import DropAttention, DropLayer
from eas.methods.meter_eas import DASLayer, EASAttention, EASLayer
from eas.methods.meter_prefix import PrefixedAttention
from eas.models.anatomy import Anatomy
from eas.surgery import attached


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
    trunk: Any = Anatomy.of(model).text_model
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens = patches + 1
    image = (
        patches * trunk.vision_model.embeddings.patch_embedding.weight.numel()
        + module_macs(trunk.vision_model.encoder, tokens)
        + 2 * vision.hidden_size * tokens**2 * len(trunk.vision_model.encoder.layers)
        + module_macs(trunk.cross_modal_image_transform, tokens)
    )
    text = module_macs(trunk.text_model.encoder, text_tokens) + module_macs(
        trunk.cross_modal_text_transform, text_tokens
    )
    text += 2 * model.config.text_config.hidden_size * text_tokens**2 * len(trunk.text_model.encoder.layer)
    behind = sum(sum(parts) for parts in layer_macs(model, text_tokens, images))
    poolers = module_macs(trunk.cross_modal_text_pooler, 1) + module_macs(trunk.cross_modal_image_pooler, 1)
    heads = sum(module_macs(child, 1) for child in model.children() if child is not trunk)
    total = sum(p.numel() for p in model.parameters())
    dead = sum(p.numel() for module in _dead(model) for p in module.parameters())
    embeddings = sum(p.nbytes for m in trunk.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    return Counts(
        macs=images * (image + poolers) + behind + text + heads,
        params_total=total,
        params_trained=sum(t.numel() for t in adapter_state(model).values())
        if attached(model)
        else sum(p.numel() for p in model.parameters() if p.requires_grad),
        weight_bytes=sum(p.nbytes for p in model.parameters())
        - embeddings
        - sum(p.nbytes for module in _dead(model) for p in module.parameters()),
        kv_bytes_per_token=0,
        prompt_state_bytes=0,
        params_folded=total - dead,
        vision_macs=images * image,
    )


def layer_macs(model: PreTrainedModel, text_tokens: int, images: int) -> list[tuple[int, int, int]]:
    """MACs of every co-attention layer, the text's first: of its attentions, its FFN, and what stands beside them.

    Arguments are those of `count_coattention`.
    """
    trunk: Any = Anatomy.of(model).text_model
    vision = model.config.vision_config
    texts, tokens, more = text_tokens, (vision.image_size // vision.patch_size) ** 2 + 1, 0
    if isinstance(trunk, ShallowPrompted):
        extra = trunk.prompt.tokens.shape[1]
        texts, tokens = texts + extra, tokens + extra
    elif isinstance(trunk, DeepPrompted):
        more = trunk.prompt.tokens.shape[2]
    sides = ((trunk.cross_modal_text_layers, texts, tokens), (trunk.cross_modal_image_layers, tokens, texts))
    each = [_layer_macs(layer, own, other, more) for layers, own, other in sides for layer in layers]
    return [(images * mha, images * ffn, images * beside) for mha, ffn, beside in each]


def _layer_macs(layer: Any, own: int, other: int, more: int) -> tuple[int, int, int]:
    """One layer of one modality, in one pass.

    Args:
        layer: in whatever form.
        own: tokens of its modality.
        other: tokens of the other one.
        more: keys and values that a prompt adds to every attention.
    """
    if isinstance(layer, SkippableBlock) and layer.skip_mha:
        return 0, 0, sum(module_macs(module, own) for module in layer.stand_ins())
    mha, ffn = 0, module_macs(layer.intermediate, own) + module_macs(layer.output, own)
    beside = module_macs(layer.adapt_pia, own) if isinstance(layer, EASLayer) else 0
    for attention, keys in ((layer.attention, own), (layer.crossattention, other)):
        if isinstance(attention, SkippableBlock):
            beside += sum(module_macs(module, own) for module in attention.stand_ins())
            if attention.skip_mha:
                continue
        core = attention.self
        mha += module_macs(core.query, own) + module_macs(core.key, keys + more) + module_macs(core.value, keys + more)
        prefix = attention.prefix.table.shape[1] if isinstance(attention, PrefixedAttention) else 0
        mha += 2 * core.all_head_size * own * (keys + more + prefix) + module_macs(attention.output, own)
    return mha, ffn, beside


def _dead(model: PreTrainedModel) -> list[nn.Module]:
    """What the skip set leaves without use and ``prune`` would drop."""
    dead: list[Any] = []
    anatomy = Anatomy.of(model)
    for attention in anatomy.attentions:
        if isinstance(attention, EASAttention):
            if attention.skip_mha:
                output: Any = attention.output
                dead += [attention._modules.get("self"), output._modules.get("dense"), attention.adapt_pia]
            else:
                dead.append(attention.skip_pia)
    for block in (*anatomy.attentions, *anatomy.layers):
        if isinstance(block, DropAttention | DropLayer) and block.skip_mha:
            dead += block.children()
    for layer in anatomy.layers:
        if isinstance(layer, DASLayer):
            names = ("attention", "crossattention", "intermediate", "output") if layer.skip_mha else ("skip_adapter",)
            dead += [layer._modules.get(name) for name in names]
    return [module for module in dead if module is not None]
