"""LaVIN's files: LLaMA's and CLIP's weights to one base folder, a LaVIN checkpoint to an adapter for it.

The base is LaVIN before its training, to which ``eas``, ``das`` or any other method is attached as well. LaVIN's own
checkpoint holds what its training adds: it becomes an adapter of the method ``lavin_adapter``.
"""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlamaTokenizer
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from eas.checkpoint import save
from eas.methods.lavin_adapter import LavinAdapterConfig
from eas.models.lavin import LavinConfig, LavinForConditionalGeneration, LavinProcessor
from eas.models.lavin.conversion import (
    Conversion,
    ConversionError,
    Pairs,
    check,
    clip_weights,
    fresh_projector,
    hugging_face_llama_weights,
    lavin_weights,
    llama_weights,
    shapes,
    write,
)
from eas.surgery import attach

ZOO = "LaVIN's model zoo (github.com/luogen1996/LaVIN) links to them"
GROUPS = 2  # of all its adapters' up-projections; no option of the original


class Safetensors(Mapping[str, Tensor]):
    """The weights of some files, read when they are asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                self.files |= dict.fromkeys(opened.keys(), file)

    def __getitem__(self, key: str) -> Tensor:
        with safe_open(self.files[key], framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def on_meta(self) -> dict[str, Tensor]:
        """Names and shapes; the weights are not read."""
        found = {}
        for file in dict.fromkeys(self.files.values()):
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (no mapping)
                    found[key] = torch.empty(opened.get_slice(key).get_shape(), device="meta")
        return found

    def rows(self, key: str, rows: int, columns: int) -> Tensor:
        """The upper left corner of a matrix."""
        with safe_open(self.files[key], framework="pt") as opened:
            corner: Tensor = opened.get_slice(key)[:rows, :columns]
        return corner


def convert_base(
    llama: Path,
    clip: Path,
    folder: Path,
    *,
    tokenizer: Path | None = None,
    adapter: Path | None = None,
    vision_adapter: bool = True,
    dtype: torch.dtype = torch.float16,
) -> Conversion:
    """Writes the folder of a LaVIN base with its processor; names and shapes are checked before anything is written.

    Args:
        llama: Meta's folder (``params.json`` and ``consolidated.*.pth``, one or, from tensor parallelism, several), or
            a Hugging Face Llama's.
        clip: a Hugging Face folder of CLIP ViT-L/14 (``openai/clip-vit-large-patch14``).
        folder: is created.
        tokenizer: folder of LLaMA's ``tokenizer.model`` or ``tokenizer.json``; by default that of ``llama``, or the one
            above it.
        adapter: a LaVIN checkpoint the base shall fit: its options become the base's.
        vision_adapter: whether CLIP's blocks have adapters.
        dtype: of all weights but the projector and the adapters, which are float32.

    Raises:
        ConversionError: a file is missing, or is not what it should be.
        WriteError: the folder cannot be written.
    """
    words = _tokenizer([tokenizer] if tokenizer else [llama, llama.parent])
    text_config, weights = _llama(llama)
    vision = _vision_config(clip)
    config = LavinConfig(
        text_config=text_config,
        vision_config=vision,
        vision_feature_layers=list(range(4, vision.num_hidden_layers + 1, 4)),
        **_options(adapter, vision_adapter),
    )
    tower = _weights(clip)
    with torch.device("meta"):
        tried = Conversion()
        names = {
            name: weight.shape
            for name, weight in chain(
                weights(tried, True), clip_weights(_on_meta(tower), tried), fresh_projector(config)
            )
        }
    check(shapes(config), names)
    report = Conversion()

    def pairs() -> Pairs:
        return chain(weights(report, False), clip_weights(tower, report), fresh_projector(config))

    write(folder, config, pairs, dtype)
    for name, _ in fresh_projector(config):
        report.new[name] = "the projector and adapters of the vision tower, as LaVIN's training starts them"
    _processor(words, config).save_pretrained(folder)
    return report


def convert_adapter(checkpoint: Path, base: Path, folder: Path) -> Conversion:
    """Writes LaVIN's checkpoint as an adapter for ``eas.load(base, folder)``; the base's weights are not loaded.

    Args:
        checkpoint: LaVIN's ``.pth``; only tensors and options are read from it, no code.
        base: the folder that ``convert_base`` wrote.
        folder: is created.

    Raises:
        ConversionError: a file is missing, or is not what it should be, or the base was made for other options.
        WriteError: the folder cannot be written.
    """
    state, given = _checkpoint(checkpoint)
    config, options = LavinConfig.from_pretrained(base), _options(checkpoint, vision_adapter=True)
    for name, value in options.items():
        if (own := config.to_dict()[name]) != value:
            raise ConversionError(
                f"{checkpoint} has {name} = {value}, the base {base} has {own}; convert the base together with it"
            )
    report = Conversion()
    pairs = dict(lavin_weights(state, GROUPS, given["scale"], report))
    with torch.device("meta"):
        model = LavinForConditionalGeneration(config)
        attach(
            model,
            LavinAdapterConfig(
                rank=given["rank"],
                up_groups=GROUPS,
                temperature=given["temperature"],
                dropout=0.1,
                train_projector=True,
            ),
        )
    check({name: model.get_parameter(name).shape for name in model.eas.trained}, {k: v.shape for k, v in pairs.items()})
    model.load_state_dict(pairs, strict=False, assign=True)
    weights = Safetensors(sorted(base.glob("*.safetensors")))
    names = [
        f"model.language_model.layers.{i}.mlp.down_proj.weight" for i in range(len(model.model.language_model.layers))
    ]
    model.eas.fingerprint = torch.stack([weights.rows(name, 1, 16)[0].to(torch.bfloat16) for name in names])
    model.config.name_or_path = str(base)
    save(model, folder)
    return report


def _llama(folder: Path) -> tuple[LlamaConfig, Callable[[Conversion, bool], Pairs]]:
    """The configuration, and what gives the weights, on the meta device if wanted."""
    if not (folder / "params.json").is_file():
        config = _config(folder, "llama")
        state = _weights(folder)
        return config, lambda report, meta: hugging_face_llama_weights(_on_meta(state) if meta else state, report)
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise ConversionError(f"{folder} has params.json, but no consolidated.*.pth; copy Meta's weights beside it")
    params = json.loads((folder / "params.json").read_text())
    shards = [_torch_load(file) for file in files]
    try:
        vocabulary = shards[0]["tok_embeddings.weight"].shape[0]
        width = sum(shard["layers.0.feed_forward.w1.weight"].shape[0] for shard in shards)
        heads, key_heads = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=params["dim"],
            intermediate_size=width,
            num_hidden_layers=params["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            rms_norm_eps=params["norm_eps"],
            max_position_embeddings=2048,
        )
    except KeyError as error:
        raise ConversionError(f"{folder}: {error} is in neither params.json nor the weights of a LLaMA") from error

    def weights(report: Conversion, meta: bool) -> Pairs:
        states = [_on_meta(shard) for shard in shards] if meta else shards
        return llama_weights(states, heads, key_heads, report)

    return config, weights


def _vision_config(folder: Path) -> CLIPVisionConfig:
    config = _config(folder, "clip", "clip_vision_model")
    vision: CLIPVisionConfig = config.vision_config if config.model_type == "clip" else config
    return vision


def _config(folder: Path, *kinds: str) -> Any:
    if not (folder / "config.json").is_file():
        raise ConversionError(
            f"{folder} has no config.json; give a Hugging Face folder of a {' or '.join(kinds)} model"
        )
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in kinds:
        raise ConversionError(f"{folder} holds a {config.model_type} model; give one of {' or '.join(kinds)}")
    return config


def _weights(folder: Path) -> Mapping[str, Tensor]:
    """Of a Hugging Face folder: its safetensors, or else its PyTorch files."""
    if files := sorted(folder.glob("model*.safetensors")):
        return Safetensors(files)
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ConversionError(f"{folder} has no model*.safetensors and no pytorch_model*.bin; download its weights")
    return {key: tensor for file in files for key, tensor in _torch_load(file).items()}


def _on_meta(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names and shapes without the weights."""
    return state.on_meta() if isinstance(state, Safetensors) else {key: t.to("meta") for key, t in state.items()}


