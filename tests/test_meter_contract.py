"""The contract of tests/test_methods.py, as every method on METER keeps it."""

from collections import Counter
from functools import partial

import pytest
import torch
from test_meter import close
from test_methods import are_the_slope

import eas
from eas import METHODS
from eas.checkpoint import adapter_state
from eas.config import SkipConfig
from eas.measure.layers import block_costs
from eas.methods import OWN_FORMS, REFUSED, method_of
from eas.models.anatomy import Anatomy
from eas.models.meter import TASKS, MeterConfig
from eas.surgery import candidates, disabled

torch.set_num_threads(1)
PIA = {"skip_rank": 4, "adapt_rank": 2}
CONFIGS = {
    "eas": {"num_skip": 3, **PIA},
    "eas, constant": {"num_skip": 3, **PIA, "router": "constant", "pooling": "none", "up_groups": 2},
    "das": {"num_skip": 2, **PIA},
    "drop": {"num_skip": 3, "rank": 2},
    "drop, layers": {"num_skip": 2, "candidates": "layer", "rank": 2},
    "full": {},
    "head": {},
    "lora": {"rank": 2, "targets": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]},
    "adapter": {"rank": 16, "placement": "both"},
    "parallel_adapter": {"rank": 16, "placement": "attention"},
    "shallow_prompt": {"num_tokens": 3},
    "deep_prompt": {"num_tokens": 3},
    "prefix": {"num_tokens": 3},
    "mam": {"num_tokens": 2, "rank": 16, "scale": 2.0},
}
SETS = {"mha": (1, 2, 5, 6), "layer": (0, 3)}
CHANGES_UNTRAINED = {"shallow_prompt", "deep_prompt", "prefix", "mam"}
exactly = partial(torch.testing.assert_close, rtol=0, atol=0)


