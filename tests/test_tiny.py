"""The shipped tiny model: it loads by the plain Auto classes, knows its words, and answers from the picture."""

from __future__ import annotations

import json

import pytest
import torch
from families import quick
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from eas.data.scenes import FAMILIES, TASKS, chance, scenes
from eas.demo.tiny import build_config, build_processor, load_tiny, vocabulary
from eas.example import Example
from eas.models.folder import TINY_DIR

Tiny = tuple[LlavaForConditionalGeneration, LlavaProcessor]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return load_tiny()


def ask(tiny: Tiny, examples: list[Example], see: bool = True) -> float:
    """Exact match of the greedy answers."""
    model, processor = tiny
    messages = [example.messages if see else [{"role": "user", "content": example.question}] for example in examples]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [example.images[0] for example in examples] if see else None
    inputs = processor(text=text, images=images, padding=True, return_tensors="pt")
    with torch.inference_mode():
        said = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(said, skip_special_tokens=True)
    return sum(answer == example.target for answer, example in zip(answers, examples, strict=True)) / len(examples)


def test_the_shipped_folder_is_what_the_code_builds(tiny: Tiny) -> None:
    model, processor = tiny
    assert isinstance(model, LlavaForConditionalGeneration)
    assert isinstance(processor, LlavaProcessor)
    assert isinstance(processor.image_processor, CLIPImageProcessorPil)  # the one that needs no torchvision
    assert isinstance(processor.tokenizer, PreTrainedTokenizerFast)
    built = build_config()
    assert model.config.text_config.hidden_size == built.text_config.hidden_size
    assert model.config.text_config.num_hidden_layers == built.text_config.num_hidden_layers == 12
    assert processor.tokenizer.get_vocab() == build_processor().tokenizer.get_vocab()
    assert processor.chat_template == build_processor().chat_template
    assert len(vocabulary()) == model.get_input_embeddings().num_embeddings


def test_size_of_the_shipped_folder(tiny: Tiny) -> None:
    assert sum(parameter.numel() for parameter in tiny[0].parameters()) <= 7_000_000
    assert sum(path.stat().st_size for path in TINY_DIR.iterdir()) <= 16 * 2**20


def test_every_word_of_the_world_is_known(tiny: Tiny) -> None:
    tokenizer = tiny[1].tokenizer
    for task in FAMILIES + TASKS:
        for example in scenes(task, "train", 40):
            text = " ".join([example.question, example.target, *example.choices])
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"], text
    statement = "There is a box with exactly 2 yellow items touching the wall, and at least one black tower."
    assert tokenizer.unk_token_id not in tokenizer(statement)["input_ids"]
    assert tokenizer("zyzzyva", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_sixteen_tokens_per_picture(tiny: Tiny, count: int) -> None:
    model, processor = tiny
    pictures = [Image.new("RGB", (100, 60)) for _ in range(count)]
    example = Example.ask("x", "what is this ?", "red", *pictures)
    text = processor.apply_chat_template(list(example.messages), add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, images=pictures or None, return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 16 * count
    with torch.inference_mode():
        assert model(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], len(vocabulary()))


def test_chat_template_of_several_turns(tiny: Tiny) -> None:
    processor = tiny[1]
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a ring?"}]}
    said = {"role": "assistant", "content": "no"}
    asked = {"role": "user", "content": "What color is it?"}

    def render(*messages: dict[str, object], prompt: bool = False) -> str:
        return processor.apply_chat_template(list(messages), add_generation_prompt=prompt, tokenize=False)

    first = "<image> question : Is there a ring? answer :"
    assert render(turn, prompt=True) == first
    assert render(turn, said) == f"{first} no </s> "
    assert render(turn, said, asked, prompt=True) == f"{first} no </s> question : What color is it? answer :"
    ids = processor.tokenizer(render(turn, said))["input_ids"]
    assert ids[0] == processor.tokenizer.bos_token_id
    assert ids[-1] == processor.tokenizer.eos_token_id
    assert processor.tokenizer(render(turn, prompt=True))["input_ids"] == ids[:-2]


@pytest.mark.parametrize(
    "family", quick(["existence", "colour", "shape", "position", "counting"], ["colour", "position"])
)
def test_it_sees(tiny: Tiny, family: str) -> None:
    examples = list(scenes(family, "test", 200))
    assert ask(tiny, examples) > 0.85
    assert ask(tiny, examples, see=False) < chance(family) + 0.12


@pytest.mark.parametrize("task", TASKS)
def test_the_tasks_are_new_to_it(tiny: Tiny, task: str) -> None:
    assert ask(tiny, list(scenes(task, "test", 100))) < chance(task) + 0.1


def test_scores_are_those_of_the_recipe() -> None:
    report = json.loads((TINY_DIR / "scores.json").read_text())
    assert set(report["scores"]) == {*FAMILIES, *TASKS}
    assert all(report["scores"][family]["test"] > 0.85 for family in FAMILIES)


def test_the_embedded_model_can_be_timed():
    from eas.measure.bench import _load

    assert type(_load("tiny", torch.device("cpu"), torch.float32)).__name__ == "LlavaForConditionalGeneration"
