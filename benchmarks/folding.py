"""What freezing the router and quantising cost a tuned model: loss on the validation split, relative error of logits.

python benchmarks/folding.py RUN_FOLDER > benchmarks/folding.json

The folder is that of a finished EAS run with an input router on the embedded model, as `eas demo` and the runs of
`eas compare --config benchmarks/methods.yaml` are.
"""

import json
import sys
import tempfile
from typing import Any

import torch

import eas
from eas.attachment.quantised import QUANTISERS
from eas.attachment.save import library_versions
from eas.measure.latency import git_revision
from eas.models.anatomy import Anatomy
from eas.pipeline.run import Run
from eas.tasks.collate import Collator

EXAMPLES, BATCH = 96, 16
TRAINING, VALIDATION = "train", "validation"

run = Run.open(sys.argv[1])
batches: dict[str, list[dict[str, Any]]] = {}
for split in (TRAINING, VALIDATION):
    examples = [run.data(split)[i] for i in range(EXAMPLES)]
    batches[split] = [
        Collator(run.processor, training=True)(examples[i : i + BATCH]) for i in range(0, EXAMPLES, BATCH)
    ]
prompts = Collator(run.processor, training=False)([run.data(VALIDATION)[i] for i in range(BATCH)])


@torch.inference_mode()
def loss(model: Any) -> float:
    return round(sum(float(model(**batch).loss) for batch in batches[VALIDATION]) / len(batches[VALIDATION]), 4)


model = eas.load(run.load_base(), run.folder / "adapter").eval()
record: dict[str, Any] = {
    "data": run.config.data,
    "skip_set": eas.skip_set(model),
    "examples": EXAMPLES,
    "loss": {"input router": loss(model)},
    "loss on the frozen router's data": eas.freeze_router(model, batches[TRAINING])._asdict(),
    "quantised": {},
}
record["loss"]["constant router"] = loss(model)
with tempfile.TemporaryDirectory() as adapter:
    eas.save(model, adapter)
    for name, quantise in QUANTISERS.items():
        base = run.load_base()
        layers = Anatomy.of(base).layers
        for path, module in list(layers.named_modules()):
            if isinstance(module, torch.nn.Linear):
                layers.set_submodule(path, quantise(module))
        quantised = eas.load(base, adapter).eval()
        folded, lost = eas.fold_quantised(quantised, prompts, name)
        record["quantised"][name] = {
            "mode": lost.mode,
            "relative error of logits": {"folded": lost.folded, "quantised again": lost.quantised},
            "loss": {"quantised, unfolded": loss(quantised), "folded, quantised again": loss(folded)},
        }
print(json.dumps({**record, "git_revision": git_revision(), "versions": library_versions()}))
