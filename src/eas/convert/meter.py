"""METER's original checkpoints: Lightning's ``.ckpt`` of github.com/zdou0830/METER to a model of this package.

Every key of the file must match or be left out for a stated reason; anything else is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals
from transformers import CLIPVisionConfig, RobertaConfig

from eas.models.meter.configuration import MeterConfig
from eas.models.meter.heads import TASKS, MeterWithHead
from eas.records import raised_as
from eas.weights import read_torch, require_finite, require_state

AGAIN = "download it again"
HEAD_SIZE = 64  # of every attention of RoBERTa, CLIP and METER
RENAMES = (  # the first that matches; the rest of the key stays
    (r"text_transformer\.", "meter.text_model."),
    (r"vit_model\.visual\.conv1\.", "meter.vision_model.embeddings.patch_embedding."),
    (r"vit_model\.visual\.class_embedding", "meter.vision_model.embeddings.class_embedding"),
    (r"vit_model\.visual\.positional_embedding", "meter.vision_model.embeddings.position_embedding.weight"),
    (r"vit_model\.visual\.ln_pre\.", "meter.vision_model.pre_layrnorm."),
    (r"vit_model\.visual\.ln_post\.", "meter.vision_model.post_layernorm."),
    (r"vit_model\.visual\.transformer\.resblocks\.(\d+)\.attn\.", r"meter.vision_model.encoder.layers.\1.self_attn."),
    (r"vit_model\.visual\.transformer\.resblocks\.(\d+)\.ln_", r"meter.vision_model.encoder.layers.\1.layer_norm"),
    (
        r"vit_model\.visual\.transformer\.resblocks\.(\d+)\.mlp\.c_fc\.",
        r"meter.vision_model.encoder.layers.\1.mlp.fc1.",
    ),
    (
        r"vit_model\.visual\.transformer\.resblocks\.(\d+)\.mlp\.c_proj\.",
        r"meter.vision_model.encoder.layers.\1.mlp.fc2.",
    ),
    (r"(cross_modal_|token_type_embeddings\.)", r"meter.\1"),
    (r"((?:mlm_score|itm_score|vqa_classifier|nlvr2_classifier|rank_output)\.)", r"\1"),
)
LAYER_RENAMES = (  # of the parts of a co-attention layer, one after the other
    ("crossattention.", "cross_attn."),
    ("attention.", "self_attn."),
    ("_attn.self.query.", "_attn.q_proj."),
    ("_attn.self.key.", "_attn.k_proj."),
    ("_attn.self.value.", "_attn.v_proj."),
    ("_attn.output.dense.", "_attn.o_proj."),
    ("_attn.output.LayerNorm.", "_attn_norm."),
    ("intermediate.dense.", "mlp.up_proj."),
    ("output.dense.", "mlp.down_proj."),
    ("output.LayerNorm.", "mlp_norm."),
)
LEFT_OUT = (  # of keys that no model needs, and why
    (r"text_transformer\.embeddings\.position_ids", "a constant"),
    (r"text_transformer\.pooler\.", "RoBERTa's own pooler, which METER does not use"),
    (r"vit_model\.(positional_embedding$|ln_final\.|token_embedding\.)", "CLIP's text tower, which METER does not use"),
)
HEADS = {  # of each task, by the first part of its keys; retrieval's checkpoints keep the head it was made from
    "pretraining": ("mlm_score", "itm_score"),
    "vqa": ("vqa_classifier",),
    "nlvr2": ("nlvr2_classifier",),
    "retrieval": ("rank_output",),
}
KNOWN_HEADS = {head for heads in HEADS.values() for head in heads}
# what Lightning 1.x keys its callbacks' states by: names only, to which nothing is done
CALLBACKS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
)


class ConversionError(ValueError):
    """A checkpoint that is not METER's, or not whole; the message names its keys."""


