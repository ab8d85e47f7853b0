"""From LLaMA's, CLIP's and LaVIN's checkpoints to Hugging Face folders; nothing may be missing, nothing left over.

LLaMA's shards are those of tensor parallelism. Its rotary embedding turns neighbouring pairs of numbers, Llama's in
transformers the two halves of a head: rows of the query and key maps change places. Every mapping is a generator of
names and tensors, so that a model is never held as a whole, and may be tried on the meta device first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from eas.files import writing
from eas.models.lavin.configuration import LavinConfig
from eas.models.lavin.modeling import LavinForConditionalGeneration, LavinProjector

State = Mapping[str, Tensor]
Pairs = Iterator[tuple[str, Tensor]]

# LLaMA's name -> ours, and the dimension that tensor parallelism splits; None: every shard has all of it
_LLAMA = {
    "tok_embeddings.weight": ("model.language_model.embed_tokens.weight", 1),
    "norm.weight": ("model.language_model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
}
_LLAMA_LAYER: dict[str, tuple[str, int | None]] = {
    "attention_norm": ("input_layernorm", None),
    "ffn_norm": ("post_attention_layernorm", None),
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
    "feed_forward.w3": ("mlp.up_proj", 0),
}
# what the routed adapters' parts are called: LaVIN's name -> PIA's
_ADAPTER = {"conv_A": "down1", "conv_B": "up1", "conv_D": "up2", "expert_weights": "router"}
_PROJECTOR = {"conv_A": "down", "conv_B": "up"}


class ConversionError(ValueError):
    """A checkpoint that does not fit; the message names the file, the fault and the remedy."""


@dataclass
class Conversion:
    """The fate of each entry of a checkpoint.

    Args:
        matched: how many became a weight, by where they came from.
        left_out: the others, each with the reason.
        new: weights that no checkpoint had, each with its kind.
    """

    matched: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)


def llama_weights(shards: Sequence[State], heads: int, key_heads: int, report: Conversion) -> Pairs:
    """Meta's LLaMA: ``consolidated.*.pth``, in order.

    Args:
        shards: one state dict per file.
        heads: attention heads (``n_heads`` of params.json).
        key_heads: heads of keys and values.
        report: is filled.

    Raises:
        ConversionError: an unknown entry, or shards that differ in their entries.
    """
    if any(shard.keys() != shards[0].keys() for shard in shards):
        raise ConversionError("the consolidated.*.pth differ in their entries; download one whole model again")
    for key in shards[0]:
        if key.endswith("rope.freqs"):
            report.left_out[key] = "rotary frequencies are computed"
            continue
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", key)
        if layer and layer[2] in _LLAMA_LAYER:
            name, split = _LLAMA_LAYER[layer[2]]
            name = f"model.language_model.layers.{layer[1]}.{name}.weight"
        elif key in _LLAMA:
            name, split = _LLAMA[key]
        else:
            raise ConversionError(f"LLaMA's checkpoint has an unknown entry {key}; give Meta's consolidated.*.pth")
        parts = [shard[key] for shard in shards]
        weight = parts[0] if split is None or len(parts) == 1 else torch.cat(parts, split)
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            weight = halves(weight, heads if name.endswith(".q_proj.weight") else key_heads)
        yield name, weight
        report.matched["LLaMA"] = report.matched.get("LLaMA", 0) + 1


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of every head from (first, second, first, second, ...) to (first ..., second ...), ``(out, in)``."""
    size = weight.shape[0] // heads
    return weight.view(heads, size // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


def hugging_face_llama_weights(state: State, report: Conversion) -> Pairs:
    """A ``LlamaForCausalLM`` folder's.

    Raises:
        ConversionError: an unknown entry.
    """
    for key, weight in state.items():
        if key.endswith("rotary_emb.inv_freq"):
            report.left_out[key] = "rotary frequencies are computed"
        elif key == "lm_head.weight" or key.startswith("model."):
            yield key.replace("model.", "model.language_model.", 1), weight
            report.matched["LLaMA"] = report.matched.get("LLaMA", 0) + 1
        else:
            raise ConversionError(f"the Llama folder has an unknown entry {key}; give one of a LlamaForCausalLM")


def clip_weights(state: State, report: Conversion) -> Pairs:
    """The vision tower of a CLIP folder (``openai/clip-vit-large-patch14``); its text side is left out.

    Raises:
        ConversionError: an unknown entry.
    """
    for key, weight in state.items():
        name = key.removeprefix("vision_model.")
        if key.startswith("text_model.") or key in (
            "logit_scale",
            "text_projection.weight",
            "visual_projection.weight",
        ):
            report.left_out[key] = "LaVIN has no use for CLIP's text side and joint space"
        elif key.endswith("position_ids"):
            report.left_out[key] = "positions are computed"
        elif name.startswith(("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")):
            yield f"model.vision_tower.{name}", weight
            report.matched["CLIP"] = report.matched.get("CLIP", 0) + 1
        else:
            raise ConversionError(f"the CLIP folder has an unknown entry {key}; give one of a CLIPModel")


def lavin_weights(state: State, groups: int, scale: float, report: Conversion) -> Pairs:
    """What LaVIN trains, as entries of `LavinForConditionalGeneration` with the method ``lavin_adapter``.

    Args:
        state: the checkpoint's ``model``.
        groups: of the up-projections.
        scale: the original's ``--adapter_scale``, a factor on both up-projections.
        report: is filled.

    Raises:
        ConversionError: an unknown entry (adapters at the FFN, an EAS model of its authors, ...).
    """
    layer = re.compile(
        r"(layers|backbone\.visual\.transformer\.resblocks)\.(\d+)\.adapter_attn\.(conv_[ABD]|expert_weights)\.(weight|bias)"
    )
    for key, weight in state.items():
        name = key.removeprefix("module.")
        weight = weight.float()
        if match := layer.fullmatch(name):
            where, index, part, kind = match.groups()
            if part in ("conv_B", "conv_D"):
                weight = scale * weight
            if kind == "weight" and part == "conv_A":
                weight = weight[..., 0]
            elif (
                kind == "weight" and part != "expert_weights"
            ):  # (d, r / groups, 1) -> (groups, r / groups, d / groups)
                weight = weight[..., 0].reshape(groups, -1, weight.shape[1]).transpose(1, 2)
            block = (
                f"model.language_model.layers.{index}.adapt_pia"
                if where == "layers"
                else f"model.multi_modal_projector.adapters.{index}"
            )
            yield f"{block}.{_ADAPTER[part]}.{kind}", weight.contiguous()
        elif name == "adapter_modality_embedding.weight":
            yield "model.language_model.modality_token.embeddings.weight", weight
        elif match := re.fullmatch(r"adapter_proj\.(conv_[AB])\.(weight|bias)", name):
            yield f"model.multi_modal_projector.{_PROJECTOR[match[1]]}.{match[2]}", weight
        else:
            raise ConversionError(
                f"LaVIN's checkpoint has an unknown entry {key}; of LaVIN's models those of --adapter_type attn and "
                "--visual_adapter_type router can be converted"
            )
        report.matched["LaVIN"] = report.matched.get("LaVIN", 0) + 1


def fresh_projector(config: LavinConfig) -> Pairs:
    """The part between CLIP and LLaMA as LaVIN starts it, for a base that LaVIN's training is still to come to."""
    for name, weight in LavinProjector(config).state_dict().items():
        yield f"model.multi_modal_projector.{name}", weight


def check(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], what: str = "the checkpoints") -> None:
    """Compares names and shapes; ``what`` names the files.

    Raises:
        ConversionError: some are missing, left over or of another shape.
    """
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    other = [key for key in sorted(expected.keys() & found.keys()) if expected[key] != found[key]]
    if missing or extra:
        raise ConversionError(
            f"{what} do not make up the model: {len(missing)} weights are missing {missing[:3]}, "
            f"{len(extra)} are left over {extra[:3]}; do they belong together (params.json, number of layers)?"
        )
    if other:
        key = other[0]
        raise ConversionError(
            f"{what}: {len(other)} weights do not fit the configuration: {key} is {tuple(found[key])}, not "
            f"{tuple(expected[key])}; do params.json, CLIP and LaVIN's options belong together?"
        )


