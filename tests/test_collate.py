"""Collation for the processors of several model families: the tiny ones below are built without any download."""

from functools import partial

import processors
import pytest
import torch
from families import randomise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma3Processor,
    Idefics3Processor,
    LlavaNextProcessor,
    LlavaProcessor,
    MllamaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import eas
from eas.example import DataError, Example
from eas.hf.labelled import answer_losses
from eas.measure.vision import VISION_TOWERS
from eas.tasks.collate import Collator
from eas.tasks.task import seen

torch.set_num_threads(1)

CROP = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA = (
    "{% for m in messages %}{{ 'USER: ' if m['role'] == 'user' else 'ASSISTANT: ' }}"
    "{% for p in m['content'] %}{{ '<image>\n' if p['type'] == 'image' else p['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer(special, template=None):
    """Bytes as tokens; writes <s> in front, as Llama's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=special,
        chat_template=template,
    )
    begin = TemplateProcessing("<s> $A", special_tokens=[("<s>", fast.bos_token_id)])
    fast.backend_tokenizer.post_processor = begin
    return fast


class ImageQwen2VLProcessor(Qwen2VLProcessor):
    """Qwen2-VL's processor without its video part, which needs torchvision."""

    def __init__(self, image_processor, tokenizer, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids([self.image_token, self.video_token])
        super(Qwen2VLProcessor, self).__init__(image_processor, tokenizer, chat_template=chat_template)


def llava(template=LLAVA):
    images = CLIPImageProcessorPil(**CROP)
    return LlavaProcessor(
        images,
        tokenizer(["<image>"]),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def llava_next():
    images = LlavaNextImageProcessorPil(**CROP, image_grid_pinpoints=[[28, 56], [56, 28]])
    return LlavaNextProcessor(
        images,
        tokenizer(["<image>"]),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="<s>" + LLAVA,
    )


def qwen2_vl():
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}, patch_size=14)
    tokens = tokenizer(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
    return ImageQwen2VLProcessor(
        images, tokens, chat_template=CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    )


def idefics3():
    images = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokens = tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows])
    return Idefics3Processor(images, tokens, image_seq_len=4, chat_template=CHATML.replace("IMAGE", "<image>"))


def gemma3():
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    template = "{{ bos_token }}" + CHATML.replace("IMAGE", "<start_of_image>")
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    return Gemma3Processor(images, tokenizer(names), image_seq_length=4, chat_template=template)


FAMILIES = {
    "llava": llava,
    "no template": lambda: llava(None),
    "llava-next": llava_next,
    "qwen2-vl": qwen2_vl,
    "idefics3": idefics3,
    "gemma3": gemma3,
    **{name: partial(processors.processor, name, tokenizer, CHATML) for name in processors.FAMILIES},
}


@pytest.fixture(scope="module", params=FAMILIES)
def processor(request):
    return FAMILIES[request.param]()


def picture(width, height):
    return Image.new("RGB", (width, height), (width, height, 7))


def batch():
    """One image, none, two of other sizes, and an earlier turn."""
    parts = ({"type": "image"}, {"type": "text", "text": "And here?"})
    turns = [("user", parts), ("assistant", parts[1:]), ("user", parts[1:])]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return [
        Example.ask("one", "What colour is it?", "red", picture(50, 40)),
        Example.ask("none", "2+2?", "four of them"),
        Example.ask("two", "Same?", "no", picture(30, 60), picture(32, 32)),
        Example("chat", messages, "yes", (picture(28, 28),)),
    ]


def test_prompts_are_the_same_in_training_and_generation(processor):
    train, ask = Collator(processor, training=True)(batch()), Collator(processor, training=False)(batch())
    assert "labels" not in ask
    assert (ask["prompt_mask"] == ask["attention_mask"].bool()).all()
    assert ask["prompt_mask"][:, -1].all()
    assert (train["labels"][:, -1] == processor.tokenizer.eos_token_id).all()
    per_token = {"input_ids", "token_type_ids", "mm_token_type_ids"} & ask.keys()
    for row in range(4):
        for name in per_token:
            assert (
                train[name][row][train["prompt_mask"][row]].tolist() == ask[name][row][ask["prompt_mask"][row]].tolist()
            )
    others = ask.keys() - per_token - {"attention_mask", "prompt_mask"}
    assert "pixel_values" in others
    for name in others:
        assert torch.equal(train[name], ask[name])


