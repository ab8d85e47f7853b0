"""Made-up results of runs and comparisons, and run folders that hold them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image


def spread(median: float, width: float = 0.04) -> dict[str, float]:
    return {"median": median, "low": median * (1 - width), "high": median * (1 + 2 * width)}


def times(base: float, folded: float, **more: Any) -> dict[str, Any]:
    variants = {
        name: {"prefill_ms": spread(ms), "decode_ms": spread(ms * 0.7)}
        for name, ms in (("base", base), ("folded", folded))
    }
    return {"prompt_tokens": 28, "new_tokens": 16, "repeats": 20, "variants": variants, **more}


def whole_result(layers: int = 12, k: int = 4) -> dict[str, Any]:
    """What a run of the tiny model leaves, with made-up numbers."""
    rng = random.Random(0)
    final = [rng.gauss(0, 1) for _ in range(layers)]
    ranking = sorted(range(layers), key=final.__getitem__)
    skip_set = sorted(ranking[:k])
    rounds = [
        {
            "step": 100 + 10 * i,
            "skip_sets": [rng.sample(range(layers), k) for _ in range(3)],
            "losses": [rng.random() for _ in range(3)],
            "importances": [v * (1 - math.exp(-i / 8)) + rng.gauss(0, 0.04) for v in final],
        }
        for i in range(30)
    ] + [{"step": 400, "skip_sets": [], "losses": [], "importances": final}]
    counts = {"macs": 84_512_768, "params_total": 3_600_000, "params_trained": 3_600_000, "weight_bytes": 12_800_000}
    counts |= {"kv_bytes_per_token": 12_288, "prompt_state_bytes": 0, "fold_macs": 0, "fold_bytes": 0}
    tuned = {**counts, "macs": 78_100_000, "params_trained": 152_408, "weight_bytes": 11_900_000}
    return {
        "versions": {"eas": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "git_revision": "8837ac11437e1d31874f1c60cc69487eedd8db43",
        "command": "eas run --output-dir runs/demo",
        "hardware": {"cpu": "Example CPU 9000", "threads": 2, "gpu": None, "system": "Linux x86_64", "torch": "2.13"},
        "config": {"model": "tiny", "data": "scenes:textures", "eas": {"num_skip": k, "skip_rank": 16}},
        "seed": 0,
        "model": {
            "id": "tiny",
            "class": "LlavaForConditionalGeneration",
            "layers": layers,
            "skip_set": skip_set,
            "k": k,
        },
        "task": {"data": "scenes:textures", "split": "test", "examples": 500, "chance": 1 / 15, "metric": "exact"},
        "accuracy": {"zero_shot": 0.074, "tuned": 0.706, "folded": 0.706},
        "counts": {"base": counts, "tuned": {**tuned, "kv_bytes_per_token": 8_192, "prompt_state_bytes": 400}},
        "latency": times(
            14.2, 12.9, larger=times(231.0, 187.0, name="Llama shape, d = 1024, 12 layers, [random] <weights>")
        ),
        "search": {
            "skip_set": skip_set,
            "ranking": ranking,
            "importances": final,
            "rounds": rounds,
            "round_seconds": 41.2,
        },
        "training": {
            "search": [{"step": s, "loss": 2.6 * math.exp(-s / 300) + 0.4 + 0.1 * rng.random()} for s in _every(400)],
            "tune": [{"step": s, "loss": 1.2 * math.exp(-s / 200) + 0.2 + 0.05 * rng.random()} for s in _every(600)],
            "seconds": {"search": 132.0, "tune": 170.5, "evaluate": None},
        },
        "samples": [
            {
                "id": f"test-{i}",
                "question": "which texture is the large square on the left ?",
                "target": "striped",
                "base": "red & <b>round</b>",
                "tuned": "Striped." if i else "dotted",
                "images": [f"samples/{i}.png"],
            }
            for i in range(6)
        ],
    }


def _every(steps: int) -> range:
    return range(10, steps + 1, 10)


def write(folder: Path, result: Any) -> Path:
    (folder / "samples").mkdir(exist_ok=True)
    for i in range(6):
        noise = random.Random(i).randbytes(12 * 12 * 3)
        Image.frombytes("RGB", (12, 12), noise).resize((48, 48), Image.Resampling.NEAREST).save(
            folder / f"samples/{i}.png"
        )
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def run_result(seed: int, k: int) -> dict[str, Any]:
    result = whole_result(k=k)
    result["seed"] = seed
    result["config"] = {"seed": seed, "output_dir": f"run{seed}", "method": {"num_skip": k}}
    result["model"]["method"] = "eas"
    result["accuracy"] |= {"tuned": 0.7 + 0.02 * seed, "folded": 0.7 + 0.02 * seed}
    result["counts"]["tuned"]["macs"] += 1_000_000 * (4 - k)
    result["latency"]["variants"]["folded"]["prefill_ms"]["median"] += 4 - k
    numbers = {"all": 40.0, "open questions": 30.0, "yes or no": 52.5}
    result["categories"] = {"zero_shot": dict.fromkeys(numbers, 10.0), "tuned": numbers, "folded": numbers}
    block = {"mha": 2_000_000, "ffn": 4_000_000, "other": 0, "kv_bytes": 1024}
    skipped = {"mha": 0, "ffn": 4_000_000, "other": 90_000, "kv_bytes": 0}
    tuned = [skipped if i in result["model"]["skip_set"] else block for i in range(12)]
    result["layers"] = {"base": [block] * 12, "tuned": tuned}
    return result


def comparison() -> dict[str, Any]:
    counts = {"macs": 100, "kv_bytes_per_token": 4096, "params_trained": 10}
    rows: list[dict[str, Any]] = [
        {"row": "base", "label": "base", "method": None, "k": 0, "seeds": [], "failed": 0, "counts": counts},
        {"row": "lora", "label": "lora", "method": "lora", "k": 0, "seeds": [], "failed": 2},
    ]
    for k, scores in ((2, [0.7, 0.74]), (6, [0.71, 0.69])):
        rows.append(
            {
                "row": f"EAS_{k}",
                "label": "EAS",
                "method": "eas",
                "k": k,
                "seeds": [0, 1],
                "failed": 0,
                "learning_rate": 0.003,
                "test": {"values": scores, "mean": sum(scores) / 2, "sd": 0.014},
                "counts": {**counts, "macs": 100 - 2 * k, "kv_bytes_per_token": 4096 - 256 * k},
                "skip_sets": [list(range(k)), list(range(1, k + 1))],
                "folders": [f"runs/cmp/runs/EAS-k{k}-s{seed}" for seed in (0, 1)],
            }
        )
    entries = [{"label": "EAS", "run": {"method": {"skip_rank": 32}}}]
    task = {"data": "scenes:odd", "metric": "exact"}
    return {"command": "eas compare", "config": {"seeds": [0, 1], "run": {}, "entries": entries}, "task": task} | {
        "rows": rows,
        "latency": None,
    }
