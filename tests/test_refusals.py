"""What a processor, tokenizer or chat template refuses is named, found by `eas data check --model`, and left out."""

import json
import warnings

import pytest
from PIL import Image
from test_collate import llava, qwen2_vl, tokenizer
from typer.testing import CliRunner

from eas.cli import app
from eas.config import ConfigError
from eas.data import load_data
from eas.data.jsonl import load_jsonl
from eas.demo.tiny import load_tiny
from eas.errors import DataError
from eas.example import LONGEST, Example
from eas.metrics import METRICS
from eas.models.folder import TINY_DIR
from eas.pipeline import Run, RunConfig
from eas.pipeline.fit import check
from eas.tasks.collate import Collator
from eas.tasks.collate_meter import MeterCollator

PICTURE = Image.new("RGB", (32, 32))
GOOD = Example.ask("good", "what ?", "red", PICTURE)
STRINGS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
PRINTED = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
NO_SYSTEM = "{{ raise_exception('System role not supported') }}"


def refused(processor, example, words, training=True):
    with pytest.raises(DataError, match=words):
        Collator(processor, training=training)([GOOD, example])


@pytest.mark.parametrize("training", [True, False])
def test_the_processor(training):
    """A picture whose sides are 250 to 1, of several in a batch."""
    long = Example.ask("row-4711", "what ?", "red", Image.new("RGB", (2000, 8)))
    refused(qwen2_vl(), long, r"example row-4711: the processor refuses it \(ValueError: absolute aspect", training)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (NO_SYSTEM, r"the chat template refuses it \(TemplateError: System role not supported\)"),
        (STRINGS, r"the chat template refuses it \(TypeError: .*concatenate str"),
        (PRINTED, "the chat template prints the list of a turn's parts"),
        ("{{ messages[0].content[0].nothing.below }}", r"the chat template refuses it \(UndefinedError"),
    ],
)
def test_the_template(template, words):
    with pytest.raises(DataError, match=f"example row-7: {words}"):
        Collator(llava(template), training=True)([Example.ask("row-7", "what ?", "red")])


def test_a_processor_without_its_library(monkeypatch, tmp_path):
    def missing(*_, **__):
        raise ImportError("\nQwen3VLVideoProcessor requires the Torchvision library but it was not found.\nCheck ...")

    monkeypatch.setattr("eas.pipeline.run.AutoProcessor.from_pretrained", missing)
    run = Run(RunConfig(output_dir=str(tmp_path / "run")))
    words = (
        "the processor of tiny needs a library: Qwen3VLVideoProcessor requires the Torchv.*: pip install torchvision"
    )
    with pytest.raises(ConfigError, match=words):
        run.processor  # noqa: B018


def test_the_tokenizer():
    broken = llava()
    broken.tokenizer.backend_tokenizer.pre_tokenizer = None

    def fail(*arguments, **options):
        raise TypeError("TextEncodeInput must be Union[...]")

    broken.tokenizer._encode_plus = fail
    with pytest.raises(DataError, match=r"example x: the tokenizer refuses it \(TypeError: TextEncodeInput"):
        Collator(broken, training=True)([Example.ask("x", "what ?", "red")])


@pytest.mark.parametrize("make", [llava, qwen2_vl])
def test_image_tokens_in_texts(make):
    processor = make()
    token = processor.image_token
    refused(
        processor, Example.ask("x", "what ?", f"red {token}", PICTURE), "example x: the answer holds the image token"
    )
    refused(
        processor, Example.ask("x", f"what {token} ?", "red", PICTURE), "example x: the prompt has 2 .* for 1 images"
    )


