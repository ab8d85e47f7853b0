"""Files in the place of METER's and LaVIN's checkpoints."""

import argparse
import json
import pickle
import shutil
import tempfile
import zipfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import lavin_original
import meter_original
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig

from eas.convert.lavin import convert_adapter, convert_base
from eas.convert.meter import convert, read_checkpoint
from malformed import Case, flipped
from malformed.records import DAMAGE, NOT_A_FILE

PTH = {  # what torch.save may have been given, and what the refusal names
    "a class": {"model": Fraction, "state_dict": Fraction},
    "a list": [torch.zeros(3)],
    "nothing": {},
    "numbers as names": {"model": {1: torch.zeros(3)}, "state_dict": {1: torch.zeros(3)}},
    "numbers as tensors": {"model": {"a": 1}, "state_dict": {"a": 1}},
    "an expanded tensor": {k: {"a": torch.zeros(1).expand(10**6, 10**6)} for k in ("model", "state_dict")},
    "integers": {k: {"a": torch.zeros(3, dtype=torch.int64)} for k in ("model", "state_dict")},
    "a sparse tensor": {k: {"a": torch.eye(3).to_sparse()} for k in ("model", "state_dict")},
    "no storage": {k: {"a": torch.zeros(3, device="meta")} for k in ("model", "state_dict")},
    "another model's": {k: {"a": torch.zeros(3)} for k in ("model", "state_dict")},
}


def packed(path):
    """Sixty megabytes in a few kilobytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(60_000_000))


def writers(good):
    """Every way in which a file of torch.save is not what it should be."""
    yield from NOT_A_FILE.items()
    yield from ((name, lambda path, how=how: path.write_bytes(how(good()))) for name, how in DAMAGE.items())
    yield from ((name, lambda path, content=content: torch.save(content, path)) for name, content in PTH.items())
    yield "packed", packed
    yield "a pickle", lambda path: path.write_bytes(pickle.dumps({"a": 1}))
    yield "of a torch before 1.6", lambda path: torch.save({}, path, _use_new_zipfile_serialization=False)


@cache
def meter_state():
    return meter_original.checkpoint("vqa")


@cache
def meter_bytes():
    path = Path(tempfile.mkdtemp()) / "meter.ckpt"
    torch.save({"state_dict": meter_state()}, path)
    return path.read_bytes()


def meter(name, write, names, may_read=False):
    def make(folder):
        write(folder / "meter.ckpt")
        return lambda: convert(read_checkpoint(folder / "meter.ckpt"))

    return Case(f"meter: {name}", make, names, may_read)


def meter_with(key, new, names="METER"):
    def write(path):
        state = dict(meter_state())
        tensor = state.pop(key)
        torch.save({"state_dict": state if new is None else state | {key: new(tensor)}}, path)

    shown = "missing" if new is None else tuple(new(torch.ones(6, 6)).shape)
    return meter(f"{key} {shown}", write, names)


WORDS, LAYER = (
    "text_transformer.embeddings.word_embeddings.weight",
    "cross_modal_text_layers.0.attention.self.query.weight",
)
POSITIONS, QKV = "vit_model.visual.positional_embedding", "vit_model.visual.transformer.resblocks.0.attn.in_proj_weight"
SHAPES = (
    None,
    lambda t: torch.zeros(()),
    lambda t: torch.zeros(7),
    lambda t: torch.zeros(10**6, 1),
    lambda t: torch.zeros(0, 0),
    lambda t: t * float("nan"),
)


def layer_too_many(path):
    torch.save({**meter_state(), "cross_modal_text_layers.999999.output.dense.bias": torch.zeros(1)}, path)


METER = [
    *(meter(name, write, "meter.ckpt|METER|head of") for name, write in writers(meter_bytes)),
    *(
        meter_with(key, new, "METER|in_proj")
        for key in (WORDS, LAYER, POSITIONS, QKV, "cross_modal_text_transform.weight", "token_type_embeddings.weight")
        for new in SHAPES
    ),
    meter("layer 999,999", layer_too_many, "some layers"),
    *(
        meter(f"flipped bytes, seed {s}", lambda p, s=s: p.write_bytes(flipped(meter_bytes(), s)), "ckpt|METER", True)
        for s in range(4)
    ),
]


@cache
def lavin_files():
    """LLaMA, CLIP and LaVIN's checkpoint, tiny, as they are published, and the base made of them."""
    folder, size, vit = Path(tempfile.mkdtemp()), lavin_original.TINY_LLAMA, lavin_original.TINY_VIT
    llama = lavin_original.random_state(lavin_original.llama_shapes(**size), 0)
    (folder / "llama").mkdir()
    params = {"dim": size["dim"], "n_heads": 4, "n_layers": 3, "norm_eps": 1e-6}
    (folder / "llama" / "params.json").write_text(json.dumps(params))
    torch.save(llama, folder / "llama" / "consolidated.00.pth")
    lavin_original.letters().save_pretrained(folder / "llama")
    vision = {"hidden_size": vit["width"], "intermediate_size": 4 * vit["width"], "num_hidden_layers": vit["blocks"]}
    vision |= {"num_attention_heads": 4, "image_size": vit["patch"] * vit["grid"], "patch_size": vit["patch"]}
    CLIPConfig(vision_config=vision).save_pretrained(folder / "clip")
    clip = lavin_original.random_state(lavin_original.clip_shapes(**vit), 1)
    save_file(clip, folder / "clip" / "model.safetensors")
    lavin = lavin_original.lavin_shapes(size["dim"], size["layers"], vit["width"], vit["blocks"])
    content = {"model": lavin_original.random_state(lavin, 2), "args": argparse.Namespace(temperature=10.0)}
    torch.save(content, folder / "lavin.pth")
    convert_base(folder / "llama", folder / "clip", folder / "base", adapter=folder / "lavin.pth")
    return folder