def build(task="vqa", dtype=torch.float32):
    """Two layers a modality, of width 32, with weights that show in the logits."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = MeterConfig(
        text_config={**sizes, "vocab_size": 60, "max_position_embeddings": 40, "layer_norm_eps": 1e-5},
        vision_config={**sizes, "patch_size": 8, "image_size": 16},
        coattention_config={**sizes, "vocab_size": 60, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        num_images=2 if task == "nlvr2" else 1,
        num_answers=5,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return TASKS[task](config).eval().to(dtype)


def batch(task="vqa"):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 60, (2, 7), generator=generator)
    ids[1, 4:] = 1
    images = 2 if task == "nlvr2" else 1
    pixels = torch.randn(2, images, 3, 16, 16, generator=generator).squeeze(1)
    labels = torch.rand(2, 5, generator=generator) if task == "vqa" else torch.tensor([1, 0])
    return {"input_ids": ids, "attention_mask": (ids != 1).long(), "pixel_values": pixels, "labels": labels}


def method(label):
    return label.split(",")[0]


def tuned(label, pruned=False, task="vqa", dtype=torch.float32, **more):
    """Attached under its skip set, with trained weights that show."""
    torch.manual_seed(1)
    config = METHODS[method(label)].config(**CONFIGS[label], **more)
    model = eas.attach(build(task, dtype), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_state(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    if isinstance(config, SkipConfig):
        eas.select(model, SETS[config.candidates])
        if pruned:
            eas.prune(model)
    return model.eval()


@torch.no_grad()
def logits(model, inputs=None):
    return model(**(inputs or batch())).logits


def test_every_method_of_meter_has_signed():
    assert {method(label) for label in CONFIGS} == set(METHODS) - set(REFUSED["coattention"])
    assert all(entry.config is METHODS[name].config for name, entry in OWN_FORMS["coattention"].items())


@pytest.mark.parametrize("label", CONFIGS)
class TestContract:
    def test_untrained_it_changes_nothing_or_says_so(self, label):
        got = logits(eas.attach(build(), METHODS[method(label)].config(**CONFIGS[label])))
        assert torch.allclose(got, logits(build()), atol=1e-6) != (method(label) in CHANGES_UNTRAINED)

    def test_exactly_what_it_declares_is_trained(self, label):
        model = build()
        base = {id(parameter) for parameter in model.parameters()}
        eas.attach(model, METHODS[method(label)].config(**CONFIGS[label]))
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        of_the_base = {"full": [model], "head": Anatomy.of(model).head}.get(method(label), [])
        own = {id(parameter) for module in of_the_base for parameter in module.parameters()}
        assert trained == own & base | {id(parameter) for parameter in model.parameters()} - base
        assert {id(parameter) for parameter in adapter_state(model).values()} == trained

    def test_gradients_reach_all_of_it_and_are_the_slope_of_the_loss(self, label):
        model, gradients = tuned(label, pruned=True), {}
        model(**batch()).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                if not name.endswith(("key.bias", "k_proj.bias")):  # the softmax does not see them
                    assert parameter.grad.any(), name
                gradients[parameter] = parameter.grad
        are_the_slope(gradients, lambda: model(**batch()).loss)

    def test_the_weights_of_the_base_never_change(self, label):
        model = build()
        before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
        eas.attach(model, METHODS[method(label)].config(**CONFIGS[label]))
        config = model.eas.config
        if isinstance(config, SkipConfig):
            eas.select(model, SETS[config.candidates])
        optimizer = torch.optim.SGD(model.parameters(), 0.01, weight_decay=0.1)
        for _ in range(2):
            model.train()(**batch()).loss.backward()
            optimizer.step()
        eas.prune(model.eval())
        assert all(torch.equal(parameter, old) for parameter, old in before if not parameter.requires_grad)
        if method_of("coattention", method(label)).fold is not None:
            unfolded = logits(model)
            assert eas.fold(model).mode == "merged"
            close(logits(model), unfolded)
            with pytest.raises(ValueError, match="folded already"):
                eas.fold(model)
            eas.unfold(model)
            for parameter, old in before:
                torch.testing.assert_close(parameter, old, rtol=1e-5, atol=1e-6)

    def test_a_padded_row_is_what_it_is_alone(self, label):
        model, rows = tuned(label, pruned=True), batch()
        alone = {key: value[1:] for key, value in rows.items()}
        for key in ("input_ids", "attention_mask"):
            alone[key] = alone[key][:, :4]
        close(logits(model, alone), logits(model)[1:])

    def test_gradient_checkpointing_is_active_and_changes_nothing(self, label):
        gradients, calls = [], Counter()
        for checkpointing in (False, True):
            model = tuned(label, pruned=True)
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            for layers in (model.meter.cross_modal_text_layers, model.meter.cross_modal_image_layers):
                for module in layers.train().modules():
                    module.register_forward_hook(lambda *_, now=checkpointing: calls.update([now]))
            model(**batch()).loss.backward()
            gradients.append([parameter.grad for parameter in adapter_state(model).values()])
        close(gradients[1], gradients[0])
        assert calls[True] > calls[False]

    def test_saved_and_loaded_it_is_the_same_bit_for_bit(self, label, tmp_path):
        for pruned in (False, True):
            model = tuned(label, pruned)
            eas.save(model, tmp_path)
            again = eas.load(build(), tmp_path)
            assert again.eas == model.eas
            assert eas.skip_set(again) == eas.skip_set(model)
            exactly(logits(again), logits(model))

    def test_disabled_it_gives_the_base_back(self, label):
        model = tuned(label)
        before = logits(model)
        if method(label) in ("full", "head"):
            with pytest.raises(ValueError, match="trained itself"), disabled(model):
                pass
            return
        with disabled(model):
            exactly(logits(model), logits(build()))
        exactly(logits(model), before)

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
        eas.merge_and_save(model, tmp_path)
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

    def test_a_bfloat16_base(self, label):
        exact, model = logits(tuned(label)), tuned(label, dtype=torch.bfloat16)
        got = model(**{**batch(), "pixel_values": batch()["pixel_values"].bfloat16()}).logits
        assert got.dtype == torch.bfloat16
        assert (got.float() - exact).norm() / exact.norm() < 0.1
