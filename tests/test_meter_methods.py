"""The methods on METER: the equations, the candidates, a search; the contract is in test_meter_contract.py."""

import pytest
import torch
import torch.nn.functional as F
from contract import METER_CONFIGS as CONFIGS
from contract import PIA, method
from test_meter import close
from test_meter_contract import batch, build, exactly, logits, tuned
from transformers import TrainingArguments

import eas
from eas import METHODS, ConfigError
from eas.attachment.save import adapter_state
from eas.attachment.state import candidates
from eas.models.meter.modeling import Stream
from eas.searching import SearchConfig
from eas.searching.scoring import score_sets
from eas.training import EASTrainer

torch.set_num_threads(1)


def naive_pia(pia, n, pooled):
    """Eq. 4-6 for one sequence; what is pooled may be another's tokens."""
    alpha, c = torch.tensor([0.5, 0.5]), 0
    if pia.router is not None:
        alpha = ((pooled.mean(0) @ pia.router.weight.T + pia.router.bias) / pia.temperature).softmax(0)
    else:
        alpha = (pia.mix / pia.temperature).softmax(0)
    if pia.down2 is not None:
        c = torch.stack([t @ pia.down2.weight.T + pia.down2.bias for t in pooled]).mean(0)
    h = n @ pia.down1.weight.T + pia.down1.bias + c
    return sum(alpha[i] * (h @ up.dense() + up.bias) for i, up in enumerate((pia.up1, pia.up2)))


def naive_attention(attention, queries, keys):
    q, k, v = (
        part(tokens).view(len(tokens), 2, -1).transpose(0, 1)
        for part, tokens in ((attention.q_proj, queries), (attention.k_proj, keys), (attention.v_proj, keys))
    )
    mixed = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return attention.o_proj(mixed.transpose(0, 1).flatten(1))


def naive_layer(layer, x, other):
    """DESIGN in equations: LN(x + PIA(x; pooled x)), LN(y + PIA(x; pooled other)), kept parts with adapt PIAs."""

    def norm(module, tokens):
        return F.layer_norm(tokens, tokens.shape[-1:], module.weight, module.bias, 1e-12)

    def adapted(pia, tokens):
        return tokens + naive_pia(pia, tokens, tokens)

    own, cross = layer.self_attn, layer.cross_attn
    if own.skip_mha:
        y = norm(layer.self_attn_norm, x + naive_pia(own.skip_pia, x, x))
    else:
        a = adapted(own.adapt_pia, x)
        y = norm(layer.self_attn_norm, x + naive_attention(own, a, a))
    if cross.skip_mha:
        z = norm(layer.cross_attn_norm, y + naive_pia(cross.skip_pia, x, other))
    else:
        z = norm(layer.cross_attn_norm, y + naive_attention(cross, adapted(cross.adapt_pia, y), other))
    hidden = F.gelu(layer.mlp.up_proj(adapted(layer.adapt_pia, z)))
    return norm(layer.mlp_norm, z + layer.mlp.down_proj(hidden))


