"""What every method on METER keeps beside the contract of tests/test_methods.py."""

from functools import partial

import pytest
import torch
from contract import METER_CONFIGS as CONFIGS
from contract import method, with_weights
from families import build_meter as build_task
from families import logits as logits_of
from families import meter_batch as batch
from test_meter import close

import eas
from eas import METHODS
from eas.attachment.state import candidates
from eas.measure.layers import block_costs

torch.set_num_threads(1)
exactly = partial(torch.testing.assert_close, rtol=0, atol=0)


def build(task="vqa", dtype=torch.float32):
    return build_task(task, dtype)


def tuned(label, pruned=False, task="vqa", dtype=torch.float32, **more):
    """Attached under its skip set, with trained weights that show."""
    config = METHODS[method(label)].config(**CONFIGS[label], **more)
    return with_weights(build(task, dtype), config, pruned)


def logits(model, inputs=None):
    return logits_of(model, inputs or batch())


@pytest.mark.parametrize("label", CONFIGS)
class TestContract:
    def test_pruned_it_is_the_same_and_smaller(self, label):
        whole, model = tuned(label), tuned(label, pruned=True)
        close(logits(model), logits(whole))
        if candidates(whole):
            assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in whole.parameters())
            assert eas.count(whole, 7, 1).macs == eas.count(model, 7, 1).macs
            assert eas.count(whole, 7, 1).weight_bytes == eas.count(model, 7, 1).weight_bytes
            assert eas.count(whole, 7, 1).params_folded == eas.count(model, 7, 1).params_total

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_standalone_folder_opens_without_the_base(self, label, dtype, tmp_path):
        model = tuned(label, pruned=True, dtype=dtype, task="nlvr2")
        eas.save_standalone(model, tmp_path)
        again = eas.load(tmp_path)
        assert again.eas.config == model.eas.config
        opened, saved = dict(again.named_parameters()), dict(model.named_parameters())
        assert {n: p.dtype for n, p in opened.items()} == {n: p.dtype for n, p in saved.items()}
        assert all(torch.equal(opened[n], p) for n, p in saved.items())
        close(logits(again, batch("nlvr2")), logits(model, batch("nlvr2")))  # memory may decide the kernel

    def test_layers_are_the_terms_of_the_count(self, label):
        rest = [
            eas.count(m, 7, 2).macs - sum(b.mha + b.ffn + b.other for b in block_costs(m, 7, 2))
            for m in (build(), tuned(label), tuned(label, pruned=True))
        ]
        assert rest[0] == rest[1] == rest[2] > 0
