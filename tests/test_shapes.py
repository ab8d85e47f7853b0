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


BILLIONS = {  # that the model cards name
    "qwen3-vl-2b": 2.13,
    "internvl3.5-8b": 8.53,
    "gemma-3-4b": 4.30,
    "mistral-small-3.1": 24.0,
    "llava-onevision-7b": 8.03,
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_hold_no_memory_on_the_meta_device(name: str) -> None:
    model = build(name, dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    counts = count(model, 700)
    assert counts.params_total == PUBLISHED.get(name, counts.params_total)
    assert counts.params_total / 1e9 == pytest.approx(BILLIONS.get(name, counts.params_total / 1e9), rel=5e-3)
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


def test_blocks_that_share_weights_compute_as_copies_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", lambda: shapes._llama(32, 64, 5, 4, vocab_size=64))
    shared, whole = build("small", "cpu", share_blocks=True), build("small", "cpu")
    for block in whole.model.layers:
        block.load_state_dict(shared.model.layers[0].state_dict())
    whole.model.embed_tokens.load_state_dict(shared.model.embed_tokens.state_dict())
    whole.lm_head.load_state_dict(shared.lm_head.state_dict())
    ids = torch.arange(8)[None]
    assert torch.equal(shared(ids).logits, whole(ids).logits)
    given = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(shared.generate(ids, **given), whole.generate(ids, **given))  # a cache for every block
    numbers = [sum(p.numel() for p in module.parameters()) for module in (shared, whole, whole.model.layers[0])]
    assert numbers[1] - numbers[0] == 4 * numbers[2]
    assert shared.config.num_hidden_layers == 5


def test_unknown_shape() -> None:
    with pytest.raises(ValueError, match=r"'llava-9b' is unknown; use one of llava-7b, .*llava-0\.5b"):
        build("llava-9b")
