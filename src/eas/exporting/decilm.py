"""DeciLM (``nemotron-nas``): safetensors and a configuration that names, layer by layer, what is there.

vLLM, SGLang, TensorRT-LLM and mlx-lm read it. An attention-free layer has an FFN and its norm alone. vLLM fills a
weight or bias that is missing with whatever is in memory, so every layer has every bias as soon as one has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from eas.exported import ExportError
from eas.exporting.decoder import Sizes
from eas.exporting.engine import Engine, Source
from eas.exporting.limits import NESTED, common, first_kept, sees, shorter, square
from eas.exporting.plain import Plain
from eas.methods.eas_block import EASBlock
from eas.models.anatomy import Anatomy
from eas.weights import Safetensors

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MULTIPLE = 256
"""The format rounds the width of an FFN up to multiples of this; zeros fill it."""
CODE_FILE = "configuration_decilm.py"
CODE = '''"""The configuration of DeciLM, for engines that open it with --trust-remote-code."""

from types import SimpleNamespace

from transformers import AutoConfig, LlavaConfig, PretrainedConfig


class DeciLMConfig(PretrainedConfig):
    model_type = "nemotron-nas"

    def __init__(self, block_configs=(), max_position_embeddings=8192, **kwargs):
        self.max_position_embeddings = max_position_embeddings  # scaled rotary positions are checked with it
        super().__init__(**kwargs)
        self.block_configs = [
            SimpleNamespace(**{part: SimpleNamespace(**values) for part, values in block.items()})
            for block in block_configs
        ]

    def to_dict(self):
        blocks = [{part: dict(vars(own)) for part, own in vars(block).items()} for block in self.block_configs]
        return {**super().to_dict(), "block_configs": blocks}


class DeciLlavaConfig(LlavaConfig):
    """LLaVA's, whose language model is a DeciLM."""

    model_type = "llava"