@pytest.mark.parametrize("label", ["eas", "eas, grouped"])
@pytest.mark.parametrize("skipped", [(), (0,), (2,), (0, 2), (4, 6, 2, 0)])
def test_layers_are_the_equations(label, skipped):
    model = tuned(label)
    eas.select(model, skipped)
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(1, 6, 32, generator=generator), torch.randn(1, 9, 32, generator=generator)
    padded = torch.cat([x, 50 * torch.ones(1, 2, 32)], 1)
    mask = torch.arange(8)[None] < 6
    for layers, streams, count in (
        (model.meter.cross_modal_text_layers, (padded, y, mask, None), 6),
        (model.meter.cross_modal_image_layers, (y, padded, None, mask), 9),
    ):
        layer, own, other = layers[0], (x if count == 6 else y)[0], (y if count == 6 else x)[0]
        gradients = []
        for output in (layer(*streams)[0, :count], naive_layer(layer, own, other)):
            model.zero_grad()
            (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
            gradients.append([p.grad for p in layer.parameters() if p.grad is not None])
        close(layer(*streams)[0, :count], naive_layer(layer, own, other))
        close(gradients[0], gradients[1], atol=1e-4)


def test_candidates_are_the_texts_self_and_cross_then_the_images():
    model = tuned("eas")
    trunk = model.meter
    order = [
        getattr(layer, kind)
        for side in (trunk.cross_modal_text_layers, trunk.cross_modal_image_layers)
        for kind in ("self_attn", "cross_attn")
        for layer in side
    ]
    assert [block for block, _ in candidates(model)] == order
    skipping = tuned("das, wide")
    layers = [*skipping.meter.cross_modal_text_layers, *skipping.meter.cross_modal_image_layers]
    assert [block for block, _ in candidates(skipping)] == layers


def test_das_skips_layers_and_adapts_beside_the_parts_of_others():
    model, inputs = tuned("das, wide"), batch()
    text, image = torch.randn(1, 5, 32), torch.randn(1, 4, 32)
    skipped, kept = model.meter.cross_modal_text_layers
    close(skipped(text, image), text + skipped.skip_adapter(text))
    base = build().meter.cross_modal_text_layers[1]
    y = base.self_attn_norm(text + kept.self_attn.adapter(text) + base.self_attn(text)[0])
    z = base.cross_attn_norm(y + kept.cross_attn.adapter(y) + base.cross_attn(y, None, image)[0])
    close(kept(text, image), base.mlp_norm(z + kept.mlp.adapter(z) + base.mlp(z)))
    assert logits(model, inputs).isfinite().all()


def test_prompts_are_tokens_beside_those_of_each_modality():
    text = Stream(torch.randn(2, 5, 32), torch.arange(5)[None] < torch.tensor([[5], [3]]))
    image = Stream(torch.randn(2, 4, 32), None)

    def beside(stream, tokens):
        mask = None if stream.mask is None else F.pad(stream.mask, (0, 3), value=True)
        return Stream(torch.cat([stream.tokens, tokens.expand(2, -1, -1)], 1), mask)

    shallow, base = tuned("shallow_prompt").meter, build().meter
    found = shallow.fuse(text, image)
    expected = base.fuse(*(beside(s, t) for s, t in zip((text, image), shallow.prompt.tokens, strict=True)))
    close(found.pooled, expected.pooled)
    close(found.text_states, expected.text_states[:, :5])

    deep = tuned("deep_prompt").meter
    found = deep.fuse(text, image)
    for i in range(2):  # VPT-deep: new tokens come in with every layer, and what becomes of them is dropped
        x, y = (beside(s, deep.prompt.tokens[m, i]) for m, s in enumerate((text, image)))
        texts = base.cross_modal_text_layers[i](x.tokens, y.tokens, x.mask, y.mask)[:, :5]
        images = base.cross_modal_image_layers[i](y.tokens, x.tokens, y.mask, x.mask)[:, :4]
        text, image = text.with_tokens(texts), image.with_tokens(images)
    close(found.text_states, text.tokens)
    close(found.image_states, image.tokens)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "retrieval", "pretraining"])
