"""Your own data: a JSON or JSON-lines file in LLaVA's conversation form or in the messages form of chat templates."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from eas.data.official import id_of, parse_json, read_text, refuse_unfit, suspect
from eas.errors import DataError, shown
from eas.example import Example, ImageSource, without_end

MARKER = "<image>"
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_OF_ROWS = ("id", "image", "images", "conversations", "messages", "prompt", "completion", "choices", "answers")
_READ = (*_OF_ROWS, "from", "value", "role", "content")
_FILE = re.compile(r"\.(png|jpe?g|jfif|webp|gif|bmp|tiff?|avif|heic)(\?\S*)?$")
_NUMBERED = re.compile(r"(image|img|pic|picture|photo)s?_?\d+")
_FORMS = '"conversations" (LLaVA), "messages", or "prompt" and "completion"'


def load_jsonl(path: Path, images: Path | None = None, left_out: list[str] | None = None) -> list[Example]:
    """One example per answer; the earlier turns of a conversation are its context, as at inference.

    A row has "conversations" (LLaVA: ``{"from": "human" | "gpt", "value": text}``), "messages" (``{"role": ...,
    "content": ...}``, a text or a list of image and text parts), or "prompt" and "completion" (texts, or messages).
    Its images are the paths under "image" or "images"; each ``<image>`` in a user's text is the place of one, and
    images without any place come first. Or every part names its own: ``{"type": "image", "image": path}``. Ids are the
    row's "id" or "row-N", plus "#TURN" where a row has several answers; ``metadata["group"]`` is the row's first image
    (or its id): what a split of the data keeps together. A list of texts under "choices" or "answers" (of several
    annotators) is there for the metrics ``choice`` and ``vqa``. End tokens of all these are taken off (see `Example`).

    Args:
        path: JSON lines, or one JSON array.
        images: the folder image paths are relative to; the file's own by default.
        left_out: where given, rows that do not fit are left out, and listed there.

    Raises:
        DataError: naming file, line and remedy, for anything that does not fit; images are looked up, not opened.
    """
    return from_rows(read_rows(path, left_out), images or path.parent, left_out)


def from_rows(
    rows: Iterable[tuple[str, int, Mapping[str, Any]]], folder: Path, left_out: list[str] | None = None
) -> list[Example]:
    """The examples of rows (place for messages, number, row) in the forms of `load_jsonl`, which see.

    Images may also be functions that open them, as `eas.data.hub.HubRows` has them, or images in memory.
    """
    examples: dict[str, Example] = {}
    for where, number, row in rows:
        with leaving_out(left_out):
            id = f"row-{number}" if row.get("id") is None else id_of(row, "id", where)
            try:
                found = list(_examples(row, id, folder))
                if twice := [example.id for example in found if example.id in examples]:
                    raise DataError(f"the id {twice[0]!r} occurs twice; make ids unique, or drop them all")
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            examples |= {example.id: example for example in found}
    return list(examples.values())


def read_rows(path: Path, left_out: list[str] | None = None) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The objects of JSON lines or a JSON array, plain or gzipped: (place for messages, line or element, object).

    Args:
        path: the file.
        left_out: where given, lines that are no JSON and entries that are no objects are left out, and listed there.

    Raises:
        DataError: the file is missing, empty, not UTF-8 or not JSON, or an entry is not an object.
    """
    text = read_text(path)
    faults: list[str] | None = None if left_out is None else []
    rows: list[tuple[str, int, Any, bool]] = []
    if text.lstrip().startswith("["):
        look = suspect(text)
        rows = [(f"{path}[{number}]", number, row, look) for number, row in enumerate(parse_json(text, path))]
    else:
        # Not splitlines(): JSON strings may hold U+2028, which it takes for a line end.
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                with leaving_out(faults):
                    rows.append((f"{path}:{number}", number, parse_json(line, path, number), suspect(line)))
    if not rows and faults:
        raise DataError(f"none of the {len(faults)} rows of {path} can be read; the first: {faults[0]}")
    if not rows:
        raise DataError(f"{path} holds no rows; expected one JSON object per line, or an array of them")
    if left_out is not None:
        left_out += faults or []
    for where, number, row, look in rows:
        with leaving_out(left_out):
            if not isinstance(row, dict):
                raise DataError(f"{where}: expected an object in braces, found {type(row).__name__}")
            if look:
                refuse_unfit(row, where)
            yield where, number, row