AutoConfig.register("nemotron-nas", DeciLMConfig, exist_ok=True)
'''


def limits(model: PreTrainedModel) -> list[str]:
    """See ``Engine.limits``."""
    family = type(model).__name__
    if sees(model):
        if family != "LlavaForConditionalGeneration":
            return [f"of the families that read images, engines know the weight names of LLaVA only, not of {family}"]
        if (tower := model.config.vision_config.model_type) not in NESTED:
            return [f"the vision tower is a {tower}, and engines know {' and '.join(NESTED)}; serve it with eas"]
    return common(model) or first_kept(model, "vLLM") + square(model, "mlx-lm")


def lost(model: PreTrainedModel) -> list[str]:
    """See ``Engine.lost``."""
    folded = any(isinstance(layer, EASBlock) and layer.skip_mha for layer in Anatomy.of(model).layers)
    found = ["SGLang drops biases of FFNs without a word, and folded skip PIAs have some: use vLLM"] if folded else []
    return found + (["mlx-lm reads text models only"] if sees(model) else []) + shorter(model)


def write(source: Source, folder: Path, dtype: str) -> None:
    """See ``Engine.write``."""
    plain = source.plain
    tensors = complete(plain, width(plain.sizes))
    config = text_config(plain.sizes, source, dtype)
    if sees(source.model):
        tensors = {f"language_model.{name}": tensor for name, tensor in tensors.items()} | seeing(source.model)
        own = {key: value for key, value in source.model.config.to_dict().items() if key != "_name_or_path"}
        code = {"auto_map": {"AutoConfig": f"{Path(CODE_FILE).stem}.DeciLlavaConfig"}}
        config = {**own, **code, "text_config": config, "dtype": dtype, "torch_dtype": dtype}
        config["architectures"] = ["LlavaForConditionalGeneration"]
    (folder / CODE_FILE).write_text(CODE, encoding="utf-8")
    save(tensors, config, folder, dtype)


def save(tensors: dict[str, Tensor], config: dict[str, Any], folder: Path, dtype: str) -> None:
    """Writes weights, and then the configuration that opens the folder.

    Raises:
        ExportError: a weight was not written whole.
    """
    wide = {name: tensor.detach().to("cpu", DTYPES[dtype]).contiguous() for name, tensor in tensors.items()}
    save_torch_state_dict(wide, folder, metadata={"format": "pt"})
    written = Safetensors(sorted(folder.glob("model*.safetensors")), "export the model again")
    if missing := [name for name, tensor in wide.items() if written.shapes.get(name) != tensor.shape]:
        raise ExportError(f"{folder}: {missing[0]} was not written whole; export the model again")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def complete(plain: Plain, wide: int) -> dict[str, Tensor]:
    """The weights with FFNs that zeros fill to a width, and with every bias wherever one is."""
    sizes, tensors = plain.sizes, dict(plain.tensors)
    more = wide - sizes.intermediate
    for name in list(tensors):
        if not name.endswith("_proj.weight") or ".pool." in name:
            continue
        at = name.removesuffix(".weight")
        weight, bias = tensors[name], tensors.get(f"{at}.bias")
        if sizes.biased and bias is None:
            bias = weight.new_zeros(len(weight))
        if at.endswith(("gate_proj", "up_proj")):
            weight, bias = F.pad(weight, (0, 0, 0, more)), None if bias is None else F.pad(bias, (0, more))
        elif at.endswith("down_proj"):
            weight = F.pad(weight, (0, more))
        tensors |= {name: weight} | ({} if bias is None else {f"{at}.bias": bias})
    return tensors


def width(sizes: Sizes) -> int:
    """The FFN's width in the format."""
    return -(-sizes.intermediate // MULTIPLE) * MULTIPLE


def text_config(sizes: Sizes, source: Source, dtype: str) -> dict[str, Any]:
    """config.json of the language model."""
    group = sizes.heads // sizes.kv_heads
    ffn = {"no_op": False, "replace_with_linear": False, "ffn_mult": 1.5 * width(sizes) / sizes.hidden}
    blocks = [
        {
            "attention": {
                "no_op": index not in sizes.kept,
                "replace_with_linear": False,
                "n_heads_in_group": group if index in sizes.kept else None,
            },
            "ffn": ffn,
        }
        for index in range(sizes.layers)
    ]
    own = source.model.config.get_text_config(decoder=True)
    rope = {key: value for key, value in sizes.rope.items() if key != "rope_theta"}
    scaling = {} if rope.get("rope_type", "default") == "default" else {"rope_scaling": rope}
    return {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "auto_map": {"AutoConfig": f"{Path(CODE_FILE).stem}.DeciLMConfig"},
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": width(sizes),
        "hidden_act": "silu",
        "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": sizes.eps,
        "rope_theta": sizes.rope["rope_theta"],
        **scaling,
        "tie_word_embeddings": sizes.tied,
        "attention_bias": sizes.biased,
        "qkv_bias": sizes.biased,
        "mlp_bias": sizes.biased,
        "block_configs": blocks,
        "bos_token_id": own.bos_token_id,
        "eos_token_id": own.eos_token_id,
        "pad_token_id": own.pad_token_id,
        "torch_dtype": dtype,
    }


def seeing(model: PreTrainedModel) -> dict[str, Tensor]:
    """Vision tower and projector of LLaVA, by the names that engines know."""
    inner: Any = model.get_submodule("model")
    parts = {"multi_modal_projector": inner.multi_modal_projector, "vision_tower": inner.vision_tower}
    found = {f"{part}.{name}": tensor for part, body in parts.items() for name, tensor in body.state_dict().items()}
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model.")
        if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model.")
        else name: tensor
        for name, tensor in found.items()
    }
    return {name: tensor for name, tensor in renamed.items() if tensor.is_floating_point()}


ENGINE = Engine("vLLM, SGLang, mlx-lm", tuple(DTYPES), (), "", limits, lost, write)