def test_labels_are_answers_and_nothing_else(processor):
    examples = batch()
    out = Collator(processor, training=True)(examples)
    shape = out["input_ids"].shape
    tokens = processor.tokenizer
    for row, example in enumerate(examples):
        answer = out["labels"][row] != -100
        assert tokens.decode(out["labels"][row][answer]) == example.target + "</s>"
        assert torch.equal(out["labels"][row][answer], out["input_ids"][row][answer])
        # Padding, then prompt, then answer, and every token is one of the three.
        padding = ~out["attention_mask"][row].bool()
        kind = out["prompt_mask"][row] * 1 + answer * 2 + padding * 0
        assert torch.equal(kind, kind.sort().values)
        assert (out["prompt_mask"][row].int() + answer.int() + padding.int() == 1).all()
        assert (out["input_ids"][row][padding] == tokens.pad_token_id).all()
        assert (out["input_ids"][row] == tokens.bos_token_id).sum() == 1
    for name in {"token_type_ids", "mm_token_type_ids"} & out.keys():
        assert out[name].shape == shape
        assert not out[name][~out["prompt_mask"]].any()


SEEN = {
    "qwen2.5-vl": ((1, (2, 4)), (2, (4, 2))),
    "qwen3-vl": ((1, (2, 4)), (2, (4, 2))),
    "internvl": ((5, None), (4, None)),
    "llava-onevision": ((5, None), (2, None)),
    "smolvlm": ((5, None), (8, None)),
    "glm-v": ((1, (2, 4)), (2, (4, 2))),
    "gemma4": ((1, (21, 27)), (2, (33, 15))),
    "mistral3": ((1, (6, 8)), (2, (8, 4))),
    "lfm2-vl": ((5, (4, 4)), (2, (4, 2))),
}
"""Of a picture of 50 x 40, and of two of 30 x 60 and 32 x 32: how many the tower gets, and the patches of the first."""


@pytest.mark.parametrize("name", processors.FAMILIES)
def test_rows_are_read_in_a_batch_as_alone(name):
    collate = Collator(processors.processor(name, tokenizer, CHATML), training=True)
    model = eas.attach(processors.model(name, collate.processor), eas.EASConfig(1, skip_rank=4, adapt_rank=2))
    randomise(model)
    eas.select(model, [1])
    with torch.no_grad():
        together = answer_losses(model, collate(batch()))[0]
        alone = [answer_losses(model, collate([example]))[0] for example in batch()]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
    assert (name in SEEN) == (type(model).__name__ in VISION_TOWERS)
    if name not in SEEN:
        return
    one, none, two = (seen(collate([example]), model.config) for example in batch()[:3])
    assert (one, none, two) == (SEEN[name][0], (0, None), SEEN[name][1])
    assert eas.count(model, 99, *SEEN[name][0]).vision_macs > 0


def test_text_alone(processor):
    out = Collator(processor, training=True)([Example.ask("x", "2+2?", "4"), Example.ask("y", "And 3+3, then?", "6")])
    assert "pixel_values" not in out
    assert out["labels"].shape == out["input_ids"].shape


def test_over_long_rows_are_refused(processor):
    examples = batch()
    for training in (True, False):
        longest = int(Collator(processor, training)(examples)["attention_mask"].sum(1).max())
        Collator(processor, training, max_length=longest)(examples)
        with pytest.raises(DataError, match=rf"has {longest} tokens, more than max_length {longest - 1}; raise"):
            Collator(processor, training, max_length=longest - 1)(examples)


@pytest.mark.parametrize("cut", ["question_start", "question_end", "answer"])
def test_what_is_cut_is_never_an_image(processor, cut):
    asked, long = f"Look closely. {'And then again. ' * 20}What is it?", "red, as it was painted so"
    examples = [*batch()[:3], Example.ask("long", asked, long, picture(50, 40))]
    whole = Collator(processor, training=True)(examples)
    most = int(whole["attention_mask"].sum(1)[3])
    for fewer in (1, 5, 12):
        out = Collator(processor, training=True, max_length=most - fewer, cut=cut)(examples)
        assert out["attention_mask"].sum(1).max() == most - fewer
        assert torch.equal(out["labels"][:3, fewer - most :], whole["labels"][:3, fewer - most :])
        assert torch.equal(out["pixel_values"], whole["pixel_values"])
        token = processor.image_token_id
        assert (out["input_ids"] == token).sum(1).tolist() == (whole["input_ids"] == token).sum(1).tolist()
        real = out["input_ids"][3][out["attention_mask"][3].bool()]
        text, answer = processor.tokenizer.decode(real), out["labels"][3][out["labels"][3] != -100]
        answered = processor.tokenizer.decode(answer)
        assert (f"{long}</s>".startswith(answered) and answered != f"{long}</s>") == (cut == "answer")
        assert (asked[-10:] in text) == (cut != "question_end")
        assert (asked[:10] in text) == (cut != "question_start")
    with pytest.raises(DataError, match=r"example \w+ has \d+ tokens, more than max_length 3; .*too short"):
        Collator(processor, training=True, max_length=3, cut=cut)(examples)


