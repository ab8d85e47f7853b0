"""METER: the same numbers as its authors' definition, from the same checkpoints."""

import json
import sys
import types
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from meter_original import BASE, TINY, checkpoint, classify, infer, shapes
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedTokenizerFast
from typer.testing import CliRunner

from eas.cli import app
from eas.convert.meter import ConversionError, _rename, convert, read_checkpoint
from eas.hf.trainer import checkpoint_activations
from eas.models.meter import TASKS, MeterForVisualQuestionAnswering, MeterImageProcessor, MeterProcessor
from eas.models.meter.modeling import Stream, interpolate_positions

torch.set_num_threads(1)
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


def batch(images=1):
    """Two texts, one of them padded, with their images."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 60, (2, 9), generator=generator)
    ids[:, 0], ids[:, -1] = 0, 2
    ids[1, 5:] = 1
    pixels = torch.randn(2, images, 3, 32, 32, generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 1).long(), "pixel_values": pixels.squeeze(1)}


def tokenizer():
    words = "<s> <pad> </s> <unk> is this a red blue cat dog bird two three the of in left right"
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words.split())}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


@pytest.mark.parametrize(("attention", "keep"), [("sdpa", 1.0), ("eager", 1.0), ("eager", 0.7)])
def test_features_and_gradients_are_the_originals(attention, keep, monkeypatch):
    """In double precision, but for eager CLIP's softmax; dropout is a constant, in the places where it is there."""
    model, weights = convert(checkpoint("pretraining"))[0].double(), {}
    model.set_attn_implementation(attention)
    for key, value in checkpoint("pretraining").items():
        weights[key] = value.double().requires_grad_() if value.is_floating_point() else value
    inputs = batch()
    inputs["pixel_values"] = inputs["pixel_values"].double()
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    text, image, pooled = infer(weights, ids, mask, pixels, keep=keep)
    if keep < 1:
        monkeypatch.setattr(F, "dropout", lambda x, p, training, *_: x * keep if training and p else x)
        model.train()
    fused = model.meter(**inputs)
    exact = partial(close, rtol=1e-6, atol=1e-6)
    exact(fused.image_states, image)
    exact(fused.text_states[mask.bool()], text[mask.bool()])
    exact(fused.pooled, pooled)
    pattern = torch.linspace(-1, 1, pooled.numel()).view_as(pooled)
    for features in (pooled, fused.pooled):
        (features * pattern).sum().backward()
    expected, _ = _rename({k: w.grad for k, w in weights.items() if w.requires_grad and w.grad is not None}, ())
    own = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert own.keys() == expected.keys()
    largest = {name: float(gradient.abs().max()) for name, gradient in expected.items()}
    floor = 1e-7 * max(largest.values())  # a key's bias has no gradient but by rounding
    for name, gradient in own.items():
        exact(gradient, expected[name], rtol=0, atol=1e-5 * largest[name] + floor)


