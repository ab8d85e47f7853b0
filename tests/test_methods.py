"""The contract that every tuning method keeps, on several tiny families; a new method joins with a line in CONFIGS."""

from collections import Counter
from functools import partial

import pytest
import torch
from families import build, logits, prompts
from test_generation import alone, answered, answers, decode, teacher_forced

import eas
from eas import METHODS, ConfigError
from eas.checkpoint import adapter_state
from eas.hf.trainer import checkpoint_activations
from eas.models.anatomy import Anatomy
from eas.surgery import candidates, disabled

torch.set_num_threads(1)
FAMILIES = [
    "LavinForConditionalGeneration",
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",  # grouped queries, biases
    "LlavaForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",  # multimodal rotary positions
]
PIA = {"skip_rank": 4, "adapt_rank": 2}
CONFIGS = {
    "eas": {"num_skip": 2, **PIA},
    "eas, released": {"num_skip": 2, **PIA, "preset": "released", "dropout": 0.0},
    "eas, ffn": {"num_skip": 2, **PIA, "candidates": "ffn"},
    "eas, either": {"num_skip": 3, **PIA, "candidates": "either"},
    "eas, causal": {"num_skip": 2, **PIA, "pooling": "causal"},
    "eas, running": {"num_skip": 2, **PIA, "router": "constant", "pooling": "causal", "decode_pooling": "running"},
    "eas, constant": {"num_skip": 2, **PIA, "router": "constant", "pooling": "none"},
    "das": {"num_skip": 2, **PIA},
    "das, routed": {"num_skip": 2, **PIA, "routed": True},
    "drop": {"num_skip": 2, "rank": 2},
    "drop, either": {"num_skip": 3, "rank": 2, "candidates": "either"},
    "full": {},
    "head": {},
    "lora": {"rank": 2},
    "adapter": {"rank": 3},
    "adapter, both": {"rank": 3, "placement": "both"},
    "parallel_adapter": {"rank": 8},
    "lavin_adapter": {"rank": 2},
    "prefix": {"num_tokens": 3},
    "prefix, MLP": {"num_tokens": 3, "reparameterise": 6},
    "shallow_prompt": {"num_tokens": 3},
    "deep_prompt": {"num_tokens": 3},
    "llama_adapter": {"num_tokens": 3},
    "mam": {"num_tokens": 3, "rank": 8},
}
SETS = {"either": (0, 2, 5), "ffn": (1, 2)}  # others skip 0 and 2
CHANGES_UNTRAINED = {"prefix", "shallow_prompt", "deep_prompt", "mam"}  # the softmax is shared with m more keys
close = partial(torch.testing.assert_close, rtol=1e-4, atol=2e-5)


def test_every_method_has_signed():
    assert {method(label) for label in CONFIGS} == set(METHODS)
    for name, entry in METHODS.items():
        assert entry.config.name == name
        assert (entry.fold is None) == (entry.unfold is None) == (not entry.fold_modes)


def method(label):
    return label.split(",")[0]


def config_of(label):
    return METHODS[method(label)].config(**CONFIGS[label])


