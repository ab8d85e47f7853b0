"""Prompt methods: each equals its plain definition, and PEFT where it has one, in every way of running a model."""

from functools import partial

import peft
import pytest
import torch
import transformers as tf
from decoding import alone, answers, decode, teacher_forced
from families import build, every_family, logits, prompts
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, rotate_half

import eas
from eas.attachment.save import adapter_state
from eas.attachment.undo import disabled
from eas.config import ConfigError
from eas.hf.api import cached
from eas.measure.count import count
from eas.methods import METHODS
from eas.methods.llama_adapter import LlamaAdapterConfig
from eas.methods.mam import MAMConfig
from eas.methods.prefix import PrefixConfig
from eas.methods.prompts import DeepPromptConfig, ShallowPromptConfig
from eas.models.anatomy import Anatomy

torch.set_num_threads(1)
LLAMA, LLAVA, QWEN = "LlamaForCausalLM", "LlavaForConditionalGeneration", "Qwen2ForCausalLM"
QWEN_VL = "Qwen2_5_VLForConditionalGeneration"
M = 3
CONFIGS = {
    "prefix": PrefixConfig(M),
    "prefix mlp": PrefixConfig(M, reparameterise=6),
    "shallow": ShallowPromptConfig(M),
    "deep": DeepPromptConfig(M),
    "llama_adapter": LlamaAdapterConfig(M),
    "mam": MAMConfig(M, rank=5),
}
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
every_method = pytest.mark.parametrize("method", CONFIGS)
every_folding_method = pytest.mark.parametrize("method", [name for name in CONFIGS if name != "mam"])
some_families = pytest.mark.parametrize("family", [LLAMA, QWEN, LLAVA, QWEN_VL])
# PEFT names arguments of transformers as they were called before
peft_calls = pytest.mark.filterwarnings("default::FutureWarning")


def tuned(family, method, seed=0, trained=True, **options):
    """An attached tiny model; ``trained``: with weights that show in the logits."""
    model = build(family, seed, **options)
    torch.manual_seed(seed)
    eas.attach(model, CONFIGS[method])
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "mlp." not in name:
                    parameter.normal_(std=0.7)
                elif ".adapter." in name:
                    parameter.normal_(std=0.1)
    return model.eval()


def text_prompts(family, model):
    """Embeddings of an unpadded row, ``(1, n, hidden size)``, and its positions from 0."""
    ids = prompts(family, (7,), images=False)["input_ids"]
    return model.get_input_embeddings()(ids), torch.arange(ids.shape[1])[None]


def positions_of(family, positions):
    return positions.expand(3, 1, -1) if "VL" in family and family.startswith("Qwen") else positions


@every_family
@every_method
def test_what_an_untrained_prompt_changes(family, method):
    model, inputs = tuned(family, method, trained=False), prompts(family, (8, 8))
    expected, got = logits(build(family), inputs), logits(model, inputs)
    with disabled(model):
        assert torch.equal(logits(model, inputs), expected)
    assert torch.equal(logits(model, inputs), got)
    if method == "llama_adapter":  # its gates are zero
        assert torch.equal(got, expected)
    else:  # the softmax is shared with m more keys
        assert not torch.allclose(got, expected, atol=1e-4)


