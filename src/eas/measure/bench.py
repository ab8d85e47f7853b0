"""`eas bench`: costs and times of the variants of one model, compared with the limits of the machine."""

from __future__ import annotations

import gc
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation import StoppingCriteria

import eas.attachment.standalone  # noqa: F401  # transformers knows its folders then
from eas.attachment.fast_decode import fast_decode
from eas.attachment.state import skip_set
from eas.config import Config, ConfigError, option
from eas.hf.api import output_cache
from eas.hf.cache import kv_cache_bytes, prompt_layer
from eas.hf.one_token import read_rows
from eas.measure.count import count
from eas.measure.latency import Spread, git_revision, hardware
from eas.measure.maps import stored_bytes
from eas.measure.rates import Rates, now
from eas.measure.shapes import SHAPES, build
from eas.measure.variants import VARIANTS, build_variant, fold_variant, quantise_variants
from eas.methods.eas_block import EASBlock
from eas.models.anatomy import Anatomy, auto_class
from eas.models.bases import base_folder
from eas.models.dtype import in_software
from eas.models.folder import model_config
from eas.progress import Bar
from eas.records import raised_as

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNTIMED = 2  # decode steps of a request that are left out: with a new cache, a CUDA graph is recorded anew
CACHE = 64  # the length of compiled caches is a multiple of it: the part beyond the context is read for nothing
PHASES = ("prefill", "decode")
TOLERANCE = 1.05  # a speed-up this much above its bound is flagged: the base was slow


