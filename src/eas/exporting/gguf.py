"""GGUF, llama.cpp's file: arch ``deci``, in which a layer's number of heads may be zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eas.exported import ExportError
from eas.exporting.decoder import Sizes
from eas.exporting.engine import Engine, Source
from eas.exporting.gguf_words import add_words
from eas.exporting.limits import common, first_kept, shorter, square, text_only

FILE, ARCH = "model.gguf", "deci"
DTYPES = {"float16": "F16", "float32": "F32", "q8_0": "Q8_0", "bfloat16": "BF16"}
FILE_TYPES = {"float16": 1, "float32": 0, "q8_0": 7, "bfloat16": 32}
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def limits(model: PreTrainedModel) -> list[str]:
    """See ``Engine.limits``."""
    return text_only(model, "gguf") or common(model) or first_kept(model, "llama.cpp") + square(model, "llama.cpp")


def lost(model: PreTrainedModel) -> list[str]:
    """See ``Engine.lost``."""
    return shorter(model)


def write(source: Source, folder: Path, dtype: str) -> None:
    """See ``Engine.write``."""
    import gguf

    sizes = source.plain.sizes
    writer = gguf.GGUFWriter(folder / FILE, ARCH)
    writer.add_block_count(sizes.layers)
    writer.add_context_length(sizes.context)
    writer.add_embedding_length(sizes.hidden)
    writer.add_feed_forward_length([sizes.intermediate] * sizes.layers)
    writer.add_head_count([sizes.heads if i in sizes.kept else 0 for i in range(sizes.layers)])
    writer.add_head_count_kv([sizes.kv_heads if i in sizes.kept else 0 for i in range(sizes.layers)])
    writer.add_key_length(sizes.head_dim)
    writer.add_value_length(sizes.head_dim)
    writer.add_layer_norm_rms_eps(sizes.eps)
    writer.add_rope_freq_base(float(str(sizes.rope["rope_theta"])))
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_vocab_size(sizes.vocab)
    writer.add_file_type(FILE_TYPES[dtype])
    add_words(writer, source.tokenizer, sizes.vocab)
    tensors = {
        name: tensor for key, value in source.plain.tensors.items() for name, tensor in [renamed(key, value, sizes)]
    }
    if (factors := rope_factors(source)) is not None:
        tensors["rope_freqs.weight"] = factors
    for name, tensor in tensors.items():
        kind = DTYPES[dtype] if tensor.ndim == 2 else "F32"
        if kind == "Q8_0" and tensor.shape[1] % 32:
            kind = "F16"  # whose rows do not come in blocks of 32
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    written = {tensor.name: [*map(int, tensor.shape)][::-1] for tensor in gguf.GGUFReader(folder / FILE).tensors}
    if wrong := [name for name, tensor in tensors.items() if written.get(name) != list(tensor.shape)]:
        raise ExportError(f"{folder / FILE}: {wrong[0]} was not written whole; export the model again")


def renamed(name: str, tensor: Tensor, sizes: Sizes) -> tuple[str, Tensor]:
    """A weight by llama.cpp's name; rows of q and k in the order of its rotary positions."""
    if name in OUTSIDE:
        return OUTSIDE[name], tensor
    _, _, index, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    heads = {"self_attn.q_proj": sizes.heads, "self_attn.k_proj": sizes.kv_heads}.get(module)
    if heads is not None:
        tensor = torch.unflatten(tensor, 0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return f"blk.{index}.{NAMES[module]}.{kind}", tensor.contiguous()


def rope_factors(source: Source) -> Tensor | None:
    """By how much the frequencies of the positions are divided; None if they are the usual ones."""
    sizes = source.plain.sizes
    usual: Any = float(str(sizes.rope["rope_theta"])) ** -(torch.arange(0, sizes.head_dim, 2) / sizes.head_dim)
    factors: Tensor = usual / source.plain.frequencies
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-4) else factors


ENGINE = Engine("llama.cpp", tuple(DTYPES), ("gguf",), "gguf", limits, lost, write)