def test_the_heads_are_the_originals():
    inputs = batch()
    args = (inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"])
    labels = torch.rand(2, 7)
    state = checkpoint("vqa")
    found = convert(state)[0](**inputs, labels=labels)
    logits = classify(state, "vqa_classifier", infer(state, *args)[2])
    close(found.logits, logits)
    close(found.loss, F.binary_cross_entropy_with_logits(logits, labels) * 7)

    state, pair, truth = checkpoint("nlvr2"), batch(images=2), torch.tensor([1, 0])
    found = convert(state)[0](**pair, labels=truth)
    features = [infer(state, *args[:2], pair["pixel_values"][:, i], image_type=1 + i)[2] for i in (0, 1)]
    logits = classify(state, "nlvr2_classifier", torch.cat(features, -1))
    close(found.logits, logits)
    close(found.loss, F.cross_entropy(logits, truth))

    state = checkpoint("pretraining")
    model = convert(state)[0]
    words = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    found = model(**inputs, labels=words, itm_labels=truth)
    text, _, pooled = infer(state, *args)
    dense = F.gelu(F.linear(text, state["mlm_score.transform.dense.weight"], state["mlm_score.transform.dense.bias"]))
    norm = [state[f"mlm_score.transform.LayerNorm.{kind}"] for kind in ("weight", "bias")]
    scores = F.layer_norm(dense, (128,), *norm, 1e-12) @ state["mlm_score.decoder.weight"].T + state["mlm_score.bias"]
    matched = F.linear(pooled, state["itm_score.fc.weight"], state["itm_score.fc.bias"])
    close(found.logits[words != -100], scores[words != -100])
    close(found.itm_logits, matched)
    close(found.loss, F.cross_entropy(scores.flatten(0, 1), words.flatten()) + F.cross_entropy(matched, truth))


def test_retrieval_scores_pairs_as_one_by_one():
    state = checkpoint("retrieval")
    model, inputs = convert(state)[0], batch()
    ids, mask, pixels = inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    expected = torch.empty(2, 2)
    for i in range(2):
        for t in range(2):
            pooled = infer(state, ids[t : t + 1], mask[t : t + 1], pixels[i : i + 1])[2]
            expected[i, t] = F.linear(pooled, state["rank_output.weight"], state["rank_output.bias"])
    with torch.no_grad():
        texts, images = model.meter.encode_text(ids, mask), model.meter.encode_image(pixels)
    for pairs in (1, 3, 4):
        close(model.score_pairs(texts, images, pairs), expected)
    own = torch.stack([ids, ids.flip(0)], 1), torch.stack([mask, mask.flip(0)], 1)  # its own text, then the other's
    found = model(own[0], pixels, own[1], labels=torch.zeros(2, dtype=torch.long))
    close(found.logits, torch.stack([expected.diag(), expected.fliplr().diag()], 1))
    close(found.loss, F.cross_entropy(found.logits, torch.zeros(2, dtype=torch.long)))


@pytest.mark.parametrize("task", TASKS)
def test_every_checkpoint_converts_whole(task):
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes(task, **BASE).items()}
    model, conversion = convert(state)
    assert type(model) is TASKS[task]
    assert not conversion.new
    reasons = {"a constant": 1, "RoBERTa's own pooler, which METER does not use": 2}
    reasons["CLIP's text tower, which METER does not use"] = 3
    if task == "retrieval":
        reasons["the head of another task"] = 2  # the matching head, from which its own was made
    found = list(conversion.left_out.values())
    assert {reason: found.count(reason) for reason in found} == reasons
    assert conversion.matched + len(conversion.left_out) == len(state)
    config = model.config
    assert (config.vision_config.image_size, config.vision_config.num_hidden_layers) == (288, 11)
    assert config.vision_config.hidden_act == "quick_gelu"
    assert (config.text_config.layer_norm_eps, config.coattention_config.layer_norm_eps) == (1e-5, 1e-12)
    assert config.to_dict() == model.config_class(num_images=config.num_images).to_dict() | {
        "architectures": config.architectures,
        "dtype": config.dtype,
    }
    old = {"vit_model.token_embedding.weight": torch.empty(49408, 512, device="meta")}
    assert len(convert(state | old)[1].left_out) == len(found) + 1


def test_a_pretrained_model_gets_the_head_of_a_task():
    state = checkpoint("pretraining")
    model, conversion = convert(state, "retrieval")
    close(model.rank_output.weight, state["itm_score.fc.weight"][1:])
    assert set(conversion.new) == {"rank_output.weight", "rank_output.bias"}
    model, conversion = convert(state, "nlvr2")
    types = model.meter.token_type_embeddings.weight
    close(types, state["token_type_embeddings.weight"][[0, 1, 1]])
    assert {key for key, how in conversion.new.items() if how == "at random"} == {
        f"nlvr2_classifier.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")
    }
    assert convert(state, "vqa")[0].vqa_classifier[3].weight.shape == (3129, 256)