@every_family
@torch.no_grad()
def test_a_shallow_prompt_is_prepended_embeddings(family):
    model = tuned(family, "shallow")
    embeds, positions = text_prompts(family, model)
    if family.startswith("Qwen2") and "VL" in family:  # as an image has them
        positions = torch.stack([positions, positions // 2, positions % 3])
    text = Anatomy.of(model).text_model
    got = text(inputs_embeds=embeds, position_ids=positions).last_hidden_state
    with disabled(model):
        longer = torch.cat([text.prompt.tokens[None], embeds], 1)
        before = torch.arange(M).expand(*positions.shape[:-1], M)
        expected = text(inputs_embeds=longer, position_ids=torch.cat([before, positions + M], -1)).last_hidden_state
        assert not torch.allclose(text(inputs_embeds=embeds, position_ids=positions).last_hidden_state, got, atol=1e-2)
    close(got, expected[:, M:])


@every_family
@torch.no_grad()
def test_deep_prompts_are_prepended_at_every_block(family):
    model = tuned(family, "deep")
    embeds, _ = text_prompts(family, model)
    text = Anatomy.of(model).text_model
    got = text(inputs_embeds=embeds).last_hidden_state
    with disabled(model):
        longer = positions_of(family, torch.arange(M + embeds.shape[1])[None])
        for layer, tokens in zip(text.layers, text.prompt.tokens, strict=True):
            joined = torch.cat([tokens[None], embeds], 1)
            embeds = layer(joined, attention_mask=None, position_embeddings=text.rotary_emb(joined, longer))[:, M:]
        close(got, text.norm(embeds))


@every_family
@torch.no_grad()
def test_adaption_prompts_are_attended_to_separately(family):
    model = tuned(family, "llama_adapter")
    embeds, positions = text_prompts(family, model)
    text = Anatomy.of(model).text_model
    got = text(inputs_embeds=embeds).last_hidden_state
    with disabled(model):
        rotary = text.rotary_emb(embeds, positions_of(family, positions))
        hidden, n = embeds, embeds.shape[1]
        for i, layer in enumerate(text.layers):
            attention, x = layer.self_attn, layer.input_layernorm(hidden)

            def split(y, size=attention.head_dim):
                return y.view(len(y), -1, size).transpose(0, 1)[None]

            q, k, v = (split(f(x)[0]) for f in (attention.q_proj, attention.k_proj, attention.v_proj))
            q, k = apply_rotary_pos_emb(q, k, *rotary)
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
            scores = (q @ k.mT / attention.head_dim**0.5).masked_fill(~torch.ones(n, n).bool().tril(), -torch.inf)
            out = scores.softmax(-1) @ v
            if i >= 2:
                tokens = text.prompt.tokens[i - 2]
                pk, pv = (split(f(tokens)).repeat_interleave(2, 1) for f in (attention.k_proj, attention.v_proj))
                seen = (q @ pk.mT / attention.head_dim**0.5).softmax(-1) @ pv
                out = out + text.prompt.gate[i - 2].tanh()[:, None, None] * seen
            hidden = hidden + attention.o_proj(out.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        close(got, text.norm(hidden))


@peft_calls
@torch.no_grad()
def test_peft_prompt_tuning_is_the_shallow_prompt():
    model, inputs = tuned(LLAMA, "shallow"), prompts(LLAMA, (8,))
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=M)
    theirs = peft.get_peft_model(build(LLAMA), settings).eval()
    theirs.prompt_encoder["default"].embedding.weight.copy_(model.model.prompt.tokens)
    close(logits(model, inputs), logits(theirs, inputs)[:, M:])


@peft_calls
@pytest.mark.parametrize("family", [LLAMA, QWEN])
@torch.no_grad()
def test_peft_prefix_tuning_turns_the_keys(family):
    # a prefix in PEFT's cache shifts the sequence to position m: keys turned back by m make ours the same
    model, inputs = tuned(family, "prefix"), prompts(family, (8,))
    settings = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=M, token_dim=16, num_attention_heads=2)
    theirs = peft.get_peft_model(build(family), settings).eval()
    theirs.prompt_encoder["default"].embedding.weight.copy_(model.model.prompt.table)
    keys = model.model.prompt.table.view(M, 4, 2, 2, 8)[:, :, 0]
    cos, sin = model.model.rotary_emb(keys, torch.tensor([[-M]]))
    keys.copy_(keys * cos + rotate_half(keys) * sin)
    close(logits(model, inputs), logits(theirs, inputs))


@peft_calls
@torch.no_grad()
def test_peft_adaption_prompts_have_one_gate_per_block():
    model, inputs = tuned(LLAMA, "llama_adapter"), prompts(LLAMA, (8,))
    settings = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=M, adapter_layers=2)
    theirs = peft.get_peft_model(build(LLAMA), settings).eval()
    model.model.prompt.gate.fill_(0.5)
    for i in (0, 1):
        attention = theirs.base_model.model.model.layers[i + 2].self_attn
        attention.adaption_prompt.copy_(model.model.prompt.tokens[i])
        attention.adaption_gate.fill_(torch.tensor(0.5).tanh())
    close(logits(model, inputs), logits(theirs, inputs))


