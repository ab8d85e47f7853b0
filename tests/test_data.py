"""Own data: both row forms, splits, options, datasets, and every way that rows can be wrong."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eas.config import ConfigError
from eas.data import load_data
from eas.data.jsonl import load_jsonl
from eas.example import DataError, Example
from eas.metrics import METRICS
from eas.pipeline import RunConfig

IMAGE, ANSWER = {"type": "image"}, {"role": "assistant", "content": "red"}


def text(value):
    return {"type": "text", "text": value}


def said(*values):
    """A LLaVA conversation: question, answer, question, ..."""
    return [{"from": ("human", "gpt")[turn % 2], "value": value} for turn, value in enumerate(values)]


@pytest.fixture
def write(tmp_path):
    """Writes rows, and an image file that no loader may open."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"not an image")

    def write(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows))
        return path

    return write


def test_conversation_form(write):
    rows = [
        {"id": 7, "image": "a.png", "conversations": said("<image>\nColour?", "red", "Shape?", "ring")},
        {"image": ["a.png", "b.png"], "conversations": said("Is <image> like\n<image>", "no")},
        {"id": "t", "conversations": said("2+2?", "4")},
    ]
    path = write(*rows)
    first, second, order, plain = load_jsonl(path)
    folder = path.parent
    asked = {"role": "user", "content": [IMAGE, text("Colour?")]}
    assert first == Example("7#1", (asked,), "red", (folder / "a.png",), metadata={"group": "a.png"})
    answered = {"role": "assistant", "content": [text("red")]}
    assert second.messages == (asked, answered, {"role": "user", "content": [text("Shape?")]})
    assert (second.id, second.target, second.images) == ("7#2", "ring", first.images)
    assert order.messages[0]["content"] == [text("Is "), IMAGE, text(" like"), IMAGE]
    assert (order.id, order.images) == ("row-2", (folder / "a.png", folder / "b.png"))
    assert (plain.messages[0]["content"], plain.images, plain.metadata["group"]) == ([text("2+2?")], (), "t")

    array = path.with_suffix(".json")
    array.write_text(json.dumps(rows, indent=2))
    assert [e.messages for e in load_jsonl(array)] == [e.messages for e in load_jsonl(path)]


def test_messages_form(write):
    system = {"role": "system", "content": "Be brief."}
    parts = {"role": "user", "content": [text("Colour?"), {"type": "image", "text": None}]}
    rows = [
        {"id": "parts", "images": ["a.png"], "messages": [parts, ANSWER]},
        {"id": "front", "images": ["a.png"], "messages": [system, {"role": "user", "content": "Colour?"}, ANSWER]},
        {"id": "chat", "prompt": [parts, ANSWER, {"role": "user", "content": "Why?"}], "completion": [ANSWER]}
        | {"images": ["a.png"]},
        {"id": "plain", "prompt": "Colour?", "completion": "red"},
    ]
    inside, front, chat, plain = load_jsonl(write(*rows))
    assert inside.messages[0]["content"] == [text("Colour?"), IMAGE]
    assert [m["content"] for m in front.messages] == [[text("Be brief.")], [IMAGE, text("Colour?")]]
    # What the prompt holds is context, also its answers.
    assert (chat.id, chat.question, len(chat.messages)) == ("chat", "Why?", 3)
    assert (plain.question, plain.target, plain.images) == ("Colour?", "red", ())