def shapes(config: LavinConfig) -> dict[str, torch.Size]:
    """Names and shapes of a model's weights, without the weights."""
    with torch.device("meta"):
        model = LavinForConditionalGeneration(config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _undone(folder: Path, where: Mapping[str, str], pairs: Pairs) -> Pairs:
    """The same; after an error, removes the files written so far."""
    try:
        yield from pairs
    except Exception:
        for name in {*where.values()}:
            (folder / name).unlink()
        raise


def write(
    folder: Path, config: LavinConfig, pairs: Callable[[], Pairs], dtype: torch.dtype, shard_bytes: int = 2**32
) -> None:
    """Writes a model's folder shard by shard, never holding more than one; what LaVIN trains stays float32.

    Args:
        folder: is created.
        config: of the model.
        pairs: gives its weights, of which names and shapes were checked.
        dtype: of the rest.
        shard_bytes: the most bytes of a file.

    Raises:
        WriteError: the folder cannot be written.
    """
    where: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        name = f"model-{len(set(where.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, name))
        shard.clear()

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for key, weight in _undone(folder, where, pairs()):
            kept = torch.float32 if key.startswith("model.multi_modal_projector.") else dtype
            tensor = weight.detach().to(kept).contiguous()
            if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > shard_bytes:
                flush()
            shard[key] = tensor
            total += tensor.nbytes
        flush()
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        config.architectures, config.dtype = ["LavinForConditionalGeneration"], dtype
        config.save_pretrained(folder)
        text: Any = config.text_config
        GenerationConfig(
            bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=0
        ).save_pretrained(folder)