@some_families
@torch.no_grad()
def test_mix_and_match_is_a_prefix_and_parallel_adapters(family):
    model, prefix, inputs = tuned(family, "mam"), tuned(family, "prefix"), prompts(family)
    text, other = Anatomy.of(model).text_model, Anatomy.of(prefix).text_model
    other.prompt.table.copy_(text.prompt.table)
    for layer, plain in zip(text.layers, other.layers, strict=True):

        def beside(_, args, output, adapter=layer.mlp.adapter):
            return output + 4 * adapter.up(adapter.down(args[0]).relu())

        plain.mlp.register_forward_hook(beside)
    close(logits(model, inputs), logits(prefix, inputs))


def test_mix_and_match_costs_what_the_llava_tables_say():
    with torch.device("meta"):
        base = tf.LlamaForCausalLM(tf.LlamaConfig(num_hidden_layers=32))  # 7B
    before = count(base, 676)
    counts = count(eas.attach(base, MAMConfig(preset="llava")), 676)
    assert counts.macs - before.macs == 32 * 2 * 4096 * 128 * 676
    assert counts.params_trained == 32 * (2 * 4096 * 128 + 4096 + 128)
    assert MAMConfig() == MAMConfig(30, 512, 4.0)
    assert MAMConfig(rank=8, preset="llava").num_tokens == 0


@pytest.mark.parametrize("family", [LLAMA, QWEN_VL])
@torch.no_grad()
def test_counts_of_mix_and_match(family):
    model, inputs = tuned(family, "mam"), prompts(family, (9,), images=False)
    n = inputs["input_ids"].shape[1]
    model.requires_grad_(False)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(**inputs, logits_to_keep=1)
    assert counter.get_total_flops() == 2 * count(model, n).macs


@some_families
@every_method
def test_every_way_of_decoding_gives_the_numbers_of_training(family, method):
    model, inputs, answer = tuned(family, method), prompts(family), answers(2)
    expected = teacher_forced(model, inputs, answer)
    close(teacher_forced(model, inputs, answer, "right"), expected)
    for more in ({}, {"use_cache": False}, {"cache_implementation": "static"}, cached(DynamicCache())):
        close(decode(model, inputs, answer, **more), expected)
    for row in (0, 1):  # no padding: the mask may be left out
        single = alone(family, inputs, row, (True, True))
        close(decode(model, single, answer[row : row + 1]), expected[row : row + 1])
        del single["attention_mask"]
        close(logits(model, single)[:, -1], expected[row : row + 1, 0])


@every_method
def test_beams_and_assisted_decoding(method):
    model, inputs = tuned(LLAMA, method), prompts(LLAMA, (6, 9))
    beams = partial(model.generate, **inputs, max_new_tokens=6, num_beams=3)
    assert torch.equal(beams(), beams(use_cache=False))
    inputs = prompts(LLAMA, (9,))
    inputs["input_ids"][0, -3:] = inputs["input_ids"][0, -6:-3]
    greedy = partial(model.generate, **inputs, max_new_tokens=8, do_sample=False)
    assert torch.equal(greedy(prompt_lookup_num_tokens=3), greedy())


@pytest.mark.parametrize("method", ["shallow", "llama_adapter"])
def test_a_prompt_compiles_to_one_graph(method):
    model, inputs = tuned(LLAMA, method), prompts(LLAMA, (6, 9))
    expected = logits(model, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    close(logits(compiled, inputs, use_cache=False), expected)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("MistralForCausalLM", {"sliding_window": 4}),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    ],
)
@every_method
def test_sliding_windows_keep_the_prompt(family, text, method):
    model, inputs, answer = tuned(family, method, **text), prompts(family, (6, 9)), answers(2, 6)
    expected = teacher_forced(model, inputs, answer)
    for more in ({}, {"cache_implementation": "static"}, cached(DynamicCache()), {"use_cache": False}):
        close(decode(model, inputs, answer, **more), expected)


@some_families
@every_folding_method
def test_folded_equals_unfolded(family, method):
    model, inputs, answer = tuned(family, method), prompts(family), answers(2)
    before, state = decode(model, inputs, answer), model.state_dict().keys()
    eas.fold(model)
    assert model.state_dict().keys() == state
    close(decode(model, inputs, answer), before)
    with pytest.raises(ValueError, match=r"folded model cannot be trained; call unfold\(model\) first"):
        model.train()(**inputs)
    eas.unfold(model.eval())
    assert torch.equal(decode(model, inputs, answer), before)


