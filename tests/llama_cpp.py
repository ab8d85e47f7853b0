"""llama.cpp, by the package xllamacpp: log-probabilities of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def server(
    file: Path, context: int = 256, threads: int = 1, exact: bool = True, requests: int = 1, verbosity: int = 0
) -> Any:
    """A server in this process.

    Args:
        file: a GGUF file.
        context: the longest sequence.
        threads: of the computation.
        exact: whether everything is float32; llama.cpp's flash attention computes in half precision.
        requests: at once.
        verbosity: how much llama.cpp prints on stderr.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = requests * context, requests, 0
    params.n_batch, params.cache_ram_mib = requests * context, 0  # earlier prompts are not copied aside
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup, params.verbosity = False, verbosity
    if exact:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def complete(
    opened: Any, prompt: str | Sequence[int] | Sequence[Sequence[int]], tokens: int, top: int = 0, reuse: bool = False
) -> Any:
    """The server's reply to a prompt: the most likely tokens, which end no answer.

    Args:
        opened: a server.
        prompt: a text, or tokens, or those of several requests.
        tokens: how many are wanted.
        top: how many log-probabilities are wanted of each.
        reuse: whether keys and values of the last prompt serve where the tokens are the same.
    """
    asked = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "n_predict": tokens, "n_probs": top}
    asked |= {"temperature": 0.0, "ignore_eos": True, "cache_prompt": reuse}
    return opened.handle_completions(asked)


def next_token(opened: Any, prompt: str | Sequence[int], top: int) -> tuple[int, dict[int, float]]:
    """The most likely token, and the log-probabilities of some."""
    reply = complete(opened, prompt, 1, top, reuse=True)["choices"][0]["logprobs"]["content"][0]
    return reply["id"], {found["id"]: found["logprob"] for found in reply["top_logprobs"]}
