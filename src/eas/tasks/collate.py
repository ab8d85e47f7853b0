"""From examples to a model's inputs, for any Hugging Face processor, or a tokenizer if the model reads only text."""

from __future__ import annotations

import copy
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from eas.example import DataError, Example, Message

IGNORED = -100
CUTS = ("question_start", "question_end", "answer")
# One entry per token. Answers extend them by the tokenizer's ids, ones, and zeros (an answer is plain text); where
# Mllama's text reads images, by the last token's entry.
_PER_TOKEN = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "prompt_mask",
    "cross_attention_mask",
}
BEFORE = {"system": "", "user": "USER: ", "assistant": "ASSISTANT: "}
AFTER = {"system": " ", "user": " "}
"""What stands around the turns where there is no chat template; after an answer stands the end token."""
ANSWER_TYPE = {"PaliGemmaProcessor": 1}
"""The token type of answers, where it is not 0: PaliGemma's prompts read both ways, its answers backwards only."""


@contextmanager
def naming(example: Example, what: str) -> Iterator[None]:
    """Whatever a processor, tokenizer or template raises becomes a `DataError` that names the example."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"example {example.id}: {what} refuses it ({type(error).__name__}: {error}); change the row, or drop it"
        ) from error


@dataclass
class Collator:
    """Makes a batch of examples: prompts and answers on the right of them for training, prompts alone for generation.

    The prompt's tokens are the same in both, because training appends the answer's tokens to the prompt's.

    Args:
        processor: the model's processor, or its tokenizer if the model reads text only.
        training: append the answers.
        max_length: the most tokens a row may have, its answer included.
        cut: what a row that is longer loses: None, it is refused; "question_start" or "question_end", that end of the
            last text of its question; "answer", the end of its answer. Image tokens, earlier turns and what the chat
            template adds are never cut.

    Raises:
        ValueError: the tokenizer has no padding or end token, or an unknown cut.
    """

    processor: ProcessorMixin | PreTrainedTokenizerBase
    training: bool
    max_length: int | None = None
    cut: str | None = None
    tokenizer: PreTrainedTokenizerBase = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.cut not in (None, *CUTS):
            raise ValueError(f"cut = {self.cut!r}: use one of {', '.join(CUTS)}")
        text_only = isinstance(self.processor, PreTrainedTokenizerBase)
        self.tokenizer = self.processor if text_only else self.processor.tokenizer
        if self.tokenizer.eos_token is None or self.tokenizer.pad_token is None:
            raise ValueError(
                "the tokenizer needs an eos_token and a pad_token; set tokenizer.pad_token (eos_token works)"
            )

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """One batch of B examples, the longest of T tokens.

        Returns:
            the processor's tensors (input_ids and attention_mask, B x T; pixel values and the like), and

            - prompt_mask, B x T, True on the tokens of image and question (not on padding or answer);
            - labels, B x T, when training: the answer and the end token, -100 elsewhere.

            Padding is on the left: answers end together, so the head reads few positions (`eas.hf.labelled`).

        Raises:
            DataError: naming the example: too long, an unreadable image, other than one image token per image, or what
                the processor, the tokenizer or the chat template refuses, for whatever reason.
        """
        images = [example.load_images() for example in examples]
        answers = [self._answer(example) if self.training else [] for example in examples]
        examples, excess = list(examples), [1]
        while any(excess):
            batch = self._batch(examples, images)
            starts = batch["attention_mask"].sum(1).tolist()
            lengths = [start + len(answer) for start, answer in zip(starts, answers, strict=True)]
            excess = [max(0, length - self.max_length) if self.max_length is not None else 0 for length in lengths]
            for row in [row for row, over in enumerate(excess) if over]:  # a shorter text: at most a few rounds
                examples[row], answers[row] = self._shortened(examples[row], answers[row], lengths[row], excess[row])
        batch["prompt_mask"] = batch["attention_mask"].bool()
        return self._append(batch, starts, answers) if self.training else batch

    def _shortened(self, example: Example, answer: list[int], length: int, excess: int) -> tuple[Example, list[int]]:
        if self.cut == "answer" and excess < len(answer):
            return example, answer[:-excess]
        *parts, last = example.messages[-1]["content"]
        cut_text = self.cut in ("question_start", "question_end") and last["type"] == "text"
        if cut_text and (text := self._shorter(last["text"], excess)):
            turn = {**example.messages[-1], "content": [*parts, {"type": "text", "text": text}]}
            return replace(example, messages=(*example.messages[:-1], turn)), answer
        raise DataError(
            f"example {example.id} has {length} tokens, more than max_length {self.max_length}; raise max_length, or "
            + ("drop the row: what may be cut is too short" if self.cut else f"say what to cut: {', '.join(CUTS)}")
        )

    def _shorter(self, text: str, excess: int) -> str:
        """As much of the text as has so many tokens fewer; cut in the text, since tokens need not decode to it."""

        def kept(cut: int) -> str:
            return text[cut:] if self.cut == "question_start" else text[: max(0, len(text) - cut)]

        def tokens(cut: int) -> int:
            return len(self.tokenizer(kept(cut), add_special_tokens=False)["input_ids"])

        return kept(bisect_left(range(len(text) + 1), excess - tokens(0), key=lambda cut: -tokens(cut)))

    def prompt(self, example: Example) -> str:
        """The text the model is given, one image token per image.

        Raises:
            DataError: the image tokens and the images differ in number, or the model reads no images.
        """
        if self.processor is self.tokenizer and example.images:
            raise DataError(f"example {example.id} has images, but a tokenizer alone reads none; give the processor")
        if self.processor.chat_template is None:
            text = self._vicuna(example.messages)
        else:
            messages = [dict(message) for message in example.messages]
            if self.processor is self.tokenizer:
                # Templates of text models want a string where those of multimodal models want parts.
                messages = [{**message, "content": self._flat(message)} for message in messages]
            with naming(example, "the chat template"):
                text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            if any(str(message["content"]) in text for message in example.messages if message["content"]):
                raise DataError(
                    f"example {example.id}: the chat template prints the list of a turn's parts, because it expects "
                    "texts; give the processor a template that reads the parts"
                )
        if self.processor is not self.tokenizer:
            token, count = self.processor.image_token, len(example.images)
            if text.count(token) != count:
                raise DataError(
                    f"example {example.id}: the prompt has {text.count(token)} {token} for {count} images; "
                    f"take {token} out of the text, or use a chat template that places the images"
                )
        return text

    def _vicuna(self, messages: Sequence[Message]) -> str:
        """The form LLaVA-1.5 was trained on, for a model without a chat template."""
        after = {**AFTER, "assistant": self.tokenizer.eos_token}
        turns = [BEFORE[message["role"]] + self._flat(message) + after[message["role"]] for message in messages]
        return "".join(turns) + "ASSISTANT:"

    def _flat(self, message: Message) -> str:
        parts = message["content"]
        return "".join(part["text"] if part["type"] == "text" else f"{self.processor.image_token}\n" for part in parts)

    def _answer(self, example: Example) -> list[int]:
        with naming(example, "the tokenizer"):
            tokens = list(self.tokenizer(example.target, add_special_tokens=False)["input_ids"])
        end = self.tokenizer.eos_token_id
        while tokens and tokens[-1] == end:  # it comes once, below
            tokens.pop()
        if end in tokens:
            raise DataError(
                f"example {example.id}: the answer holds {self.tokenizer.eos_token} before its end, where every answer "
                "of the model ends; take it out, or drop the row"
            )
        if self.processor is not self.tokenizer and self.processor.image_token_id in tokens:
            raise DataError(
                f"example {example.id}: the answer holds the image token {self.processor.image_token}, which stands "
                "for an image in a question; take it out, or drop the row"
            )
        return [*tokens, end]

    def _batch(self, examples: Sequence[Example], images: list[list[Image.Image]]) -> dict[str, Tensor]:
        """The prompts' tensors; if the processor refuses them, tries each example alone to name the bad one."""
        prompts = [self.prompt(example) for example in examples]
        try:
            return self._encode(prompts, images)
        except Exception:  # processors raise whatever their libraries do
            for example, prompt, shown in zip(examples, prompts, images, strict=True):
                with naming(example, "the processor"):
                    self._encode([prompt], [shown])
            raise

    def _encode(self, prompts: list[str], images: list[list[Image.Image]]) -> dict[str, Tensor]:
        bos, text_only = self.tokenizer.bos_token, self.tokenizer.split_special_tokens
        options = {
            "padding": True,
            "padding_side": "left",
            "return_tensors": "pt",
            # Many chat templates write the first token themselves; it must not come twice. To LaVIN it is text.
            "add_special_tokens": bos is None or text_only or not prompts[0].startswith(bos),
        }
        if self.processor is self.tokenizer:
            return dict(self.tokenizer(prompts, **options))
        encoded = dict(self.processor(text=prompts, images=images if any(images) else None, **options))
        encoded.pop("labels", None)  # PaliGemma's, of the prompt
        return encoded

    def _append(self, batch: dict[str, Tensor], starts: list[int], answers: list[list[int]]) -> dict[str, Tensor]:
        rows = [
            self._row(batch, row, start, answer)
            for row, (start, answer) in enumerate(zip(starts, answers, strict=True))
        ]
        width = max(len(row["input_ids"]) for row in rows)
        for name in rows[0]:
            fill = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORED}.get(name, 0)
            beyond = (0, 0) * (rows[0][name].ndim - 1)
            batch[name] = torch.stack(
                [pad(row[name], (*beyond, width - len(row[name]), 0), value=fill) for row in rows]
            )
        return batch

    def _row(self, batch: dict[str, Tensor], row: int, start: int, answer: list[int]) -> dict[str, Tensor]:
        """The entries of one row that have a value per token: its prompt of ``start`` tokens and its answer."""
        prompts = {name: batch[name][row, -start:] for name in _PER_TOKEN & batch.keys()}
        count, kind = len(answer), ANSWER_TYPE.get(type(self.processor).__name__, 0)
        added = {"input_ids": torch.tensor(answer), "attention_mask": torch.ones(count, dtype=torch.long)}
        added["token_type_ids"] = torch.full((count,), kind)
        if "cross_attention_mask" in prompts:
            added["cross_attention_mask"] = prompts["cross_attention_mask"][-1:].expand(count, -1, -1)
        found = {
            name: torch.cat([prompt, added.get(name, prompt.new_zeros(count)).to(prompt.dtype)])
            for name, prompt in prompts.items()
        }
        found["labels"] = torch.cat([torch.full((start,), IGNORED), added["input_ids"]])
        return found


def templated(processor: Any) -> Any:
    """The processor or tokenizer; where it has no chat template, a copy with that of the prompts made here.

    Engines add no first token to a chat, so that it is part of the template.
    """
    tokenizer = vars(processor).get("tokenizer", processor)
    if processor.chat_template is not None or tokenizer.eos_token is None:
        return processor
    first = tokenizer.bos_token if tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id] else ""
    image = "" if processor is tokenizer else f"{processor.image_token}\n"
    after = {**AFTER, "assistant": tokenizer.eos_token}
    copied = copy.copy(processor)
    copied.chat_template = (
        f"{{% set before = {json.dumps(BEFORE)} %}}{{% set after = {json.dumps(after)} %}}{{{{ {json.dumps(first)} }}}}"
        "{% for message in messages %}{{ before[message.role] }}"
        "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
        f"{{{{ part.text if part.type == 'text' else {json.dumps(image)} }}}}"
        "{% endfor %}{% endif %}{{ after[message.role] }}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    return copied
