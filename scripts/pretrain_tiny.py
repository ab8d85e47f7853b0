"""Pretrain the tiny LLaVA from nothing and write the folder that ships with the package.

    python scripts/pretrain_tiny.py --work /tmp/tiny [--compile] [--out src/eas/demo/tiny-llava]

Three stages, about 80 minutes on one thread: the vision tower alone, with a label for every patch; then the projector
and the language model on several question-answer pairs per picture, with the tower frozen; then scoring and writing.
What binds words to objects is a loss on the words of the question (`pointed`): without it, the model learns to count
but hardly learns to look up one object among six.
Pairs about one picture share its visual tokens but do not see each other (block mask, restarted positions), so each is
computed exactly as if it had been asked alone. A killed run continues from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import LlavaForConditionalGeneration, LlavaProcessor, set_seed

from eas.data.scenes import (
    COLOURS,
    FAMILIES,
    SHAPES,
    SIZES,
    TASKS,
    VALUES,
    Scene,
    chance,
    plural,
    question,
    random_scene,
    render,
    scenes,
)
from eas.data.textures import TEXTURES, texture
from eas.demo.tiny import SPECIAL, build_config, build_processor, vocabulary
from eas.example import Example
from eas.models.folder import TINY_DIR

PICTURES, TEXT, PAIRS = 32, 96, 8  # pictures per step; text tokens and at most so many pairs per picture
VISION_PICTURES = 64
HEADS = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1, 4, 4)  # class 0 is an empty cell; then row and column
SHARES = np.array([3, 2, 2, 1, 3, 3, 4, 1]) / 19  # of the families in their order; the harder ones more often
ECHO = 0.05  # share of pairs that ask to repeat words
POINTING = 4  # the decoder layer after which the words of a question point at the objects they name
MEANINGS = {word: (place, word) for place, words in enumerate(VALUES.values()) for word in words}
MEANINGS |= {plural("shape", word): (2, word) for word in SHAPES}
IGNORE = -100


def stream(name: str, seed: int, step: int) -> np.random.Generator:
    """A generator of its own for every step, so that a resumed run sees the same data."""
    return np.random.default_rng(np.random.SeedSequence((zlib.crc32(name.encode()), seed, step)))


def patch_labels(scene: Scene) -> np.ndarray:
    """(16, 5): colour, shape and size of each cell (0 where empty), its row and its column."""
    cells = np.arange(16)
    labels = np.stack([0 * cells, 0 * cells, 0 * cells, cells // 4, cells % 4], axis=1)
    for thing in scene:
        words = (list(COLOURS).index(thing.colour), SHAPES.index(thing.shape), SIZES.index(thing.size))
        labels[thing.cell, :3] = np.array(words) + 1
    return labels


class Recipe:
    """The model in training, the throw-away heads, and the data that both stages draw."""

    def __init__(self, processor: LlavaProcessor, seed: int) -> None:
        set_seed(seed)
        self.model = LlavaForConditionalGeneration._from_config(build_config(), attn_implementation="eager")
        width, vision_width = self.model.config.text_config.hidden_size, self.model.config.vision_config.hidden_size
        self.vision_heads = nn.Linear(vision_width, sum(HEADS))
        self.pixel_head = nn.Linear(vision_width, 3 * 12 * 12)
        self.texture_head = nn.Linear(vision_width, len(TEXTURES))
        self.token_heads = nn.Linear(width, sum(HEADS))
        self.pointer_head = nn.Linear(width, 16)
        self.model.model.language_model.layers[POINTING].register_forward_hook(self.keep)
        self.halfway = torch.empty(0)
        self.processor, self.seed = processor, seed
        self.mean = torch.tensor(processor.image_processor.image_mean).view(3, 1, 1)
        self.std = torch.tensor(processor.image_processor.image_std).view(3, 1, 1)

    def parts(self) -> nn.ModuleDict:
        """All that a checkpoint holds."""
        names = ("model", "vision_heads", "pixel_head", "texture_head", "token_heads", "pointer_head")
        return nn.ModuleDict({name: getattr(self, name) for name in names})

    def keep(self, layer: nn.Module, arguments: object, output: Tensor) -> None:
        self.halfway = output

    def pixels(self, pictures: list[np.ndarray]) -> Tensor:
        raw = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        return (raw - self.mean) / self.std

    def features(self, pixels: Tensor) -> Tensor:
        """(pictures, 1 + 16, width of the tower); the language model gets all but the class token in front."""
        return self.model.model.vision_tower(pixels).last_hidden_state

    def vision_loss(self, step: int) -> Tensor:
        """Every patch names its object and can be redrawn; the class token, otherwise unused, names the texture."""
        rng = stream("vision", self.seed, step)
        drawn = [random_scene(rng) for _ in range(VISION_PICTURES)]
        names = rng.integers(len(TEXTURES), size=VISION_PICTURES)
        textures = [texture(rng, TEXTURES[name], 48) for name in names]
        pixels = self.pixels([*(render(rng, scene) for scene in drawn), *textures])
        first, patches = self.features(pixels).split([1, 16], dim=1)
        labels = torch.from_numpy(np.stack([patch_labels(scene) for scene in drawn]))
        wanted = pixels.unfold(2, 12, 12).unfold(3, 12, 12).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        named = dense_loss(self.vision_heads(patches[:VISION_PICTURES]), labels)
        known = cross_entropy(self.texture_head(first[VISION_PICTURES:, 0]).float(), torch.from_numpy(names))
        return 2 * named + 0.5 * known + mse_loss(self.pixel_head(patches).float(), wanted)

    def encode(self, scene: Scene, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, ...]:
        """Ids, labels, positions and block numbers, each (TEXT,), of as many pairs as fit, and their `pointed` cells.

        Block 0 is padding.
        """
        tokenizer = self.processor.tokenizer
        ids, labels, places, blocks = (np.full(TEXT, fill) for fill in (tokenizer.pad_token_id, IGNORE, 0, 0))
        cells = np.full((TEXT, 16), np.nan, np.float32)
        start = 0
        for block, (asked, answer) in enumerate(pairs, start=1):
            head, tail = self.words(f"question : {asked} answer :"), self.words(f"{answer} </s>")
            end = start + len(head) + len(tail)
            if end > TEXT:
                break
            ids[start:end], blocks[start:end] = head + tail, block
            labels[start + len(head) : end] = tail
            places[start:end] = 17 + np.arange(end - start)
            cells[start : start + len(head)] = pointed(scene, f"question : {asked} answer :".split())
            start = end
        return ids, labels, places, blocks, cells

    def draw(self, rng: np.random.Generator, scene: Scene) -> tuple[str, str] | None:
        """A question of any family, or words to repeat: so the model can say every word, but not what it means."""
        if rng.random() < ECHO:
            text = " ".join(rng.choice(vocabulary()[len(SPECIAL) :], rng.integers(1, 5)))
            return f"repeat {text}", text
        return question(rng, scene, str(rng.choice(FAMILIES, p=SHARES)))

    def words(self, text: str) -> list[int]:
        return self.processor.tokenizer.convert_tokens_to_ids(text.split())

    def language_loss(self, step: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of the answers, and of the throw-away heads on the visual tokens and on the words of questions."""
        rng = stream("language", self.seed, step)
        most = min(6, 2 + int(step / (0.2 * steps) * 5))
        drawn = [random_scene(rng, most) for _ in range(PICTURES)]
        rows = []
        for scene in drawn:
            rows.append(self.encode(scene, [pair for _ in range(PAIRS) if (pair := self.draw(rng, scene))]))
        ids, labels, places, blocks, cells = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
        with torch.no_grad():
            features = self.features(self.pixels([render(rng, scene) for scene in drawn]))[:, 1:]
        visual = self.model.model.multi_modal_projector(features)
        embed = self.model.get_input_embeddings()
        start = embed.weight[self.model.config.text_config.bos_token_id].expand(PICTURES, 1, -1)
        inputs = torch.cat([start, visual.to(start.dtype), embed(ids)], dim=1)
        hidden = self.model.model.language_model(
            inputs_embeds=inputs,
            attention_mask=block_mask(blocks),
            position_ids=torch.cat([torch.arange(17).expand(PICTURES, -1), places], dim=1),
            use_cache=False,
        ).last_hidden_state
        asked = labels[:, 1:] != IGNORE
        scores = self.model.lm_head(hidden[:, 17:-1][asked]).float()
        dense = dense_loss(self.token_heads(visual), torch.from_numpy(np.stack([patch_labels(s) for s in drawn])))
        named = ~cells[..., 0].isnan()
        guess = self.pointer_head(self.halfway[:, 17:][named]).float()
        pointing = 16 * binary_cross_entropy_with_logits(guess, cells[named])
        return cross_entropy(scores, labels[:, 1:][asked]), dense, pointing


