"""The form of vLLM's plugin ``eas-vllm``: safetensors, and a configuration that names the layers without attention.

It takes what DeciLM does not: a skipped layer 0, normalised queries and keys, and models that read images, whose vision
tower and projector keep their weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from eas.exporting.decilm import DTYPES, complete, save
from eas.exporting.engine import Engine, Source
from eas.exporting.limits import LLAMA, NESTED, common, sees, shorter
from eas.models.anatomy import paths

TEXTS = (*LLAMA, "Qwen3Model", "Qwen2VLTextModel", "Qwen2_5_VLTextModel", "Qwen3VLTextModel")
SEEING = ("Llava", "LlavaOnevision", "InternVL", "Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
"""Families that read images, by the names of their classes without ``ForConditionalGeneration``."""
HEAD = "ForConditionalGeneration"
TOWERS = (*NESTED, "internvl_vision", "qwen2_vl_vision", "qwen2_5_vl_vision", "qwen3_vl_vision")


def limits(model: PreTrainedModel) -> list[str]:
    """See ``Engine.limits``."""
    family = type(model).__name__
    if sees(model):
        if family.removesuffix(HEAD) not in SEEING:
            return [f"of the families that read images, vLLM's plugin has {', '.join(SEEING)}, not {family}"]
        if (tower := model.config.vision_config.model_type) not in TOWERS:
            return [f"the vision tower is a {tower}, and vLLM has {', '.join(TOWERS)}; serve it with eas"]
        return common(model, TEXTS)
    return common(model, TEXTS, running=True)


def write(source: Source, folder: Path, dtype: str) -> None:
    """See ``Engine.write``."""
    model, family = source.model, type(source.model).__name__.removesuffix(HEAD)
    tensors = complete(source.plain, source.plain.sizes.intermediate)
    config = decoder_config(source, dtype)
    if family in SEEING:
        body = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
        head = {name: tensor for name, tensor in tensors.items() if name == "lm_head.weight"}
        tensors = {f"model.language_model.{name}": tensor for name, tensor in body.items()} | head | seeing(model)
        own = {key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"}
        kind = {"model_type": f"eas-{own['model_type']}", "architectures": [f"EAS{family}{HEAD}"]}
        config = {**own, **kind, "text_config": config, "dtype": dtype, "torch_dtype": dtype}
    save(tensors, config, folder, dtype)


def decoder_config(source: Source, dtype: str) -> dict[str, Any]:
    """config.json of the language model."""
    sizes = source.plain.sizes
    own = source.model.config.get_text_config(decoder=True)
    ranks = [len(tensor) for name, tensor in source.plain.tensors.items() if name.endswith(".pool.down.weight")]
    return {
        "architectures": ["EASPooledForCausalLM" if ranks else "EASForCausalLM"],
        "pool_rank": ranks[0] if ranks else 0,
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


def seeing(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights outside of the language model and its head, by the names that vLLM knows."""
    text, nested = f"{paths(model)[0]}.", model.config.vision_config.model_type in NESTED
    found = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith((text, "lm_head.")) and tensor.is_floating_point()
    }
    tower = "model.vision_tower."
    return {name.replace(tower, f"{tower}vision_model.") if nested else name: found[name] for name in found}


ENGINE = Engine("vLLM with the plugin eas-vllm", tuple(DTYPES), (), "", limits, shorter, write)