@contextmanager
def leaving_out(left_out: list[str] | None) -> Iterator[None]:
    """Where a list is given, bad data is listed there and not raised."""
    try:
        yield
    except DataError as error:
        if left_out is None:
            raise
        left_out.append(str(error))


def _examples(row: Mapping[str, Any], id: str, folder: Path) -> Iterator[Example]:
    _refuse_unread(row)
    choices, given = _choices(row), [without_end(text)[0] for text in _texts(row, "answers")]
    turns, context = _turns(row)
    roles = [role for role, _ in map(_turn, turns)]
    contents = [_parts(role, content) for role, content in map(_turn, turns)]
    named = _named_images(row, [part for parts in contents for part in parts if part["type"] == "image"])
    contents = [[{"type": "image"} if part["type"] == "image" else part for part in parts] for parts in contents]
    files = tuple(folder / image if isinstance(image, str) else image for image in named)
    for file in files:
        if isinstance(file, Path) and not os.path.isfile(file):
            raise DataError(f"image {file} does not exist; paths are relative to {folder}")
    first = 1 if roles[:1] == ["system"] else 0
    spoken = roles[first:]
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise DataError(
            f"the turns are {roles}; expected user and assistant in turn, the last one the assistant's: "
            "add the missing turn, or drop the last question"
        )
    slots = [sum(part["type"] == "image" for part in parts) for parts in contents]
    if not any(slots):
        contents[first] = [{"type": "image"} for _ in files] + contents[first]
        slots[first] = len(files)
    if sum(slots) != len(files):
        raise DataError(
            f"{sum(slots)} places for images but {len(files)} images; write one {MARKER} or part per image, and name "
            'the files under "images", or each in its part under "image"'
        )
    for holder in (row, *turns):
        _refuse_misnamed(holder, named, folder)

    for role, parts in zip(roles, contents, strict=True):
        said = "".join(MARKER if part["type"] == "image" else part["text"] for part in parts)
        if role != "system" and not (without_end(said)[0].strip() if role == "assistant" else said):
            raise DataError(f"an empty turn of the {role}; give it a text, or drop the row")

    messages = [
        {"role": role, "content": _ended(parts) if role == "assistant" else parts}
        for role, parts in zip(roles, contents, strict=True)
    ]
    answers = [index for index, role in enumerate(roles) if role == "assistant" and index >= context]
    if given and len(answers) > 1:
        raise DataError(f'"answers" are of one question, and the row has {len(answers)}; write one row for each')
    for turn, index in enumerate(answers, 1):
        yield Example(
            id=f"{id}#{turn}" if len(answers) > 1 else id,
            messages=tuple(messages[:index]),
            target="".join(part["text"] for part in contents[index]),
            images=files[: sum(slots[:index])],
            choices=choices,
            metadata={"group": named[0] if named and isinstance(named[0], str) else id}
            | ({"answers": tuple(given)} if given else {}),
        )


