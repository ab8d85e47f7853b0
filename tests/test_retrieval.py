"""Recall from a score matrix: blocks of any size, arrays, memmaps and functions, against a sort of every row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eas.example import DataError
from eas.metrics.retrieval import recall


def naive(scores, owner, ks):
    """By a stable descending sort of every image's captions and every caption's images."""
    texts = [sorted(range(len(owner)), key=lambda c: -scores[i][c]) for i in range(len(scores))]
    images = [sorted(range(len(scores)), key=lambda i: -scores[i][c]) for c in range(len(owner))]
    ir = [sum(owner[c] in images[c][:k] for c in range(len(owner))) / len(owner) for k in ks]
    tr = [sum(any(owner[c] == i for c in texts[i][:k]) for i in range(len(scores))) / len(scores) for k in ks]
    return dict(zip([f"{way}@{k}" for way in ("IR", "TR") for k in ks], ir + tr, strict=True))


@st.composite
def matrices(draw):
    images = draw(st.integers(1, 7))
    owner = [*range(images), *draw(st.lists(st.integers(0, images - 1), max_size=12))]
    # Few distinct values, so that ties are the rule.
    row = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=len(owner), max_size=len(owner))
    return np.array(draw(st.lists(row, min_size=images, max_size=images))), owner


@given(matrices(), st.integers(1, 9))
def test_recall_is_that_of_a_stable_sort(matrix, block):
    scores, owner = matrix
    ks = (1, 2, 5)
    found = recall(scores, owner, len(scores), ks, block)
    assert list(found) == ["IR@1", "IR@2", "IR@5", "TR@1", "TR@2", "TR@5"]
    assert found == pytest.approx(naive(scores, owner, ks))
    assert recall(lambda rows, columns: scores[rows, columns], owner, len(scores), ks, block) == found


def test_flickr_sized_memmap_is_read_in_blocks(tmp_path):
    rng = np.random.default_rng(0)
    images, captions = 100, 500
    owner = np.repeat(np.arange(images), 5)
    scores = rng.normal(size=(images, captions)).astype(np.float32)
    scores[owner, np.arange(captions)] += 1.5
    np.save(tmp_path / "scores.npy", scores)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    seen = []

    def read(rows, columns):
        part = mapped[rows, columns]
        seen.append(part.size)
        return part

    found = recall(read, owner, images, block=32)
    assert found == pytest.approx(naive(scores, list(owner), (1, 5, 10)))
    assert max(seen) == 32 * captions
    assert found == recall(mapped, owner, images)
    perfect = np.where(owner[None] == np.arange(images)[:, None], 1, 0)
    assert set(recall(perfect, owner, images).values()) == {1.0}


@pytest.mark.parametrize(
    ("scores", "owner", "words"),
    [
        (np.zeros((2, 3)), [0, 1], r"the scores are \(2, 3\), for 2 images x 2 captions"),
        (np.zeros((2, 2)), [0, 0], "do not belong to images 0 to 1"),
        (np.array([[0, np.nan], [0, 0]]), [0, 1], "not finite"),
    ],
)
def test_matrices_that_do_not_fit(scores, owner, words):
    with pytest.raises(DataError, match=words):
        recall(scores, owner, 2)
