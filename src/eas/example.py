"""The example type that every dataset yields and that every collator, metric and report reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from eas.errors import DataError, fault, printable
from eas.picture import ImageSource, Picture, read_picture

__all__ = ["LONGEST", "DataError", "Example", "ImageSource", "Message", "without_end"]

Message = Mapping[str, Any]
"""One chat turn: ``{"role": "user" | "assistant" | "system", "content": parts}``.

A part is ``{"type": "image"}`` or ``{"type": "text", "text": ...}``.
"""

LONGEST = 500_000
"""Characters of an example's texts: more than a hundred thousand tokens, which no supported model reads."""

# The end tokens of the supported models and their kin, which converted data often carries.
_ENDS = (
    *("</s>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"),
    *("<end_of_utterance>", "<eos>", "<|return|>"),
)


def without_end(text: str) -> tuple[str, str]:
    """A text without the end tokens behind it, and the first of those that was taken off, or an empty text.

    A ``</s>`` that closes an ``<s>``, as in HTML, stays.
    """
    taken = ""
    while end := next((end for end in _ENDS if text.rstrip().endswith(end)), ""):
        if end == "</s>" and text.count("<s>") >= text.count(end):
            break
        text, taken = text.rstrip().removesuffix(end).rstrip(), end
    return text, taken


@dataclass(frozen=True)
class Example:
    """One question and its answer.

    Args:
        id: stable, unique within its split.
        messages: the chat up to and including the question; the last turn is the user's.
        target: the answer to the last turn, as trained on and compared against. An end token behind it is taken off and
            kept in ``metadata["end_token"]``: it is trained on anyway, and no model's answer holds it. Choices lose it
            too.
        images: one entry per ``{"type": "image"}`` part, in order.
        choices: the allowed answers, where the task has a closed set.
        metadata: whatever the metric or the report needs besides (category, sentence, ...).

    Raises:
        DataError: images and their places differ in number, the target is not among the choices, or a text is too long
            or cannot be encoded.
    """

    id: str
    messages: tuple[Message, ...]
    target: str
    images: tuple[ImageSource, ...] = ()
    choices: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_texts()
        target, end = without_end(self.target)
        if end:
            object.__setattr__(self, "target", target)
            object.__setattr__(self, "metadata", {**self.metadata, "end_token": end})
        object.__setattr__(self, "choices", tuple(without_end(choice)[0] for choice in self.choices))
        slots = sum(part["type"] == "image" for message in self.messages for part in message["content"])
        if slots != len(self.images):
            raise DataError(f"example {self.id}: {slots} image slots in the messages but {len(self.images)} images")
        if self.choices and self.target not in self.choices:
            raise DataError(f"example {self.id}: answer {self.target!r} is not among the choices {self.choices}")

    @classmethod
    def ask(cls, id: str, question: str, target: str, *images: ImageSource, **extra: Any) -> Example:
        """A single-turn example: the images first, then the question."""
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}]
        return cls(id, ({"role": "user", "content": content},), target, tuple(images), **extra)

    @property
    def question(self) -> str:
        """The text of the last turn."""
        return " ".join(part["text"] for part in self.messages[-1]["content"] if part["type"] == "text")

    def _check_texts(self) -> None:
        parts = [part for message in self.messages for part in message["content"] if part["type"] == "text"]
        texts = [("id", self.id), *(("text", part["text"]) for part in parts), ("answer", self.target)]
        for name, text in [*texts, *(("choice", choice) for choice in self.choices)]:
            if not isinstance(text, str):
                raise DataError(f"example {self.id}: its {name} is a {type(text).__name__}; expected a text")
            if found := fault(text):
                raise DataError(f"example {printable(self.id)}: its {name} holds {found}; take it out, or drop the row")
        if (length := sum(len(text) for _, text in texts[1:])) > LONGEST:
            raise DataError(
                f"example {self.id[:60]}: its texts have {length:,} characters, more than the {LONGEST:,} that any "
                "model reads; shorten them, or drop the row"
            )

    def pictures(self) -> list[Picture]:
        """The images as a model gets them, and the changes of each.

        Raises:
            DataError: a file is missing or is not a readable image.
        """
        return [read_picture(image, f"example {self.id}") for image in self.images]

    def load_images(self) -> list[Image.Image]:
        """The images as upright, opaque RGB; see `read_picture`.

        Raises:
            DataError: a file is missing or is not a readable image.
        """
        return [picture.rgb for picture in self.pictures()]