def tuned(family, label, pruned=False, **build_options):
    """An attached tiny model under its skip set, with trained weights that show in the logits."""
    torch.manual_seed(1)
    config = config_of(label)
    model = eas.attach(build(family, **build_options), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter_state(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    select_as(model)
    if pruned and candidates(model):
        eas.prune(model)
    return model.eval()


def select_as(model):
    if candidates(model):
        eas.select(model, SETS.get(model.eas.config.candidates, (0, 2)))


def trains_of_the_base(model, label):
    """The modules of the base itself that a method trains."""
    head = model.get_output_embeddings()
    return {"full": [Anatomy.of(model).text_model, head], "head": [head]}.get(method(label), [])


def can_fold(config, mode):
    """Whether the fold has what it needs: weights that are the same for all sequences, or one c per prompt."""
    if mode == "constant":
        return config.router == "constant"
    return mode != "per_example" or config.name != "eas" or config.pooling != "causal"


def batch_of(family):
    return answered(prompts(family), answers(2))[0]


def are_the_slope(gradients, loss):
    """A step along all gradients changes the loss by as much as they say: no path is cut off."""
    norm, losses = torch.stack([gradient.norm() for gradient in gradients.values()]).norm(), []
    with torch.no_grad():
        for step in (1e-3, -2e-3):
            for parameter, gradient in gradients.items():
                parameter += step * gradient / norm
            losses.append(loss())
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(float(norm), rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("label", CONFIGS)
class TestContract:
    def test_untrained_it_changes_nothing_or_says_so(self, family, label):
        model, inputs = eas.attach(build(family), config_of(label)), prompts(family, (8, 8))
        got, expected = logits(model, inputs), logits(build(family), inputs)
        if method(label) in CHANGES_UNTRAINED:
            assert not torch.allclose(got, expected, atol=1e-4)
        else:
            close(got, expected, rtol=1e-6, atol=1e-6)

    def test_exactly_what_it_declares_is_trained(self, family, label):
        model = build(family)
        base = {id(parameter) for parameter in model.parameters()}
        eas.attach(model, config_of(label))
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        own = {id(parameter) for module in trains_of_the_base(model, label) for parameter in module.parameters()}
        assert trained == own | {id(parameter) for parameter in model.parameters()} - base
        assert {id(parameter) for parameter in adapter_state(model).values()} == trained

    def test_gradients_reach_all_of_it_and_are_the_slope_of_the_loss(self, family, label):
        model, batch = tuned(family, label, pruned=True).train(), batch_of(family)
        model(**batch, use_cache=False).loss.backward()
        gradients = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                if not name.endswith("k_proj.bias"):  # softmax does not see what all keys have in common
                    assert parameter.grad.any(), name
                gradients[parameter] = parameter.grad
        are_the_slope(gradients, lambda: model(**batch, use_cache=False).loss)

    def test_the_weights_of_the_base_never_change(self, family, label):
        model = build(family)
        before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]

        def unchanged(**tolerance):
            for parameter, old in before:
                if not parameter.requires_grad:
                    close(parameter, old, **{"rtol": 0, "atol": 0} | tolerance)

        eas.attach(model, config_of(label))
        select_as(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, weight_decay=0.1)
        for _ in range(2):
            model.train()(**batch_of(family), use_cache=False).loss.backward()
            optimizer.step()
        eas.prune(model.eval())
        decode(model, prompts(family), answers(2))
        unchanged()
        if METHODS[method(label)].fold is not None:
            merges = eas.fold(model).mode == "merged"
            decode(model, prompts(family), answers(2))
            changed = any(not torch.equal(parameter, old) for parameter, old in before)
            assert changed == merges
            eas.unfold(model)
            unchanged(**{"rtol": 1e-5, "atol": 1e-6} if merges else {})

    def test_gradient_checkpointing_is_active_and_changes_nothing(self, family, label):
        gradients, calls = [], Counter()
        for checkpointing in (False, True):
            model = tuned(family, label, pruned=True).train()
            if checkpointing:
                checkpoint_activations(model)
            for layer in Anatomy.of(model).layers:
                layer.input_layernorm.register_forward_hook(lambda *_, now=checkpointing: calls.update([now]))
            model(**batch_of(family), use_cache=False).loss.backward()
            gradients.append([parameter.grad for parameter in adapter_state(model).values()])
        close(gradients[1], gradients[0])
        assert calls[True] > calls[False]

    def test_saved_and_loaded_it_is_the_same_bit_for_bit(self, family, label, tmp_path):
        inputs = prompts(family)
        for pruned in (False, True):
            model = tuned(family, label, pruned)
            eas.save(model, tmp_path)
            again = eas.load(build(family), tmp_path)
            assert again.eas == model.eas
            assert eas.skip_set(again) == eas.skip_set(model)
            assert torch.equal(logits(again.eval(), inputs), logits(model, inputs))

    def test_folded_equals_unfolded_and_folds_once(self, family, label):
        model, inputs, answer = tuned(family, label, pruned=True), prompts(family), answers(2)
        if METHODS[method(label)].fold is None:
            with pytest.raises(ValueError, match="cannot be folded"):
                eas.fold(model)
            with pytest.raises(ValueError, match="not folded"):
                eas.unfold(model)
            return
        batches = decode(model, inputs, answer)
        single = alone(family, inputs, 0, (True, True)), answer[:1]
        for mode in METHODS[method(label)].fold_modes:
            if not can_fold(model.eas.config, mode):
                with pytest.raises(ValueError, match="folding needs"):
                    eas.fold(model, mode)
                continue
            eas.fold(model, mode)
            with pytest.raises(ValueError, match="folded already"):
                eas.fold(model, mode)
            if mode == "per_example":
                close(decode(model, *single), batches[:1])
            else:
                close(decode(model, inputs, answer), batches)
            eas.unfold(model)
            close(decode(model, inputs, answer), batches, rtol=1e-5, atol=1e-5)
            with pytest.raises(ValueError, match="not folded"):
                eas.unfold(model)

    def test_every_way_of_decoding_gives_the_numbers_of_training(self, family, label):
        model, inputs, answer = tuned(family, label), prompts(family), answers(2)
        expected = teacher_forced(model, inputs, answer)
        for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            close(decode(model, inputs, answer, **more), expected)
        for row in (0, 1):  # alone, without padding
            close(decode(model, alone(family, inputs, row, (True, True)), answer[row : row + 1]), expected[[row]])

    def test_disabled_it_gives_the_base_back(self, family, label):
        model, inputs = tuned(family, label), prompts(family)
        tuned_logits = logits(model, inputs)
        if method(label) in ("full", "head"):
            with pytest.raises(ValueError, match="trained itself"), disabled(model):
                pass
            return
        with disabled(model):
            assert torch.equal(logits(model, inputs), logits(build(family), inputs))
        assert torch.equal(logits(model, inputs), tuned_logits)
        if candidates(model):
            eas.prune(model)
            with pytest.raises(ValueError, match="pruned"), disabled(model):
                pass

    def test_a_bfloat16_base(self, family, label):
        exact = logits(tuned(family, label), prompts(family))
        model = tuned(family, label, pruned=True, dtype=torch.bfloat16)
        if method(label) not in ("full", "head"):
            assert {p.dtype for p in adapter_state(model).values()} == {torch.float32}
        got = logits(model, prompts(family))
        assert got.dtype == torch.bfloat16
        assert (got.float() - exact).norm() / exact.norm() < 0.06
        assert decode(model, prompts(family), answers(2)).isfinite().all()
        model.train()(**batch_of(family), use_cache=False).loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in adapter_state(model).values())

    def test_its_cost_is_counted(self, family, label):
        base, model = eas.count(build(family), 20), eas.count(tuned(family, label, pruned=True), 20)
        state = adapter_state(tuned(family, label, pruned=True))
        assert model.params_trained == sum(p.numel() for p in state.values())
        skips_attention = candidates(tuned(family, label)) and "ffn" not in label
        assert (model.kv_bytes_per_token < base.kv_bytes_per_token) == bool(skips_attention)


@pytest.mark.parametrize("family", FAMILIES[1:3])  # test_checkpoint opens every one
@pytest.mark.parametrize("label", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_standalone_folder_opens_without_the_base(family, label, dtype, tmp_path):
    model, inputs = tuned(family, label, pruned=True, dtype=dtype), prompts(family)
    eas.merge_and_save(model, tmp_path)
    again = eas.load(tmp_path)
    assert again.eas.config == model.eas.config
    opened, saved = dict(again.named_parameters()), dict(model.named_parameters())
    assert {n: p.dtype for n, p in opened.items()} == {n: p.dtype for n, p in saved.items()}
    assert all(torch.equal(opened[n], p) for n, p in saved.items())
    close(logits(again, inputs), logits(model, inputs))  # where a weight lies in memory may decide the kernel


def test_a_method_that_skips_nothing_refuses_a_skip_set():
    model = eas.attach(build(FAMILIES[0]), config_of("lora"))
    with pytest.raises(ValueError, match="lora skips nothing"):
        eas.select(model, [1])
    eas.select(model, [])


def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was():
    for label, values, words in (
        ("das", {"num_skip": 4}, "DASConfig.num_skip = 4: the model has 4 attentions"),
        ("lavin_adapter", {"rank": 5, "up_groups": 5}, "up_groups = 5: must divide"),
        ("lora", {"train_projector": True}, "LoRAConfig.train_projector = True: the model has no"),
    ):
        model = build("LlamaForCausalLM")
        with pytest.raises(ConfigError, match=words):
            eas.attach(model, METHODS[label].config(**values))
        assert not eas.attached(model)
        assert all(parameter.requires_grad for parameter in model.parameters())
    tied = build(FAMILIES[0], tie_word_embeddings=True)
    with pytest.raises(ConfigError, match="tied to its input embeddings"):
        eas.attach(tied, config_of("head"))
    with pytest.raises(ConfigError, match="method 'lorra' is unknown; there is eas"):
        eas.method_config({"name": "lorra"})
