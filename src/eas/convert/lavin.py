"""Converts LaVIN's files: LLaMA's and CLIP's weights to one base folder, a LaVIN checkpoint to an adapter for it.

The base is LaVIN before its training; ``eas``, ``das`` or any other method can be attached to it. LaVIN's own
checkpoint holds the weights that its training adds: it becomes an adapter of the method ``lavin_adapter``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlamaTokenizer
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from eas.attachment.attach import attach
from eas.attachment.save import save
from eas.attachment.state import SAMPLED
from eas.convert.lavin_weights import (
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
from eas.methods.lavin_adapter import LavinAdapterConfig
from eas.models.folder import model_config
from eas.models.lavin import LavinConfig, LavinForConditionalGeneration, LavinProcessor
from eas.records import misfit, raised_as, read_record
from eas.weights import FLOATING, Safetensors, is_finite, read_torch, require_finite, require_state

ZOO = "LaVIN's model zoo (github.com/luogen1996/LaVIN) links to them"
AGAIN = "copy or download it again"
CONVERT = "make the base again with --llama and --clip"
GROUPS = 2  # of all its adapters' up-projections; no option of the original


class Options(TypedDict):
    """The options of LaVIN that the conversion reads; missing ones have the original's defaults."""

    temperature: NotRequired[float]
    adapter_scale: NotRequired[float]


class Params(TypedDict):
    """Meta's params.json."""

    dim: int
    n_heads: int
    n_layers: int
    norm_eps: float
    n_kv_heads: NotRequired[int | None]


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
        ConversionError: a file is missing or does not fit.
        WriteError: the folder cannot be written.
    """
    words = _tokenizer([tokenizer] if tokenizer else [llama, llama.parent])
    with raised_as(ConversionError):
        text_config, weights = _llama(llama)
        vision, tower = _vision_config(clip), _weights(clip)
        options = _options(adapter, vision_adapter)
    _check_depth(vision.num_hidden_layers, tower, r"(?:vision_model\.)?encoder\.layers\.(\d+)\.", clip)
    layers = list(range(4, vision.num_hidden_layers + 1, 4))
    with _of_sizes(f"{llama} and {clip}"):
        config = LavinConfig(text_config=text_config, vision_config=vision, vision_feature_layers=layers, **options)
    with torch.device("meta"), _of_sizes(f"{llama} and {clip}"):
        tried = Conversion()
        names = {
            name: weight.shape
            for name, weight in chain(
                weights(tried, True), clip_weights(_on_meta(tower), tried), fresh_projector(config)
            )
        }
        expected = shapes(config)
    check(expected, names, f"{llama} and {clip}")
    report = Conversion()

    def pairs() -> Pairs:
        for name, weight in chain(weights(report, False), clip_weights(tower, report)):
            if not is_finite(weight):
                raise ConversionError(f"{name}, of {llama} or {clip}, holds NaN or infinite numbers; {AGAIN}")
            yield name, weight
        yield from fresh_projector(config)

    with raised_as(ConversionError):
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
        ConversionError: a file is missing or does not fit, or the base was made for other options.
        WriteError: the folder cannot be written.
    """
    with raised_as(ConversionError):
        state, given = _checkpoint(checkpoint)
        config, options = model_config(str(base)), _options(checkpoint, vision_adapter=True)
        weights = Safetensors(sorted(base.glob("*.safetensors")), CONVERT)
    if not isinstance(config, LavinConfig):
        raise ConversionError(f"{base} holds a {config.model_type} model, no LaVIN; {CONVERT}")
    for name, value in options.items():
        if (own := config.to_dict()[name]) != value:
            raise ConversionError(
                f"{checkpoint} has {name} = {value}, the base {base} has {own}; convert the base together with it"
            )
    report = Conversion()
    with _of_sizes(str(checkpoint)):
        pairs = dict(lavin_weights(state, GROUPS, given["scale"], report))
    with torch.device("meta"), _of_sizes(f"{checkpoint} and {base}"):
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
    check(
        {name: model.get_parameter(name).shape for name in model.eas.trained},
        {k: v.shape for k, v in pairs.items()},
        f"{checkpoint} and {base}",
    )
    with raised_as(ConversionError):
        require_finite(pairs.items(), checkpoint, AGAIN)
    model.load_state_dict(pairs, strict=False, assign=True)
    names = [
        f"model.language_model.layers.{i}.mlp.down_proj.weight" for i in range(len(model.model.language_model.layers))
    ]
    if missing := [name for name in names if name not in weights]:
        raise ConversionError(f"{base} has no weight {missing[0]}; {CONVERT}")
    model.eas.fingerprint = {name: weights.rows(name, 1, SAMPLED)[0].to(torch.bfloat16) for name in names}
    model.config.name_or_path = str(base)
    save(model, folder)
    return report


