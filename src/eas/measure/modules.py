"""The costs of a model in its present state, counted from its modules: MACs, parameters, bytes read and stored.

One prefill of n tokens: a linear map costs in x out per token, an attention 2 d_attn n^2 on top of its projections, in
full although half of it is masked away; norms, activations and the lookup of embeddings are free, and the head reads
one token. Every module counts once; a PIA counts wherever it is not folded away. Of experts a token counts those that
it is routed to. Of layers with something else than attention, the linear maps and convolutions count; the layers with
which Mllama reads images count without the image's own keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.attachment.save import adapter_state
from eas.attachment.state import attached
from eas.costed import Costed
from eas.hf.labelled import heads_all
from eas.hf.skipping import SkippableBlock
from eas.measure.maps import module_bytes, module_macs, stored_bytes
from eas.measure.vision import image_macs
from eas.methods.eas_block import EASBlock
from eas.models.anatomy import Anatomy
from eas.models.structure import Branch, TextModel
from eas.pia import PIA


@dataclass(frozen=True)
class Counts:
    """The costs of one model.

    Args:
        macs: multiply-accumulates of one prefill: vision tower, projector, language model, head on one token, and the
            work of a ``per_example`` fold.
        params_total: parameters the model holds; tied ones once.
        params_trained: parameters that the method trains (without a method, those that require a gradient).
        weight_bytes: weights of the language model that one decode step reads: without skipped modules, pruned or not,
            and with only one row of the embeddings.
        kv_bytes_per_token: keys and values of the kept attentions, per token of one sequence.
        prompt_state_bytes: alpha and c of all PIAs, per sequence, whatever its length.
        fold_macs: the part of ``macs`` in a ``per_example`` fold, once per request.
        fold_bytes: the folded weights that each request of a ``per_example`` fold stores.
        params_folded: parameters left after skipping, merging and folding into a request's weights; the biases that
            such a fold adds are counted.
        vision_macs: the part of ``macs`` in vision tower and projector.
        statistics_macs: the part of ``macs`` in which folded PIAs compute alpha and c, once per prompt.
    """

    macs: int
    params_total: int
    params_trained: int
    weight_bytes: int
    kv_bytes_per_token: int
    prompt_state_bytes: int
    fold_macs: int = 0
    fold_bytes: int = 0
    params_folded: int = 0
    vision_macs: int = 0
    statistics_macs: int = 0


def count_modules(
    model: PreTrainedModel, prompt_tokens: int, images: int = 0, patch_grid: tuple[int, int] | None = None
) -> Counts:
    """Counts the model in its present state: base, attached, selected, pruned or folded; on the meta device too.

    Arguments and errors are those of ``eas.count``.
    """
    anatomy, head = Anatomy.of(model), model.get_output_embeddings()
    text, layers = anatomy.text_model, list(anatomy.layers)
    beside = [module for module in text.children() if isinstance(module, Costed)]  # a prompt, say
    beside += [text._modules[name] for name in anatomy.built.beside if name in text._modules]
    built = anatomy.built
    kept = [layer.get_submodule(built.mha.body) for layer in layers if keeps_attention(layer, built)]
    eas = [layer for layer in layers if isinstance(layer, EASBlock)]
    per_request = [pair for layer in eas if layer.fold_per_example for pair in _folding(layer)]
    vision = images * (image_macs(model, patch_grid) if images else 0)
    fold = sum(_fold_macs(linear, pia) for linear, pia in per_request)
    total = sum(p.numel() for p in model.parameters())
    return Counts(
        macs=sum(sum(block_macs(layer, built, prompt_tokens)) for layer in layers)
        + sum(module_macs(module, prompt_tokens) for module in beside)
        + module_macs(head, prompt_tokens if heads_all(model) else 1)
        + vision
        + fold,
        params_total=total,
        params_trained=sum(t.numel() for t in adapter_state(model).values())
        if attached(model)
        else sum(p.numel() for p in model.parameters() if p.requires_grad),
        weight_bytes=sum(_block_bytes(layer, built) for layer in layers)
        + sum(module_bytes(module) for module in (*beside, text.get_submodule(built.final), head)),
        kv_bytes_per_token=sum(kv_width(attention, built.mha) for attention in kept)
        * text.get_input_embeddings().weight.element_size(),
        prompt_state_bytes=sum(layer.prompt_state_bytes() for layer in eas),
        fold_macs=fold,
        fold_bytes=sum(_folded_bytes(linear) for linear, _ in per_request),
        params_folded=total - sum(unused_params(layer, built) for layer in layers),
        vision_macs=vision,
        statistics_macs=sum(_statistics_macs(layer, prompt_tokens) for layer in eas),
    )


def skipped_parts(layer: Any) -> set[str]:
    """Of "mha" and "ffn" those that a block skips; none of a block that nothing was attached to."""
    return layer.skipped_parts() if isinstance(layer, SkippableBlock) else set()


def keeps_attention(layer: Any, built: TextModel) -> bool:
    """Whether a layer has an attention that is not skipped; a pruned one is gone, and in hybrids not every layer has
    one."""
    return "mha" not in skipped_parts(layer) and built.mha.body in layer._modules


def kv_width(attention: Any, branch: Branch) -> int:
    """Keys and values of one token: numbers that a cache stores for an attention. Gemma 4's attentions that read those
    of another store none, and where keys are also the values there is no map for values."""
    maps = {name: attention._modules.get(name) for name in branch.inputs}
    if len(maps) == 1:  # queries, keys and values from one map
        return int(maps[branch.inputs[0]].out_features - attention.get_submodule(branch.output).in_features)
    keys, values = maps["k_proj"], maps["v_proj"]
    if keys is None:
        return 0
    return int(keys.out_features + (keys if values is None else values).out_features)


def live(layer: Any, built: TextModel) -> list[nn.Module]:
    """The modules of a block that are computed, but for the PIA that is folded away."""
    skipped = skipped_parts(layer)
    gone = layer.foldable_pia() if isinstance(layer, EASBlock) and _folded(layer) else None
    modules = [module for module in _stand_ins(layer) if module is not gone]
    modules += [layer._modules[name] for name in built.more if name in layer._modules]
    for branch in built.branches:
        if branch.part not in skipped:
            body = layer._modules.get(branch.body)  # of a hybrid, not every layer has an attention
            own = [*body.stand_ins(), *_maps(body).values()] if isinstance(body, SkippableBlock) else [body]
            around = [layer._modules[name] for name in (branch.norm, branch.behind) if name is not None]
            modules += [*around, *own] if own else []
    return [*dict.fromkeys(module for module in modules if module is not None)]  # parallel branches share a norm


def _maps(attention: Any) -> dict[str, nn.Module]:
    """MACs of an attention without its replacements; none for an attention that is skipped alone."""
    if skipped_parts(attention):
        return {}
    return {name: module for name, module in attention.named_children() if not isinstance(module, PIA)}


def _stand_ins(module: Any) -> Sequence[nn.Module]:
    return module.stand_ins() if isinstance(module, SkippableBlock) else []


def block_macs(
    layer: Any, built: TextModel, own: int, other: int = 0, prompt: int = 0, made: bool = False
) -> tuple[int, int, int]:
    """MACs of a block in its skipped and folded state: attentions, FFN, and the method's modules.

    Args:
        layer: the block.
        built: its family's terms.
        own: tokens that it reads.
        other: tokens of the other modality, where an attention reads them.
        prompt: keys and values that a prompt adds to every attention.
        made: whether the attention's own maps make them.
    """
    skipped, mha, ffn = skipped_parts(layer), 0, 0
    beside = sum(module_macs(module, own) for module in _stand_ins(layer))
    beside += sum(module_macs(layer._modules[name], own) for name in built.more if name in layer._modules)
    for branch in built.branches:
        if branch.part in skipped or branch.body not in layer._modules:  # a pruned one is gone
            continue
        body = layer.get_submodule(branch.body)
        beside += sum(module_macs(module, own) for module in _stand_ins(body))
        if branch.part == "ffn":
            ffn += module_macs(body, own)
        elif modules := _maps(body):  # with grouped queries too: every query head meets every key
            keys = other if branch.across else own
            out: Any = modules[branch.output]
            mha += 2 * out.in_features * own * (keys + prompt)
            read = {"k_proj": keys + prompt * made, "v_proj": keys + prompt * made}
            mha += sum(module_macs(module, read.get(name, own)) for name, module in modules.items())
    if isinstance(layer, EASBlock):
        if _folded(layer) and (pia := layer.foldable_pia()) is not None:
            beside -= module_macs(pia, own)
        beside += _statistics_macs(layer, own)
        if layer.shared_fold is not None:
            beside += own * (layer.shared_fold.down.numel() + layer.shared_fold.up.numel())
    return mha, ffn, beside


def _statistics_macs(layer: EASBlock, n: int) -> int:
    """MACs of alpha and c where their PIA is folded, and of the bias that a constant fold makes of c."""
    pia = layer.foldable_pia()
    if pia is None or not _folded(layer):
        return 0
    macs = pia.statistics_macs(n)
    if layer.constant_fold is not None and pia.down2 is not None:
        macs += (n if pia.causal else 1) * layer.constant_fold.body.from_c.numel()
    return macs


def _folded(layer: Any) -> bool:
    return isinstance(layer, EASBlock) and (layer.shared_fold is not None or _folds_maps(layer))


def _folds_maps(layer: EASBlock) -> bool:
    return layer.fold_per_example or layer.constant_fold is not None


def _block_bytes(layer: Any, built: TextModel) -> int:
    """Weights of one block that a decode step reads."""
    total = sum(module_bytes(module) for module in live(layer, built))
    if isinstance(layer, EASBlock):
        if layer.skip_mha and not layer.skip_ffn and layer.gain() is not None:
            if layer.unit_norm is None:
                total += module_bytes(_norm(layer, built.mha))  # the one normalisation of a block without attention
            if _folded(layer):
                total -= module_bytes(_norm(layer, built.ffn))  # its weight is folded too
        if _folds_maps(layer):  # the folded maps are read in place of the originals
            total += sum(_folded_bytes(linear) - module_bytes(linear) for linear, _ in _folding(layer))
        if (fold := layer.shared_fold) is not None:
            tensors: list[Tensor] = [fold.down, fold.bias, fold.up, *([] if fold.scale is None else [fold.scale])]
            total += sum(t.nbytes for t in tensors)
        pia = layer.foldable_pia()
        if pia is not None and pia.running and _folded(layer):  # every token adds to the mean
            total += 0 if pia.down2 is None else module_bytes(pia.down2)
            total += 0 if layer.constant_fold is None else layer.constant_fold.body.from_c.nbytes
    return total


def _norm(layer: Any, branch: Branch) -> nn.Module:
    """The norm before a branch of a block whose FFN has one of its own."""
    norm: nn.Module = layer.get_submodule(branch.norm or "")
    return norm


def _params(module: nn.Module) -> int:
    """Parameters of a module without modules that are merged into it."""
    if isinstance(module, BaseTunerLayer) and module.merged:
        return _params(module.get_base_layer())
    return sum(p.numel() for p in module.parameters(recurse=False)) + sum(_params(m) for m in module.children())


def unused_params(layer: Any, built: TextModel) -> int:
    """Parameters of one block that are skipped or folded away; negative where a fold brings more biases."""
    total = sum(_params(module) for module in live(layer, built))
    if isinstance(layer, EASBlock):
        # its norm is read, and the FFN's is folded in
        if layer.skip_mha and not layer.skip_ffn and layer.gain() is not None:
            total += _params(_norm(layer, built.mha)) if layer.unit_norm is None else 0
            total -= _params(_norm(layer, built.ffn)) if _folds_maps(layer) else 0
        if _folds_maps(layer):
            total += sum(linear.out_features for linear, _ in _folding(layer) if linear.bias is None)
        elif (pia := layer.foldable_pia()) is not None and layer.shared_fold is not None:
            total += _params(pia)  # the shared form is the PIA, written differently
    return int(sum(p.numel() for p in layer.parameters())) - total


def _folding(layer: EASBlock) -> list[tuple[Any, PIA]]:
    """The linear maps into which a per-example or constant fold moves the block's PIA, and that PIA."""
    pia = layer.foldable_pia()
    body, names = layer.reader()
    return [] if pia is None else [(body.get_submodule(name), pia) for name in names]


def _fold_macs(linear: nn.Linear, pia: PIA) -> int:
    """``(W U^T) Wd1^T`` for the weight, ``(W U^T)(bd1 + c) + W (alpha_1 bu1 + alpha_2 bu2)`` for the bias."""
    d, r = linear.in_features, pia.down1.out_features
    return linear.out_features * (2 * d * r + r + d)


def _folded_bytes(linear: nn.Linear) -> int:
    return stored_bytes(linear.weight) + linear.out_features * linear.weight.element_size()
