"""METER's inputs from an image and a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import BatchFeature, CLIPImageProcessorPil, ProcessorMixin


class MeterImageProcessor(CLIPImageProcessorPil):  # type: ignore[misc]
    """Shorter side to the size (bicubic), the square in the middle, CLIP's mean and deviation.

    Source: METER, clip_transform. Where the margins are odd, torchvision, which it uses, rounds half to even.
    """

    size = {"shortest_edge": 288}  # noqa: RUF012  (transformers' own form)
    crop_size = {"height": 288, "width": 288}  # noqa: RUF012

    def center_crop(self, image: NDArray[Any], size: Any, **_: Any) -> NDArray[Any]:
        top, left = round((image.shape[1] - size.height) / 2), round((image.shape[2] - size.width) / 2)
        return image[:, top : top + size.height, left : left + size.width]


class MeterProcessor(ProcessorMixin):  # type: ignore[misc]
    """RoBERTa's tokenizer and METER's image transform.

    Args:
        image_processor: a `MeterImageProcessor`.
        tokenizer: RoBERTa's.
        max_text_length: tokens of a text, those at both ends included; METER: 50, and 40 for retrieval.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, max_text_length: int = 50) -> None:
        super().__init__(image_processor, tokenizer)
        self.max_text_length = max_text_length

    def __call__(
        self, images: Any = None, text: Sequence[str] | str | None = None, return_tensors: str = "pt"
    ) -> BatchFeature:
        """``input_ids`` and ``attention_mask`` ``(batch, tokens)``, ``pixel_values`` ``(images, 3, height, width)``."""
        features: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_text_length)
            features |= {key: np.asarray(encoded[key]) for key in ("input_ids", "attention_mask")}
        if images is not None:
            features |= self.image_processor(images, return_tensors="np")
        return BatchFeature(features, tensor_type=return_tensors)

    @classmethod
    def of_size(cls, tokenizer: Any, image_size: int, max_text_length: int = 50) -> MeterProcessor:
        """The processor of a model that takes images of this height and width."""
        square = {"height": image_size, "width": image_size}
        images = MeterImageProcessor(size={"shortest_edge": image_size}, crop_size=square)
        return cls(images, tokenizer, max_text_length)
