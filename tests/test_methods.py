"""The contract that every tuning method keeps, on several tiny families; a new one joins by a line in contract.py."""

from collections import Counter
from functools import partial
from itertools import product

import pytest
import torch
from contract import CONFIGS, METER, METER_CONFIGS, base_of, batch_of, config_of, inputs_of, method, select_as, tuned
from decoding import alone, answers, decode, teacher_forced
from families import build, logits, prompts, quick

import eas
from eas import METHODS, ConfigError
from eas.attachment.save import adapter_state
from eas.attachment.state import candidates
from eas.attachment.undo import disabled
from eas.hf.trainer import checkpoint_activations
from eas.methods import NEED_TOKENS, REFUSED
from eas.models.anatomy import Anatomy

torch.set_num_threads(1)
FAMILIES = [
    "LavinForConditionalGeneration",
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",  # grouped queries, biases
    "LlavaForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",  # multimodal rotary positions
]
OTHER_BLOCKS = ["Gemma3ForCausalLM", "Cohere2ForCausalLM"]
PLAIN = {"full", "head", "lora", "adapter", "parallel_adapter", "lavin_adapter"}  # touch neither attention nor cache
PAIRS = [(METER, label) for label in METER_CONFIGS]
PAIRS += [pair for pair in product(FAMILIES, CONFIGS) if pair[0] in FAMILIES[2:4] or method(pair[1]) not in PLAIN]
PAIRS += [(family, label) for family in OTHER_BLOCKS for label in CONFIGS if method(label) not in NEED_TOKENS]
QUICK = [pair for pair in PAIRS if pair[0] in (METER, FAMILIES[3]) or pair[1] == "eas"]
CHANGES_UNTRAINED = {"prefix", "shallow_prompt", "deep_prompt", "mam"}  # the softmax is shared with m more keys
close = partial(torch.testing.assert_close, rtol=1e-4, atol=2e-5)


def test_every_method_has_signed():
    assert {method(label) for label in CONFIGS} == set(METHODS)
    assert {method(label) for label in METER_CONFIGS} == set(METHODS) - set(REFUSED["coattention"])
    for name, entry in METHODS.items():
        assert entry.config.name == name
        assert (entry.fold is None) == (entry.unfold is None) == (not entry.fold_modes)


def trains_of_the_base(model, label):
    """The modules of the base itself that a method trains."""
    anatomy = Anatomy.of(model)
    return {"full": [anatomy.text_model, *anatomy.head], "head": anatomy.head}.get(method(label), [])


def can_fold(config, mode):
    """Whether the fold has what it needs: weights that are the same for all sequences, or one c per prompt."""
    if mode == "constant":
        return config.router == "constant"
    return mode != "per_example" or config.name != "eas" or config.pooling != "causal"


def answer(family, model, inputs):
    """Logits of an answer that is decoded; METER's own."""
    return logits(model, inputs) if family == METER else decode(model, inputs, answers(2))


def are_the_slope(gradients, loss):
    """A step along all gradients changes the loss by as much as they say: no path is cut off."""
    norm, losses = torch.stack([gradient.norm() for gradient in gradients.values()]).norm(), []
    with torch.no_grad():
        for step in (1e-3, -2e-3):
            for parameter, gradient in gradients.items():
                parameter += step * gradient / norm
            losses.append(loss())
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(float(norm), rel=0.02)


