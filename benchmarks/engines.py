"""What skipped attentions save in llama.cpp on a CPU: SmolLM2-135M against its export without ten of thirty attentions.

make test-engines  # installs llama.cpp
.engines/bin/python benchmarks/engines.py SCIENCEQA [--threads 1] [--rounds 7] [--out benchmarks/engines.json]

Base and export are GGUF files of the same kind, written by ``eas.export``, timed in turns by the server's own clock:
the prompt's tokens in one pass, then new tokens one at a time. Beside each ratio stands its bound: that of
multiplications and additions for the prompt, that of bytes read for a new token. PIAs are random and folded; their
values cost nothing. The loss is that of llama.cpp and of eas (float32) on the answers to ScienceQA's questions without
images, teacher-forced.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

import eas
from eas.attachment.load import load_base
from eas.data import load_data
from eas.exporting.opening import processor_of
from eas.exporting.plain import plain
from eas.measure.latency import git_revision, hardware
from eas.models.bases import base_folder
from eas.tasks.collate import Collator

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from llama_cpp import complete, next_token, server

MODEL, SKIPPED = "smollm2-135m", [*range(4, 24, 2)]
PROMPT, NEW, ANSWERS, LIKELIEST = 512, 64, 50, 1000


def tuned() -> Any:
    """SmolLM2 without ten attentions, its PIAs away from zero."""
    torch.manual_seed(0)
    config = eas.EASConfig(num_skip=len(SKIPPED), router="constant", pooling="none", skip_rank=32, adapt_rank=16)
    model = eas.attach(load_base(MODEL, dtype=torch.float32), config)
    eas.select(model, SKIPPED)
    eas.prune(model)
    for name, parameter in model.named_parameters():
        if "pia.up" in name:
            torch.nn.init.normal_(parameter, 0, 0.01)
    return model.eval()


def bounds(model: Any, file: Path) -> dict[str, float]:
    """Multiply-adds of a prompt, and bytes read for the token after it: the file, keys and values (half precision).

    The embedding is read by the head (tied), and multiplied once per prompt.
    """
    found = plain(model)
    maps = sum(tensor.numel() for name, tensor in found.tensors.items() if name.endswith("_proj.weight"))
    sizes = found.sizes
    scores = len(sizes.kept) * sizes.heads * sizes.head_dim * PROMPT * PROMPT  # causal: half of two products
    cache = 2 * 2 * len(sizes.kept) * sizes.kv_heads * sizes.head_dim * PROMPT
    return {"macs": PROMPT * maps + scores + sizes.vocab * sizes.hidden, "bytes": file.stat().st_size + cache}


def timed(opened: Any, ids: list[int]) -> tuple[float, float]:
    """Milliseconds of the prompt, and of a new token."""
    timings = complete(opened, ids, NEW)["timings"]
    assert timings["prompt_n"] == PROMPT
    return timings["prompt_ms"], timings["predicted_per_token_ms"]


@torch.no_grad()
def losses(model: Any, opened: Any, asked: list[tuple[list[int], list[int]]]) -> tuple[float, float]:
    """The mean negative log-probability of answer tokens, by eas and by llama.cpp."""
    ours, theirs = [], []
    for prompt, answer in asked:
        rows = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        for step, token in enumerate(answer):
            ours.append(-float(rows[len(prompt) + step - 1, token]))
            known = prompt + answer[:step]
            _, found = next_token(opened, known, LIKELIEST)
            if token not in found:  # all take a second on their way
                _, found = next_token(opened, known, rows.shape[-1])
            theirs.append(-found[token])
    return statistics.fmean(ours), statistics.fmean(theirs)


def questions(folder: str, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Tokens of questions and of their answers."""
    found, collate = [], Collator(tokenizer, training=True)
    for example in list(load_data(f"scienceqa-text:{folder}", "test"))[:ANSWERS]:
        row = collate([example])
        asked = row["labels"][0] == -100
        found.append((row["input_ids"][0][asked].tolist(), row["input_ids"][0][~asked].tolist()))
    return found


def spread(values: list[float]) -> dict[str, float]:
    quarters = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "quarter": quarters[0], "three_quarters": quarters[2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scienceqa", help="folder with ScienceQA's problems")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--work", type=Path, default=Path("runs/engines"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/engines.json"))
    given = parser.parse_args()
    processor = processor_of(base_folder(MODEL))
    files, limit = {}, {}
    for name in ("base", "skipped"):
        model = load_base(MODEL, dtype=torch.float32).eval() if name == "base" else tuned()
        folder = eas.export(model, "gguf", given.work / name, processor=processor, dtype=given.dtype)
        files[name] = folder / "model.gguf"
        limit[name] = bounds(model, files[name])
    servers = {name: server(file, 2048, given.threads, exact=False) for name, file in files.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    for number in range(given.rounds + 1):
        ids = torch.randint(20, 40000, (PROMPT,), generator=torch.Generator().manual_seed(number)).tolist()
        for name in list(files)[:: 1 if number % 2 else -1]:  # in turns, each first every other time
            took = timed(servers[name], ids)
            times[name] += [took] if number else []  # the first warms up
            print(name, f"prompt {took[0]:.0f} ms, new token {took[1]:.2f} ms", flush=True)
    result: dict[str, Any] = {
        **hardware(),
        "revision": git_revision(),
        "model": MODEL,
        "skip_set": SKIPPED,
        "dtype": given.dtype,
        "threads": given.threads,
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "rounds": given.rounds,
    }
    for at, (what, bound) in enumerate((("prompt_ms", "macs"), ("new_token_ms", "bytes"))):
        result[what] = {name: spread([took[at] for took in times[name]]) for name in files}
        ratios = [base[at] / skipped[at] for base, skipped in zip(times["base"], times["skipped"], strict=True)]
        result[what] |= {"ratio": spread(ratios), "bound": limit["base"][bound] / limit["skipped"][bound]}
    result["file_bytes"] = {name: file.stat().st_size for name, file in files.items()}
    ours, theirs = losses(model, servers["skipped"], questions(given.scienceqa, processor))
    result["loss"] = {"eas": ours, "llama.cpp": theirs, "apart": abs(ours - theirs) / ours, "answers": ANSWERS}
    assert math.isfinite(ours)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