def test_a_batch_that_fails_for_no_example_keeps_its_error(monkeypatch):
    collate = Collator(llava(), training=False)
    encode = collate._encode
    monkeypatch.setattr(
        collate, "_encode", lambda prompts, images: encode(prompts, images) if len(prompts) < 2 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        collate([GOOD, GOOD])


def test_meters_processor():
    def processor(images, texts):
        if "bad" in texts:
            raise OverflowError("too much")
        return {}

    collate = MeterCollator(processor, "nlvr2")
    pair = [Example.ask("a", "good", "True", PICTURE, PICTURE), Example.ask("b", "bad", "True", PICTURE, PICTURE)]
    with pytest.raises(DataError, match=r"example b: the processor refuses it \(OverflowError: too much\)"):
        collate(pair)


def test_texts_that_cannot_be_encoded():
    for question, answer, words in (
        ("what \ud83d ?", "red", "its text holds half a surrogate pair"),
        ("what ?", "\ude00", "its answer holds half a surrogate pair"),
        ("what \0 ?", "red", "its text holds a NUL character"),
        ("x" * LONGEST, "red", "its texts have 500,003 characters"),
        (7, "red", "its text is a int; expected a text"),
    ):
        with pytest.raises(DataError, match=f"example x: {words}"):
            Example.ask("x", question, answer)
    Example.ask("x", "x" * (LONGEST - 3), "red")


def test_end_tokens_are_taken_off_answers():
    for answer in ("red</s>", "red </s>", "red<|im_end|>\n", "red<|eot_id|><|end_of_text|>", "red<end_of_turn>\n"):
        example = Example.ask("x", "what ?", answer, PICTURE)
        assert example.target == "red"
        assert METRICS["exact"]("red", example) == 1
    assert Example.ask("x", "?", "red</s>").metadata == {"end_token": "</s>"}
    assert Example.ask("x", "?", "red</s>", choices=("red</s>", "blue</s>")).choices == ("red", "blue")
    assert Example.ask("x", "?", "red", choices=("red</s>", "blue</s>")).choices == ("red", "blue")
    assert Example.ask("x", "How is it struck out?", "<s>red</s>").target == "<s>red</s>"
    assert Example.ask("x", "?", "red").metadata == {}


def test_the_tokenizers_own_end_token_is_trained_once():
    fast = tokenizer([], "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    fast.add_special_tokens({"eos_token": "<|fin|>"})
    batch = Collator(fast, training=True)([Example.ask("x", "what ?", "red<|fin|>")])
    assert fast.decode(batch["labels"][batch["labels"] != -100]) == "red<|fin|>"
    with pytest.raises(DataError, match=r"example x: the answer holds <\|fin\|> before its end"):
        Collator(fast, training=True)([Example.ask("x", "what ?", "red<|fin|>blue")])


def test_end_tokens_in_files(tmp_path):
    said = ("what ?", "red</s>", "and ?", "blue </s>")
    turns = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(said)]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": turns}))
    first, second = load_jsonl(tmp_path / "train.jsonl")
    assert (first.target, second.target) == ("red", "blue")
    assert second.messages[1]["content"] == [{"type": "text", "text": "red"}]
    with pytest.warns(UserWarning, match="2 answers of train end in an end token; it is taken off"):
        load_data(str(tmp_path), "train")
    result = CliRunner().invoke(app, ["data", "check", str(tmp_path), "--split", "train"])
    assert "note: train: 2 answers end in an end token" in result.output
    assert json.loads(result.stdout.strip().splitlines()[-1])["splits"]["train"]["end tokens"] == 2


def test_end_tokens_of_annotators_answers(tmp_path):
    answers = ["red</s>", "red</s>", "red <|im_end|>", "red", "blue</s>"]
    (tmp_path / "train.jsonl").write_text(json.dumps({"prompt": "?", "completion": "red</s>", "answers": answers}))
    (example,) = load_jsonl(tmp_path / "train.jsonl")
    assert example.metadata["answers"] == ("red", "red", "red", "red", "blue")
    assert METRICS["vqa"]("red", example) == 1


def test_images_named_in_their_parts(tmp_path):
    """Qwen's form: paths, paths with file://, and pictures in memory."""
    PICTURE.save(tmp_path / "a.png")
    PICTURE.save(tmp_path / "b.png")
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "like"}]
    parts.append({"type": "image", "image": f"file://{tmp_path / 'b.png'}"})
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "x", "messages": turns}))
    (example,) = load_jsonl(tmp_path / "rows.jsonl")
    assert example.images == (tmp_path / "a.png", tmp_path / "b.png")
    assert [part["type"] for part in example.messages[0]["content"]] == ["image", "text", "image"]
    assert example.messages[0]["content"][0] == {"type": "image"}
    assert example.metadata["group"] == "a.png"
    assert [image.size for image in example.load_images()] == [(32, 32)] * 2
    from eas.data.jsonl import from_rows

    turns[0]["content"][0]["image"] = turns[0]["content"][2]["image"] = PICTURE
    (example,) = from_rows([("row 0", 0, {"messages": turns})], tmp_path)
    assert example.images == (PICTURE, PICTURE)


