"""Rows of people's own data: bytes, JSON, and the form of a row."""

import gzip
import json
import os

from eas.data import load_data
from eas.data.jsonl import load_jsonl
from malformed import Case, flipped

GOOD = {"id": "good", "prompt": "what ?", "completion": "red"}
LINE = json.dumps(GOOD)


def file(name, content, names, *, rest="rows.jsonl", may_read=False):
    """A whole file."""

    def make(folder):
        path = folder / rest
        if callable(content):
            content(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return lambda: load_jsonl(path)

    return Case(name, make, names, may_read)


def line(name, text):
    """One bad line between good ones."""
    return file(name, f"{LINE}\n{text}\n{LINE}\n", r"rows.jsonl:2: ")


def row(name, names, **values):
    """One bad row: a good one with other values, or without what is None."""
    bad = {key: value for key, value in {**GOOD, **values, "id": values.get("id", "bad")}.items() if value is not ...}
    return file(name, f"{LINE}\n{json.dumps(bad)}\n", rf"rows.jsonl:2: .*{names}")


def read(name, content, expected, rest="rows.jsonl"):
    """A file that is odd and right."""

    def make(folder):
        path = folder / rest
        path.write_bytes(content)

        def check():
            found = [(example.question, example.target) for example in load_jsonl(path)]
            if found != expected:
                raise AssertionError(f"read as {found}")

        return check

    return Case(name, make, None)


def left_out(name, text, names):
    """A file of which nothing is left under skip_bad."""

    def make(folder):
        (folder / "train.jsonl").write_text(text)
        return lambda: load_data(str(folder), "train", options={"skip_bad": True})

    return Case(name, make, names)


def said(*texts):
    return [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(texts)]


def turn(name, names, *messages, **more):
    return row(name, names, prompt=..., completion=..., messages=list(messages), **more)


def part(name, names, *parts, **more):
    return turn(name, names, {"role": "user", "content": list(parts)}, said("", "red")[1], **more)


ASKED, TEXT = [("what ?", "red")], {"type": "text", "text": "what ?"}
CASES = [
    file("a folder", lambda path: path.mkdir(), "rows.jsonl is not a file"),
    file("a pipe", lambda path: os.mkfifo(path), "rows.jsonl is not a file"),
    file("a link to nowhere", lambda path: path.symlink_to("nowhere"), "rows.jsonl is not a file"),
    file("a device", lambda path: path.symlink_to("/dev/zero"), "rows.jsonl is not a file"),
    file("missing", lambda path: None, "rows.jsonl is not a file"),
    file("empty", "", "rows.jsonl holds no rows"),
    file("blank lines", "\n \n\t\n", "rows.jsonl holds no rows"),
    file("an empty array", "[]", "rows.jsonl holds no rows"),
    file("UTF-16 with a mark", LINE.encode("utf-16"), "rows.jsonl is not UTF-8"),
    file("UTF-16 without a mark", LINE.encode("utf-16-le"), "rows.jsonl:1: a NUL byte; is it UTF-16"),
    file("UTF-32", LINE.encode("utf-32-be"), "rows.jsonl:1: a NUL byte"),
    file("Latin-1", LINE.replace("red", "r\u00f6t").encode("latin-1"), "rows.jsonl is not UTF-8"),
    file("a NUL byte", LINE.replace("what", "wh\0at"), "rows.jsonl:1: a NUL byte"),
    file("zeros behind a crash", f"{LINE}\n" + "\0" * 4096, "rows.jsonl:2: a NUL byte"),
    file("gzip under another name", gzip.compress(LINE.encode()), "rows.jsonl is not UTF-8"),
    file("no gzip", LINE, "rows.jsonl.gz is not a whole gzip", rest="rows.jsonl.gz"),
    file("half a gzip", gzip.compress(LINE.encode() * 99)[:-20], "rows.jsonl.gz is not a whole", rest="rows.jsonl.gz"),
    file("old Mac line ends", f"{LINE}\r{LINE}", "rows.jsonl:1: broken JSON"),
    file("an array that is cut", f"[{LINE}, {LINE[:-5]}", "rows.jsonl:1: broken JSON"),
    file("an array on one line and a row", f"[{LINE}]\n{LINE}", "rows.jsonl:2: broken JSON"),
    file("an array of texts", '["a", "b"]', r"rows.jsonl\[0\]: expected an object"),
    file("an array nested too deep", "[" * 100_000, "rows.jsonl:1: nested too deep"),
    file(
        "half a surrogate pair in an array", json.dumps([GOOD, {"prompt": "\ud83d"}]), r"rows.jsonl\[1\]: prompt holds"
    ),
    *(
        file(f"flipped bytes, seed {seed}", flipped((LINE + "\n").encode() * 9, seed, 3), "rows.jsonl", may_read=True)
        for seed in range(12)
    ),
    line("an open brace", '{"id": '),
    line("cut in the middle", LINE[:-9]),
    line("single quotes", str(GOOD)),
    line("a comma behind the last", LINE[:-1] + ",}"),
    line("a comment", f"{LINE} // the first"),
    line("two rows on a line", f"{LINE}{LINE}"),
    line("not a number", '{"id": NaN, "prompt": "q", "completion": "a"}'),
    line("infinity", '{"id": -Infinity, "prompt": "q", "completion": "a"}'),
    line("a float without end", '{"weight": 1e999, "prompt": "q", "completion": "a"}'),
    line("an integer of 100,000 digits", f'{{"id": {"9" * 100_000}, "prompt": "q", "completion": "a"}}'),
    line("a key twice", '{"id": 1, "prompt": "q", "prompt": "p", "completion": "a"}'),
    line("a key twice below", '{"messages": [{"role": "user", "role": "system", "content": "q"}]}'),
    line("nested too deep", '{"id": ' + '{"a": ' * 50_000 + "1" + "}" * 50_001),
    line("a number", "7"),
    line("a text", '"hello"'),
    line("an array", "[1]"),
    line("null", "null"),
    line("a tab in a text", '{"id": "a\tb"}'),
    line("half a surrogate pair", '{"prompt": "what \\ud83d ?", "completion": "red"}'),
    line("the other half", '{"prompt": "what ?", "completion": "\\ude00 red"}'),
    line("half a pair in a key", '{"\\ud83d": 1, "prompt": "what ?", "completion": "red"}'),
    line("a NUL escape", '{"prompt": "what \\u0000 ?", "completion": "red"}'),
    line("a NUL in a path", '{"image": "a\\u0000.png", "prompt": "what ?", "completion": "red"}'),
    left_out("every line broken", "{\n" * 9, "none of the 9 rows of .*train.jsonl.*train.jsonl:1: broken"),
    left_out("no line an object", "7\n" * 9, "all rows are bad, 9 of them; the first: .*train.jsonl:1"),
    left_out("no row with an answer", '{"prompt": "q"}\n' * 9, "all rows are bad, 9 of them; the first: .*jsonl:1"),
    row("no question", "has the keys", prompt=...),
    row("no answer", "has the keys", completion=...),
    row("a question that is a number", "prompt is 7 and completion", prompt=7),
    row("an answer that is null", "completion None; expected texts", completion=None),
    row("an answer that is a mapping", "completion {.*expected texts", completion={"a": 1}),
    row("a question of a megabyte", "1,000,003 characters", prompt="x" * 1_000_000),
    row("an answer of a megabyte", "characters", completion="word " * 200_000),
    row("an id that is a list", "id is", id=[1]),
    row("an id that is a mapping", "id is", id={"a": 1}),
    row("an id that is true", "id is True", id=True),
    row("an id that is empty", "id is", id=""),
    row("an id that is a float", "id is 0.5", id=0.5),
    row("an id twice", "the id 'good' occurs twice", id="good"),
    row("an image that is a number", "images are 3", image=3),
    row("an image that is true", "images are True", image=True),
    row("an image that is encoded", "images are", image={"bytes": "iVBORw0K", "path": None}),
    row("images in images", "images are", images=[["a.png"]]),
    row("images nested deep", "images are", images=json.loads("[" * 200 + "]" * 200)),
    row("an image that is missing", "none.png does not exist", image="none.png"),
    row("an image that is the folder", "does not exist", image="."),
    row("an image at an address", "does not exist", image="https://example.com/a.png"),
    row("an image that is an object", "images are", image={}),
    row("images that are false", "images are", images=False),
    row("choices that are an object", "choices are", choices={}),
    row("choices that are an empty text", "choices are", choices=""),
    row("choices that are a text", "choices are", choices="red, blue"),
    row("choices that are numbers", "choices are", choices=[1, 2]),
    row("an answer outside the choices", "'red' is not among", choices=["blue"]),
    row("answers that are numbers", "answers are", answers=[1, 2]),
    row("conversations that are a text", "has the keys", prompt=..., completion=..., conversations="what ?"),
    row("no turns", "the turns are", prompt=..., completion=..., messages=[]),
    row("an empty answer", "an empty turn of the assistant", completion=""),
    row("an empty question", "an empty turn of the user", prompt=""),
    turn("a question without parts", "an empty turn of the user", {"role": "user", "content": []}, said("", "b")[1]),
    turn("a turn alone", "the turns are", *said("what ?")),
    turn("two questions", "the turns are", said("a")[0], said("b")[0], said("", "c")[1]),
    turn("an answer first", "the turns are", *reversed(said("a", "b"))),
    turn("a system turn in the middle", "the turns are", *said("a", "b"), {"role": "system", "content": "c"}),
    turn("a role that nobody has", "a turn is", {"role": "tool", "content": "a"}, said("", "b")[1]),
    turn("a turn that is a text", "a turn is", "what ?", "red"),
    turn("content that is a number", "a turn is", {"role": "user", "content": 7}, said("", "b")[1]),
    turn("content that is null", "a turn is", {"role": "user", "content": None}, said("", "b")[1]),
    turn("an image in the answer", "an image in the assistant's turn", *said("a", "<image> b")),
    turn(
        "an image in the system turn",
        "an image in the system's",
        {"role": "system", "content": "<image>"},
        *said("a", "b"),
    ),
    part("a part that is a text", "a part is", "what ?"),
    part("a part of an unknown kind", "a part is", {"type": "video", "video": "a.mp4"}),
    part("OpenAI's form", "a part is", {"type": "image_url", "image_url": {"url": "a.png"}}),
    part("a text part without text", "a part is", {"type": "text"}),
    part("a text part with a number", "a part is", {"type": "text", "text": 7}),
    part("a place without an image", "1 places for images but 0 images", {"type": "image"}, TEXT),
    part(
        "an image in its part that is missing", "none.png does not exist", {"type": "image", "image": "none.png"}, TEXT
    ),
    part("an image in its part at an address", "download it", {"type": "image", "image": "https://a.b/c.png"}, TEXT),
    part(
        "an image in its part, written out", "download it", {"type": "image", "image": "data:image/png;base64,A"}, TEXT
    ),
    part("an image in its part that is a number", "images are", {"type": "image", "image": 3}, TEXT),
    part("one image in its part, one not", "1 of 2 parts", {"type": "image", "image": "a"}, {"type": "image"}, TEXT),
    part("images here and there", "lists others", {"type": "image", "image": "a"}, TEXT, images=["b"]),
    part("transformers' form", "has path .*which would be lost", {"type": "image", "path": "a.png"}, TEXT),
    part("transformers' form and a list", "has path", {"type": "image", "path": "a.png"}, TEXT, images=["rows.jsonl"]),
    part("an image part at a url", "has url", {"type": "image", "url": "a.png"}, TEXT, images=["rows.jsonl"]),
    part("an image part of an object", "has source", {"type": "image", "source": {"data": "iV"}}, TEXT),
    part("an image in a text part", "type text has image", TEXT | {"image": "a.png"}),
    part("a video in an image part", "type image has video", {"type": "image", "image": "rows.jsonl", "video": "v"}),
    turn(
        "an image beside its text", "a turn has image .*lost", said("what ?")[0] | {"image": "a.png"}, said("", "b")[1]
    ),
    turn("images beside a text", "a turn has images", said("what ?")[0] | {"images": ["a.png"]}, said("", "b")[1]),
    turn("a video beside a text", "a turn has video", said("what ?")[0] | {"video": "a.mp4"}, said("", "b")[1]),
    turn("another key beside a text", "'img' names a picture", said("what ?")[0] | {"img": "a.png"}, said("", "b")[1]),
    row("image and images", '"image" and "images"', image="rows.jsonl", images=["rows.jsonl"]),
    row("a second image", "'image2' names a picture", image="rows.jsonl", image2="a.png"),
    row("a video", "video .*would be lost", video="a.mp4"),
    row("videos", "videos .*would be lost", videos=["a.mp4"]),
    row("a sound", "audio .*would be lost", audio="a.wav"),
    row("a system text", "system .*would be lost; write it as a first turn", system="be brief"),
    row("tools", "tools .*would be lost", tools=[{"name": "look"}]),
    row("earlier turns", "history .*would be lost", history=[["a", "b"]]),
    row("messages too", "has messages, and prompt and completion too", messages=said("a", "b")),
    row("conversations too", "has conversations, and prompt", conversations=[{"from": "human", "value": "a"}]),
    turn("conversations and messages", "has conversations, and messages", *said("a", "b"), conversations=said("a")),
    read(
        "what is not there",
        json.dumps({**GOOD, "system": None, "tools": [], "image": "", "messages": None}).encode(),
        ASKED,
    ),
    read("where a picture is from", json.dumps({**GOOD, "image_id": "7", "images": []}).encode(), ASKED),
    read("a mark in front", b"\xef\xbb\xbf" + LINE.encode(), ASKED),
    read("Windows line ends", f"{LINE}\r\n".encode(), ASKED),
    read("no line end at last", LINE.encode(), ASKED),
    read("blank lines between", f"\n\n{LINE}\n\n".encode(), ASKED),
    read("a line separator in a text", LINE.replace("red", "r\u2028d").encode(), [("what ?", "r\u2028d")]),
    read("an escaped pair", LINE.replace("red", "\\ud83d\\ude00").encode(), [("what ?", "\U0001f600")]),
    read("gzipped", gzip.compress(LINE.encode()), ASKED, rest="rows.jsonl.gz"),
    read("an end token in the answer", LINE.replace("red", "red</s>").encode(), ASKED),
    read("an array over lines", json.dumps([GOOD], indent=2).encode(), ASKED),
]