@some_families
@every_method
def test_a_bfloat16_base(family, method):
    exact = logits(tuned(family, method), prompts(family))
    model = tuned(family, method, dtype=torch.bfloat16)
    assert {p.dtype for p in adapter_state(model).values()} == {torch.float32}
    for fold in (False, True)[: 1 + (method != "mam")]:
        if fold:
            eas.fold(model)
        got = logits(model, prompts(family))
        assert got.dtype == torch.bfloat16
        assert (got.float() - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("family", [LLAMA, QWEN, QWEN_VL])
@every_folding_method
def test_counts_are_those_torch_counts(family, method):
    model, inputs = tuned(family, method), prompts(family, (9,), images=False)
    n, base = inputs["input_ids"].shape[1], build(family)
    model.requires_grad_(False)  # torch's counter hooks what requires a gradient
    for fold in (False, True):
        if fold:
            eas.fold(model)
        counts, counter = count(model, n), FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            model(**inputs, logits_to_keep=1)
        assert counter.get_total_flops() == 2 * counts.macs
    attended = 2 * 32 * n * M * (2 if method == "llama_adapter" else 4)  # d_attn 32
    assert counts.macs == count(base, n).macs + attended
    stored = 2 * M * 16 * 4 * (2 if method == "llama_adapter" else 4)  # keys and values, heads x size, bytes
    gates = 2 * 4 * 4 if method == "llama_adapter" else 0
    assert counts.weight_bytes == count(base, n).weight_bytes + stored + gates


@every_method
def test_other_attention_implementations_are_refused(method):
    model = build(LLAMA)
    model.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match=r"attends with 'eager'; .*set_attn_implementation\(\"sdpa\"\)"):
        eas.attach(model, CONFIGS[method])
    assert all(p.requires_grad for p in model.parameters())
    model = tuned(LLAMA, method)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match='attn_implementation="sdpa"'):
        logits(model, prompts(LLAMA))


def test_what_prompts_start_from():
    shallow = eas.attach(build(LLAMA), ShallowPromptConfig(5)).model
    rows = (shallow.prompt.tokens[:, None] == shallow.embed_tokens.weight).all(-1)
    assert rows.any(1).all()
    normal = eas.attach(build(LLAMA), ShallowPromptConfig(64, "normal")).model.prompt.tokens
    assert 0.018 < normal.std() < 0.022
    deep = eas.attach(build(LLAMA), DeepPromptConfig(8)).model.prompt.tokens
    assert 0.9 < deep.abs().max() / (6 / (8 + 32)) ** 0.5 <= 1
    adapter = eas.attach(build(LLAMA), LlamaAdapterConfig(4)).model.prompt
    assert adapter.tokens.shape == (2, 4, 32)
    assert adapter.gate.shape == (2, 4)
    assert eas.attach(build(LLAMA), LlamaAdapterConfig(4, 4)).model.prompt.tokens.shape == (4, 4, 32)
    with pytest.raises(ConfigError, match=r"num_layers = 5: the model has 4"):
        eas.attach(build(LLAMA), LlamaAdapterConfig(4, 5))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        *((name, {"num_tokens": 0}, "num_tokens = 0: must be at least 1") for name in METHODS if "prompt" in name),
        ("prefix", {"num_tokens": 0}, "num_tokens = 0: must be at least 1"),
        ("prefix", {"reparameterise": 0}, "reparameterise = 0: must be at least 1"),
        ("mam", {"num_tokens": -1}, "num_tokens = -1: must be at least 0"),
        ("mam", {"preset": "big"}, "preset = 'big': must be one of paper, llava"),
        ("llama_adapter", {"num_layers": 0}, "num_layers = 0: must be at least 1"),
        ("shallow_prompt", {"init": "zero"}, "init = 'zero': must be 'vocabulary' or 'normal'"),
    ],
)
def test_impossible_values_are_refused(name, values, message):
    with pytest.raises(ConfigError, match=message):
        METHODS[name].config(**values)
