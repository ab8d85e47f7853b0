"""Quantised bases: fold into a full-precision copy, quantise the copy again, and report the error.

A PIA cannot be folded into int8 or 4-bit weights. ``fold(model, "shared")`` leaves these weights alone, with no loss.
The other modes need new weights, which ``fold_quantised`` makes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.attachment.attach import fold
from eas.attachment.state import attachment
from eas.config import ConfigError
from eas.models.quantisation import four_bit, is_quantised, unpack

HF_MARKS = ("is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit", "hf_quantizer", "quantization_method")


class QuantisedFold(NamedTuple):
    """The result of ``fold_quantised``, and the distance of its logits from those of the quantised, unfolded model.

    Args:
        mode: of the fold.
        reason: why this mode.
        folded: relative error (norm) of the folded copy before it was quantised again.
        quantised: after.
    """

    mode: str
    reason: str
    folded: float
    quantised: float


@torch.inference_mode()
def fold_quantised(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    quantise: str | Callable[[nn.Linear], nn.Module],
    mode: str = "auto",
) -> tuple[PreTrainedModel, QuantisedFold]:
    """Dequantises a copy, folds the copy, and quantises the same weights again, and those that the fold made from them.

    Args:
        model: an attached model with a quantised base, not folded; it does not change.
        inputs: the processor's output for a batch, to measure the error on.
        quantise: a name in ``QUANTISERS``, or a function from a linear map to its quantised form.
        mode: see ``eas.fold``.

    Returns:
        The folded copy, and the error. ``unfold`` gives the requantised base with its PIAs.

    Raises:
        ConfigError: the name is unknown.
        ValueError: nothing is quantised, the copy cannot be folded in this mode, or the batch does not fit the mode.
        ImportError: the library that quantises is missing.

    Example:
        >>> import eas
        >>> copied, done = eas.fold_quantised(model, inputs, quantise="torchao-int8")  # doctest: +SKIP
    """
    attachment(model)
    if mode == "per_example":
        raise ValueError(
            "a fold per_example makes new weights with every prompt, which nothing quantises; use mode 'auto'"
        )
    if isinstance(quantise, str):
        if quantise not in QUANTISERS:
            raise ConfigError(f"quantise = {quantise!r}: must be one of {', '.join(QUANTISERS)}, or a function")
        quantise = QUANTISERS[quantise]
    expected = model(**inputs).logits
    copied, names = dequantised(model)
    chosen = fold(copied, mode)
    folded = _relative(copied(**inputs).logits, expected)
    new: dict[nn.Module, nn.Module] = {}  # a fold shares maps with the original
    for name, module in list(copied.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.Linear) and (name in names or ".constant_fold." in name):
            if module not in new:
                new[module] = quantise(module)
            copied.set_submodule(name, new[module])
    return copied, QuantisedFold(*chosen, folded, _relative(copied(**inputs).logits, expected))


def dequantised(model: PreTrainedModel) -> tuple[PreTrainedModel, frozenset[str]]:
    """A copy whose linear maps are plain, in the dtype of the norms, and the names of those that were quantised.

    Raises:
        ValueError: none was.
    """
    copied = copy.deepcopy(model)
    unpack(copied)
    dtype = next(p.dtype for p in copied.parameters() if p.is_floating_point())
    names = {name for name, module in copied.named_modules() if is_quantised(module)}
    if not names:
        raise ValueError("no linear map of the model is quantised; use eas.fold(model)")
    for name in names:
        module: Any = copied.get_submodule(name)
        plain = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dequantize_module_weight(module).to(dtype), requires_grad=False)
        plain.bias = module.bias
        copied.set_submodule(name, plain)
    for mark in HF_MARKS:
        vars(copied).pop(mark, None)
    vars(copied.config).pop("quantization_config", None)
    return copied, frozenset(names)


def keep_gradients(model: nn.Module) -> None:
    """Stops bitsandbytes on a CPU from packing 4-bit weights anew in evaluation: no gradient passes those again."""
    for layer in four_bit(model):
        layer.support_avx512bf16_for_cpu = False
    unpack(model)


def _relative(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def torchao_int8(linear: nn.Linear) -> nn.Module:
    """int8 weights, one scale per output, multiplied in the dtype of the activations."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    plain = _plain(linear)
    quantize_(plain, Int8WeightOnlyConfig())
    return plain


def bitsandbytes_int8(linear: nn.Linear) -> nn.Module:
    """LLM.int8: int8 weights and activations."""
    from bitsandbytes import nn as bnb

    quantised = bnb.Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None, False)
    quantised.weight = bnb.Int8Params(linear.weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
    return _with_bias(quantised, linear)


def bitsandbytes_nf4(linear: nn.Linear) -> nn.Module:
    """QLoRA's 4-bit weights."""
    from bitsandbytes import nn as bnb

    dtype = linear.weight.dtype
    quantised = bnb.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, compute_dtype=dtype, quant_type="nf4"
    )
    quantised.weight = bnb.Params4bit(linear.weight.detach().clone(), requires_grad=False, quant_type="nf4")
    return _with_bias(quantised, linear)


def _plain(linear: nn.Linear) -> nn.Linear:
    plain = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    plain.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
    plain.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
    return plain


def _with_bias(quantised: Any, linear: nn.Linear) -> nn.Module:
    quantised.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    moved: nn.Module = quantised.to(linear.weight.device)  # which quantises
    return moved


QUANTISERS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "torchao-int8": torchao_int8,
    "bitsandbytes-int8": bitsandbytes_int8,
    "bitsandbytes-nf4": bitsandbytes_nf4,
}
