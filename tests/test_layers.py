"""The cost of single blocks."""

from __future__ import annotations

from families import build

import eas
from eas.measure.layers import block_costs
from eas.measure.modules import count_modules


def test_blocks_add_up_to_the_model_and_skipped_attentions_cost_nothing():
    model = build("LlavaForConditionalGeneration")
    head = model.get_output_embeddings().weight.numel()

    def check(skipped):
        counts, blocks = count_modules(model, 9), block_costs(model, 9)
        assert sum(b.mha + b.ffn + b.other for b in blocks) + head == counts.macs
        assert sum(b.kv_bytes for b in blocks) == counts.kv_bytes_per_token
        assert [b.mha == 0 and b.kv_bytes == 0 for b in blocks] == [i in skipped for i in range(len(blocks))]
        return blocks

    base = check([])
    assert {b.other for b in base} == {0}
    eas.attach(model, eas.EASConfig(num_skip=1, skip_rank=4, adapt_rank=2))
    eas.select(model, [1])
    attached = check([1])
    assert attached[1].other > 0
    eas.prune(model)
    assert check([1]) == attached
    eas.fold(model)
    assert check([1])[1].ffn == base[1].ffn