@pytest.mark.parametrize(("family", "label"), quick(PAIRS, QUICK))
class TestContract:
    def test_untrained_it_changes_nothing_or_says_so(self, family, label):
        model, inputs = eas.attach(base_of(family), config_of(label, family)), inputs_of(family, (8, 8))
        got, expected = logits(model, inputs), logits(base_of(family), inputs)
        if method(label) in CHANGES_UNTRAINED:
            assert not torch.allclose(got, expected, atol=1e-4)
        else:
            close(got, expected, rtol=1e-6, atol=1e-6)

    def test_exactly_what_it_declares_is_trained(self, family, label):
        model = base_of(family)
        base = {id(parameter) for parameter in model.parameters()}
        eas.attach(model, config_of(label, family))
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        own = {id(parameter) for module in trains_of_the_base(model, label) for parameter in module.parameters()}
        assert trained == own | {id(parameter) for parameter in model.parameters()} - base
        assert {id(parameter) for parameter in adapter_state(model).values()} == trained

    def test_gradients_reach_all_of_it_and_are_the_slope_of_the_loss(self, family, label):
        model, batch = tuned(family, label, pruned=True).train(), batch_of(family)
        model(**batch).loss.backward()
        gradients = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                if not name.endswith(("k_proj.bias", "key.bias")):  # softmax does not see what all keys have in common
                    assert parameter.grad.any(), name
                gradients[parameter] = parameter.grad
        are_the_slope(gradients, lambda: model(**batch).loss)

    def test_the_weights_of_the_base_never_change(self, family, label):
        model = base_of(family)
        before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]

        def unchanged(**tolerance):
            for parameter, old in before:
                if not parameter.requires_grad:
                    close(parameter, old, **{"rtol": 0, "atol": 0} | tolerance)

        eas.attach(model, config_of(label, family))
        select_as(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.01, weight_decay=0.1)
        for _ in range(2):
            model.train()(**batch_of(family)).loss.backward()
            optimizer.step()
        eas.prune(model.eval())
        answer(family, model, inputs_of(family))
        unchanged()
        if model.eas.method.fold is not None:
            merges = eas.fold(model).mode == "merged" or label == "eas, lora"
            answer(family, model, inputs_of(family))
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
            for module in (module for layer in Anatomy.of(model).layers for module in layer.modules()):
                module.register_forward_hook(lambda *_, now=checkpointing: calls.update([now]))
            model(**batch_of(family)).loss.backward()
            gradients.append([parameter.grad for parameter in adapter_state(model).values()])
        close(gradients[1], gradients[0])
        assert calls[True] > calls[False]

    def test_saved_and_loaded_it_is_the_same_bit_for_bit(self, family, label, tmp_path):
        inputs = inputs_of(family)
        for pruned in (False, True):
            model = tuned(family, label, pruned)
            eas.save(model, tmp_path)
            again = eas.load(base_of(family), tmp_path)
            assert again.eas == model.eas
            assert eas.skip_set(again) == eas.skip_set(model)
            assert torch.equal(logits(again.eval(), inputs), logits(model, inputs))

    def test_folded_equals_unfolded_and_folds_once(self, family, label):
        model, inputs = tuned(family, label, pruned=True), inputs_of(family)
        if model.eas.method.fold is None:
            with pytest.raises(ValueError, match="cannot be folded"):
                eas.fold(model)
            with pytest.raises(ValueError, match="not folded"):
                eas.unfold(model)
            return
        batches = answer(family, model, inputs)
        for mode in model.eas.method.fold_modes:
            if not can_fold(model.eas.config, mode):
                with pytest.raises(ValueError, match="folding needs"):
                    eas.fold(model, mode)
                continue
            eas.fold(model, mode)
            with pytest.raises(ValueError, match="folded already"):
                eas.fold(model, mode)
            if mode == "per_example":
                close(decode(model, alone(family, inputs, 0, (True, True)), answers(1)), batches[:1])
            else:
                close(answer(family, model, inputs), batches)
            eas.unfold(model)
            close(answer(family, model, inputs), batches, rtol=1e-5, atol=1e-5)
            with pytest.raises(ValueError, match="not folded"):
                eas.unfold(model)

    def test_every_way_of_decoding_gives_the_numbers_of_training(self, family, label):
        model, inputs, said = tuned(family, label), inputs_of(family), answers(2)
        if family == METER:  # which decodes nothing: a padded row is what it is alone
            alone_of = {key: value[1:, :4] if value.ndim == 2 else value[1:] for key, value in inputs.items()}
            close(logits(model, alone_of), logits(model, inputs)[1:])
            return
        expected = teacher_forced(model, inputs, said)
        for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
            close(decode(model, inputs, said, **more), expected)
        for row in (0, 1):  # alone, without padding
            close(decode(model, alone(family, inputs, row, (True, True)), said[row : row + 1]), expected[[row]])

    def test_disabled_it_gives_the_base_back(self, family, label):
        model, inputs = tuned(family, label), inputs_of(family)
        tuned_logits = logits(model, inputs)
        if method(label) in ("full", "head"):
            with pytest.raises(ValueError, match="trained itself"), disabled(model):
                pass
            return
        with disabled(model):
            assert torch.equal(logits(model, inputs), logits(base_of(family), inputs))
        assert torch.equal(logits(model, inputs), tuned_logits)
        if candidates(model):
            eas.prune(model)
            with pytest.raises(ValueError, match="pruned"), disabled(model):
                pass

    def test_a_bfloat16_base(self, family, label):
        exact = logits(tuned(family, label), inputs_of(family))
        model = tuned(family, label, pruned=True, dtype=torch.bfloat16)
        if method(label) not in ("full", "head"):
            assert {p.dtype for p in adapter_state(model).values()} == {torch.float32}
        inputs, batch = inputs_of(family, dtype=torch.bfloat16), batch_of(family)
        got = logits(model, inputs)
        assert got.dtype == torch.bfloat16
        assert (got.float() - exact).norm() / exact.norm() < 0.06
        assert answer(family, model, inputs).isfinite().all()
        model.train()(**{**batch, "pixel_values": inputs["pixel_values"]} if family == METER else batch).loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in adapter_state(model).values())

    def test_its_cost_is_counted(self, family, label):
        images = int(family == METER)
        base = eas.count(base_of(family), 20, images)
        model = eas.count(tuned(family, label, pruned=True), 20, images)
        state = adapter_state(tuned(family, label, pruned=True))
        assert model.params_trained == sum(p.numel() for p in state.values())
        skips_attention = candidates(tuned(family, label)) and "ffn" not in label and family != METER
        assert (model.kv_bytes_per_token < base.kv_bytes_per_token) == bool(skips_attention)


