"""Runs in vLLM's own environment: `python vllm_answers.py TASKS ANSWERS`, two JSON files.

A task is a folder, prompts as tokens, options of vLLM, perhaps the file of an image for each prompt, and how many times
the prompts are asked. Its answer is, for each prompt, the 24 tokens and at every step the ten likeliest with their
log-probabilities, and how many tokens of the prompt were cached; or the words of the error.
"""

import json
import os
import sys
from pathlib import Path

STEPS, TOP = 24, 10
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "TOKENIZERS_PARALLELISM": "false"}


def answer(
    folder: str, prompts: list[list[int]], options: dict, images: list[str | None] | None = None, times: int = 1
) -> dict:
    from PIL import Image
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    asked = SamplingParams(temperature=0, max_tokens=STEPS, min_tokens=STEPS, logprobs=TOP, detokenize=False)
    standard = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 4, "enforce_eager": True}
    engine = LLM(folder, **{**standard, "logprobs_mode": "raw_logprobs", **options})
    cache = engine.llm_engine.vllm_config.cache_config
    given = [
        {"prompt_token_ids": prompt, "multi_modal_data": {"image": Image.open(image)} if image else {}}
        for prompt, image in zip(prompts, images or [None] * len(prompts), strict=True)
    ]
    for _ in range(times):
        rows = engine.generate(given, asked, use_tqdm=False)
    found = [row.outputs[0] for row in rows]
    answers = [
        {
            "tokens": list(one.token_ids),
            "cached": row.num_cached_tokens,
            "log_probs": [{str(id): value.logprob for id, value in step.items()} for step in one.logprobs],
        }
        for row, one in zip(rows, found, strict=True)
    ]
    held = cache.num_gpu_blocks * cache.block_size
    del engine
    cleanup_dist_env_and_memory()
    return {"answers": answers, "held": held}


def main() -> None:
    tasks, answers = json.loads(Path(sys.argv[1]).read_text()), {}
    for name, task in tasks.items():
        try:
            answers[name] = answer(**task)
        except Exception as error:
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
        Path(sys.argv[2]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