def _ended(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An earlier answer without the end token that the chat template writes behind it."""
    return [{**part, "text": without_end(part["text"])[0]} for part in parts]


def _named_images(row: Mapping[str, Any], parts: list[dict[str, Any]]) -> list[str | ImageSource]:
    """The row's images, as it lists them or as its parts of type "image" name them."""
    own = [part["image"] for part in parts if part.get("image") is not None]
    images, image = (row.get(key) for key in ("images", "image"))
    given = [value for value in (image, images) if value is not None and value not in ("", [])]  # as none is written
    if len(given) > 1:
        raise DataError('the row has "image" and "images"; name all of its images under "images"')
    listed = given[0] if given else []
    if own and (listed or len(own) < len(parts)):
        raise DataError(
            f"{len(own)} of {len(parts)} parts name their image and the row lists {'others' if listed else 'none'}; "
            'name every image in its part, or all of them under "images"'
        )
    match own or listed:
        case [*images] if all(map(_is_image, images)):
            return images
        case str() | Path() | Image.Image() as image:
            return [image]
        case image if callable(image):
            return [image]
        case other:
            raise DataError(f"images are {shown(other)}; expected a path or a list of paths")


def _refuse_misnamed(row: Mapping[str, Any], named: Sequence[str | ImageSource], folder: Path) -> None:
    """A row or turn that names a picture under another key would be read as one without.

    Of a row that has images, other keys may tell where an image is from; only keys such as "image2" and files that
    exist are refused.
    """
    for key, value in row.items():
        if key in _READ:
            continue
        first = value[0] if isinstance(value, list) and value else value
        for name in first.values() if isinstance(first, Mapping) else [first]:
            if not isinstance(name, str) or not _FILE.search(name.casefold()) or name in named:
                continue
            if not named or _NUMBERED.fullmatch(key.casefold()) or os.path.isfile(folder / name):
                raise DataError(
                    f'{key!r} names a picture ({shown(name)}); images go under "image" or "images"; drop the key if '
                    "the row needs no picture"
                )


def _is_image(value: Any) -> bool:
    return isinstance(value, str | Path | Image.Image) or callable(value)


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The row's choices, which must differ by more than white space around them or an end token."""
    texts, seen = _texts(row, "choices"), set[str]()
    for text in texts:
        if not (bare := without_end(text)[0].strip()) or bare in seen:
            how = f"{shown(bare)} is there twice" if bare else "one is empty"
            raise DataError(f"choices are {shown(list(texts))}: {how}; write every choice once, or drop the row")
        seen.add(bare)
    return texts


def _texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    match row.get(key):
        case None:
            return ()
        case [*texts] if all(isinstance(text, str) for text in texts):
            return tuple(texts)
        case other:
            raise DataError(f"{key} are {shown(other)}; expected a list of texts")


UNREAD_TEXTS = {
    "system": 'write it as a first turn of the role "system"',
    "tools": 'write them into a first turn of the role "system", or drop the row',
    "history": "write it as earlier turns",
}
UNREAD_MEDIA = dict.fromkeys(
    ("video", "videos", "audio", "audios"), "eas reads texts and images; drop the row, or the key"
)
"""Keys of rows in other forms that hold a part of the question, and what to do with that."""


def _refuse_unread(row: Mapping[str, Any]) -> None:
    for key, remedy in (UNREAD_TEXTS | UNREAD_MEDIA).items():
        if row.get(key):
            raise DataError(f"{key} ({shown(row[key])}) would be lost; {remedy}")
    forms = [key for key in ("conversations", "messages") if row.get(key)]
    forms += ["prompt and completion"] * (row.get("prompt") is not None and row.get("completion") is not None)
    if len(forms) > 1:
        raise DataError(f"the row has {forms[0]}, and {forms[1]} too, which would be lost; keep one form")


def _turns(row: Mapping[str, Any]) -> tuple[list[Any], int]:
    """The turns, and how many of them are given as context only."""
    match row:
        case {"conversations": [*turns]} | {"messages": [*turns]}:
            return turns, 0
        case {"prompt": str(prompt), "completion": str(completion)}:
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}], 0
        case {"prompt": [*prompt], "completion": [_, *_] as completion}:
            return prompt + completion, len(prompt)
        case {"prompt": prompt, "completion": completion}:
            raise DataError(
                f"prompt is {shown(prompt)} and completion {shown(completion)}; expected texts, or lists of turns"
            )
        case _:
            raise DataError(f"the row has the keys {sorted(row)}; expected {_FORMS}")


