"""What a decode step is made of, on one thread of a CPU, in GB/s of processor time: reading memory; a few rows times a
matrix, as eager code does it and with weights laid out beforehand; attention of one token, torch's fused one and ours.

python benchmarks/decode_parts.py > benchmarks/decode_parts.json
"""

import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from eas.hf.one_token import attend_one
from eas.measure.latency import git_revision, hardware

OUT, WIDTH, HEADS, SIZE, TOKENS, LAYERS = 2816, 1024, 16, 64, 768, 24  # of llava-0.5b, after a prompt of 700

torch.set_num_threads(1)
ours = torch.compile(attend_one, dynamic=False)


def rate(read: int, work: Callable[[], Any]) -> float:
    """GB/s, the median of ten."""
    times = []
    for repeat in range(12):
        start = time.process_time()
        work()
        if repeat > 1:
            times.append(time.process_time() - start)
    return round(read / median(times) / 1e9, 1)


def measure(dtype: torch.dtype, batch: int) -> dict[str, float]:
    weights = [torch.randn(OUT, WIDTH).to(dtype) for _ in range(LAYERS)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, batch) for weight in weights]
    x = torch.randn(batch, WIDTH).to(dtype)
    keys, values = ([torch.randn(batch, HEADS, TOKENS, SIZE).to(dtype) for _ in range(LAYERS)] for _ in range(2))
    query, mask = torch.randn(batch, HEADS, 1, SIZE).to(dtype), torch.ones(1, 1, 1, TOKENS, dtype=torch.bool)
    read, cache = sum(weight.nbytes for weight in weights), sum(t.nbytes for t in (*keys, *values))
    linear = torch.ops.mkldnn._linear_pointwise
    pairs = list(zip(keys, values, strict=True))
    return {
        "linear": rate(read, lambda: [F.linear(x, weight) for weight in weights]),
        "linear, packed": rate(read, lambda: [linear(x, weight, None, "none", [], "") for weight in packed]),
        "attention, sdpa": rate(
            cache, lambda: [F.scaled_dot_product_attention(query, k, v, attn_mask=mask) for k, v in pairs]
        ),
        "attention, ours": rate(cache, lambda: [ours(query, k, v, mask, SIZE**-0.5) for k, v in pairs]),
    }


with torch.inference_mode():
    memory = torch.ones(2**26)
    result: dict[str, Any] = {"read": rate(memory.nbytes, memory.sum)}
    for dtype in (torch.bfloat16, torch.float32):
        for batch in (1, 4):
            result[f"{str(dtype).removeprefix('torch.')}, batch {batch}"] = measure(dtype, batch)
print(json.dumps({"gb_per_second": result, "hardware": hardware(), "git_revision": git_revision()}))
