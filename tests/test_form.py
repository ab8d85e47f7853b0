"""The forms of EAS: against the attention left out, against the naive equation, and what older adapters keep."""

import json
import struct

import pytest
import torch
from families import attached, blocks, build, every_family, logits, prompts

import eas
from eas import CheckpointError, ConfigError, DropConfig, EASConfig, attach, prune, select
from eas.attachment.save import WEIGHTS_FILE
from eas.hf.skipping import Request
from eas.measure.shapes import build as build_shape
from eas.methods import recorded_method
from eas.pia import naive_pia

torch.set_num_threads(1)
LLAMA = "LlamaForCausalLM"
RANKS = {"skip_rank": 4, "adapt_rank": 2}
FORMS = ("residual", "paper")


def with_small_norms(family, **more):
    """As in a pretrained model, the weights of the norms are far from one."""
    model, g = build(family, **more), torch.Generator().manual_seed(3)
    for block in blocks(model):
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data = (0.1 + 0.3 * torch.rand(norm.weight.shape, generator=g)).to(norm.weight.dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_family
def test_an_untrained_skip_is_the_attention_left_out_bit_for_bit(family, dtype):
    left_out = attach(with_small_norms(family, dtype=dtype), DropConfig(num_skip=2))
    ours = {form: attach(with_small_norms(family, dtype=dtype), EASConfig(2, **RANKS, form=form)) for form in FORMS}
    for model in (left_out, *ours.values()):
        select(model, [0, 2])
    inputs = prompts(family)
    if dtype == torch.bfloat16 and "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    expected = logits(left_out, inputs)
    assert torch.equal(logits(ours["residual"], inputs), expected)
    assert not torch.equal(logits(ours["paper"], inputs), expected)
    prune(ours["residual"])
    assert torch.equal(logits(ours["residual"], inputs), expected)
    assert blocks(ours["residual"])[0].input_layernorm is None


def naive_skipped(block, x, form):
    """``x + FFN(g (n + p))`` of one sequence ``(tokens, d)``, from the equations."""
    na, nf, pia = block.input_layernorm, block.post_attention_layernorm, block.skip_pia
    n = x / (x.pow(2).mean(-1, keepdim=True) + nf.variance_epsilon).sqrt()
    if form == "paper":
        n = na.weight * n
    z = nf.weight * (n + naive_pia(pia, n, torch.ones(len(n), dtype=torch.bool)))
    mlp = block.mlp
    return x + mlp.down_proj(mlp.act_fn(mlp.gate_proj(z)) * mlp.up_proj(z))


@pytest.mark.parametrize("form", FORMS)
def test_a_skipped_block_is_the_equation_in_output_and_gradient(form):
    model = attached(LLAMA, (1,), {"form": form}).double()
    block = blocks(model)[1]
    block.input_layernorm.weight.data.uniform_(0.1, 0.4)
    block.post_attention_layernorm.weight.data.uniform_(0.2, 0.6)
    x = torch.randn(5, model.config.hidden_size, dtype=torch.float64, requires_grad=True)
    weights = [x, *block.skip_pia.parameters()]
    found = [block(x[None], request=Request())[0], naive_skipped(block, x, form)]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)  # the norm computes in float32
    grads = [torch.autograd.grad(out.pow(2).sum(), weights) for out in found]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def without_form(path, **more):
    """Rewrites an adapter's record as it was before there was a form."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    record = json.loads(header["__metadata__"]["eas"])
    del record["config"]["form"], record["config"]["adapt_router_bias"]
    record["config"] |= more
    text = json.dumps(record)
    header["__metadata__"]["eas"] = text
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + size :])
    (path.parent / "eas_config.json").write_text(text)


def test_adapters_written_before_keep_the_papers_form(tmp_path):
    model = attached(LLAMA, (0, 2), {"form": "paper"})
    eas.save(model, tmp_path)
    without_form(tmp_path / WEIGHTS_FILE, train_scale=False, train_head=False)
    again = eas.load(build(LLAMA), tmp_path)
    assert again.eas.config.form == "paper"
    assert torch.equal(logits(again, prompts(LLAMA)), logits(model, prompts(LLAMA)))
    for more in ({"train_scale": True}, {"hidden_scale": 0.5}):
        eas.save(model, tmp_path)
        without_form(tmp_path / WEIGHTS_FILE, **more)
        with pytest.raises(CheckpointError, match="trained by an EAS whose hidden_scale was also that of adapt PIAs"):
            eas.load(build(LLAMA), tmp_path)
    assert recorded_method({"name": "lora", "rank": 4, "train_head": True}).train_projector  # METER's head
    with pytest.raises(ConfigError, match="has no key 'rang'"):
        recorded_method({"name": "eas", "rang": 3})


def test_the_released_preset_trains_what_the_authors_code_trains():
    # counted in the authors' program: LLaVA-7B, eight attentions skipped, without the projector
    model = attach(build_shape("llava-7b"), EASConfig(8, preset="released"))
    select(model, range(8))
    prune(model)
    assert eas.parameter_counts(model).trained == 50_863_120