def test_scoring_sets_is_scoring_them_one_by_one(task):
    model, inputs = tuned("eas", task=task), batch(task)
    if task == "retrieval":
        inputs |= {key: torch.stack([inputs[key], inputs[key].flip(0)], 1) for key in ("input_ids", "attention_mask")}
    if task == "pretraining":
        inputs |= {"labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}
        inputs |= {"itm_labels": torch.tensor([1, 0])}
    sets = [(0, 1, 2), (5, 6, 7), (0, 4, 7)]
    losses = []
    with torch.no_grad():
        for skip_set in sets:
            eas.select(model, skip_set)
            losses.append(float(model(**inputs).loss))
    assert score_sets(model, inputs, sets) == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("label", ["eas", "das, wide"])
def test_a_search_and_a_tune_phase(label, tmp_path):
    examples = [{key: value[i % 2] for key, value in batch().items()} for i in range(6)]

    def collate(rows):
        return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}

    def arguments(steps):
        return TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
        )

    config = METHODS[method(label)].config(**CONFIGS[label], train_projector=True)
    model = eas.attach(build(), config)
    search = SearchConfig(rule="spread", warmup_steps=1, interval=1, samples=2, batch_size=2)
    trainer = EASTrainer(
        model,
        arguments(3),
        phase="search",
        search=search,
        held_out=examples[:2],
        train_dataset=examples,
        data_collator=collate,
    )
    trainer.train()
    result = trainer.search_result()
    assert len(result.rounds) == 3
    assert len(result.importances) == len(candidates(model)) == (8 if label == "eas" else 4)
    eas.select(model, result.skip_set)
    eas.prune(model)
    before = logits(model)
    EASTrainer(model, arguments(2), train_dataset=examples, data_collator=collate).train()
    assert not torch.equal(logits(model.eval()), before)
    eas.save(model, tmp_path / "adapter")
    exactly(logits(eas.load(build(), tmp_path / "adapter")), logits(model))


def test_what_does_not_fit_is_refused_and_leaves_the_model_as_it_was():
    for name, values, words in (
        ("eas", {**PIA, "candidates": "ffn"}, "candidates = 'ffn': of METER attentions may be skipped"),
        ("eas", {**PIA, "pooling": "causal"}, "METER's tokens have no order"),
        ("eas", {**PIA, "num_skip": 8}, "num_skip = 8: the model has 8 attentions"),
        ("das", {**PIA, "num_skip": 4}, "num_skip = 4: the model has 4 layers"),
        ("das", {"preset": "lavin"}, "routed = True: on METER the adapters are plain"),
        ("drop", {"candidates": "ffn"}, "on METER it must be 'mha' or 'layer'"),
        ("prefix", {"reparameterise": 8}, "on METER keys and values are trained directly; leave it out"),
        ("llama_adapter", {}, "does not exist for this model: its gated prompts .* use 'deep_prompt' or 'prefix'"),
        ("lavin_adapter", {}, "does not exist for this model: its routers .* use 'adapter'"),
        ("lora", {"targets": ["gate_proj"]}, "the model's blocks have no such maps"),
    ):
        model = build()
        with pytest.raises(ConfigError, match=words):
            eas.attach(model, METHODS[name].config(**values))
        assert not eas.attached(model)
        assert all(parameter.requires_grad for parameter in model.parameters())
    for name in ("prefix", "mam", "deep_prompt"):  # which the eager attention does not see
        model = build()
        model.set_attn_implementation("eager")
        with pytest.raises(ConfigError, match=r"attends with 'eager'; .*set_attn_implementation\(\"sdpa\"\)"):
            eas.attach(model, METHODS[name].config())
        assert not eas.attached(model)
    model = tuned("eas")
    with pytest.raises(ValueError, match="leaves no attention"):
        eas.select(model, range(8))
    with pytest.raises(ValueError, match="eas cannot be folded"):
        eas.fold(model)


def test_a_folder_opens_with_its_head(tmp_path):
    build("nlvr2").save_pretrained(tmp_path / "base")
    model = tuned("eas", task="nlvr2", train_projector=True)
    assert {"nlvr2_classifier.3.weight", "token_type_embeddings.weight"} <= adapter_state(model).keys()
    eas.save(model, tmp_path / "adapter")
    again = eas.load(str(tmp_path / "base"), tmp_path / "adapter")
    exactly(logits(again.eval(), batch("nlvr2")), logits(model, batch("nlvr2")))
    assert eas.count(tmp_path / "base", 7, 2, dtype=torch.float32).macs == eas.count(build("nlvr2"), 7, 2).macs
