"""Recall of image-text retrieval, both ways, from a score matrix that need not be in memory.

Source: METER, compute_irtr_recall (Flickr30K, Karpathy split: 1,000 images, 5 captions each).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eas.example import DataError

Matrix = NDArray[Any]
Scores = Matrix | Callable[[slice, slice], Matrix]
"""Images x captions, higher is closer: an array, a memmap, or a function that returns the block of (rows, columns)."""


def recall(
    scores: Scores, owner: Sequence[int], images: int, ks: Sequence[int] = (1, 5, 10), block: int = 256
) -> dict[str, float]:
    """Recall in [0, 1], in METER's order: IR@k for every k, then TR@k.

    IR@k is the share of captions whose image is among the k images closest to them; TR@k the share of images with one
    or more of their captions among the k captions closest to them. Of equal scores the lower index is the closer, as in
    a stable sort.

    Args:
        scores: the matrix; read in blocks of ``block`` whole columns, then of as many whole rows.
        owner: the image each caption belongs to; every image has one or more captions.
        images: how many images there are.
        ks: the ranks to count to.
        block: columns, or rows, in memory at a time.

    Raises:
        DataError: the matrix is not images x captions, holds values that are not finite, or an image has no caption.
    """
    read = scores if callable(scores) else lambda rows, columns: scores[rows, columns]
    owners, every = np.asarray(owner), slice(None)
    captions = len(owners)
    if not callable(scores) and scores.shape != (images, captions):
        raise DataError(f"the scores are {scores.shape}, for {images} images x {captions} captions; score them all")
    if not np.array_equal(np.unique(owners), np.arange(images)):
        raise DataError(f"the captions do not belong to images 0 to {images - 1}; every image needs one")
    image_ranks = [
        _ranks(_finite(read(every, slice(at, at + block))).T, owners[at : at + block])
        for at in range(0, captions, block)
    ]
    caption_ranks = []
    for at in range(0, images, block):
        part = _finite(read(slice(at, at + block), every))
        own = owners[None] == np.arange(at, at + len(part))[:, None]
        # The first of an image's own captions in a stable order: the highest score, of equal ones the lowest index.
        caption_ranks.append(_ranks(part, np.where(own, part, -np.inf).argmax(1)))
    ways = {"IR": np.concatenate(image_ranks), "TR": np.concatenate(caption_ranks)}
    return {f"{way}@{k}": float((ranks < k).mean()) for way, ranks in ways.items() for k in ks}


def _ranks(scores: Matrix, targets: Matrix) -> Matrix:
    """Of queries x candidates, the rank of each query's target, from 0: candidates above it, or equal and before it."""
    target = np.take_along_axis(scores, targets[:, None], 1)
    before = np.arange(scores.shape[1]) < targets[:, None]
    ranks: Matrix = (scores > target).sum(1) + ((scores == target) & before).sum(1)
    return ranks


def _finite(part: Matrix) -> Matrix:
    if not np.isfinite(part).all():
        raise DataError("the scores hold values that are not finite; recall is not defined for them")
    return np.asarray(part)
