"""LaVIN's inputs: an image at 224 pixels, and the words before the question."""

from __future__ import annotations

from typing import Any

from transformers import BatchFeature, ProcessorMixin

IMAGE, NO_IMAGE = " Image: ", " Image: N/A"
CHAT_TEMPLATE = """
{%- for message in messages -%}
{%- if not loop.first -%}{{ '\n' }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}
{%- endif -%}
{%- endfor -%}
"""
"""The turns as they are, one a line: the prompt forms of LaVIN's data say "Response:" themselves."""


class LavinProcessor(ProcessorMixin):  # type: ignore[misc]
    """``<s> Image: v1 ... vn prompt`` with an image, ``<s> Image: N/A prompt`` without.

    Prefix and prompt are tokenised apart, each with a space in front as SentencePiece puts it. The tokenizer itself
    puts none there: an answer, tokenised alone, becomes what it is right behind "Response:" in the original. A literal
    ``</s>``, ``<s>`` or ``<unk>`` is text, as to SentencePiece.

    Args:
        image_processor: CLIP's, set to LaVIN's size and ImageNet's mean and deviation.
        tokenizer: LLaMA's with ``add_prefix_space=False``.
        num_image_tokens: n, visual tokens of an image.
        image_token_id: as in the model's configuration.
        chat_template: from messages to a prompt.

    Raises:
        ValueError: when called: a prompt with several images, or images that do not match the prompts.
    """

    image_token = "<image>"
    """Marks in a prompt that it has an image; where it stands in the text does not matter."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        num_image_tokens: int = 6,
        image_token_id: int = 3,
        chat_template: str | None = CHAT_TEMPLATE,
    ) -> None:
        self.num_image_tokens, self.image_token_id = num_image_tokens, image_token_id
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.tokenizer.split_special_tokens = True

    def __call__(
        self, images: Any = None, text: Any = None, add_special_tokens: bool = True, **kwargs: Any
    ) -> BatchFeature:
        """``input_ids``, ``attention_mask`` and, with images, ``pixel_values``; the tokenizer pads (``kwargs``).

        Args:
            images: one for every prompt that has `image_token`: an image, a list, or a list with a list per prompt.
            text: one prompt, or several.
        """
        prompts = [text] if isinstance(text, str) else list(text)
        shown = [prompt.count(self.image_token) for prompt in prompts]
        if max(shown) > 1:
            raise ValueError(f"prompt {shown.index(max(shown))} has {max(shown)} images; LaVIN reads one, or none")
        flat = images if isinstance(images, list | tuple) else [] if images is None else [images]
        flat = [one for image in flat for one in (image if isinstance(image, list | tuple) else [image])]
        if len(flat) != sum(shown):
            raise ValueError(
                f"{len(flat)} images for {sum(shown)} prompts with {self.image_token}; give one image for each"
            )
        rows = [
            self._row(prompt, bool(count), add_special_tokens) for prompt, count in zip(prompts, shown, strict=True)
        ]
        padded = self.tokenizer.pad({"input_ids": rows}, **{"padding": False} | kwargs)
        pixels = self.image_processor(flat, return_tensors="pt") if flat else {}
        return BatchFeature({**padded, **pixels})

    def _row(self, prompt: str, image: bool, begin: bool) -> list[int]:
        prefix = [self.tokenizer.bos_token_id] if begin else []
        prefix += self._tokens(IMAGE if image else NO_IMAGE)
        visual = [self.image_token_id] * self.num_image_tokens if image else []
        return [*prefix, *visual, *self._tokens(" " + prompt.replace(self.image_token, ""))]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
