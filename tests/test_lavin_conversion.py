"""LaVIN's original checkpoints: every name and shape at full size, and the original's numbers after conversion."""

import argparse
import copy
import json
from functools import partial

import lavin_original as original
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    LlamaConfig,
    LlamaForCausalLM,
)
from typer.testing import CliRunner

import eas
from eas import cli
from eas.attachment.load import load_base
from eas.convert.lavin import _tokenizer, convert_adapter, convert_base
from eas.convert.lavin_weights import (
    Conversion,
    ConversionError,
    check,
    clip_weights,
    fresh_projector,
    hugging_face_llama_weights,
    lavin_weights,
    llama_weights,
    shapes,
)
from eas.example import Example
from eas.methods.lavin_adapter import LavinAdapterConfig
from eas.models.lavin import LavinConfig, LavinForConditionalGeneration, LavinProcessor
from eas.tasks.collate import Collator

close = partial(torch.testing.assert_close, rtol=1e-4, atol=2e-5)
TEMPERATURE, SCALE = 2.0, 1.5
QUESTION, ANSWER = "Question: Which?\nContext: N/A\nOptions: (A) x (B) y\nResponse:", "The answer is A. BECAUSE: so"


@pytest.mark.parametrize(("size", "files"), [(original.LLAMA_7B, 1), (original.LLAMA_13B, 2)])
def test_full_size_nothing_is_missing_and_nothing_left_over(size, files):
    text = LlamaConfig(
        vocab_size=size["vocabulary"],
        hidden_size=size["dim"],
        intermediate_size=size["ff"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["dim"] // size["head"],
    )
    config, report, heads = LavinConfig(text_config=text), Conversion(), size["dim"] // size["head"]
    llama = original.on_meta(original.llama_shapes(**size))
    clip = original.on_meta(original.clip_shapes(**original.VIT_L_14))
    with torch.device("meta"):
        pairs = [
            *llama_weights(original.shards(llama, files), heads, heads, report),
            *clip_weights(clip, report),
            *fresh_projector(config),
        ]
    check(shapes(config), {name: weight.shape for name, weight in pairs})
    assert report.matched == {"LLaMA": len(llama) - 1, "CLIP": 24 * 16 + 7}
    assert set(report.left_out) == {"rope.freqs", *(k for k in clip if not k.startswith("vision_model.") or "ids" in k)}
    checkpoint = original.on_meta(original.lavin_shapes(size["dim"], size["layers"], 1024, 24))
    with torch.device("meta"):
        model = LavinForConditionalGeneration(config)
        eas.attach(model, LavinAdapterConfig(train_projector=True))
    found = {name: weight.shape for name, weight in lavin_weights(checkpoint, 2, 1.0, report)}
    check({name: model.get_parameter(name).shape for name in model.eas.trained}, found)
    assert report.matched["LaVIN"] == len(checkpoint)
    assert round(eas.count(model, 20).params_trained / 1e6, 1) == {32: 3.8, 40: 5.4}[size["layers"]]  # its own README


@pytest.fixture(scope="module")
def weights():
    """Random weights in the original's layout; the vision tower in transformers', as its folder has them."""
    llama = original.random_state(original.llama_shapes(**original.TINY_LLAMA), 0)
    clip = original.random_state(original.clip_shapes(**original.TINY_VIT), 1)
    vit, size = original.TINY_VIT, original.TINY_LLAMA
    lavin = original.random_state(original.lavin_shapes(size["dim"], size["layers"], vit["width"], vit["blocks"]), 2)
    return llama, clip, lavin


@pytest.fixture(scope="module")
def files(weights, tmp_path_factory):
    """The files as they are published: weights/tokenizer, weights/13B, clip, checkpoint-19.pth."""
    folder, (llama, clip, lavin), size = tmp_path_factory.mktemp("files"), weights, original.TINY_LLAMA
    meta = folder / "weights" / "13B"
    meta.mkdir(parents=True)
    params = {"dim": size["dim"], "multiple_of": 16, "n_heads": 4, "n_layers": 3, "norm_eps": 1e-6, "vocab_size": -1}
    (meta / "params.json").write_text(json.dumps(params))
    for i, shard in enumerate(original.shards(llama, 2)):
        torch.save(shard, meta / f"consolidated.{i:02d}.pth")
    original.letters().save_pretrained(folder / "weights")
    vit = original.TINY_VIT
    vision = {"hidden_size": vit["width"], "intermediate_size": 4 * vit["width"], "num_hidden_layers": vit["blocks"]}
    vision |= {"num_attention_heads": 4, "image_size": vit["patch"] * vit["grid"], "patch_size": vit["patch"]}
    CLIPConfig(vision_config=vision).save_pretrained(folder / "clip")
    save_file(clip, folder / "clip" / "model.safetensors")
    args = argparse.Namespace(temperature=TEMPERATURE, adapter_scale=SCALE, adapter_dim=8, n_prompt=6)
    torch.save({"model": lavin, "optimizer": {"state": {}}, "epoch": 19, "args": args}, folder / "checkpoint-19.pth")
    return folder


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    """By the command line, as documented: the base, the adapter, and what was printed."""
    folder = tmp_path_factory.mktemp("converted") / "lavin"
    command = [
        "convert",
        "lavin",
        str(folder),
        "--llama",
        str(files / "weights" / "13B"),
        "--clip",
        str(files / "clip"),
    ]
    command += ["--adapter", str(files / "checkpoint-19.pth"), "--dtype", "float32"]
    result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0
    return folder, result.output


@pytest.fixture(scope="module")
def lavin(converted):
    folder, _ = converted
    return eas.load(folder, folder / "adapter"), AutoProcessor.from_pretrained(folder)


def examples():
    """One with an image, one without; the image has the tower's size, so that nothing is resized."""
    g = torch.Generator().manual_seed(5)
    image = Image.fromarray(torch.randint(0, 256, (8, 8, 3), generator=g, dtype=torch.uint8).numpy())
    return [Example.ask("seen", QUESTION, ANSWER, image), Example.ask("text", QUESTION + " Or?", ANSWER)], image


def by_the_original(weights, processor, prompt, answer, image, keep=1.0):
    """Logits and loss of one row: tokens as in its data set (prompt and answer as one text), then its forward."""
    llama, clip, checkpoint = weights

    def encode(text):  # as SentencePiece, which puts a space in front
        return processor.tokenizer(" " + text, add_special_tokens=False)["input_ids"]

    tokens = torch.tensor([1, *encode(prompt + answer), 2])
    labels = torch.cat([torch.zeros(1 + len(encode(prompt)), dtype=torch.long), tokens[1 + len(encode(prompt)) :]])
    options = {"temperature": TEMPERATURE, "scale": SCALE, "keep": keep}
    prefix, visual = torch.tensor(encode("Image: N/A")), None
    if image is not None:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = ((torch.from_numpy(np.array(image)) / 255 - mean) / std).to(clip["visual_projection.weight"])
        prefix, size = torch.tensor(encode("Image: ")), {**original.TINY_VIT, "heads": 4}
        visual = original.visual_tokens(clip, checkpoint, pixels.permute(2, 0, 1), size, **options)
    logits = original.logits(llama, checkpoint, tokens, prefix, visual, original.TINY_LLAMA, **options)
    added = len(prefix) + (0 if visual is None else len(visual))
    labels = torch.cat([labels[:1], torch.zeros(added, dtype=torch.long), labels[1:]])
    return logits, F.cross_entropy(logits[:-1], labels[1:], ignore_index=0)


def test_the_numbers_are_the_originals(weights, lavin):
    model, processor = lavin
    rows, image = examples()
    batch = Collator(processor, training=True)(rows)
    got = model(**batch).logits
    for row, (example, shown) in enumerate(zip(rows, (image, None), strict=True)):
        expected, loss = by_the_original(weights, processor, example.question, ANSWER, shown)
        real = batch["attention_mask"][row].bool()
        close(got[row, real], expected)
        close(model(**Collator(processor, training=True)([example])).loss, loss)
    token = model.model.language_model.modality_token.embeddings
    kept = token.weight.data.clone()
    token.weight.data = kept.flip(0)  # the routers do show
    assert (model(**batch).logits - got).abs().max() > 0.01
    token.weight.data = kept


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("keep", [1.0, 0.7])
def test_gradients_are_the_originals(weights, lavin, row, keep, monkeypatch):
    """Of the loss, for every weight, in double precision; dropout is where it is there, a constant here."""
    model, processor = copy.deepcopy(lavin[0]).double().requires_grad_(True), lavin[1]
    rows, image = examples()
    states = [{k: w.double().requires_grad_() for k, w in part.items() if w.is_floating_point()} for part in weights]
    shown = image if row == 0 else None
    logits, loss = by_the_original(states, processor, rows[row].question, ANSWER, shown, keep)
    loss.backward()
    if keep < 1:
        monkeypatch.setattr(F, "dropout", lambda x, p, training, _: x * keep if training and p else x)
        model.train()
    batch = Collator(processor, training=True)([rows[row]])
    found = model(**{k: v.double() if v.is_floating_point() else v for k, v in batch.items()})
    found.loss.backward()
    close(found.logits[0], logits, rtol=1e-5, atol=1e-5)
    close(found.loss.double(), loss, rtol=1e-6, atol=0)
    llama, clip, checkpoint = ({k: w.grad for k, w in part.items() if w.grad is not None} for part in states)
    report = Conversion()
    expected = dict(llama_weights([llama], 4, 4, report)) | dict(clip_weights(clip, report))
    expected |= dict(lavin_weights(checkpoint, 2, 1 / SCALE, report))
    expected = {name: gradient.double() for name, gradient in expected.items() if gradient.any()}
    own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert own.keys() == expected.keys()
    assert (len(own) > 250) == (row == 0)  # no image, no gradient for tower and projector
    largest = {name: float(gradient.abs().max()) for name, gradient in expected.items()}
    floor = 1e-8 * max(largest.values())  # norms and positions are float32 in transformers
    for name, gradient in own.items():
        close(gradient, expected[name], rtol=0, atol=1e-5 * largest[name] + floor)


def test_greedy_answers_are_those_of_recomputing_the_original(weights, lavin):
    model, processor = lavin
    rows, image = examples()
    batch = Collator(processor, training=False)(rows)
    batch.pop("prompt_mask")
    new = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)[:, -4:]
    eas.fold(model)
    folded = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)[:, -4:]
    eas.unfold(model)
    assert torch.equal(folded, new)
    llama, clip, checkpoint = weights
    options = {"temperature": TEMPERATURE, "scale": SCALE}
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
    visual = original.visual_tokens(clip, checkpoint, pixels, {**original.TINY_VIT, "heads": 4}, **options)
    for example, prefix, seen, expected in zip(rows, ("Image: ", "Image: N/A"), (visual, None), new, strict=True):
        ids = [
            processor.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
            for text in (prefix, example.question)
        ]
        tokens = torch.tensor([1, *ids[1]])
        for token in expected:
            last = original.logits(
                llama, checkpoint, tokens, torch.tensor(ids[0]), seen, original.TINY_LLAMA, **options
            )[-1]
            assert last.argmax() == token
            tokens = torch.cat([tokens, token[None]])


