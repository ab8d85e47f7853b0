"""METER with its heads: pretraining (MLM, ITM), visual question answering, NLVR2, image-text retrieval.

Every head is called with the outputs of its processor and ``labels``, and splits in two: ``encode``, which runs the
towers, and ``head``, which goes on from there. What is searched or trained lies behind the towers, so that they need
not run again for every skip set, nor for every pair of an image and a text.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from eas.models.meter.configuration import MeterConfig
from eas.models.meter.modeling import MeterModel, MeterPreTrainedModel, Stream

Encoded = tuple[Stream, list[Stream]]
"""The text's tokens, and each image's."""


@dataclass
class MeterHeadOutput(ModelOutput):  # type: ignore[misc]
    """``loss`` where labels were given; ``logits`` as the head's docstring says."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    itm_logits: Tensor | None = None


class MeterWithHead(MeterPreTrainedModel):
    """The common part of all heads."""

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        config.architectures = [type(self).__name__]  # by which `AutoMeter` finds the head
        self.meter = MeterModel(config)

    def get_input_embeddings(self) -> nn.Module:
        return self.meter.get_input_embeddings()

    def encode(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> Encoded:
        """Runs the towers; ``pixel_values`` ``(batch, 3, height, width)`` or ``(batch, images, 3, height, width)``."""
        images = pixel_values[:, None] if pixel_values.ndim == 4 else pixel_values
        if images.shape[1] != self.config.num_images:
            raise ValueError(f"pixel_values hold {images.shape[1]} images per example, not {self.config.num_images}")
        streams = [self.meter.encode_image(images[:, i], i) for i in range(images.shape[1])]
        return self.meter.encode_text(input_ids, attention_mask), streams

    def head(self, encoded: Encoded, labels: Tensor | None = None) -> MeterHeadOutput:
        """From the towers' tokens to logits and loss."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> MeterHeadOutput:
        return self.head(self.encode(input_ids, pixel_values, attention_mask), labels)


def _classifier(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes))


class MeterForVisualQuestionAnswering(MeterWithHead):
    """Answers as classes: ``logits`` ``(batch, answers)``, ``labels`` their soft scores, of the same shape.

    The loss is the binary cross-entropy summed over the answers and averaged over the batch.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        width = 2 * config.coattention_config.hidden_size
        self.vqa_classifier = _classifier(width, width, config.num_answers)
        self.post_init()

    def head(self, encoded: Encoded, labels: Tensor | None = None) -> MeterHeadOutput:
        text, (image,) = encoded
        logits = self.vqa_classifier(self.meter.fuse(text, image).pooled)
        if labels is None:
            return MeterHeadOutput(logits=logits)
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)) * logits.shape[1]
        return MeterHeadOutput(loss, logits)


