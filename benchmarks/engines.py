"""What skipped attentions save in llama.cpp on a CPU: base against the export without a third of its attentions.

make test-engines  # installs llama.cpp
.engines/bin/python benchmarks/engines.py SCIENCEQA [--threads 1] [--rounds 7] [--models llava-0.5b --out FILE]

Models, prompts, bounds and turns are those of ``engines_vllm.py``, as float16 GGUF files. For 1, 4 and 16 requests at
once: the time until all prompts are read, and of one more token for each request, by the server's own clock. What 1 GiB
holds of keys and values is what llama.cpp says that it takes for its cache. The loss is that of llama.cpp and of eas
(float32) on the answers to ScienceQA's questions without images, teacher-forced; a model with random weights has none.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from engines_vllm import MODELS, NEW, PROMPT, REQUESTS, alternated, beside_bounds, built, exported, prompts_of

from eas.data import load_data
from eas.measure.latency import git_revision, hardware
from eas.tasks.collate import Collator

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from exports import words
from llama_cpp import complete, next_token, server

ANSWERS, LIKELIEST = 50, 1000


def opened_of(file: Path, threads: int) -> tuple[Any, float]:
    """A server, and how many tokens 1 GiB holds by what llama.cpp prints."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            opened = server(file, 2 * PROMPT, threads, exact=False, requests=max(REQUESTS), verbosity=4)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        printed.seek(0)
        lines = printed.read().decode()
    ((size, cells, sequences),) = re.findall(r"kv_cache: size = +([\d.]+) MiB \( *(\d+) cells.* (\d+)/\d+ seqs", lines)
    return opened, 1024 * int(cells) * int(sequences) / float(size)


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


def measured(name: str, models: dict[str, tuple[Path, Any, int]], given: argparse.Namespace) -> dict[str, Any]:
    counts = {variant: count for variant, (_, count, _) in models.items()}
    opened = {variant: opened_of(folder / "model.gguf", given.threads) for variant, (folder, _, _) in models.items()}
    vocabulary = models["base"][2]
    result: dict[str, Any] = {
        "skip_set": MODELS[name],
        "kv_tokens_of_1_gib": {variant: held for variant, (_, held) in opened.items()},
        "kv_bytes_per_token": {variant: count.kv_bytes_per_token for variant, count in counts.items()},
        "requests": {},
    }
    for server_of, _ in opened.values():  # warms up
        complete(server_of, prompts_of(0, max(REQUESTS), 32, vocabulary), 2)
    for requests in REQUESTS:

        def times_of(variant: str, number: int, requests: int = requests) -> tuple[float, float]:
            prompts = prompts_of(number, requests, PROMPT, vocabulary)
            timings = complete(opened[variant][0], prompts, NEW)["timings"]  # of one request; all are read in one pass
            assert timings["prompt_n"] == PROMPT
            return timings["prompt_ms"], timings["predicted_per_token_ms"]

        result["requests"][requests] = beside_bounds(alternated(given.rounds, times_of, first=1), counts, requests)
        print(name, requests, json.dumps(result["requests"][requests]), flush=True)
    model, processor = built(name, MODELS[name])
    if processor:
        ours, theirs = losses(model, opened["eas"][0], questions(given.scienceqa, processor))
        result["loss"] = {"eas": ours, "llama.cpp": theirs, "apart": abs(ours - theirs) / ours, "answers": ANSWERS}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scienceqa", help="folder with ScienceQA's problems")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="*", default=[*MODELS])
    parser.add_argument("--work", type=Path, default=Path("runs/engines"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/engines.json"))
    given = parser.parse_args()
    result: dict[str, Any] = {
        **hardware(),
        "engine": f"xllamacpp {version('xllamacpp')}",
        "threads": given.threads,
        "revision": git_revision(),
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "rounds": given.rounds,
        "models": {},
    }
    models = {name: exported(name, given.work, "gguf", "float16", words()) for name in given.models}
    for name, exports in models.items():
        result["models"][name] = measured(name, exports, given)
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
