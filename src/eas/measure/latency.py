"""The times of several models on one machine, and the description of the machine."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from eas.hf.aligned import align
from eas.hf.api import cached, output_cache
from eas.progress import track


@dataclass(frozen=True)
class Spread:
    """Repeated measurements: their median, 10th and 90th percentile."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarises at least one measurement; percentiles are interpolated."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), tenths[0], tenths[-1])


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one variant.

    Args:
        prefill_ms: time to read the whole prompt with its images and give the first token.
        decode_ms: time of each later token, averaged within a repeat; a batch decodes one token of every sequence.
            None if the model decodes nothing; then the prefill is its whole pass.
    """

    prefill_ms: Spread
    decode_ms: Spread | None


def benchmark(
    models: Mapping[str, PreTrainedModel],
    inputs: Mapping[str, Tensor],
    new_tokens: int,
    repeats: int,
    title: str = "",
    own_inputs: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> dict[str, Latency]:
    """Times variants of a model on the same prompt, greedily, in turns: A B A B ...

    So a machine that slows down or speeds up affects all variants alike. Each variant has one warm-up. On a CPU,
    weights that still lie in the memory of a file are copied first: they start anywhere, which slows products down,
    and folded weights do not lie there.

    Args:
        models: variants by name, in evaluation mode, base or attached, folded or not.
        inputs: the processor's output for one batch of prompts of equal length, on any device.
        new_tokens: decode steps per repeat; the first token belongs to the prefill. 0 for models that generate
            nothing: one pass is timed.
        repeats: number of times that each variant is timed.
        title: title of the progress bar; empty for no bar.
        own_inputs: by name, the prompt of variants that read another number of tokens of its image.

    Raises:
        ValueError: nothing is to be measured, a model is in training mode, or the prompts are padded.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model, processor = load_tiny()
        >>> inputs = processor(text="question : what is this ? answer :", return_tensors="pt")
        >>> timed = eas.benchmark({"base": model}, inputs, new_tokens=2, repeats=2)  # doctest: +SKIP
    """
    if new_tokens < 0 or repeats < 1:
        raise ValueError(f"repeats = {repeats} must be at least 1, and new_tokens = {new_tokens} at least 0")
    if training := [name for name, model in models.items() if model.training]:
        raise ValueError(f"{training} in training mode; call model.eval() before timing")
    if unknown := own_inputs.keys() - models.keys():
        raise ValueError(f"own_inputs name {sorted(unknown)}, which are no variants; there are {list(models)}")
    if any("attention_mask" in given and not given["attention_mask"].all() for given in (inputs, *own_inputs.values())):
        raise ValueError("the prompts are padded, which would be timed as well; pass prompts of one length")
    for model in models.values():
        align(model)
    prefill: dict[str, list[float]] = {name: [] for name in models}
    decode: dict[str, list[float]] = {name: [] for name in models}
    rounds = [(repeat, name) for repeat in range(repeats + 1) for name in models]
    for repeat, name in track(rounds, title):
        first, each = _time_once(models[name], own_inputs.get(name, inputs), new_tokens)
        if repeat > 0:  # the first round warms up
            prefill[name].append(first)
            decode[name].append(each)
    return {name: Latency(Spread.of(prefill[name]), Spread.of(decode[name]) if new_tokens else None) for name in models}


@torch.inference_mode()
def _time_once(model: PreTrainedModel, inputs: Mapping[str, Tensor], new_tokens: int) -> tuple[float, float]:
    """Milliseconds of one prefill, and of each of the decode steps that follow, if any."""
    moved = {key: value.to(model.device) for key, value in inputs.items()}
    start = _now(model.device)
    if new_tokens == 0:
        model(**moved)
        return 1000 * (_now(model.device) - start), 0.0
    output = model(**moved, use_cache=True, logits_to_keep=1)
    tokens = output.logits[:, -1:].argmax(-1)
    read = _now(model.device)
    for _ in range(new_tokens):
        # without padding no mask is needed, and Qwen2-VL takes its positions from the cache
        output = model(input_ids=tokens, **cached(output_cache(output)), use_cache=True, logits_to_keep=1)
        tokens = output.logits[:, -1:].argmax(-1)
    end = _now(model.device)
    return 1000 * (read - start), 1000 * (end - read) / new_tokens


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def hardware() -> dict[str, str | int | None]:
    """What a measurement ran on: processor, threads torch uses, GPU (None without one), system, torch version."""
    return {
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The commit of the checkout this package runs from, with ``-dirty`` where tracked files were changed.

    None where the package was installed without one: a repository that merely surrounds it does not count.
    """
    here = Path(__file__)
    try:
        _git("ls-files", "--error-unmatch", here.name, folder=here.parent)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", folder=here.parent)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str, folder: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