def _llama(folder: Path) -> tuple[LlamaConfig, Callable[[Conversion, bool], Pairs]]:
    """The configuration, and what gives the weights, on the meta device if wanted."""
    if not (folder / "params.json").is_file():
        config, state = _config(folder, "llama"), _weights(folder)
        _check_depth(config.num_hidden_layers, state, r"model\.layers\.(\d+)\.", folder)
        return config, lambda report, meta: hugging_face_llama_weights(_on_meta(state) if meta else state, report)
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise ConversionError(
            f"{folder} has params.json, but no consolidated.*.pth; copy Meta's weights into the folder"
        )
    params = read_record(folder / "params.json", Params, AGAIN)
    shards = [require_state(read_torch(file, AGAIN), file, AGAIN) for file in files]
    _check_depth(params["n_layers"], shards[0], r"layers\.(\d+)\.", folder)
    if params["dim"] < 1 or params["n_heads"] < 1 or params["dim"] % params["n_heads"]:
        raise ConversionError(f"{folder / 'params.json'}: dim must be a multiple of n_heads, both above 0; {AGAIN}")
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
    except (KeyError, IndexError) as error:
        raise ConversionError(f"{folder} holds no weights of a LLaMA ({error}); {AGAIN}") from error

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
    config = model_config(str(folder))
    if config.model_type not in kinds:
        raise ConversionError(f"{folder} holds a {config.model_type} model; give one of {' or '.join(kinds)}")
    return config


def _weights(folder: Path) -> Mapping[str, Tensor]:
    """Of a Hugging Face folder: its safetensors, or else its PyTorch files."""
    if files := sorted(folder.glob("model*.safetensors")):
        found = Safetensors(files, AGAIN)
        if strange := [key for key in found if found.dtypes[key] not in FLOATING and not key.endswith("position_ids")]:
            raise ConversionError(f"{folder}: {strange[0]} is of {found.dtypes[strange[0]]}, not of floats; {AGAIN}")
        return found
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ConversionError(f"{folder} has no model*.safetensors and no pytorch_model*.bin; download its weights")
    states = [require_state(read_torch(file, AGAIN), file, AGAIN) for file in files]
    return {key: tensor for state in states for key, tensor in state.items()}


def _check_depth(layers: int, state: Iterable[str], pattern: str, folder: Path) -> None:
    """Compares the number of layers that a configuration names with those that there are, before any is built."""
    found = {int(match[1]) for key in state if (match := re.match(pattern, key))}
    if found != set(range(min(layers, 1 + len(found)))):
        raise ConversionError(
            f"{folder}: its configuration names {layers} layers, its weights have {len(found)}; {AGAIN}"
        )


@contextmanager
def _of_sizes(what: str) -> Iterator[None]:
    """Within it a model is built, or weights are turned, of whatever sizes files name; some are impossible."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:  # whatever transformers and torch raise then
        raise ConversionError(f"{what} name sizes that do not make up a model ({error}); {AGAIN}") from error


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
    if not path.exists():
        raise ConversionError(f"{path} does not exist; {ZOO}")
    with torch.serialization.safe_globals([argparse.Namespace]):  # its options: names and values
        content = read_torch(path, f"download it again; {ZOO}")
    state = content.get("model") if isinstance(content, dict) else None
    names = {key.removeprefix("module."): t for key, t in require_state(state, path, AGAIN).items()}
    try:
        rank = names["layers.0.adapter_attn.conv_A.weight"].shape[0]
        projector = names["adapter_proj.conv_A.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise ConversionError(f"{path} has no {error.args[0]}; give a checkpoint of LaVIN's training; {ZOO}") from error
    args = content.get("args", argparse.Namespace())
    options = dict(vars(args)) if isinstance(args, argparse.Namespace) else args
    if wrong := misfit(options, Options, "args"):
        raise ConversionError(f"{path}: {wrong}; {AGAIN}")
    given = {"temperature": float(options.get("temperature", 10.0)), "scale": float(options.get("adapter_scale", 1.0))}
    if not 1e-6 <= given["temperature"] <= 1e6 or not abs(given["scale"]) <= 1e6:
        raise ConversionError(f"{path}: args.temperature and args.adapter_scale = {given} must be plausible; {AGAIN}")
    return names, {"rank": rank, "projector": projector, **given}


def _tokenizer(folders: list[Path]) -> LlamaTokenizer:
    names = ("tokenizer.json", "tokenizer.model")
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            try:
                tokenizer: LlamaTokenizer = LlamaTokenizer.from_pretrained(
                    folder, add_prefix_space=False, pad_token="<unk>", legacy=False
                )
            except Exception as error:  # whatever a damaged file makes its readers raise
                raise ConversionError(f"{folder}: its tokenizer cannot be read ({error}); {AGAIN}") from error
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