def test_images_may_lie_elsewhere(write, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGBA", (4, 3)).save(tmp_path / "pictures" / "c.png")
    path = write({"image": "c.png", "conversations": said("q", "a")})
    (example,) = load_jsonl(path, tmp_path / "pictures")
    (image,) = example.load_images()
    assert (image.size, image.mode) == ((4, 3), "RGB")


words = st.text(st.characters(exclude_characters="<>\r\n\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.one_of(st.none(), words), min_size=1, max_size=8), st.lists(words, max_size=3))
def test_conversations_keep_text_and_order(tmp_path_factory, pieces, more):
    folder = tmp_path_factory.mktemp("kept")
    count = pieces.count(None)
    for number in range(count):
        (folder / f"{number}.png").touch()
    value = "".join("<image>" if piece is None else piece for piece in pieces)
    turns = [value, "answer", *(part for question in more for part in (question, "answer"))]
    row = {"image": [f"{n}.png" for n in range(count)], "conversations": said(*turns)}
    (folder / "d.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    examples = load_jsonl(folder / "d.jsonl")
    assert len(examples) == 1 + len(more)
    for example in examples:
        parts = [part for message in example.messages for part in message["content"]]
        spoken = "".join(part["text"] if part["type"] == "text" else "<image>" for part in parts)
        assert spoken == "".join(turns[: len(example.messages)])
        assert [image.name for image in example.images] == [f"{n}.png" for n in range(count)]


GOOD = {"id": "x", "conversations": said("q", "a")}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "data.jsonl holds no rows"),
        (["[]"], "data.jsonl holds no rows"),
        ([GOOD, "", '{"id": '], r"data.jsonl:3: broken JSON at column 8 .*fix or drop"),
        (["[", json.dumps(GOOD)], r"data.jsonl:2: broken JSON"),
        (["7"], "data.jsonl:1: expected an object in braces, found int"),
        ([GOOD, GOOD], "data.jsonl:2: the id 'x' occurs twice"),
        (
            [{"id": "x", "text": "q"}],
            r"data.jsonl:1: the row has the keys \['id', 'text'\]; expected \"conversations\"",
        ),
        ([GOOD | {"image": "c.png"}], "data.jsonl:1: image .*c.png does not exist; paths are relative to"),
        ([GOOD | {"image": 3}], "data.jsonl:1: images are 3; expected a path"),
        ([{"conversations": said("q", "a", "q")}], "data.jsonl:1: the turns are .*drop the last question"),
        ([{"conversations": []}], r"data.jsonl:1: the turns are \[\]"),
        ([{"conversations": said("<image>q", "a")}], "data.jsonl:1: 1 places for images but 0 images"),
        ([{"conversations": said("q", "<image>")}], "data.jsonl:1: an image in the assistant's turn"),
        ([{"conversations": [{"from": "robot", "value": "q"}]}], "data.jsonl:1: a turn is .*robot"),
        ([{"messages": [{"role": "user", "content": [{"type": "video"}]}, ANSWER]}], "data.jsonl:1: a part is .*video"),
        ([{"prompt": "q", "completion": " </s>"}], "data.jsonl:1: an empty turn of the assistant"),
        ([{"prompt": "q", "completion": "\n"}], "data.jsonl:1: an empty turn of the assistant"),
        ([{"prompt": "q", "completion": 3}], "data.jsonl:1: prompt is 'q' and completion 3; expected texts"),
        ([GOOD | {"Image": "c.PNG"}], "data.jsonl:1: 'Image' names a picture .*images go under \"image\" or"),
        ([GOOD | {"img_paths": ["c.jpeg"]}], "data.jsonl:1: 'img_paths' names a picture"),
        ([GOOD | {"file_name": "c.png"}], "data.jsonl:1: 'file_name' names a picture"),
        ([GOOD | {"img": {"path": "c.jfif"}}], "data.jsonl:1: 'img' names a picture"),
        ([GOOD | {"url": "https://x/c.jpg?s=1"}], "data.jsonl:1: 'url' names a picture"),
        (
            [{**GOOD, "conversations": said("q", "a", "q", "b"), "answers": ["a"]}],
            "are of one question, and the row has 2",
        ),
        (
            [{"messages": [{"role": "user", "content": "q"}, ANSWER | {"weight": 0}]}],
            r"data.jsonl:1: a turn has weight \(0\), and would be trained",
        ),
        (
            [{"messages": [{"role": "user", "content": [{"type": "text", "text": "<image>\nq"}]}, ANSWER]}],
            "data.jsonl:1: a text part has <image>",
        ),
    ],
)
def test_bad_rows_are_named(write, rows, words):
    with pytest.raises(DataError, match=words):
        load_jsonl(write(*rows))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl is not a file"):
        load_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"binary.jsonl is not UTF-8"):
        load_jsonl(tmp_path / "binary.jsonl")