@dataclass(frozen=True)
class Conversion:
    """The fate of each entry of a checkpoint.

    Args:
        matched: how many of its tensors the model has.
        left_out: its other tensors, each with the reason.
        new: parameters of the model that it does not hold, each with its start value.
    """

    matched: int
    left_out: Mapping[str, str]
    new: Mapping[str, str]


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a Lightning checkpoint, or of a file that holds nothing else; runs no code of the file.

    Raises:
        ConversionError: there is no such file, and the message says where METER's are; or it is damaged, or holds more
            than tensors, plain values and Lightning's callback names.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(
            f"{path} does not exist; METER's checkpoints are the files meter_clip16_288_roberta_*.ckpt of "
            "https://github.com/zdou0830/METER/releases/tag/checkpoint"
        )
    with raised_as(ConversionError):
        with safe_globals([(type(name.rpartition(".")[2], (), {}), name) for name in CALLBACKS]):
            content = read_torch(path, AGAIN)
        state = content.get("state_dict", content) if isinstance(content, dict) else None
        return require_state(state, path, f"name one of METER's .ckpt files, or {AGAIN}")


def convert(
    state: Mapping[str, Tensor],
    task: str | None = None,
    image_size: int | None = None,
    num_answers: int | None = None,
) -> tuple[MeterWithHead, Conversion]:
    """A model from an original state dict, at the sizes that its tensors have.

    Args:
        state: with the original's keys; on the meta device the model is, too.
        task: one of `TASKS`, whose head the model gets, new where the checkpoint has none: retrieval's starts from
            the matching head, as METER's does. None: the task the checkpoint is of.
        image_size: of the model, in pixels; None: the checkpoint's.
        num_answers: classes of the VQA head; None: the checkpoint's, or 3,129 of a new one.

    Returns:
        The model in evaluation mode, and the report of the conversion.

    Raises:
        ConversionError: a key is unknown or has the wrong shape, or one is missing; or the VQA head has other classes.
    """
    found = {key.partition(".")[0] for key in state} & KNOWN_HEADS
    task = task or next((name for name, heads in HEADS.items() if found.issuperset(heads)), None)
    if task is None:
        raise ConversionError(f"the checkpoint has no head of {', '.join(HEADS)}; name the task of the checkpoint")
    renamed, left_out = _rename(state, HEADS[task])
    with _of_sizes():
        config = _config(renamed, task)
    if num_answers not in (None, config.num_answers):
        if "vqa_classifier" in found:
            raise ConversionError(
                f"the checkpoint's head has {config.num_answers} classes, and {num_answers} answers are to name them; "
                "take those of the data it was trained on, METER's own of all of VQA v2.0"
            )
        config.num_answers = num_answers
    new: dict[str, str] = {}
    if (types := renamed.get("meter.token_type_embeddings.weight")) is None:
        raise ConversionError("this is not a whole METER checkpoint: it has nothing for token_type_embeddings.weight")
    if types.shape[:1] == (2,) and task == "nlvr2":  # as METER: the second image starts as the first
        renamed["meter.token_type_embeddings.weight"] = torch.cat([types, types[1:]])
        new["meter.token_type_embeddings.weight"] = "row 2: the image's, row 1"
    if task == "retrieval" and "rank_output" not in found and "itm_score" in found:
        for kind in ("weight", "bias"):
            if f"itm_score.fc.{kind}" not in state:
                raise ConversionError(f"this is not a whole METER checkpoint: it has nothing for itm_score.fc.{kind}")
            renamed[f"rank_output.{kind}"] = state[f"itm_score.fc.{kind}"][1:]
            new[f"rank_output.{kind}"] = "the matching head's row for a match"
    with torch.device("meta"), _of_sizes():  # first, as sizes may be any
        own = TASKS[task](config).state_dict()
    absent, heads = own.keys() - renamed.keys(), set(HEADS[task]) - found
    new |= {key: "at random" for key in sorted(absent) if key.partition(".")[0] in heads}
    misfits = [key for key in own.keys() & renamed.keys() if own[key].shape != renamed[key].shape]
    problems = {
        "missing": sorted(absent - new.keys()),
        "unexpected": sorted(renamed.keys() - own.keys()),
        "of another shape": [f"{k} {tuple(renamed[k].shape)}, not {tuple(own[k].shape)}" for k in sorted(misfits)],
    }
    if any(problems.values()):
        shown = [f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in problems.items() if keys]
        raise ConversionError(f"this is not a whole METER checkpoint; {'; '.join(shown)}")
    with raised_as(ConversionError):
        require_finite(renamed.items(), "METER's checkpoint", AGAIN)
    with types.device:
        model = TASKS[task](config)
    model.load_state_dict(renamed, strict=False)
    if image_size is not None:
        model.resize_images(image_size)
    return model.eval(), Conversion(len(state) - len(left_out), left_out, new)