class MeterForNLVR2(MeterWithHead):
    """Is the sentence true of both images? ``logits`` ``(batch, 2)``, ``labels`` ``(batch,)``: 1 if it is true.

    ``pixel_values`` are ``(batch, 2, 3, height, width)``. Each image meets the text in its own pass, with its own
    token type; the classifier reads both passes.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        if config.num_images != 2:
            raise ValueError(f"MeterForNLVR2 needs num_images = 2 in its configuration, not {config.num_images}")
        width = 2 * config.coattention_config.hidden_size
        self.nlvr2_classifier = _classifier(2 * width, width, 2)
        self.post_init()

    def head(self, encoded: Encoded, labels: Tensor | None = None) -> MeterHeadOutput:
        text, images = encoded
        logits = self.nlvr2_classifier(torch.cat([self.meter.fuse(text, image).pooled for image in images], -1))
        return MeterHeadOutput(None if labels is None else F.cross_entropy(logits, labels), logits)


class MeterForImageTextRetrieval(MeterWithHead):
    """How well do a text and an image match? ``logits`` ``(batch, texts)``: one score for each text of an image.

    ``input_ids`` and ``attention_mask`` are ``(batch, texts, tokens)``, or ``(batch, tokens)`` for one text each;
    ``labels`` ``(batch,)`` say which of the texts is the image's own (METER: the first of 16). `score_pairs` scores
    every text with every image.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        self.rank_output = nn.Linear(2 * config.coattention_config.hidden_size, 1)
        self.post_init()

    def encode(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> Encoded:
        mask = None if attention_mask is None else attention_mask.reshape(-1, attention_mask.shape[-1])
        return super().encode(input_ids.reshape(-1, input_ids.shape[-1]), pixel_values, mask)

    def head(self, encoded: Encoded, labels: Tensor | None = None) -> MeterHeadOutput:
        text, (image,) = encoded
        batch = len(image.tokens)
        image = Stream(image.tokens.repeat_interleave(len(text.tokens) // batch, 0), None)  # beside each of its texts
        logits = self.rank_output(self.meter.fuse(text, image).pooled).view(batch, -1)
        return MeterHeadOutput(None if labels is None else F.cross_entropy(logits, labels), logits)

    @torch.inference_mode()
    def score_pairs(self, texts: Stream, images: Stream, pairs: int = 64) -> Tensor:
        """Every image with every text, ``(images, texts)``: the towers ran once, the co-attention runs for each pair.

        Args:
            texts: what ``meter.encode_text`` gave.
            images: what ``meter.encode_image`` gave.
            pairs: how many are computed at a time.
        """
        total = len(images.tokens) * len(texts.tokens)
        scores: list[Any] = []
        for at in range(0, total, pairs):
            pair = torch.arange(at, min(at + pairs, total), device=texts.tokens.device)
            row, column = pair // len(texts.tokens), pair % len(texts.tokens)
            text = Stream(texts.tokens[column], None if texts.mask is None else texts.mask[column])
            scored: Any = self.head((text, [Stream(images.tokens[row], None)])).logits
            scores.append(scored[:, 0])
        return torch.cat(scores).view(len(images.tokens), -1)


class MeterForPreTraining(MeterWithHead):
    """Masked language modelling and image-text matching: ``logits`` ``(batch, tokens, vocabulary)``, ``itm_logits``
    ``(batch, 2)``.

    ``labels`` ``(batch, tokens)`` are -100 where no word was masked, ``itm_labels`` ``(batch,)`` 1 where image and text
    belong together; the loss is the sum of those given. METER computes them in passes of their own, as a masked text
    is not one to be matched.
    """

    def __init__(self, config: MeterConfig) -> None:
        super().__init__(config)
        self.mlm_score = MeterMLMHead(config.coattention_config)
        self.itm_score = nn.Sequential()
        self.itm_score.fc = nn.Linear(2 * config.coattention_config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        itm_labels: Tensor | None = None,
    ) -> MeterHeadOutput:
        return self.head(self.encode(input_ids, pixel_values, attention_mask), labels, itm_labels)

    def head(self, encoded: Encoded, labels: Tensor | None = None, itm_labels: Tensor | None = None) -> MeterHeadOutput:
        text, (image,) = encoded
        fused = self.meter.fuse(text, image)
        words, matched = self.mlm_score(fused.text_states), self.itm_score(fused.pooled)
        losses: list[Any] = []
        if labels is not None:
            losses.append(F.cross_entropy(words.flatten(0, 1), labels.flatten(), ignore_index=-100))
        if itm_labels is not None:
            losses.append(F.cross_entropy(matched, itm_labels))
        return MeterHeadOutput(sum(losses) if losses else None, words, matched)


class MeterMLMHead(nn.Module):
    """Scores of every word at every place; its output map is not tied to the embeddings."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, norm = config.hidden_size, nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        parts = {"dense": nn.Linear(size, size), "act_fn": ACT2FN[config.hidden_act], "LayerNorm": norm}
        self.transform = nn.Sequential(OrderedDict(parts))
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor) -> Tensor:
        scores: Tensor = self.decoder(self.transform(states)) + self.bias
        return scores


TASKS: dict[str, type[MeterWithHead]] = {
    "pretraining": MeterForPreTraining,
    "vqa": MeterForVisualQuestionAnswering,
    "nlvr2": MeterForNLVR2,
    "retrieval": MeterForImageTextRetrieval,
}


class AutoMeter:
    """Opens METER with the head that its configuration names, as transformers' Auto classes do for one task each."""

    heads: ClassVar[dict[Any, dict[str, Any]]] = {MeterConfig: {head.__name__: head for head in TASKS.values()}}

    @classmethod
    def register(cls, config_class: Any, head: Any) -> None:
        """Makes a head of another configuration class known."""
        cls.heads.setdefault(config_class, {})[head.__name__] = head

    @classmethod
    def from_pretrained(cls, id_or_folder: str, **kwargs: Any) -> Any:
        config = AutoConfig.from_pretrained(id_or_folder, revision=kwargs.get("revision"), trust_remote_code=False)
        return cls._head(config).from_pretrained(id_or_folder, **kwargs)

    @classmethod
    def from_config(cls, config: MeterConfig, **kwargs: Any) -> Any:
        return cls._head(config)._from_config(config, **kwargs)

    @classmethod
    def _head(cls, config: MeterConfig) -> Any:
        heads = cls.heads[type(config)]
        for name in config.architectures or ():
            if name in heads:
                return heads[name]
        raise ValueError(f"the METER configuration names no head in architectures; expected {', '.join(heads)}")