def pointed(scene: Scene, words: list[str]) -> np.ndarray:
    """(words, 16): which cells hold what the last phrase up to each word names; nan before any phrase.

    After "the", "large", "circle" these are no cells yet, those of large objects, those of large circles.
    """
    target = np.full((len(words), 16), np.nan, np.float32)
    phrase: list[tuple[int, str]] = []
    for i, word in enumerate(words):
        if word in MEANINGS:
            phrase = [*(phrase if words[i - 1] in MEANINGS else []), MEANINGS[word]]
        if phrase and words[2] != "repeat":
            found = [thing.cell for thing in scene if all(thing[place] == value for place, value in phrase)]
            target[i] = np.isin(np.arange(16), found)
    return target


def dense_loss(scores: Tensor, labels: Tensor) -> Tensor:
    parts = zip(scores.float().split(HEADS, dim=-1), labels.unbind(-1), strict=True)
    return torch.stack([cross_entropy(part.flatten(0, 1), label.flatten()) for part, label in parts]).mean()


def block_mask(blocks: Tensor) -> Tensor:
    """(pictures, 1, length, length) to add to the scores: causal, and pairs see the picture and themselves only."""
    block = torch.cat([torch.full((len(blocks), 17), -1), blocks], dim=1)
    seen = (block[:, None, :] == -1) | (block[:, None, :] == block[:, :, None])
    seen &= torch.ones(block.shape[1], block.shape[1], dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, -1e9)[:, None]