def test_unreadable_images_are_named_when_opened(write, tmp_path):
    path = write(*({"id": name, "image": name, "conversations": said("q", "a")} for name in ("a.png", "b.png")))
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:-500])
    truncated, junk = load_jsonl(path)
    with pytest.raises(DataError, match=r"example a.png: .*a.png is not a readable image .*truncated"):
        truncated.load_images()
    with pytest.raises(DataError, match=r"example b.png: .*replace it or drop the row"):
        junk.load_images()
    (tmp_path / "b.png").unlink()
    with pytest.raises(DataError, match=r"example b.png: .*does not exist"):
        junk.load_images()


def test_one_file_is_split_by_image(write):
    rows = [{"id": n, "conversations": said(f"q{n % 100}", "a", "q", "a")} for n in range(200)]
    path = write(*rows)
    parts = {split: load_data(str(path), split) for split in ("train", "validation", "test")}
    groups = {split: {example.metadata["group"] for example in part} for split, part in parts.items()}
    assert sum(map(len, groups.values())) == 200
    assert 140 < len(groups["train"]) < 180
    assert len(parts["train"]) == 2 * len(groups["train"])


def test_a_limit_draws_from_the_whole_of_sorted_data(write):
    path = str(write(*({"id": n, "conversations": said(f"q{n}", "early" if n < 100 else "late")} for n in range(200))))
    whole, drawn = load_data(path, "train"), load_data(path, "train", limit=40)
    assert 10 < [example.target for example in drawn].count("late") < 30
    assert list(drawn) == list(load_data(path, "train", limit=40))
    assert list(drawn)[:20] == list(load_data(path, "train", limit=20))
    everything = load_data(path, "train", limit=1000)
    assert sorted(e.id for e in everything) == sorted(e.id for e in whole)


def test_a_folder_has_one_file_per_split(write, tmp_path):
    write(GOOD, name="train.jsonl")
    write([GOOD], name="test.json")
    assert len(load_data(str(tmp_path), "train")) == len(load_data(str(tmp_path), "test")) == 1
    with pytest.raises(DataError, match=r"needs either validation.jsonl or validation.json; it has 0"):
        load_data(str(tmp_path), "validation")


def test_files_of_other_names_are_the_splits(write, tmp_path):
    write(GOOD, name="train.jsonl")
    write({**GOOD, "id": "d"}, name="dev.jsonl")
    for options in ({"test_split": "dev"}, {"splits": {"test": "dev"}}):
        assert [example.id for example in load_data(str(tmp_path), "test", options=options)] == ["d"]
    with pytest.raises(DataError, match=r"needs either nope.jsonl or nope.json; it has 0"):
        load_data(str(tmp_path), "train", options={"train_split": "nope"})
    with pytest.raises(DataError, match=r"a folder of files, which have no slice 'train\[90%:\]'"):
        load_data(str(tmp_path), "test", options={"splits": {"test": "train[90%:]"}})


@pytest.mark.parametrize(
    "option",
    [
        *({"stream": 1}, {"config": "x"}, {"revision": "x"}, {"columns": {"image": "x"}}),
        *({"splits": {"test": "train"}}, {"train_split": "x"}, {"validation_split": "x"}, {"test_split": "x"}),
    ],
)
def test_options_that_a_source_does_not_have_are_refused(write, tmp_path, option):
    (key,) = option
    words = f"data_options.{key} has no meaning here; leave it out"
    with pytest.raises(DataError, match=f"data.jsonl is one file, which eas splits itself: {words}"):
        load_data(str(write(GOOD)), "train", options=option)
    if "split" not in key:
        write(GOOD, name="train.jsonl")
        with pytest.raises(DataError, match=f"is a folder of files: {words}"):
            load_data(str(tmp_path), "train", options=option)
    if not key.endswith("_split"):
        with pytest.raises(DataError, match=f"slake:x is a folder of official files: {words}"):
            load_data("slake:x", "train", options=option)


