"""What a round of the search costs: its sets scored one by one, and sharing what they have in common, alternated.

python benchmarks/rounds.py [repeats, 20] > benchmarks/rounds.json

Every repeat scores new sets, uniformly drawn: m of them, which skip a third of the attentions. "saved" is the share of
block evaluations that a common prefix spares, the mean over repeats; "bound_of_blocks" is the speed-up that it allows.
The vision tower runs once and the head reads answers only, so that the measured speed-up may exceed it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import eas
from eas.data.scenes import scenes
from eas.demo.tiny import load_tiny
from eas.measure.latency import Spread, git_revision, hardware
from eas.searching import random_skip_set
from eas.searching.scoring import block_evaluations, score_sets
from eas.tasks.collate import Collator

IMAGE, LAYERS = 3, 12


def tiny() -> tuple[Any, dict[str, Tensor]]:
    """The embedded model and a round's default batch, 32 examples."""
    model, processor = load_tiny()
    return model, Collator(processor, training=True)(scenes("textures", "train", 32))


def wide() -> tuple[Any, dict[str, Tensor]]:
    """A LLaVA with a Llama of its proportions and vocabulary, d = 512, random weights; 4 prompts of 64 + 48 tokens."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
    )
    text = LlamaConfig(hidden_size=512, intermediate_size=1408, num_hidden_layers=LAYERS, num_attention_heads=8)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE))
    ids = torch.cat([torch.full((4, 64), IMAGE), torch.randint(10, 32000, (4, 52))], 1)
    labels = ids.clone()
    labels[:, :-4] = -100
    pixels = torch.randn(4, 3, 112, 112)
    return model.eval(), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "labels": labels,
    }


@torch.no_grad()
def one_by_one(model: Any, inputs: dict[str, Tensor], skip_sets: list[tuple[int, ...]]) -> list[float]:
    """The losses, each from a forward pass of its own."""
    losses = []
    for skip_set in skip_sets:
        eas.select(model, skip_set)
        losses.append(float(model(**inputs).loss))
    return losses


def compare(model: Any, inputs: dict[str, Tensor], samples: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a round both ways, and how far their losses are apart."""
    took: dict[str, list[float]] = {"plain": [], "shared": []}
    ratios, saved, apart = [], [], 0.0
    for repeat in range(repeats + 1):  # the first warms up
        sets = [random_skip_set(LAYERS, LAYERS // 3, repeat, i) for i in range(samples)]
        start = time.perf_counter()
        plain = one_by_one(model, inputs, sets)
        between = time.perf_counter()
        shared = score_sets(model, inputs, sets)
        end = time.perf_counter()
        apart = max(apart, *(abs(a - b) for a, b in zip(plain, shared, strict=True)))
        if repeat:
            took["plain"].append(1000 * (between - start))
            took["shared"].append(1000 * (end - between))
            ratios.append((between - start) / (end - between))
            saved.append(1 - block_evaluations(model, sets) / (samples * LAYERS))
    mean = sum(saved) / repeats
    return {
        "samples": samples,
        "ms": {name: vars(Spread.of(values)) for name, values in took.items()},
        "speedup": vars(Spread.of(ratios)),
        "saved": mean,
        "bound_of_blocks": 1 / (1 - mean),
        "largest_difference": apart,
    }


if __name__ == "__main__":
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    result: dict[str, Any] = {"repeats": repeats, "layers": LAYERS, "skip": LAYERS // 3}
    for name, build in (("tiny", tiny), ("wide", wide)):
        model, inputs = build()
        eas.attach(model, eas.EASConfig(LAYERS // 3, skip_rank=32, adapt_rank=16))
        rounds = [compare(model, inputs, samples, repeats) for samples in (3, 8)]
        result[name] = {"batch": list(inputs["input_ids"].shape), "rounds": rounds}
    print(json.dumps({**result, "git_revision": git_revision(), "hardware": hardware()}))