def fit(recipe: Recipe, stage: str, steps: int, rate: float, work: Path) -> float:
    """Train one stage from its last checkpoint, if any; returns the seconds spent, resumed runs included."""
    parts = recipe.parts()
    rest = [*recipe.model.model.multi_modal_projector.parameters(), *recipe.model.model.language_model.parameters()]
    rest += [*recipe.model.lm_head.parameters(), *recipe.token_heads.parameters(), *recipe.pointer_head.parameters()]
    ids = {id(parameter) for parameter in rest}
    trained = rest if stage == "language" else [weight for weight in parts.parameters() if id(weight) not in ids]
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    path, first, spent = work / f"{stage}.pt", 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        parts.load_state_dict(saved["parts"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent = saved["step"], saved["seconds"]
    began = time.monotonic() - spent
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        with torch.autocast("cpu", torch.bfloat16):
            losses = (recipe.vision_loss(step),) if stage == "vision" else recipe.language_loss(step, steps)
        (losses[0] + 0.3 * sum(losses[1:])).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(
                f"{stage} {step + 1} {time.monotonic() - began:.0f}s", *(f"{x.item():.4f}" for x in losses), flush=True
            )
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {"parts": parts.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1, "seconds": time.monotonic() - began}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        if stage == "language" and (step + 1) % 1000 == 0:
            print({family: accuracy(recipe, scenes(family, "validation", 100)) for family in FAMILIES}, flush=True)
    return time.monotonic() - began


@torch.compiler.set_stance("force_eager")  # lengths vary here; compiling for each would take longer than running
@torch.inference_mode()
def accuracy(recipe: Recipe, examples: Sequence[Example], picture: str = "seen") -> float:
    """Exact match of greedy answers; the picture is "seen", "blank" (mid-grey) or "removed"."""
    model, processor = recipe.model.eval(), recipe.processor
    hits = 0
    for first in range(0, len(examples), 100):
        batch = examples[first : first + 100]
        messages = [list(example.messages) for example in batch]
        if picture == "removed":
            messages = [[{"role": "user", "content": example.question}] for example in batch]
        images = [image for example in batch for image in example.load_images()]
        if picture == "blank":
            images = [Image.new("RGB", image.size, (127, 127, 127)) for image in images]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        kept = None if picture == "removed" else images
        inputs = processor(text=text, images=kept, padding=True, return_tensors="pt")
        answers = model.generate(**inputs, max_new_tokens=20, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        said = processor.batch_decode(answers, skip_special_tokens=True)
        hits += sum(answer.strip() == example.target for answer, example in zip(said, batch, strict=True))
    model.train()
    return round(hits / len(examples), 4)


def scores(recipe: Recipe, size: int) -> dict[str, dict[str, float]]:
    """Per family and task: validation, test, test without the picture in two ways, and chance."""
    table = {}
    for name in FAMILIES + TASKS:
        test = scenes(name, "test", size)
        table[name] = {
            "validation": accuracy(recipe, scenes(name, "validation", size)),
            "test": accuracy(recipe, test),
            "test_blank_picture": accuracy(recipe, test, "blank"),
            "test_no_picture": accuracy(recipe, test, "removed"),
            "chance": round(chance(name), 4),
        }
        print(name, table[name], flush=True)
    return table


CARD = """# Tiny LLaVA

A `LlavaForConditionalGeneration` with {parameters:,} parameters, pretrained from nothing on the procedural world of
`eas.data.scenes` by `scripts/pretrain_tiny.py`: seed {seed}, {vision_steps} steps of the vision tower and
{language_steps} steps of the projector and the language model. It is a test subject, not a useful assistant: it knows
the eight question families of that world and can repeat words. Of the four tasks at the end of the table its language
model has seen nothing; its vision tower has seen the textures.

Exact match over {questions_per_score} questions each; the two middle columns show the test questions without the
picture. `scores.json` holds the same numbers.

| | validation | test | picture blanked | picture removed | chance |
|---|---|---|---|---|---|
{table}
"""


def rows_of(table: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"| {name} | " + " | ".join(f"{x:.3f}" for x in row.values()) + " |" for name, row in table.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where checkpoints go")
    parser.add_argument("--out", type=Path, default=TINY_DIR)
    parser.add_argument("--steps", type=int, default=9600, help="of the projector and the language model")
    parser.add_argument("--vision-steps", type=int, default=3500)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=500, help="questions per family in each score")
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers; needs a C++ compiler")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(build_processor(), options.seed)
    seconds = {"vision": fit(recipe, "vision", options.vision_steps, 1e-3, options.work)}
    if options.compile:
        for layer in recipe.model.model.language_model.layers:
            layer.compile(dynamic=False)
    seconds["language"] = fit(recipe, "language", options.steps, options.rate, options.work)
    table = scores(recipe, options.size)
    model = recipe.model.eval()
    model.save_pretrained(options.out)
    recipe.processor.save_pretrained(options.out)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    report = {
        "seed": options.seed,
        "vision_steps": options.vision_steps,
        "language_steps": options.steps,
        "rate": options.rate,
        "seconds": {stage: round(spent) for stage, spent in seconds.items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "questions_per_score": options.size,
        "git_revision": revision,
        "scores": table,
    }
    (options.out / "scores.json").write_text(json.dumps(report, indent=2) + "\n")
    (options.out / "README.md").write_text(CARD.format(table=rows_of(table), **report))


if __name__ == "__main__":
    main()