def lavin(name, change, names, adapter=False, may_read=False):
    """A base or, with ``adapter``, an adapter made of files of which ``change`` made something else."""

    def make(folder):
        here = folder / "files"
        shutil.copytree(lavin_files(), here)
        change(here)
        if adapter:
            return lambda: convert_adapter(here / "lavin.pth", here / "base", folder / "adapter")
        return lambda: convert_base(here / "llama", here / "clip", folder / "new")

    return Case(f"lavin: {name}", make, names, may_read)


def instead(file, write):
    def change(folder):
        (folder / file).unlink()
        write(folder / file)

    return change


def content_of(file):
    return lambda: (lavin_files() / file).read_bytes()


def in_params(key, new):
    def change(folder):
        path = folder / "llama" / "params.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: new}))

    return lavin(f"params.json {key} {new!r}", change, "params.json|llama")


def in_args(new):
    def change(folder):
        content = torch.load(folder / "lavin.pth", weights_only=False)  # the test's own file
        torch.save(content | {"args": new}, folder / "lavin.pth")

    return lavin(f"args {new!r}"[:60], change, "lavin.pth.*args", adapter=True)


def in_pth(file, where, key, new, names):
    def change(folder):
        content = torch.load(folder / file, weights_only=False)  # the test's own file
        state = content[where] if where else content
        state[key] = new(state[key])
        torch.save(content, folder / file)

    return lavin(f"{key} {tuple(new(torch.ones(6, 6)).shape)}", change, names, adapter=where is not None)


CONSOLIDATED = "llama/consolidated.00.pth"
LAVIN = [
    *(
        lavin(f"{CONSOLIDATED} {n}", instead(CONSOLIDATED, w), "llama|LLaMA")
        for n, w in writers(content_of(CONSOLIDATED))
    ),
    *(
        lavin(f"lavin.pth {n}", instead("lavin.pth", w), "lavin.pth", adapter=True)
        for n, w in writers(content_of("lavin.pth"))
    ),
    *(
        lavin(
            f"{file} {name}",
            instead(file, lambda path, how=how, file=file: path.write_bytes(how(content_of(file)()))),
            names,
        )
        for file, names in (
            ("llama/params.json", "params.json"),
            ("llama/tokenizer.json", "tokenizer"),
            ("clip/config.json", "config.json"),
            ("clip/model.safetensors", "model.safetensors"),
        )
        for name, how in DAMAGE.items()
    ),
    *(
        in_params(key, new)
        for key, values in {
            "dim": (10**9, 0, -1, "32", 32.0, None, 33),
            "n_layers": (10**6, 2, 0, -1, "3", None, True),
            "n_heads": (0, 3, 10**9, None),
            "norm_eps": ("x", None, float("nan")),
            "n_kv_heads": (10**9, 3, "x"),
        }.items()
        for new in values
    ),
    *(
        in_args(new)
        for new in ({"temperature": "x"}, argparse.Namespace(temperature=None), argparse.Namespace(temperature=0.0))
    ),
    *(
        in_args(argparse.Namespace(**{k: v}))
        for k in ("temperature", "adapter_scale")
        for v in (float("nan"), 1e300, [1])
    ),
    *(
        in_pth("lavin.pth", "model", key, new, "lavin.pth|checkpoint")
        for key in ("module.layers.0.adapter_attn.conv_A.weight", "module.layers.1.adapter_attn.conv_B.weight")
        for new in SHAPES[1:]
    ),
    *(
        in_pth(CONSOLIDATED, None, key, new, "llama|LLaMA|checkpoint")
        for key in ("layers.0.attention.wq.weight", "tok_embeddings.weight", "layers.0.feed_forward.w1.weight")
        for new in SHAPES[1:]
    ),
]
CASES = [*METER, *LAVIN]
