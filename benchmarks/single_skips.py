"""What skipping each attention of the embedded model costs before any training: loss on its pretraining families.

python benchmarks/single_skips.py > benchmarks/single_skips.json
"""

import json

import torch

import eas
from eas.attachment.save import library_versions
from eas.data.scenes import FAMILIES, scenes
from eas.demo.tiny import load_tiny
from eas.measure.latency import git_revision
from eas.tasks.collate import Collator

EXAMPLES = 100

model, processor = load_tiny()
eas.attach(model, eas.EASConfig(1, skip_rank=4, adapt_rank=4, form="paper"))
layers = len(model.model.language_model.layers)
sets: list[tuple[int, ...]] = [
    (),
    *((i,) for i in range(layers)),
    tuple(range(layers // 2, layers)),
    tuple(range(2, layers)),
]
losses: dict[str, dict[str, float]] = {}
for family in FAMILIES:
    batch = Collator(processor, training=True)(scenes(family, "validation", EXAMPLES))
    losses[family] = {}
    for skip_set in sets:
        eas.select(model, skip_set)
        with torch.inference_mode():
            losses[family][str(list(skip_set))] = round(model(**batch).loss.item(), 4)
print(
    json.dumps({"examples": EXAMPLES, "loss": losses, "git_revision": git_revision(), "versions": library_versions()})
)
