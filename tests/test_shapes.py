"""Named shapes are the published models in everything but their weights."""

from __future__ import annotations

import pytest
import torch

from eas.measure import shapes
from eas.measure.count import count
from eas.measure.shapes import SHAPES, build

PUBLISHED = {  # parameters that the checkpoints hold
    "llava-1.5-7b": 7_063_427_072,
    "lavin-7b": 6_738_415_616,
    "qwen2.5-vl-3b": 3_754_622_976,
    "smolvlm-500m": 507_482_304,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_hold_no_memory_on_the_meta_device(name: str) -> None:
    model = build(name, dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    counts = count(model, 700)
    assert counts.params_total == PUBLISHED.get(name, counts.params_total)
    assert counts.macs > 0


def test_random_weights_are_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    small = shapes._llama(32, 64, 2, 4, vocab_size=64)
    monkeypatch.setitem(SHAPES, "small", lambda: small)
    model, again = build("small", "cpu"), build("small", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert torch.linalg.matrix_rank(model.model.layers[0].mlp.gate_proj.weight) == 32
    assert torch.equal(model.model.norm.weight, torch.ones(32))
    logits = model(input_ids=torch.arange(8)[None]).logits
    assert logits.isfinite().all()
    assert logits.std() > 0
    assert build("small", "cpu", torch.bfloat16).model.rotary_emb.inv_freq.dtype == torch.float32


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match=r"'llava-9b' is unknown; there is llava-7b, .*llava-0\.5b"):
        build("llava-9b")