def test_images_of_another_size():
    """As METER's adapt_position_encoding, here written out: bicubic with a = -0.75, half-pixel centres."""
    state, inputs = checkpoint("vqa"), batch()
    model, _ = convert(state, image_size=48)
    before = state["vit_model.visual.positional_embedding"]

    def weights(x):
        x = abs(x)
        return 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else (-0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0)

    matrix = torch.zeros(6, 4)
    for row in range(6):
        centre = (row + 0.5) * 4 / 6 - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[row, min(max(tap, 0), 3)] += weights(centre - tap)
    grid = torch.einsum("ai,bj,ijd->abd", matrix, matrix, before[1:].view(4, 4, -1))
    expected = torch.cat([before[:1], grid.flatten(0, 1)])
    close(model.meter.vision_model.embeddings.position_embedding.weight, expected)
    large = torch.randn(2, 3, 48, 48)
    found = model(**{**inputs, "pixel_values": large}).logits
    state["vit_model.visual.positional_embedding"] = expected
    close(found, convert(state)[0](**{**inputs, "pixel_values": large}).logits)
    assert interpolate_positions(before, 4) is before
    with pytest.raises(ValueError, match="doesn't match model"):
        model(**inputs)
    with pytest.raises(ValueError, match="image size 50 must be a multiple of the patch size 8"):
        model.resize_images(50)


