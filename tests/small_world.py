"""Tiny stand-ins for the models, data and files that the pages of the documentation name, each in its place."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import exports
import lavin_original
import meter_original
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import save_file
from test_meter import tokenizer
from test_meter_runs import DATA, picture

from eas.data.scenes import scenes
from eas.data.scienceqa_text import IDS
from eas.example import Example
from eas.models.folder import TINY_DIR
from eas.pipeline import Run, RunConfig, run_steps

FEW = {
    "search.warmup_steps": 1,
    "search.interval": 1,
    "search.batch_size": 4,
    "train.search_steps": 2,
    "train.tune_steps": 1,
    "train.batch_size": 2,
    "train.accumulation": 1,
    "eval_batch_size": 4,
    "max_new_tokens": 4,
    "train_limit": 16,
    "validation_limit": 4,
    "test_limit": 6,
    "benchmark_repeats": 1,
    "benchmark_new_tokens": 2,
}
"""What makes a run short."""
RESIDUAL = {"method.router": "constant", "method.pooling": "none"}
"""EAS that every engine and every fold takes."""


def llava(folder: Path) -> None:
    """As deep as a command may skip attentions, and narrow."""
    shutil.copytree(TINY_DIR, folder, ignore=shutil.ignore_patterns("model.safetensors", "README.md", "scores.json"))
    config = tf.AutoConfig.from_pretrained(folder)
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8}
    for name, value in {**narrow, "num_key_value_heads": 4, "num_hidden_layers": 16}.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    tf.LlavaForConditionalGeneration(config).save_pretrained(folder)


def words(folder: Path) -> None:
    """A language model that reads letters, as deep as SmolLM2."""
    exports.base(num_hidden_layers=30, max_position_embeddings=1024).save_pretrained(folder)
    exports.words().save_pretrained(folder)


def conversation(folder: Path, example: Example, seeing: bool) -> dict[str, object]:
    if not seeing:
        return {"id": example.id, "prompt": example.question, "completion": example.target}
    example.load_images()[0].save(folder / f"{example.id}.png")
    human = {"from": "human", "value": f"<image>\n{example.question}"}
    turns = [human, {"from": "gpt", "value": example.target}]
    return {"id": example.id, "image": f"{example.id}.png", "conversations": turns}


def own_data(folder: Path, seeing: bool = True) -> None:
    for split in ("train", "validation", "test"):
        rows = [conversation(folder, example, seeing) for example in scenes("colour", split, 24)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def slake(folder: Path, shared: bool = False) -> None:
    """Where it is shared, a picture of training is one of the test's Chinese questions too, as in Slake."""
    first = {"train": 0, "validate": 20, "test": 30}
    for split, start in first.items():
        rows = []
        for i in range(start, start + 20 if split == "train" else start + 4):
            row = {
                "img_id": i,
                "img_name": f"xmlab{i}/source.jpg",
                "question": "what color ?",
                "answer": "red",
                "qid": i,
            }
            rows.append({**row, "q_lang": "en", "answer_type": "OPEN", "content_type": "Color", "triple": ["_"] * 3})
            (folder / "imgs" / f"xmlab{i}").mkdir(parents=True)
            Image.new("RGB", (20, 16), (i, 2 * i, 200)).save(folder / "imgs" / f"xmlab{i}" / "source.jpg", "PNG")
        if shared and split == "test":
            rows.append({**rows[0], "qid": 99, "q_lang": "zh", "img_name": "xmlab0/source.jpg"})
        (folder / f"{split}.json").write_text(json.dumps(rows))


def aid(folder: Path) -> None:
    for name in ("Airport", "Beach"):
        for i in range(1, 101):
            (folder / name).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (i, 2 * i, 200)).save(folder / name / f"{name.lower()}_{i}.jpg")


def science(folder: Path, splits: dict[str, list[str]]) -> None:
    """Problems of the given ids, none with an image."""
    problem = {"question": "which color ?", "choices": ["red", "blue"], "answer": 0, "hint": "", "image": None}
    problem |= {"task": "closed choice", "grade": "grade3", "subject": "natural science", "topic": "colors"}
    problem |= {"category": "Colors", "skill": "Name colors", "lecture": "", "solution": "It is red."}
    problems = {pid: {**problem, "split": split} for split, pids in splits.items() for pid in pids}
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(splits))


SCIENCE = {"train": [*map(str, range(24))], "val": [*map(str, range(24, 32))], "test": [*map(str, range(32, 40))]}
DEEP = {**lavin_original.TINY_LLAMA, "dim": 64, "ff": 128, "layers": 32}  # 4 bits share a scale by 64