SAID_ELSEWHERE = ("tool_calls", "function_call", "reasoning_content")
"""Keys of a turn that hold a part of what is said, and that a prompt of texts and images has no place for."""
WEIGHTS = ("weight", "loss", "train")
"""Keys of a turn by which other trainers leave it out."""
SEEN = ("image", "images", *UNREAD_MEDIA)
"""Keys of a turn or a text that hold a part of what is seen or heard."""


def _turn(turn: Any) -> tuple[str, Any]:
    if isinstance(turn, Mapping) and (lost := [key for key in SAID_ELSEWHERE if turn.get(key)]):
        raise DataError(f"a turn has {lost[0]}, which would be lost; write it into the turn's content, or drop the row")
    untrained = isinstance(turn, Mapping) and "assistant" in (turn.get("role"), _ROLES.get(str(turn.get("from"))))
    if untrained and (off := [key for key in WEIGHTS if turn.get(key) in (0, False)]):
        raise DataError(
            f"a turn has {off[0]} ({shown(turn[off[0]])}), and would be trained on all the same; write the turns that "
            'are context under "prompt", and the others under "completion", or drop the row'
        )
    if isinstance(turn, Mapping) and (lost := [key for key in SEEN if turn.get(key)]):
        raise DataError(
            f'a turn has {lost[0]} ({shown(turn[lost[0]])}), which would be lost; name images under "images" of the '
            "row, or in a part of the turn's content; drop a row of other media"
        )
    match turn:
        case {"from": "human" | "gpt" | "system" as speaker, "value": str(text)}:
            return _ROLES[speaker], text
        case {"role": "user" | "assistant" | "system" as role, "content": str() | [*_] as content}:
            return role, content
        case _:
            raise DataError(
                f'a turn is {shown(turn)}; expected {{"from": "human" or "gpt", "value": text}} '
                'or {"role": "user", "assistant" or "system", "content": text or parts}'
            )


def _parts(role: str, content: str | list[Any]) -> list[dict[str, Any]]:
    parts = _from_text(content) if isinstance(content, str) else [_part(part) for part in content]
    if role == "user" and any(part["type"] == "text" and MARKER in part["text"] for part in parts):
        raise DataError(f'a text part has {MARKER}, which would stay a word; write a part {{"type": "image"}} there')
    if role != "user" and any(part["type"] == "image" for part in parts):
        raise DataError(f"an image in the {role}'s turn; images belong to the user's turns")
    return parts


def _from_text(text: str) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    # The line breaks around a marker only separated it from the text: a chat template brings its own.
    for index, piece in enumerate(re.split(rf"[\r\n]*{MARKER}[\r\n]*", text)):
        if index:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, Mapping) and (lost := _unread(part)):
        raise DataError(
            f"a part of type {part['type']} has {lost} ({shown(part[lost])}), which would be lost; write an image "
            'as {"type": "image", "image": path}, and drop a row of other media'
        )
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "image", "image": str(path)} if path.startswith(("http:", "https:", "data:")):
            raise DataError(f"an image is named by {shown(path)}; download it, and name its file")
        case {"type": "image", "image": str(path)}:
            return {"type": "image", "image": path.removeprefix("file://")}
        case {"type": "image"}:
            return {"type": "image", "image": part.get("image")}
        case _:
            raise DataError(
                f'a part is {shown(part)}; expected {{"type": "image"}}, {{"type": "image", "image": path}} or '
                '{"type": "text", "text": ...}'
            )


def _unread(part: Mapping[str, Any]) -> str | None:
    """The key of a text or image part that holds more than that, or the image under another name."""
    if (kind := part.get("type")) not in ("text", "image"):
        return None
    nameless = kind == "image" and part.get("image") is None
    for key, value in part.items():
        source = nameless and key != "type" and isinstance(value, str | Mapping)
        if value and (source or (key in SEEN and key != kind)):
            return key
    return None