def test_an_unknown_cut_is_refused():
    with pytest.raises(ValueError, match=r"cut = 'middle': use one of question_start"):
        Collator(llava(), training=True, cut="middle")


def test_image_tokens_must_match_the_images(processor):
    rows = [Example.ask("good", "q", "a", picture(28, 28)), Example.ask("bad", f"q {processor.image_token}", "a")]
    with pytest.raises(DataError, match=r"example bad: the prompt has 1 .* for 0 images"):
        Collator(processor, training=False)(rows)


def test_unreadable_images_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"example x: .*a.png is not a readable image"):
        Collator(llava(), training=True)([Example.ask("x", "q", "a", tmp_path / "a.png")])


def test_the_plain_form_is_llavas():
    prompt = Collator(llava(None), training=True).prompt(batch()[3])
    assert prompt == "USER: <image>\nAnd here? ASSISTANT: And here?</s>USER: And here? ASSISTANT:"
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    example = Example("x", (system, *batch()[1].messages), "4")
    assert Collator(tokenizer([]), training=True).prompt(example) == "Be brief. USER: 2+2? ASSISTANT:"


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] + '|' }}{% endfor %}"])
def test_a_tokenizer_is_enough_for_text(template):
    tokens = tokenizer([], template)
    out = Collator(tokens, training=True)([batch()[1]])
    assert tokens.decode(out["input_ids"][0]) == ("<s>USER: 2+2? ASSISTANT:" if not template else "<s>2+2?|") + (
        "four of them</s>"
    )
    with pytest.raises(DataError, match="example one has images, but a tokenizer alone reads none"):
        Collator(tokens, training=True)(batch())


def test_what_cannot_be_collated_is_refused():
    tokens = tokenizer([])
    tokens.pad_token = None
    with pytest.raises(ValueError, match=r"set tokenizer.pad_token"):
        Collator(tokens, training=True)


def two():
    return [
        Example.ask("short", "Red?", "no", picture(50, 40)),
        Example.ask("long", "What colour is it?", "red", picture(30, 60)),
    ]


def test_answers_of_mllama_read_the_image_as_the_prompt_does():
    images = MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=2)
    template = CHATML.replace("IMAGE", "<|image|>")
    mllama = MllamaProcessor(images, tokenizer(["<|image|>", "<|python_tag|>"]), chat_template=template)
    train, ask = Collator(mllama, training=True)(two()), Collator(mllama, training=False)(two())
    assert train["cross_attention_mask"].shape == (*train["input_ids"].shape, 1, 2)
    for row in range(2):
        before, after = ask["cross_attention_mask"][row], train["cross_attention_mask"][row]
        prompt, answer = train["prompt_mask"][row], train["labels"][row] != -100
        assert torch.equal(after[prompt], before[ask["prompt_mask"][row]])
        assert torch.equal(after[answer], before[-1:].expand(int(answer.sum()), -1, -1))
        assert before[-1].any()
        assert not after[~(prompt | answer)].any()


def test_answers_of_paligemma_are_read_backwards_only():
    images = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    paligemma = PaliGemmaProcessor(images, tokenizer([]))
    train, ask = Collator(paligemma, training=True)(two()), Collator(paligemma, training=False)(two())
    assert not ask["token_type_ids"].any()
    assert "labels" not in ask
    assert torch.equal(train["token_type_ids"].bool(), train["labels"] != -100)
    answer = train["labels"][0][train["labels"][0] != -100]
    assert paligemma.tokenizer.decode(answer) == "no</s>"
    assert (train["input_ids"] == paligemma.image_token_id).sum(1).tolist() == [4, 4]


LLAVA_PROCESSOR = llava()
SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=2)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(st.text("ab é\n", max_size=9), st.text("xy", max_size=5), SIZES), min_size=1, max_size=4))
def test_any_batch_holds_every_prompt_and_answer(rows):
    examples = [Example.ask(str(n), q, a, *(picture(*size) for size in sizes)) for n, (q, a, sizes) in enumerate(rows)]
    collator = Collator(LLAVA_PROCESSOR, training=True)
    out = collator(examples)
    for row, example in enumerate(examples):
        real = out["input_ids"][row][out["attention_mask"][row].bool()]
        # A 28 x 28 image is four patches of 14.
        prompt = collator.prompt(example).replace("<image>", "<image>" * 4)
        assert LLAVA_PROCESSOR.tokenizer.decode(real) == f"<s>{prompt}{example.target}</s>"
        assert int((out["labels"][row] != -100).sum()) == len(example.target) + 1