def llama(folder: Path) -> None:
    size = {"dim": DEEP["dim"], "multiple_of": 16, "n_heads": 4, "n_layers": 32, "norm_eps": 1e-6, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(size))
    torch.save(lavin_original.random_state(lavin_original.llama_shapes(**DEEP), 0), folder / "consolidated.00.pth")
    lavin_original.letters().save_pretrained(folder.parent)


def clip(folder: Path) -> None:
    vit = lavin_original.TINY_VIT
    vision = {"hidden_size": vit["width"], "intermediate_size": 4 * vit["width"], "num_hidden_layers": vit["blocks"]}
    vision |= {"num_attention_heads": 4, "image_size": vit["patch"] * vit["grid"], "patch_size": vit["patch"]}
    tf.CLIPConfig(vision_config=vision).save_pretrained(folder)
    save_file(lavin_original.random_state(lavin_original.clip_shapes(**vit), 1), folder / "model.safetensors")


def lavin_checkpoint(file: Path) -> None:
    vit = lavin_original.TINY_VIT
    shapes = lavin_original.lavin_shapes(DEEP["dim"], 32, vit["width"], vit["blocks"])
    args = argparse.Namespace(temperature=2.0, adapter_scale=1.5, adapter_dim=8, n_prompt=6)
    torch.save({"model": lavin_original.random_state(shapes, 2), "args": args}, file)


def meter_checkpoint(file: Path, task: str) -> None:
    torch.save({"state_dict": meter_original.checkpoint(task, width=64, grid=2, layers=6, answers=5)}, file)


def lines(file: Path, *rows: dict[str, object]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@cache
def finished(kept: Path, seeing: bool) -> Path:
    """The folder of a run with all its steps."""
    model, data = kept / f"model-{seeing}", kept / f"data-{seeing}"
    data.mkdir()
    (llava if seeing else words)(model)
    own_data(data, seeing)
    given = {"model": str(model), "data": str(data), "method.num_skip": 4, "skip_set": [1, 3, 5, 6]}
    run_steps(
        Run.create(RunConfig().with_values({"output_dir": str(kept / f"run-{seeing}"), **given, **FEW, **RESIDUAL}))
    )
    return kept / f"run-{seeing}"


def questions(file: Path) -> None:
    picture(file.with_name("cat.png"), "cat")
    lines(file, *({"id": i, "image": "cat.png", "prompt": "what color ?"} for i in range(3)))


def comparison(folder: Path) -> None:
    shutil.copy(Path("benchmarks/methods.json"), folder / "comparison.json")


def stand_ins(kept: Path, seeing: bool) -> dict[str, Callable[[Path], None]]:
    """Name -> what makes it: of folders that end in "/" the folder is there already.

    Args:
        kept: folder of what is made once for all pages.
        seeing: whether the page's own model reads images.
    """

    def run(folder: Path) -> None:
        shutil.copytree(finished(kept, seeing), folder)

    return {
        "llava-hf/llava-1.5-7b-hf": llava,
        "words": words,
        "my_data/": partial(own_data, seeing=seeing),
        "cat.png": partial(picture, name="cat"),
        "cat.jpg": partial(picture, name="cat"),
        "questions.jsonl": questions,
        "SLAKE_DIR/": slake,
        "Slake/": partial(slake, shared=True),
        "data/Slake/": slake,
        "data/AID/": aid,
        "FOLDER/": lambda folder: science(folder, json.loads(IDS.read_text())),
        "data/ScienceQA/": lambda folder: science(folder, SCIENCE),
        "VQA/": DATA["vqa"],
        "data/VQA/": DATA["vqa"],
        "data/NLVR2/": DATA["nlvr2"],
        "data/Flickr30K/": DATA["retrieval"],
        "answers.jsonl": lambda file: lines(file, *({"question_id": i, "text": "red"} for i in range(30, 34))),
        "results.json": lambda file: file.write_text(
            json.dumps([{"question_id": 10 * i + j, "answer": "red"} for i in range(100, 114) for j in (0, 1)])
        ),
        "mine.yaml": lambda file: RunConfig(model="llava-hf/llava-1.5-7b-hf", data="my_data").to_file(file),
        "weights/7B/": llama,
        "clip/": clip,
        "checkpoint-19.pth": lavin_checkpoint,
        "other.pth": lavin_checkpoint,
        "meter_clip16_288_roberta_pretrain.ckpt": partial(meter_checkpoint, task="pretraining"),
        "meter_clip16_288_roberta_vqa.ckpt": partial(meter_checkpoint, task="vqa"),
        "roberta-base/": lambda folder: tokenizer().save_pretrained(folder),
        "runs/mine": run,
        "runs/demo": run,
        "runs/k4": run,
        "runs/k6": run,
        "runs/methods/": comparison,
    }