def test_what_is_printed(converted):
    folder, output = converted
    told = json.loads(output.splitlines()[-1])
    assert told["matched"] == {"LLaMA": 3 + 9 * 3, "CLIP": 7 + 16 * 8, "LaVIN": 5 + 8 * (3 + 8)}
    assert "left out: 1 (rope.freqs), rotary frequencies are computed" in output
    assert told["adapter"] == str(folder / "adapter")
    config = AutoConfig.from_pretrained(folder)
    assert (config.vision_adapter_temperature, config.vision_feature_layers) == (TEMPERATURE, [4, 8])
    base = load_base(str(folder))  # before LaVIN's training: a LLaMA to which images say nothing yet known
    assert not any(a.up1.weight.any() or a.up2.weight.any() for a in base.model.multi_modal_projector.adapters)


def test_a_hugging_face_llama_gives_the_same_base(weights, files, converted, tmp_path):
    folder, _ = converted
    base = load_base(str(folder))
    text = base.config.text_config
    twin = LlamaForCausalLM(text)
    twin.model.load_state_dict(base.model.language_model.state_dict())
    twin.lm_head.load_state_dict(base.lm_head.state_dict())
    twin.save_pretrained(tmp_path / "llama", max_shard_size="40KB")
    convert_base(
        tmp_path / "llama", files / "clip", tmp_path / "base", tokenizer=files / "weights", dtype=torch.float32
    )
    again = load_base(str(tmp_path / "base")).state_dict()
    for name, weight in base.state_dict().items():
        if not name.startswith("model.multi_modal_projector."):
            assert torch.equal(again[name], weight), name
    with pytest.raises(ConversionError, match=r"vision_adapter_temperature = 2.0, the base .* has 10.0"):
        convert_adapter(files / "checkpoint-19.pth", tmp_path / "base", tmp_path / "adapter")


