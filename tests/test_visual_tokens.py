"""Fewer visual tokens: which are chosen, and that training, decoding, saving and a run have the same ones."""

import json
from copy import deepcopy
from io import BytesIO

import pytest
import torch
import transformers as tf
from families import CLIP, IMAGE, TEXT, build
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_pipeline import SHORT
from torch.nn.functional import normalize

import eas
from eas import CheckpointError, ConfigError
from eas.attachment.load import load_base
from eas.demo.tiny import load_tiny
from eas.exporting.opening import opened
from eas.models.visual_tokens import CHOICES, attention_each_gets, distances, diverse
from eas.pipeline import Run, RunConfig, run_steps

SIDE = 4  # of the tiny model's image, in tokens


def inputs_of(processor, model):
    rows = ["<image> question : what is this ? answer :"] * 2
    pictures = [Image.linear_gradient("L").rotate(angle).convert("RGB") for angle in (0, 30)]
    return processor(images=pictures, text=rows, return_tensors="pt", padding=True)


def kept(choice, number=4):
    model, processor = load_tiny()
    eas.keep_visual_tokens(model, number, choice)
    return model, eas.fit_processor(processor, model.config)


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice != "attention"])
def test_the_language_model_reads_chosen_tokens_of_the_projector(choice):
    whole, processor = load_tiny()
    everything = inputs_of(processor, whole)
    features = torch.stack(list(whole.get_image_features(pixel_values=everything["pixel_values"]).pooler_output))
    model, processor = kept(choice)
    inputs = inputs_of(processor, model)
    assert inputs["input_ids"].shape[1] == everything["input_ids"].shape[1] - SIDE**2 + 4
    read = torch.stack(list(model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output))
    places = (read[:, :, None] == features[:, None]).all(-1).int().argmax(-1)
    assert torch.equal(read, features.gather(1, places[..., None].expand_as(read)))
    assert (places.diff() > 0).all()
    if choice == "uniform":
        assert places.tolist() == [[5, 7, 13, 15]] * 2
    if choice == "random":
        assert torch.equal(places[0], places[1])
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.any()


@given(st.integers(0, 1000), st.integers(1, 6))
def test_diverse_is_the_greedy_choice_written_out(seed, number):
    features = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(seed))
    unit = normalize(features, dim=-1)
    torch.testing.assert_close(distances(features)[0, 2, 3], 1 - unit[0, 2] @ unit[0, 3])
    for apart, places in zip(distances(features).tolist(), diverse(features, number), strict=True):
        others = range(len(apart))
        taken = [max(others, key=lambda i: min(apart[i][j] for j in others if j != i))]
        while len(taken) < number:
            left = [i for i in others if i not in taken]
            taken.append(max(left, key=lambda i: min(apart[i][j] for j in taken)))
        assert sorted(taken) == places.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_choice(dtype):
    torch.manual_seed(0)
    near = (torch.randn(1, 1, 32) + 0.05 * torch.randn(8, 64, 32)).to(dtype)  # whose distances bfloat16 rounds to a few
    layer = siglip().model.vision_tower.encoder.layers[1]
    with torch.autocast("cpu", torch.bfloat16):
        taken, each = diverse(near, 16), attention_each_gets(layer, near)
    assert torch.equal(taken, diverse(near.float(), 16))
    torch.testing.assert_close(each, attention_each_gets(layer, near.float()), rtol=0, atol=0)


def siglip():
    """A tiny random LLaVA whose tower has no class token."""
    vision = tf.SiglipVisionConfig(**CLIP, vision_use_head=False)
    config = tf.LlavaConfig(vision_config=vision, text_config=tf.LlamaConfig(**TEXT), image_token_id=IMAGE)
    config.vision_feature_select_strategy = "full"
    torch.manual_seed(0)
    return tf.LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize("at", [-2, 1])
@pytest.mark.parametrize("tower", ["CLIP", "SigLIP"])
def test_attention_takes_the_tokens_that_the_next_layer_attends_to(tower, at):
    model = siglip() if tower == "SigLIP" else build("LlavaForConditionalGeneration")
    model.config.vision_feature_layer, sees = at, model.model.vision_tower
    pixels = torch.randn(8, 3, model.config.vision_config.image_size, model.config.vision_config.image_size)
    everything = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    sees.config._attn_implementation = "eager"  # which returns its weights
    read = sees(pixels, output_hidden_states=True).hidden_states[at][:, -everything.shape[1] :]
    layer = sees.encoder.layers[-1 if at == -2 else 1]
    weights = layer.self_attn(layer.layer_norm1(read), attention_mask=None)[1]  # images, heads, to, from
    places = weights.mean(1).mean(1).topk(1).indices
    eas.keep_visual_tokens(model, 1, "attention")
    kept = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    torch.testing.assert_close(kept, everything.gather(1, places[..., None].expand(-1, -1, everything.shape[-1])))
    assert len(places.unique()) > 1