def _options(checkpoint: Path | None, vision_adapter: bool) -> dict[str, Any]:
    """What a checkpoint says about the part of LaVIN that belongs to the base."""
    if not vision_adapter:
        return {"vision_adapter_rank": 0}
    if checkpoint is None:
        return {}
    _, given = _checkpoint(checkpoint)
    return {
        "projector_hidden_size": given["projector"],
        "vision_adapter_rank": given["rank"],
        "vision_adapter_temperature": given["temperature"],
    }


def _checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """LaVIN's weights and options; ranks are those of the weights."""
    if not path.is_file():
        raise ConversionError(f"{path} does not exist; {ZOO}")
    with torch.serialization.safe_globals([argparse.Namespace]):  # its options: names and values
        content = _torch_load(path)
    state = content.get("model")
    names = {} if not isinstance(state, dict) else {key.removeprefix("module."): t for key, t in state.items()}
    try:
        rank = names["layers.0.adapter_attn.conv_A.weight"].shape[0]
        projector = names["adapter_proj.conv_A.weight"].shape[0]
    except KeyError as error:
        raise ConversionError(f"{path} has no {error.args[0]}; give a checkpoint of LaVIN's training; {ZOO}") from error
    args = vars(content["args"]) if "args" in content else {}
    given = {"temperature": float(args.get("temperature", 10.0)), "scale": float(args.get("adapter_scale", 1.0))}
    return names, {"rank": rank, "projector": projector, **given}


def _torch_load(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ConversionError(f"{path} is damaged, or holds more than weights ({error}); download it again") from error
    return content


def _tokenizer(folders: list[Path]) -> LlamaTokenizer:
    names = ("tokenizer.json", "tokenizer.model")
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            tokenizer: LlamaTokenizer = LlamaTokenizer.from_pretrained(
                folder, add_prefix_space=False, pad_token="<unk>", legacy=False
            )
            break
    else:
        raise ConversionError(f"no tokenizer.model in {' or '.join(map(str, folders))}; give its folder by --tokenizer")
    if tokenizer.convert_ids_to_tokens(LavinConfig().image_token_id) != "<0x00>":
        raise ConversionError(f"{folder} holds another tokenizer than LLaMA's; LaVIN needs LLaMA 1's or 2's")
    return tokenizer


def _processor(tokenizer: LlamaTokenizer, config: LavinConfig) -> LavinProcessor:
    vision: Any = config.vision_config
    images = CLIPImageProcessorPil(
        size={"height": vision.image_size, "width": vision.image_size},
        do_center_crop=False,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    return LavinProcessor(images, tokenizer, len(config.vision_feature_layers), config.image_token_id)