@pytest.fixture
def folder(tmp_path):
    """Four rows, of which the tiny model's processor refuses the second, and the third has no picture."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    answers = {"good": ("a.png", "red"), "token": ("a.png", "red <image>"), "broken": ("b.png", "red")}
    rows = [
        {"id": id, "image": image, "prompt": "what ?", "completion": answer} for id, (image, answer) in answers.items()
    ]
    # The loader takes <image> for a place in a user's turn only.
    rows[1] = {"id": "token", "image": "a.png", "messages": [
        {"role": "user", "content": "what ?"},
        {"role": "assistant", "content": [{"type": "text", "text": "red <image>"}]},
    ]}  # fmt: skip
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_data_check_tries_the_models_processor(folder):
    arguments = ["data", "check", str(folder), "--split", "train"]
    plain = json.loads(CliRunner().invoke(app, arguments).stdout.strip().splitlines()[-1])["splits"]["train"]
    assert (plain["broken"], plain["refused"]) == (1, 0)
    result = CliRunner().invoke(app, [*arguments, "--model", str(TINY_DIR)])
    summary = json.loads(result.stdout.strip().splitlines()[-1])
    assert result.exit_code == 1
    assert (summary["splits"]["train"]["refused"], summary["problems"]) == (1, 2)
    assert "wrong: train: example token: the answer holds the image token <image>" in result.output
    result = CliRunner().invoke(app, [*arguments, "--model", "tiny", "--skip-bad"])
    assert result.exit_code == 0
    assert result.output.count("left out: train: ") == 2


def test_skip_bad_leaves_out_what_the_processor_refuses(folder, tmp_path):
    config = RunConfig(data=str(folder), data_options={"skip_bad": True}, output_dir=str(tmp_path / "run"))
    run = Run(config)
    with pytest.warns(UserWarning, match="left out") as caught:
        assert [example.id for example in run.data("train")] == ["good"]
    (message,) = [str(warning.message) for warning in caught if "left out" in str(warning.message)]
    assert message.startswith("2 left out:\n")
    assert "example token: the answer holds the image token" in message
    assert "example broken: " in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.data("train") is run.data("train")  # tried once
    stopping = Run(RunConfig(data=str(folder), output_dir=str(tmp_path / "run")))
    assert len(stopping.data("train")) == 3


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_test_example_may_be_longer_than_training_ones(tmp_path, split):
    for name in ("train", "validation", "test"):
        rows = [
            {"id": id, "prompt": "what " * times, "completion": "red"} for id, times in (("short", 1), ("long", 40))
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few = {"data": str(tmp_path), "train": {"max_length": 40}, "output_dir": str(tmp_path / "run")}
    lenient = Run(RunConfig.from_dict({**few, "data_options": {"skip_bad": True}}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(lenient.data(split)) == (2 if split == "test" else 1)
    with pytest.raises(DataError, match=r"example long has .* more than max_length 40"):
        check(Run(RunConfig.from_dict(few)))


@pytest.mark.parametrize("metric", ["ranking", "choice"])
def test_a_metric_without_its_choices_is_refused_before_anything_is_computed(tmp_path, metric):
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "what ?", "completion": "red"}))
    with pytest.raises(DataError, match="has no choices"):
        check(Run(RunConfig(data=str(tmp_path), metric=metric, output_dir=str(tmp_path / "run"))))


def test_nothing_left_says_why(folder):
    (folder / "train.jsonl").write_text((folder / "train.jsonl").read_text().splitlines()[2])
    with pytest.raises(
        DataError, match=r"all rows are bad, 1 of them; the first: example broken: .*not a readable image"
    ):
        load_data(str(folder), "train", options={"skip_bad": True})


def test_the_tiny_model_takes_good_rows():
    """The checks refuse nothing that is right, on the shipped processor."""
    _, processor = load_tiny()
    batch = Collator(processor, training=True)([GOOD, Example.ask("text", "what ?", "red")])
    assert processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100]) == "red </s>"