@pytest.mark.parametrize("family", quick(FAMILIES[1:3], FAMILIES[1:2]))  # test_checkpoint opens every one
@pytest.mark.parametrize("label", CONFIGS)
@pytest.mark.parametrize("dtype", quick([torch.float32, torch.bfloat16], [torch.bfloat16]))
def test_a_standalone_folder_opens_without_the_base(family, label, dtype, tmp_path):
    model, inputs = tuned(family, label, pruned=True, dtype=dtype), prompts(family)
    eas.save_standalone(model, tmp_path)
    again = eas.load(tmp_path)
    assert again.eas.config == model.eas.config
    opened, saved = dict(again.named_parameters()), dict(model.named_parameters())
    assert {n: p.dtype for n, p in opened.items()} == {n: p.dtype for n, p in saved.items()}
    assert all(torch.equal(opened[n], p) for n, p in saved.items())
    close(logits(again, inputs), logits(model, inputs))  # where a weight lies in memory may decide the kernel


@pytest.mark.parametrize(
    "config",
    [
        eas.LoRAConfig(rank=2, dropout=0.5),
        eas.DropConfig(2, rank=2, dropout=0.5),
        eas.EASConfig(2, router="constant", pooling="none", adapt="lora", dropout=0.5),
    ],
    ids=["lora", "drop", "eas"],
)
@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_on_in_training_only(config, training):
    model = eas.attach(build("LlamaForCausalLM").train(training), config)
    assert {m.training for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.5} == {training}


def test_a_method_that_skips_nothing_refuses_a_skip_set():
    model = eas.attach(build(FAMILIES[0]), config_of("lora"))
    with pytest.raises(ValueError, match="lora skips nothing"):
        eas.select(model, [1])
    eas.select(model, [])


def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was():
    for label, values, words in (
        ("das", {"num_skip": 4}, "DASConfig.num_skip = 4: the model has 4 layers"),
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
    with pytest.raises(ConfigError, match="method 'lorra' is unknown; use one of eas"):
        eas.method_config({"name": "lorra"})
