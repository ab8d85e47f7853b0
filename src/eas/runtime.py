"""A small generate loop for models that ``eas export`` wrote as ONNX or OpenVINO.

It needs numpy, tokenizers and the engine: neither torch nor transformers. Keys and values exist for the kept
attentions only. Prompts of a batch may differ in length; the shorter ones are padded in front.

Example:
    >>> from eas import runtime
    >>> served = runtime.load("served")  # doctest: +SKIP
    >>> served.generate(["The capital of France is"], max_new_tokens=8)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eas.exported import ExportError, ExportRecord, read_expected, read_export

Arrays = dict[str, np.ndarray[Any, Any]]
Step = Callable[[Arrays], Arrays]
"""One pass over new tokens: named inputs to named outputs."""


class Check(NamedTuple):
    """How an engine compares with what eas answered at export.

    Args:
        tokens: how many of the most likely tokens are the same, before the first that differs.
        of: how many there are.
        log_probs: the largest difference of log-probabilities.
    """

    tokens: int
    of: int
    log_probs: float


@dataclass(frozen=True)
class Served:
    """A model in an engine.

    Args:
        folder: that ``eas export`` wrote.
        record: of the folder.
        step: runs the engine.
        tokenizer: a ``tokenizers.Tokenizer``; None where the folder has none.
    """

    folder: Path
    record: ExportRecord
    step: Step
    tokenizer: Any

    def generate(self, prompts: Sequence[str], max_new_tokens: int = 64) -> list[str]:
        """The most likely answers to prompts, without special tokens.

        Raises:
            ExportError: the folder has no tokenizer, or a prompt is too long.
        """
        if self.tokenizer is None:
            raise ExportError(f"{self.folder} has no tokenizer.json; use tokens() and pass tokens")
        asked = [self.tokenizer.encode(prompt).ids for prompt in prompts]
        return [self.tokenizer.decode(ids) for ids in self.tokens(asked, max_new_tokens)]

    def tokens(self, prompts: Sequence[Sequence[int]], max_new_tokens: int = 64) -> list[list[int]]:
        """The same of tokens; the token that ends an answer is not part of it."""
        ends = set(self.record["eos"])
        answers: list[list[int]] = [[] for _ in prompts]
        done = [False] * len(prompts)
        for logits in self.steps(prompts, max_new_tokens):
            for row, token in enumerate(logits.argmax(-1).tolist()):
                done[row] = done[row] or token in ends
                if not done[row]:
                    answers[row].append(token)
            if all(done):
                break
        return answers

    def steps(
        self, prompts: Sequence[Sequence[int]], limit: int, never: Sequence[int] = ()
    ) -> Iterator[np.ndarray[Any, Any]]:
        """The logits of the next token, ``(batch, vocab)``, step by step; the most likely token goes on.

        Args:
            prompts: tokens.
            limit: how many steps.
            never: tokens that do not go on.

        Raises:
            ExportError: there is no prompt, an empty one, or one that is too long for the model.
        """
        if not prompts or not all(prompts):
            raise ExportError("every prompt needs at least one token")
        longest = max(map(len, prompts))
        if longest + limit > self.record["context"]:
            raise ExportError(
                f"a prompt of {longest} tokens and {limit} new ones are more than the context, "
                f"{self.record['context']}; shorten the prompt or lower max_new_tokens"
            )
        empty = np.zeros((len(prompts), self.record["kv_heads"], 0, self.record["head_dim"]), np.float32)
        state: Arrays = {f"{kind}.{layer}": empty for layer in self.record["kept"] for kind in ("key", "value")}
        padding = np.array([longest - len(prompt) for prompt in prompts])
        new = np.array([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts])
        for _ in range(limit):
            found = self.step({"tokens": new, "padding": padding, "wanted": np.array([new.shape[1] - 1]), **state})
            state = {name: found[f"new_{name}"] for name in state}
            logits = found["logits"][:, -1]
            yield logits
            new = without(logits, never).argmax(-1)[:, None]

    def check(self) -> Check:
        """Compares the engine with ``expected.json``, and every file with its digest.

        Raises:
            ExportError: a file is damaged.
        """
        read_export(self.folder, whole=True)
        want = read_expected(self.folder)
        same, equal, worst = 0, True, 0.0
        ends = self.record["eos"]
        for step, logits in enumerate(self.steps([want["prompt_tokens"]], len(want["tokens"]), ends)):
            row = logits[0].astype(np.float64)
            row -= row.max() + np.log(np.exp(row - row.max()).sum())
            worst = max(worst, float(np.abs(row[want["likeliest"][step]] - want["log_probs"][step]).max()))
            equal = equal and int(without(row, ends).argmax()) == want["tokens"][step]
            if not equal:
                break  # what comes after another token cannot be compared
            same += 1
        return Check(same, len(want["tokens"]), worst)


def without(logits: np.ndarray[Any, Any], never: Sequence[int]) -> np.ndarray[Any, Any]:
    """Logits in which some tokens cannot be the most likely."""
    left = logits.copy()
    left[..., list(never)] = -np.inf
    return left


def load(folder: str | Path, threads: int | None = None) -> Served:
    """Opens a folder that ``eas export --to onnx`` or ``--to openvino`` wrote.

    Args:
        folder: of the export.
        threads: of the engine; its own choice by default.

    Raises:
        ExportError: the folder is damaged, of another engine or format, or the engine is not installed.
    """
    folder = Path(folder)
    record = read_export(folder)
    if record["engine"] not in _ENGINES:
        raise ExportError(f"{folder} is for {record['engine']}; eas.runtime opens {' and '.join(_ENGINES)}")
    package, opened = _ENGINES[record["engine"]]
    if find_spec(package) is None:
        raise ExportError(f"{folder} needs {package}; pip install {package}")
    words = folder / "tokenizer.json"
    tokenizer = None
    if words.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(words))
    return Served(folder, record, opened(folder, threads), tokenizer)


def _onnx(folder: Path, threads: int | None) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def _openvino(folder: Path, threads: int | None) -> Step:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", **({} if threads is None else {"INFERENCE_NUM_THREADS": threads})}
    model = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
    names, request = [output.any_name for output in model.outputs], model.create_infer_request()

    def step(inputs: Arrays) -> Arrays:
        request.infer(inputs)
        return {name: request.get_tensor(name).data.copy() for name in names}

    return step


_ENGINES: dict[str, tuple[str, Callable[[Path, int | None], Step]]] = {
    "onnx": ("onnxruntime", _onnx),
    "openvino": ("openvino", _openvino),
}
