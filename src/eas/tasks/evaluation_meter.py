"""METER on its tasks, scored by the official metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eas.data import BENCHMARKS
from eas.data.nlvr2 import CHOICES
from eas.example import Example
from eas.files import writing
from eas.metrics.report import Report
from eas.models.meter.modeling import Stream
from eas.progress import track
from eas.tasks.collate import naming
from eas.tasks.evaluation import Evaluation, score_answers


def evaluate_meter(
    model: Any, processor: Any, examples: Sequence[Example], benchmark: str, *, batch_size: int = 32, title: str = ""
) -> Evaluation:
    """Answers of the VQA or the NLVR2 head, and their official score.

    Args:
        model: METER with that head, base or attached; VQA's answers are its ``config.id2label``.
        processor: its processor.
        examples: of the benchmark.
        benchmark: "vqa2" or "nlvr2".
        batch_size: examples at a time.
        title: of the progress bar; none without one.

    Raises:
        DataError: the processor refuses an example.
    """
    if benchmark not in ("vqa2", "nlvr2"):
        raise ValueError(f"benchmark {benchmark!r}: use vqa2 or nlvr2; retrieval has score_retrieval")
    names = model.config.id2label if benchmark == "vqa2" else {0: CHOICES[1], 1: CHOICES[0]}
    answers: dict[str, str] = {}
    for at in track(range(0, len(examples), batch_size), title):
        rows = [examples[i] for i in range(at, min(at + batch_size, len(examples)))]
        images = [image for row in rows for image in row.load_images()]
        try:
            inputs = processor(images, [row.question for row in rows]).to(model.device)
        except Exception:  # processors raise whatever their libraries do; which row it was is looked for
            for row in rows:
                with naming(row, "the processor"):
                    processor(row.load_images(), [row.question])
            raise
        if benchmark == "nlvr2":
            inputs["pixel_values"] = inputs["pixel_values"].unflatten(0, (-1, 2))
        with torch.inference_mode():
            best = model(**inputs).logits.argmax(-1).tolist()
        answers |= {row.id: names[choice] for row, choice in zip(rows, best, strict=True)}
    report = score_answers(benchmark, examples, answers)
    return Evaluation(report.score, answers, report)


@torch.inference_mode()
def score_retrieval(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    path: Path,
    *,
    block: int = 16,
    pairs: int = 64,
    title: str = "",
) -> Report:
    """Recall both ways over all pairs of the examples' images and captions.

    The towers run once for each; the scores are written to ``path`` as they come, a block of images at a time, and stay
    there for ``eas eval --dataset flickr30k --predictions``.

    Args:
        model: METER with the retrieval head, base or attached.
        processor: its processor.
        examples: one per caption, as Flickr30K's are read.
        path: a ``.npy`` file, images x captions.
        block: images at a time.
        pairs: pairs at a time.
        title: of the progress bar; none without one.
    """
    first = {example.metadata["image"]: example for example in reversed(examples)}
    owners = list(dict.fromkeys(example.metadata["image"] for example in examples))
    words = processor(text=[example.target for example in examples]).to(model.device)
    parts = [
        model.meter.encode_text(words["input_ids"][at : at + 64], words["attention_mask"][at : at + 64])
        for at in range(0, len(examples), 64)
    ]
    texts = Stream(torch.cat([part.tokens for part in parts]), words["attention_mask"].bool())
    with writing(path.parent):
        scores = np.lib.format.open_memmap(path, "w+", np.float32, (len(owners), len(examples)))
        for at in track(range(0, len(owners), block), title):
            images = [image for name in owners[at : at + block] for image in first[name].load_images()]
            pixels = processor(images).to(model.device)["pixel_values"]
            scores[at : at + block] = model.score_pairs(texts, model.meter.encode_image(pixels), pairs).float().cpu()
        scores.flush()
    score_file = BENCHMARKS["flickr30k"].score_file
    assert score_file is not None
    return score_file(examples, path)