def test_what_is_no_whole_checkpoint_is_refused(tmp_path):
    state = checkpoint("vqa")
    for change, words in (
        ({"cross_modal_text_layers.1.output.dense.bias": None}, "1 missing: meter.cross_modal_text_layers.1.mlp.down"),
        ({"vit_model.patch_embed.proj.weight": torch.ones(2)}, "1 keys are none of METER's with CLIP and RoBERTa"),
        ({"vqa_classifier.0.bias": None}, "1 missing: vqa_classifier.0.bias"),
        ({"cross_modal_text_pooler.dense.bias": torch.ones(3)}, r"of another shape: .* \(3,\), not \(128,\)"),
        ({"text_transformer.embeddings.token_type_embeddings.weight": torch.ones(2, 128)}, "2 token types, as BERT's"),
        ({"cross_modal_text_layers.0.attention.self.gate": torch.ones(1)}, "1 unexpected: meter.cross_modal_text"),
        ({key: None for key in state if "vqa" in key}, "has no head of pretraining, vqa, nlvr2, retrieval"),
    ):
        changed = {key: value for key, value in (state | change).items() if value is not None}
        with pytest.raises(ConversionError, match=words):
            convert(changed)
    with pytest.raises(ConversionError, match=r"meter_clip16_288_roberta_\*\.ckpt of https"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 something")
    with pytest.raises(ConversionError, match=r"cut\.ckpt is truncated, or was not written by torch"):
        read_checkpoint(tmp_path / "cut.ckpt")
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    with pytest.raises(ConversionError, match=r"empty.ckpt: .epoch. is no name of a tensor; name one of METER"):
        read_checkpoint(tmp_path / "empty.ckpt")
    torch.save({"state_dict": state, "hook": Fraction}, tmp_path / "bad.ckpt")
    with pytest.raises(ConversionError, match=r"bad\.ckpt is damaged, or holds more than weights") as refused:
        read_checkpoint(tmp_path / "bad.ckpt")
    assert "weights_only" not in str(refused.value)  # torch advises to load such a file unsafely


def lightning(state, path, monkeypatch):
    """A file as Lightning 1.3 writes it: callbacks' states under their classes, which need not be there to read it."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = callback
    content = {"epoch": 9, "state_dict": state, "callbacks": {callback: {"best_model_score": torch.tensor(0.7)}}}
    with monkeypatch.context() as patch:
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, name, module)
        torch.save({**content, "hyper_parameters": {"config": {"num_heads": 12, "vit": "ViT-B/16"}}}, path)


def test_eas_convert_meter(tmp_path, monkeypatch):
    state = checkpoint("pretraining")
    lightning(state, tmp_path / "meter.ckpt", monkeypatch)
    read = read_checkpoint(tmp_path / "meter.ckpt")
    assert all(torch.equal(read[key], value) for key, value in state.items())
    tokenizer().save_pretrained(tmp_path / "words")
    args = ["convert", "meter", tmp_path / "meter.ckpt", tmp_path / "out", "--tokenizer", tmp_path / "words"]
    result = CliRunner().invoke(app, [*map(str, args), "--task", "retrieval", "--image-size", "48"])
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout.splitlines()[-1])
    assert last == {
        "folder": str(tmp_path / "out"),
        "class": "MeterForImageTextRetrieval",
        "image_size": 48,
        "matched": len(state) - 6 - 8,  # and the two heads' eight
        "left_out": 14,
        "new": 2,
    }
    assert "left out: 8 (mlm_score.transform.dense.weight, ...), the head of another task" in result.stdout
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == ["MeterForImageTextRetrieval"]
    opened = TASKS["retrieval"].from_pretrained(tmp_path / "out").eval()
    direct = convert(state, "retrieval", 48)[0]
    assert all(torch.equal(value, opened.state_dict()[key]) for key, value in direct.state_dict().items())
    trunk = AutoModel.from_pretrained(tmp_path / "out")
    assert torch.equal(trunk.token_type_embeddings.weight, direct.meter.token_type_embeddings.weight)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert isinstance(processor, MeterProcessor)
    assert processor.max_text_length == 40
    with torch.no_grad():
        assert opened(**processor(Image.new("RGB", (70, 60)), "is this a cat")).logits.shape == (1, 1)
    refused = CliRunner().invoke(app, [*map(str, args), "--task", "snli"])
    assert "--task snli: use one of pretraining, vqa, nlvr2, retrieval" in str(refused.exception)


def test_the_processor(tmp_path):
    """METER's clip_transform: torchvision's Resize, CenterCrop (which rounds half to even), ToTensor, Normalize."""
    noise = np.random.default_rng(0)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    for width, height, left, top in ((41, 55, 0, 5), (65, 33, 16, 0), (67, 32, 18, 0), (20, 21, 0, 0), (39, 32, 4, 0)):
        image = Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        short = min(width, height)
        size = (int(32 * width / short), int(32 * height / short))
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
        expected = ((pixels[top : top + 32, left : left + 32] - mean) / deviation).transpose(2, 0, 1)
        processor = MeterProcessor.of_size(tokenizer(), 32)
        found = processor([image], ["is this a cat", "two"])
        np.testing.assert_allclose(found["pixel_values"][0], expected, atol=1e-5)
    assert found["input_ids"].tolist() == [[0, 4, 5, 6, 9, 2], [0, 12, 2, 1, 1, 1]]
    assert found["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    short = MeterProcessor.of_size(tokenizer(), 32, max_text_length=4)
    assert short(text="is this a cat")["input_ids"].tolist() == [[0, 4, 5, 2]]
    short.save_pretrained(tmp_path)
    again = MeterProcessor.from_pretrained(tmp_path)
    assert (again.max_text_length, again.image_processor.size["shortest_edge"]) == (4, 32)
    assert type(again.image_processor) is MeterImageProcessor


def test_padding_is_not_seen_and_checkpointing_changes_nothing():
    model, inputs = convert(checkpoint("vqa"))[0], batch()
    with torch.no_grad():
        alone = model(inputs["input_ids"][1:, :5], inputs["pixel_values"][1:]).logits
    close(model(**inputs).logits[1:], alone)
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(0)
        model.zero_grad()
        model(**inputs, labels=torch.rand(2, 7)).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    close(gradients[0], gradients[1])


def test_a_wrong_number_of_images_is_refused():
    model = convert(checkpoint("vqa"))[0]
    with pytest.raises(ValueError, match="pixel_values hold 2 images per example, not 1"):
        model(**batch(images=2))
    with pytest.raises(ValueError, match="MeterForNLVR2 needs num_images = 2"):
        TASKS["nlvr2"](model.config)
    assert Stream(torch.zeros(1, 2, 4), None).bias() is None
    assert isinstance(model, MeterForVisualQuestionAnswering)
    assert TINY["width"] == model.config.text_config.hidden_size