def test_what_does_not_fit_is_refused(weights, files, tmp_path):
    llama, clip, checkpoint = weights
    some, report = torch.zeros(3), Conversion()
    for convert, state, entry in (
        (lambda s: llama_weights([s], 4, 4, report), llama, "layers.0.attention.bias"),
        (lambda s: clip_weights(s, report), clip, "vision_model.gate"),
        (lambda s: hugging_face_llama_weights(s, report), {}, "transformer.wte"),
        (lambda s: lavin_weights(s, 2, 1.0, report), checkpoint, "layers.0.replaced_adapter.conv_A.bias"),
    ):
        with pytest.raises(ConversionError, match=f"unknown entry {entry}"):
            list(convert({**state, entry: some}))
    with pytest.raises(ConversionError, match=r"1 weights are missing .*norm.weight"):
        check({"norm.weight": llama["norm.weight"].shape}, {})
    with pytest.raises(ConversionError, match=r"norm.weight is \(1,\), not \(32,\)"):
        check({"norm.weight": torch.Size([32])}, {"norm.weight": torch.Size([1])})
    with pytest.raises(ConversionError, match=r"checkpoint-20.pth does not exist; LaVIN's model zoo"):
        convert_adapter(files / "checkpoint-20.pth", files, tmp_path)
    torch.save({"model": LavinConfig}, tmp_path / "code.pth")
    with pytest.raises(ConversionError, match="holds more than weights"):
        convert_adapter(tmp_path / "code.pth", files, tmp_path)
    with pytest.raises(ConversionError, match=r"no config.json; give a Hugging Face folder of a llama"):
        convert_base(tmp_path, files / "clip", tmp_path / "base", tokenizer=files / "weights")
    with pytest.raises(ConversionError, match=r"no tokenizer.model in .*; give its folder by --tokenizer"):
        convert_base(tmp_path, files / "clip", tmp_path / "base")


def test_tokens_are_sentencepieces(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    text = [QUESTION.replace("\n", " "), ANSWER, "Image: N/A  twice", "Image Question Context Options N/A"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 9), model_prefix=str(tmp_path / "tokenizer"), vocab_size=330, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = _tokenizer([tmp_path])
    processor = LavinProcessor(CLIPImageProcessorPil(), tokenizer, 2)
    assert processor(text=QUESTION)["input_ids"] == [[1, *own.encode("Image: N/A"), *own.encode(QUESTION)]]
    row = processor._row("<image>" + QUESTION, image=True, begin=True)
    assert row == [1, *own.encode("Image: "), 3, 3, *own.encode(QUESTION)]
    answer = tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    assert own.encode(QUESTION) + answer == own.encode(QUESTION + ANSWER)  # one text in the original's data set