@dataclass
class BenchConfig(Config):
    """What is measured, and on what."""

    model: str = option(
        "llava-0.5b",
        f"folder, GGUF file, Hub id, 'smollm2-135m', 'smol', 'tiny', or a shape with random weights: "
        f"{', '.join(SHAPES)}",
    )
    device: str = option("cpu", "'cpu' or 'cuda'")
    dtype: str = option(
        None,
        f"dtype of weights and activations: {', '.join(DTYPES)}; by default bfloat16, or float32 where the CPU "
        "computes bfloat16 in software",
    )
    prompt_tokens: int = option(700, "tokens of the prompts, which are text only")
    new_tokens: int = option(64, "tokens that one request decodes")
    batch_sizes: list[int] = option(None, "list of batch sizes; [1] by default")
    num_skip: int = option(None, "k: number of skipped attentions, evenly spread; a third of the layers by default")
    skip_set: list[int] = option(None, "attentions to skip, in place of num_skip")
    variants: list[str] = option(None, f"some of {', '.join(VARIANTS)}; all by default")
    repeats: int = option(5, "number of times that each variant is timed")
    decode: str = option("compiled", "'compiled' (eas.fast_decode) or 'eager' (plain generate)")
    quantise: str | None = option(None, "'int8': int8 weights in the language model, through torchao")

    def __post_init__(self) -> None:
        self.batch_sizes = [1] if self.batch_sizes is None else self.batch_sizes
        self.variants = list(VARIANTS) if self.variants is None else self.variants
        if self.dtype is None:
            self.dtype = "float32" if self.device == "cpu" and in_software("bfloat16") else "bfloat16"
        given = self.num_skip is not None, self.skip_set is not None
        self.num_skip = 0 if self.num_skip is None else self.num_skip
        self.skip_set = [] if self.skip_set is None else self.skip_set
        super().__post_init__()
        unknown = [name for name in self.variants if name not in VARIANTS]
        self._require("variants", not unknown, f"{unknown} unknown; use one of {', '.join(VARIANTS)}")
        self._require("variants", "base" in self.variants, "must name 'base', which the others are compared with")
        self._require("dtype", self.dtype in DTYPES, f"must be one of {', '.join(DTYPES)}")
        self._require("device", self.device in ("cpu", "cuda"), "must be 'cpu' or 'cuda'")
        cuda = self.device == "cpu" or torch.cuda.is_available()
        self._require("device", cuda, "torch finds no GPU here; use 'cpu'")
        self._require("decode", self.decode in ("compiled", "eager"), "must be 'compiled' or 'eager'")
        self._require("quantise", self.quantise in (None, "int8"), "must be 'int8', or not given")
        there = self.quantise is None or importlib.util.find_spec("torchao") is not None
        self._require("quantise", there, "torchao is missing; pip install 'eas[quantised]'")
        self._require("batch_sizes", bool(self.batch_sizes) and min(self.batch_sizes) >= 1, "must be at least 1 each")
        self._require("prompt_tokens", self.prompt_tokens >= 2, "must be at least 2")
        self._require("new_tokens", self.new_tokens > UNTIMED + 1, f"must be more than {UNTIMED + 1}")
        self._require("repeats", self.repeats >= 1, "must be at least 1")
        self._require("skip_set", not all(given), "give num_skip or skip_set, not both")
        self._skips_default = not any(given)

    def skipped(self, attentions: int) -> tuple[int, ...]:
        """The skip set for a model of so many attentions."""
        if self.skip_set:
            return tuple(self.skip_set)
        k = attentions // 3 if self._skips_default else self.num_skip
        self._require("num_skip", 0 <= k < attentions, f"the model has {attentions} attentions; at least one is kept")
        return tuple(i * attentions // k for i in range(k))


def bench(config: BenchConfig, title: str = "", keep: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Builds the variants, and times them in one run that alternates between them: A B A B ...

    Args:
        config: what to measure.
        title: of the progress bar; none without one.
        keep: is given what was measured so far, after each batch size.

    Returns:
        ``rows``, one per batch size and variant, ``left_out`` with reasons, the machine's ``rates`` and description.

    Raises:
        ConfigError: the model is unknown, or the skip set does not fit it.
    """
    device, dtype = torch.device(config.device), DTYPES[config.dtype]
    base = _load(config.model, device, dtype).requires_grad_(False)
    read_rows(base.get_output_embeddings())  # as the variants', with which it shares frozen weights
    base.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)  # no token ends a request
    chosen = config.skipped(len(Anatomy.of(base).blocks("mha")))
    rates = Rates(device, dtype)
    left_out: dict[str, str] = {}
    models: dict[str, PreTrainedModel] = {}
    folds: dict[str, float] = {}
    for name in config.variants:
        if VARIANTS[name].fold == "per_example" and config.quantise is not None:
            left_out[name] = "a prompt's PIAs cannot be folded into int8 weights; leave --quantise out"
        elif config.decode == "compiled" and not VARIANTS[name].compiles:
            left_out[name] = "weights that are new with every prompt cannot be compiled; use --decode eager"
    kept = [name for name in config.variants if name not in left_out]
    alike = {batch: [name for name in kept if batch == 1 or name != "eas_per_example"] for batch in config.batch_sizes}
    rows: list[dict[str, Any]] = []

    def gathered() -> dict[str, Any]:
        measured_rates = {
            "macs_per_second": asdict(Spread.of(rates.macs_per_second)),
            "bytes_per_second": asdict(Spread.of(rates.bytes_per_second)),
        }
        found = [dict(row) for row in rows]
        for row in found:
            _bound(row, measured_rates["macs_per_second"]["median"], measured_rates["bytes_per_second"]["median"])
        for row in found:
            _compare(row, {other["variant"]: other for other in found if other["batch"] == row["batch"]})
        return {
            "config": {**config.to_dict(), "skip_set": list(chosen), "num_skip": len(chosen)},
            "hardware": hardware(),
            "git_revision": git_revision(),
            "rates": measured_rates,
            "rows": found,
            "left_out": left_out,
        }

    with Bar(title, len(kept) + (config.repeats + 1) * sum(map(len, alike.values()))) as bar:
        for name in kept:
            bar.say(f"building {name}")
            models[name] = build_variant(base, name, chosen, config.prompt_tokens)
            start = now(device)
            fold_variant(models[name], name)
            folds[name] = now(device) - start
            bar.advance()
        if config.quantise is not None:
            bar.say("quantising")
            quantise_variants(base, models.values())
        for batch, names in alike.items():
            if len(names) < len(kept):
                left_out[f"eas_per_example, batch {batch}"] = "a per_example fold serves one sequence"
            served = {name: models[name] for name in names}
            measured = _time(served, config, batch, rates, bar)
            rows += [{"batch": batch, **_describe(name, served, folds, measured, config, batch)} for name in names]
            torch.compiler.reset()  # compiled steps hold weights of their own
            gc.collect()
            if keep is not None:
                keep(gathered())
    return gathered()


def _load(name: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    if name in SHAPES:
        return build(name, device, dtype)
    name = base_folder(name)
    if "/" not in name and not Path(name).is_dir():
        raise ConfigError(f"BenchConfig.model = {name!r}: no folder, no Hub id, and no shape; those are {[*SHAPES]}")
    with raised_as(ConfigError):
        auto = auto_class(model_config(name, as_base=True).model_type)
    model: PreTrainedModel = auto.from_pretrained(name, dtype=dtype, trust_remote_code=False).to(device).eval()
    return model


class Stopwatch(StoppingCriteria):  # type: ignore[misc]
    """Records the time of each token of a request; never stops the request."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.marks = device, [now(device)]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.marks.append(now(self.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _time(
    models: Mapping[str, PreTrainedModel], config: BenchConfig, batch: int, rates: Rates, bar: Bar
) -> dict[str, dict[str, Any]]:
    """Of each variant: seconds of the prefill and of a decode step in every repeat, and what one request leaves."""
    device = torch.device(config.device)
    vocabulary = models["base"].config.get_text_config().vocab_size
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(10, min(vocabulary, 1000), (batch, config.prompt_tokens), generator=g).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.decode == "compiled":
        generate = {name: fast_decode(model, multiple=CACHE) for name, model in models.items()}
    else:
        generate = {name: model.generate for name, model in models.items()}
    measured: dict[str, dict[str, Any]] = {name: {"prefill": [], "decode": []} for name in models}
    for repeat in range(config.repeats + 1):
        for name in [*models][repeat % len(models) :] + [*models][: repeat % len(models)]:  # none always comes first
            bar.say(f"batch {batch}: {name}, " + (f"repeat {repeat} of {config.repeats}" if repeat else "warm-up"))
            rates.measure()
            peak, watch = PeakMemory(device), Stopwatch(device)
            generate[name](**inputs, max_new_tokens=config.new_tokens, stopping_criteria=[watch])
            used = peak.bytes()
            steps = [after - before for before, after in zip(watch.marks, watch.marks[1:], strict=False)]
            if repeat == 0:  # the first round warms up, and compiles
                measured[name] |= _leaves(models[name], inputs)
            else:
                measured[name]["prefill"].append(steps[0])
                measured[name]["decode"].append(median(steps[1 + UNTIMED :]))
                measured[name]["peak"] = used
            bar.advance()
    return measured


@torch.no_grad()
def _leaves(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a prefill leaves in the cache; for a per-example fold, also the seconds that folding alone takes."""
    cache = output_cache(model(**inputs, use_cache=True, logits_to_keep=1))
    states, seconds = prompt_layer(cache), None
    if states is not None and states.folded:
        start = now(model.device)
        for block in Anatomy.of(model).blocks("mha"):
            if block.index in states.folded:
                block.fold_for(states.states[block.index])
        seconds = now(model.device) - start
    return {"kv_bytes": kv_cache_bytes(cache), "fold_seconds": seconds}


class PeakMemory:
    """The most memory that some work takes in addition; None if the system does not say."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.system = device, Path("/proc/self/clear_refs").exists()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        elif self.system:
            Path("/proc/self/clear_refs").write_text("5")  # the process's peak starts again from here
            self.before = _resident("VmRSS")

    def bytes(self) -> int | None:
        """Since this object was made."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return max(0, _resident("VmHWM") - self.before) if self.system else None


def _resident(key: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith(key))


def _describe(
    name: str,
    models: Mapping[str, PreTrainedModel],
    folds: Mapping[str, float],
    measured: Mapping[str, Mapping[str, Any]],
    config: BenchConfig,
    batch: int,
) -> dict[str, Any]:
    """One row, without what needs the others."""
    model, got, prompt = models[name], measured[name], config.prompt_tokens
    counts, context = count(model, prompt), prompt + config.new_tokens // 2
    held = {id(t): stored_bytes(t) for t in (*model.parameters(), *model.buffers())}
    per_example = got["fold_seconds"] is not None
    fold = got["fold_seconds"] if per_example else folds[name] if VARIANTS[name].fold else None
    return {
        "variant": name,
        "skipped": len(skip_set(model)) if name != "base" else 0,
        "macs": batch * counts.macs,
        "fold_macs": counts.fold_macs,
        "decode_macs": batch * decode_macs(model, context),
        "weight_bytes": counts.weight_bytes,
        "decode_bytes": counts.weight_bytes + batch * (context * counts.kv_bytes_per_token + counts.prompt_state_bytes),
        "kv_bytes_per_token": counts.kv_bytes_per_token,
        "kv_bytes": got["kv_bytes"],
        "memory_bytes": sum(held.values()) + (got["peak"] or 0),
        "peak_measured": got["peak"] is not None,
        "fold_ms": None if fold is None else 1000 * fold,
        "fold_per_request": per_example,
        **{f"{key}_ms": asdict(Spread.of([1000 * seconds for seconds in got[key]])) for key in PHASES},
        **{f"{key}_each_ms": [round(1000 * seconds, 3) for seconds in got[key]] for key in PHASES},
    }


def decode_macs(model: PreTrainedModel, context: int) -> int:
    """MACs of one token of one sequence, when so many are in its cache: those of a prompt of one token, without what is
    done once per prompt, plus what each token before it adds, which is the quadratic part of ``count``."""
    one, two, three = (count(model, n) for n in (1, 2, 3))
    pairs = (three.macs - 2 * two.macs + one.macs) // 2  # MACs per pair of tokens
    blocks = [module for module in model.modules() if isinstance(module, EASBlock)]
    once = sum(pia.statistics_macs(1) for block in blocks for pia in block.stand_ins() if not pia.running)
    return one.macs - one.fold_macs - once + pairs * (context - 1)


def _bound(row: dict[str, Any], macs_per_second: float, bytes_per_second: float) -> None:
    """Adds the milliseconds below which the machine cannot go: for the MACs, or for the bytes that are read."""
    prefill_bytes = row["weight_bytes"] + row["batch"] * row["kv_bytes_per_token"]
    for key, macs, read in (
        ("prefill", row["macs"], prefill_bytes),
        ("decode", row["decode_macs"], row["decode_bytes"]),
    ):
        row[f"{key}_bound_ms"] = 1000 * max(macs / macs_per_second, read / bytes_per_second)


def _compare(row: dict[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds the ratios to base, drop and bound, and from how many tokens on a per-example fold pays."""
    for key in PHASES:
        base, bound = rows["base"], row[f"{key}_bound_ms"]
        row[f"{key}_speedup"] = _ratio(base, row, key)
        row[f"{key}_speedup_bound"] = base[f"{key}_bound_ms"] / bound
        row[f"{key}_of_bound"] = bound / row[f"{key}_ms"]["median"]
        row[f"{key}_above_bound"] = row[f"{key}_speedup"]["median"] > TOLERANCE * row[f"{key}_speedup_bound"]
        if "drop" in rows:
            row[f"{key}_over_drop"] = _ratio(row, rows["drop"], key)
    others = [rows[name] for name in ("eas", "eas_shared") if name in rows]
    if row["fold_per_request"] and others:
        row["pays_after_tokens"] = _pays_after(row, min(others, key=lambda other: other["decode_ms"]["median"]))


def _ratio(row: Mapping[str, Any], other: Mapping[str, Any], key: str) -> dict[str, float]:
    """One variant's time over another's, repeat by repeat: what slows the machine for a while is in both."""
    return asdict(Spread.of([a / b for a, b in zip(row[f"{key}_each_ms"], other[f"{key}_each_ms"], strict=True)]))


def _pays_after(row: Mapping[str, Any], other: Mapping[str, Any]) -> int | None:
    """Tokens after which the time that a fold adds to the prefill is regained; None: never."""
    gain = other["decode_ms"]["median"] - row["decode_ms"]["median"]
    extra = row["prefill_ms"]["median"] - other["prefill_ms"]["median"]
    return None if gain <= 0 else max(0, math.ceil(extra / gain))