def read_by(model, pixels):
    return torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_copy_reads_the_same_tokens_by_its_own_tower(choice):
    model = siglip()
    model.config.vision_feature_layer = 1
    eas.keep_visual_tokens(model, 1, choice)
    file, pixels = BytesIO(), torch.randn(4, 3, 8, 8)
    torch.save(model, file)  # transformers' own hooks, from the first pass on, cannot be pickled
    file.seek(0)
    expected = read_by(model, pixels)
    for copy in (deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(read_by(copy, pixels), expected)
        for parameter in copy.model.vision_tower.encoder.layers[1].parameters():
            parameter.data.zero_()  # of the layer that "attention" looks at
        assert torch.equal(read_by(copy, pixels), expected) == (choice != "attention")
        copy.to(torch.bfloat16)
        assert read_by(copy, pixels.bfloat16()).dtype == torch.bfloat16


def test_what_is_saved_reads_the_same_tokens(tmp_path):
    model, processor = kept("diverse")
    inputs = inputs_of(processor, model)
    eas.attach(model, eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
    eas.select(model, [1, 5])
    eas.prune(model)
    eas.save(model, tmp_path / "adapter")
    eas.save_standalone(model, tmp_path / "standalone")
    processor.save_pretrained(tmp_path / "standalone")
    with torch.inference_mode():
        expected = model.eval()(**inputs).logits
        assert torch.equal(eas.load("tiny", tmp_path / "adapter")(**inputs).logits, expected)
        again, own = opened(tmp_path / "standalone")
        assert torch.equal(again(**inputs_of(own, again)).logits, expected)
        stock = tf.AutoModelForImageTextToText.from_pretrained(tmp_path / "standalone")
        assert torch.equal(stock(**inputs).logits, expected)
        _, own = opened(tmp_path / "adapter", "tiny")
    assert inputs_of(own, again)["input_ids"].shape == inputs["input_ids"].shape
    with pytest.raises(CheckpointError, match=r"'number': 4, 'choice': 'diverse'}, this model has .*'uniform'"):
        eas.load(kept("uniform")[0], tmp_path / "adapter")
    with pytest.raises(eas.ExportError, match="reads 4 tokens of an image, and an engine would read all"):
        eas.export(model, "decilm", tmp_path / "served")


@pytest.mark.parametrize("choice", CHOICES)
def test_a_base_that_is_saved_reads_the_same_tokens(choice, tmp_path):
    base, method = siglip(), eas.EASConfig(num_skip=1, skip_rank=8, adapt_rank=4)
    base.config.vision_feature_layer, pixels = 1, torch.randn(4, 3, 8, 8)
    eas.keep_visual_tokens(base, 1, choice)
    base.save_pretrained(tmp_path / "base")
    eas.save(eas.attach(deepcopy(base), method), tmp_path / "adapter")

    def opened_by_the_stock_class():
        return tf.AutoModelForImageTextToText.from_pretrained(tmp_path / "base")

    called = opened_by_the_stock_class()
    for _ in range(2):
        eas.keep_visual_tokens(called, 1, choice)
    with pytest.raises(ConfigError, match="already; load a base that reads all tokens"):
        eas.keep_visual_tokens(called, 2, "random")
    attached = eas.attach(opened_by_the_stock_class(), method)
    loaded = eas.load(opened_by_the_stock_class(), tmp_path / "adapter")
    for model in (called, attached, loaded, load_base(str(tmp_path / "base"))):
        assert len(model.model.multi_modal_projector._forward_hooks) == 1
        model.requires_grad_(False)  # torch multiplies otherwise where a weight wants gradients
        assert torch.equal(read_by(model, pixels), read_by(base.requires_grad_(False), pixels))


@pytest.mark.usefixtures("undrawn")
def test_a_run_trains_scores_and_times_with_fewer_tokens(tmp_path):
    options = [f"output_dir={tmp_path}", "data=scenes:relation", "visual_tokens=6", "skip_set=[1,3,5,7]", *SHORT]
    run = Run.create(RunConfig().with_overrides(options))
    run_steps(run)
    result = json.loads((tmp_path / "result.json").read_text())
    whole = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path / 'whole'}", "data=scenes:relation"]))
    assert result["latency"]["prompt_tokens"] == whole.task.first(whole, "test")[1][0] - SIDE**2 + 6
    assert eas.load(run.load_base(), tmp_path / "adapter").config.visual_tokens == {"number": 6, "choice": "uniform"}


def test_what_does_not_fit_is_refused(monkeypatch):
    model, _ = load_tiny()
    for number, choice, words in (
        (16, "random", "an image has 16 tokens; keep fewer"),
        (7, "uniform", "'uniform' needs rows times columns within 4 x 4, as 4 has; or use another"),
        (4, "best", "must be one of uniform, random, diverse, attention"),
        (4, "attention", "needs the features of one layer, and a layer of the tower after it"),
    ):
        with pytest.raises(ConfigError, match=words):
            eas.keep_visual_tokens(model, number, choice)
    assert "visual_tokens" not in vars(model.config)
    eas.keep_visual_tokens(model, 4)
    with pytest.raises(ConfigError, match="already; load a base that reads all tokens to choose anew"):
        eas.keep_visual_tokens(model, 8)
    with pytest.raises(ConfigError, match=r"visual_tokens fits LLaVA 1.5 \(model type llava\), not llama"):
        eas.keep_visual_tokens(eas.attachment.load.load_base("tiny").model.language_model, 2)


@pytest.mark.parametrize("type_", ["llama", "llava_next", "idefics3"])
def test_a_processor_of_another_family_is_refused_too(type_):
    config = tf.AutoConfig.for_model(type_)
    with pytest.raises(ConfigError, match=f"visual_tokens fits LLaVA 1.5 .* not {type_}; leave it out"):
        eas.fit_processor(object(), config, 4)