def test_generated_pictures_are_data_too():
    assert [len(load_data("scenes:codes", split)) for split in ("train", "validation", "test")] == [4000, 400, 1000]
    assert len(load_data("scenes:codes", "test", limit=2)) == 2
    assert load_data("scenes:codes@224", "test")[0].images[0].size == (224, 224)


@pytest.mark.parametrize(
    ("spec", "split", "words"),
    [
        ("no/such.jsonl", "train", r"unknown data 'no/such.jsonl'.*scenes:\.\.\., nlvr:"),
        ("{file}", "val", "has no split 'val'; use one of train, validation, test"),
        ("nlvr:{folder}", "val", "no split 'val'; use one of train, validation, dev"),
        ("scenes:codes", "dev", "no split 'dev'; use one of train"),
        ("scenes:codes@large", "test", "the side of a picture in pixels, as in scenes:textures@224"),
        ("scenes:codes@50", "test", "must be a multiple of 4, 48 to 1024"),
        ("{file}", "test", "the split 'test' is empty"),
    ],
)
def test_unknown_data_and_splits(write, tmp_path, spec, split, words):
    spec = spec.format(file=write(GOOD), folder=tmp_path)
    with pytest.raises(DataError, match=words):
        load_data(spec, split)


def test_ten_thousand_rows_touch_no_image(write, tmp_path, monkeypatch):
    row = json.dumps({"image": "a.png", "conversations": said("<image>\nq", "a")})
    write(*[row] * 10_000, name="train.jsonl")
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened at load"))
    examples = load_data(str(tmp_path), "train")
    assert (len(examples), examples[9_999].images) == (10_000, (tmp_path / "a.png",))


def test_benchmark_rows_are_built_when_asked_for(tmp_path):
    from eas.data.benchmark import Examples, checked

    built = []

    def build(n):
        built.append(n)
        return Example.ask(str(n), "q", "a", tmp_path / f"{n}.png")

    examples = Examples(range(10_000), build)
    assert len(examples[5:][:20]) == 20
    assert built == []
    assert examples[5:][0].id == "5"
    assert len(checked(examples, images=False, limit=3)) == 3
    assert built == [5, 0, 1, 2]
    with pytest.raises(DataError, match=r"example 0: image .*0.png does not exist"):
        checked(examples)


