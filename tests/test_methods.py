"""The contract that every tuning method keeps, on several tiny families; a new method joins with a line in CONFIGS."""

from functools import partial

import pytest
import torch
from families import build, logits, prompts
from test_generation import alone, answered, answers, decode, teacher_forced

import eas
from eas import METHODS, ConfigError
from eas.checkpoint import adapter_state
from eas.config import SkipConfig
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
    if isinstance(config, SkipConfig):
        eas.select(model, SETS.get(config.candidates, (0, 2)))
        if pruned:
            eas.prune(model)
    return model.eval()


def batch_of(family):
    return answered(prompts(family), answers(2))[0]


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
        model = tuned(family, label, pruned=True).train()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        declared = {name for name in model.eas.trained if name in before}
        assert declared == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        model(**batch_of(family), use_cache=False).loss.backward()
        for name in declared:
            gradient = model.get_parameter(name).grad
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            if not name.endswith("k_proj.bias"):  # softmax does not see what all keys have in common
                assert gradient.any(), name
        optimizer.step()
        for name, parameter in model.named_parameters():
            if name not in declared:
                assert torch.equal(parameter, before[name]), name

    def test_gradient_checkpointing_changes_nothing(self, family, label):
        gradients = []
        for checkpointing in (False, True):
            model = tuned(family, label, pruned=True).train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model(**batch_of(family), use_cache=False).loss.backward()
            gradients.append([parameter.grad for parameter in adapter_state(model).values()])
        close(gradients[1], gradients[0])

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
            return
        before = decode(model, inputs, answer)
        eas.fold(model)
        with pytest.raises(ValueError, match="folded already"):
            eas.fold(model)
        close(decode(model, inputs, answer), before)
        eas.unfold(model)
        close(decode(model, inputs, answer), before, rtol=1e-5, atol=1e-5)
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
        exact, model = logits(tuned(family, label), prompts(family)), tuned(family, label, dtype=torch.bfloat16)
        if method(label) not in ("full", "head"):
            assert {p.dtype for p in adapter_state(model).values()} == {torch.float32}
        got = logits(model, prompts(family))
        assert got.dtype == torch.bfloat16
        assert (got.float() - exact).norm() / exact.norm() < 0.06

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
