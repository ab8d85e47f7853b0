"""What int8 and int4 weights cost in accuracy, with and without skipped attentions: runs of a comparison.

python benchmarks/smol_quantised.py runs/smol/runs/LoRA-k0-s0 ... > benchmarks/smol_quantised.json

Every tuned model is folded, as it would be served. Then torchao gives the maps of the language model's blocks int8
weights (one scale per output) or int4 weights (one scale per 64 inputs). Maps of the PIAs stay as they are. Times are
not measured: docs/bench.md has those of int8 at larger widths, compiled.
"""

import json
import sys

import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

from eas.attachment.attach import fold
from eas.attachment.load import load
from eas.attachment.save import library_versions
from eas.measure.latency import git_revision, hardware
from eas.models.anatomy import Anatomy
from eas.pipeline import Run
from eas.pipeline.savings import fold_mode

GROUP = 64
WEIGHTS = {
    "bfloat16": None,
    "int8": Int8WeightOnlyConfig(),
    "int4": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP)),
}


def is_map(module, path):
    """A map of the base: PIAs and LoRA have thinner ones."""
    return isinstance(module, nn.Linear) and min(module.weight.shape) >= GROUP


def main(folders):
    results = []
    for folder in folders:
        run = Run.open(folder)
        row = {"run": run.folder.name, "row": run.require("result")["row"], "seed": run.config.seed, "test": {}}
        for name, config in WEIGHTS.items():
            model = load(run.load_base(), run.folder / "adapter").eval()
            fold(model, fold_mode(run))
            if config is not None:
                quantize_(Anatomy.of(model).text_model, config, is_map)
            size = run.config.eval_batch_size
            row["test"][name] = run.task.evaluate(run, model, "test", "folded", size).score
        row["examples"] = len(run.data("test"))
        results.append(row)
        print(row, file=sys.stderr)
    known = {"git_revision": git_revision(), "versions": library_versions(), "hardware": hardware()}
    print(json.dumps({"runs": results, "group": GROUP, **known}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