def test_an_image_may_be_of_another_kind_than_its_suffix_says(write, tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png", "JPEG")
    (example,) = load_jsonl(write({"image": "a.png", "conversations": said("q", "a")}))
    assert example.load_images()[0].size == (4, 3)


def test_skip_bad_lists_what_it_leaves_out(write, tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    rows = [
        GOOD,
        '{"id": ',
        "7",
        {"id": "gone", "image": "c.png", "conversations": said("q", "a")},
        {"id": "junk", "image": "b.png", "conversations": said("q", "a")},
        {"id": "seen", "image": "a.png", "conversations": said("q", "a")},
        GOOD,
    ]
    write(*rows, name="train.jsonl")
    with pytest.warns(UserWarning, match="5 left out") as warned:
        examples = load_data(str(tmp_path), "train", options={"skip_bad": True})
    assert [example.id for example in examples] == ["x", "seen"]
    (_, *lines) = str(warned[0].message).split("\n")
    expected = (
        "jsonl:2: broken JSON",
        "jsonl:4: image",
        "jsonl:7: the id 'x' occurs",
        "jsonl:3: expected an object",
        "example junk: ",
    )
    assert len(lines) == len(expected)
    assert all(any(words in line for line in lines) for words in expected)


def test_choices_and_annotators_answers(write):
    row = {"id": 1, "conversations": said("q", "ring"), "choices": ["ring", "disc"], "answers": ["ring"] * 3 + ["o"]}
    (example,) = load_jsonl(write(row))
    assert (example.choices, example.metadata["answers"]) == (("ring", "disc"), ("ring", "ring", "ring", "o"))
    assert METRICS["choice"]("Ring, I say", example) == 1
    assert METRICS["vqa"]("A ring", example) == pytest.approx((3 * 2 / 3 + 1) / 4)
    assert METRICS["vqa"]("a Ring.", Example.ask("x", "q", "ring")) == 1
    with pytest.raises(DataError, match=r"data.jsonl:1: choices are 'ab'; expected a list of texts"):
        load_jsonl(write(row | {"choices": "ab"}))
    with pytest.raises(DataError, match=r"data.jsonl:1: example 1: answer 'ring' is not among the choices"):
        load_jsonl(write(row | {"choices": ["disc"]}))
    assert load_jsonl(write(row | {"choices": ["ring", "Ring"]}))[0].choices == ("ring", "Ring")
    for again, words in (
        ("ring", "'ring' is there twice"),
        (" ring</s>", "'ring' is there twice"),
        (" ", "one is empty"),
    ):
        with pytest.raises(
            DataError, match=rf"data.jsonl:1: choices are .*: {words}.*; write every choice once, or drop"
        ):
            load_jsonl(write(row | {"choices": ["ring", "disc", again]}))


def test_the_official_accuracy_needs_four_annotators(write):
    """With one, who is left out, nobody is left to agree with: a right answer would score 0."""
    for number in (1, 2, 3):
        (example,) = load_jsonl(write({"id": 7, "prompt": "q", "completion": "ring", "answers": ["ring"] * number}))
        with pytest.raises(DataError, match=rf"example 7: {number} of 4 `answers` .* metric=exact"):
            METRICS["vqa"]("ring", example)
        assert METRICS["exact"]("ring", example) == 1
    (example,) = load_jsonl(write({"prompt": "q", "completion": "ring", "answers": ["ring"] * 4}))
    assert METRICS["vqa"]("ring", example) == 1


def test_a_run_knows_the_options_of_its_data():
    assert RunConfig().metric_name == "exact"
    assert RunConfig(data="slake:x").metric_name == "slake"
    assert RunConfig(data="slake:x", metric="contains").metric_name == "contains"
    config = RunConfig().with_overrides(["data=slake:x", "data_options.language=zh", "metric=none"])
    assert (config.data_options, config.metric_name) == ({"language": "zh"}, "none")
    for values, words in (
        ({"data": "slake:x", "data_options": {"langage": "en"}}, "did you mean 'language'"),
        (
            {"data": "slake:x", "metric": "scienceqa"},
            "must be null or one of exact, contains, choice, vqa, ranking, none, slake",
        ),
        ({"data": "scenes:codes", "data_options": {"seed": 1}}, "scenes:codes has none"),
        ({"data": "own.jsonl", "data_options": {"skip_bad": "yes"}}, "must be bool"),
    ):
        with pytest.raises(ConfigError, match=words):
            RunConfig(**values)


@pytest.mark.parametrize("key", ["tool_calls", "function_call", "reasoning_content"])
def test_what_a_turn_says_beside_its_content_is_not_lost(key, tmp_path):
    turns = [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "red", key: ["look"]}]
    (tmp_path / "own.jsonl").write_text(json.dumps({"id": "a", "messages": turns}))
    with pytest.raises(DataError, match=rf"own\.jsonl.* a turn has {key}, which would be lost"):
        load_jsonl(tmp_path / "own.jsonl")
    turns[1][key] = None  # as templates and the Hub write what is not there
    (tmp_path / "own.jsonl").write_text(json.dumps({"id": "a", "messages": turns}))
    assert len(load_jsonl(tmp_path / "own.jsonl")) == 1
