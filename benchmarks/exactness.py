"""What folding changes in the numbers of llava-0.5b: one prompt and eight padded ones, and 64 decoded tokens.

python benchmarks/exactness.py > benchmarks/exactness.json

The PIAs are random and count: `effect` is how far the logits are from those without them. Errors are relative, in
float32 the largest beside the largest logit; in bfloat16 the distance to float32's, folded over unfolded.
"""

import copy
import gc
import json
import sys
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

import eas
from eas.attachment.save import adapter_state
from eas.hf.api import cached
from eas.hf.cache import kv_cache_bytes
from eas.measure.latency import git_revision, hardware
from eas.measure.shapes import build

SKIP_SET, LENGTHS, TOKENS, WIDTH, FFN = list(range(0, 24, 3)), (120, 35, 77, 120, 64, 9, 101, 50), 64, 1024, 2816
MODES = {"shared": "input", "per_example": "input", "constant": "constant"}


def tuned(router: str) -> Any:
    model = build("llava-0.5b", "cpu")
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 0
    model.requires_grad_(False)
    eas.attach(model, eas.EASConfig(num_skip=len(SKIP_SET), skip_rank=64, adapt_rank=32, router=router))
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter_state(model).values():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    eas.select(model, SKIP_SET)
    eas.prune(model)
    return model.eval()


def prompts(batch: int) -> dict[str, Tensor]:
    ids = torch.randint(10, 30000, (batch, max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    mask = torch.stack([torch.arange(max(LENGTHS)) >= max(LENGTHS) - length for length in LENGTHS[:batch]]).long()
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def logits(model: Any, batch: int) -> tuple[Tensor, list[int]]:
    """Of every real token of the prompts and of answers that are forced, and the bytes of the cache after each."""
    inputs, cache = prompts(batch), DynamicCache(config=model.config)
    answer = torch.randint(10, 30000, (batch, TOKENS), generator=torch.Generator().manual_seed(2))
    mask = inputs["attention_mask"]
    seen, held = [model(**inputs, **cached(cache)).logits[mask.bool()]], [kv_cache_bytes(cache)]
    for token in answer.T[:, :, None]:
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        seen.append(model(input_ids=token, attention_mask=mask, **cached(cache)).logits[:, 0])
        held.append(kv_cache_bytes(cache))
    return torch.cat(seen).float(), held


def largest(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def measure(mode: str, batch: int) -> dict[str, Any]:
    gc.collect()  # the models of the case before
    print(f"{mode}, batch {batch}", file=sys.stderr)
    model = tuned(MODES[mode])
    half = copy.deepcopy(model).to(torch.bfloat16)
    weights = copy.deepcopy(model.state_dict())
    (exact, _), (half_unfolded, _) = logits(model, batch), logits(half, batch)
    greedy = {"max_new_tokens": TOKENS, "do_sample": False}
    said = model.generate(**prompts(batch), **greedy)
    eas.fold(model, mode)
    eas.fold(half, mode)
    (folded, held), (half_folded, _) = logits(model, batch), logits(half, batch)
    record: dict[str, Any] = {
        "float32, largest error": largest(folded, exact),
        "bfloat16, error over that unfolded": float((half_folded - exact).norm() / (half_unfolded - exact).norm()),
        "bfloat16, error unfolded": float((half_unfolded - exact).norm() / exact.norm()),
        "greedy tokens equal": torch.equal(model.generate(**prompts(batch), **greedy), said),
        "cache bytes per token and sequence": (held[-1] - held[0]) / TOKENS / batch,
        "of a kept attention": (held[-1] - held[0]) / TOKENS / batch / (24 - len(SKIP_SET)),
    }
    if mode == "per_example":  # W U^T and (W U^T) Wd1^T: of gate and up in skipped blocks, of q, k and v in others
        formula = sum(2 * WIDTH * 64 * 2 * FFN if i in SKIP_SET else 2 * WIDTH * 32 * 3 * WIDTH for i in range(24))
        record["fold MACs over the low-rank formula"] = eas.count(model, max(LENGTHS)).fold_macs / formula
    else:
        compiled = eas.fast_decode(model)(**prompts(batch), **greedy)
        record["greedy tokens equal, compiled"] = torch.equal(compiled, said)
        torch.compiler.reset()
    eas.unfold(model)
    after = model.state_dict()
    record["weights after unfolding equal"] = all(torch.equal(after[key], weights[key]) for key in weights)
    for parameter in adapter_state(model).values():
        parameter.data.zero_()
    record["effect"] = largest(logits(model, batch)[0], exact)
    return record


results = {
    f"{mode}, batch {batch}": measure(mode, batch)
    for mode in MODES
    for batch in (1, len(LENGTHS))
    if mode != "per_example" or batch == 1
}
settings = {"model": "llava-0.5b", "skip_set": SKIP_SET, "lengths": LENGTHS, "decoded tokens": TOKENS, "seed": 0}
print(json.dumps({**settings, "results": results, "hardware": hardware(), "git_revision": git_revision()}, indent=1))
