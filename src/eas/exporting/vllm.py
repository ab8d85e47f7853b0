"""The form of vLLM's plugin ``eas-vllm``: safetensors, and a configuration that names the layers without attention.

It takes what DeciLM does not: a skipped layer 0, and normalised queries and keys.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from eas.exporting.decilm import DTYPES, complete, save
from eas.exporting.engine import Engine, Source
from eas.exporting.limits import LLAMA, common, shorter, text_only


def limits(model: PreTrainedModel) -> list[str]:
    """See ``Engine.limits``."""
    return common(model, (*LLAMA, "Qwen3Model")) or text_only(model, "vLLM's plugin")


def write(source: Source, folder: Path, dtype: str) -> None:
    """See ``Engine.write``."""
    sizes = source.plain.sizes
    own = source.model.config.get_text_config(decoder=True)
    config = {
        "architectures": ["EASForCausalLM"],
        "model_type": "eas-decoder",
        "skip_set": list(sizes.skipped),
        "head_norms": sizes.head_norms,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.intermediate,
        "hidden_act": "silu",
        "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": sizes.eps,
        "rope_parameters": {"rope_type": "default", **sizes.rope},
        "tie_word_embeddings": sizes.tied,
        "attention_bias": sizes.biased,
        "mlp_bias": sizes.biased,
        "bos_token_id": own.bos_token_id,
        "eos_token_id": own.eos_token_id,
        "pad_token_id": own.pad_token_id,
        "torch_dtype": dtype,
    }
    save(complete(source.plain, sizes.intermediate), config, folder, dtype)


ENGINE = Engine("vLLM with the plugin eas-vllm", tuple(DTYPES), (), "", limits, shorter, write)