@contextmanager
def _of_sizes() -> Iterator[None]:
    """Within it a model is made of whatever sizes the tensors have; some are impossible."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:  # whatever transformers and torch raise then
        raise ConversionError(
            f"the checkpoint's tensors have sizes that make up no METER ({error}); {AGAIN}"
        ) from error


def _rename(state: Mapping[str, Tensor], heads: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by the model's keys, and the keys that are left out, with reasons."""
    renamed: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    unknown = []
    for key, tensor in state.items():
        part = key.partition(".")[0]
        reason = next((why for pattern, why in LEFT_OUT if re.match(pattern, key)), None)
        if part in KNOWN_HEADS and part not in heads:
            reason = "the head of another task"
        if reason is not None:
            left_out[key] = reason
            continue
        for pattern, replacement in RENAMES:
            name, count = re.subn(f"^{pattern}", replacement, key)
            if count:
                break
        else:
            unknown.append(key)
            continue
        if re.match(r"meter\.cross_modal_\w+_layers\.", name):
            for theirs, ours in LAYER_RENAMES:
                name = name.replace(theirs, ours)
        if ".in_proj_" in name:  # queries, keys and values in one
            if tensor.dim() == 0 or len(tensor) % 3:
                raise ConversionError(f"{key} {tuple(tensor.shape)} is not of queries, keys and values; {AGAIN}")
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("in_proj_", f"{letter}_proj.")] = rows
        else:
            renamed[name] = tensor
    if unknown:
        raise ConversionError(
            f"{len(unknown)} keys are none of METER's with CLIP and RoBERTa: {', '.join(unknown[:5])}"
        )
    return renamed, left_out


def _config(state: Mapping[str, Tensor], task: str) -> MeterConfig:
    """The configuration whose model has tensors of these shapes."""

    def shape(key: str) -> Any:
        if key not in state:
            raise ConversionError(f"this is not a whole METER checkpoint: it has nothing for {key}")
        return state[key].shape

    def layers(prefix: str) -> int:
        found = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
        if found != {str(i) for i in range(len(found))}:
            raise ConversionError(f"this is not a whole METER checkpoint: some layers of {prefix}0 and on are missing")
        return len(found)

    embeddings, vision = "meter.text_model.embeddings", "meter.vision_model"
    vocabulary, text_size = shape(f"{embeddings}.word_embeddings.weight")
    positions, vision_size = shape(f"{vision}.embeddings.position_embedding.weight")
    patch_size = shape(f"{vision}.embeddings.patch_embedding.weight")[-1]
    size = shape("meter.cross_modal_text_transform.weight")[0]
    types = shape(f"{embeddings}.token_type_embeddings.weight")[0]
    if types != 1:
        raise ConversionError(f"the text tower has {types} token types, as BERT's; only RoBERTa's (1) is supported")
    return MeterConfig(
        text_config=RobertaConfig(
            vocab_size=vocabulary,
            hidden_size=text_size,
            num_hidden_layers=layers("meter.text_model.encoder.layer."),
            num_attention_heads=text_size // HEAD_SIZE,
            intermediate_size=shape("meter.text_model.encoder.layer.0.intermediate.dense.weight")[0],
            max_position_embeddings=shape(f"{embeddings}.position_embeddings.weight")[0],
            type_vocab_size=types,
            layer_norm_eps=1e-5,  # roberta-base's own
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=vision_size,
            num_hidden_layers=layers(f"{vision}.encoder.layers."),
            num_attention_heads=vision_size // HEAD_SIZE,
            intermediate_size=shape(f"{vision}.encoder.layers.0.mlp.fc1.weight")[0],
            patch_size=patch_size,
            image_size=patch_size * round((positions - 1) ** 0.5),
        ),
        coattention_config=RobertaConfig(
            vocab_size=vocabulary,
            hidden_size=size,
            num_hidden_layers=layers("meter.cross_modal_text_layers."),
            num_attention_heads=size // HEAD_SIZE,
            intermediate_size=shape("meter.cross_modal_text_layers.0.mlp.up_proj.weight")[0],
        ),
        num_images=2 if task == "nlvr2" else 1,
        num_answers=shape("vqa_classifier.3.weight")[0] if "vqa_classifier.3.weight" in state else 3129,
    )
