"""Models that know their prompt: mix-ins find its tokens and refuse requests that prompt statistics cannot serve."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from eas.hf.api import Cache, cache_of
from eas.hf.cache import prompt_layer, reads_prompt_from
from eas.hf.skipping import PER_SEQUENCE, Request, SkippingModel, SkippingTextModel

# tokens of the prompt that the current ``generate`` call, of this thread or task, was given
_prompt_length: ContextVar[int | None] = ContextVar("_prompt_length", default=None)
IN_REQUEST = ("prompt_mask", "token_mask", "routes")
"""Keywords of the language model that its blocks find in the request."""


class PromptedTextModel(SkippingTextModel):
    """The language model; its caller must name the prompt's tokens."""

    layers: Any

    def with_request(self, cache: Cache | None, fresh: bool, kw: Mapping[str, Any]) -> dict[str, Any]:
        if "prompt_mask" not in kw and self.needs_prompt() and not reads_prompt_from(cache):
            raise ValueError(
                "the language model alone cannot tell prompt tokens from others: call the model with its head, or pass "
                "prompt_mask (batch, tokens), True on the tokens of the prompt"
            )
        given = {name: kw.get(name) for name in IN_REQUEST}
        if "token_mask" not in kw and self.running() and not reads_prompt_from(cache):
            given["token_mask"] = _token_mask(kw, answered=True)
        if given["prompt_mask"] is not None:
            given["prompt_mask"] = given["prompt_mask"].bool()
            require_prompt(given["prompt_mask"], labelled=False)
        # in training the blocks run twice under gradient checkpointing, and must find the same both times
        states = None if self.training and torch.is_grad_enabled() else prompt_layer(cache)
        others = {name: value for name, value in kw.items() if name not in IN_REQUEST}
        return {**others, "request": Request(states, fresh, **given)}

    def state_keys(self) -> list[int]:
        return [key for layer in self.blocks() for key, pia in layer.pias().items() if pia.reads_prompt]

    def needs_prompt(self) -> bool:
        """Whether a block in use depends on which tokens are the prompt's."""
        return any(pia.reads_prompt for layer in self.blocks() for pia in layer.stand_ins())

    def running(self) -> bool:
        """Whether prompt states still change after the prompt was read."""
        return any(pia.running for layer in self.blocks() for pia in layer.stand_ins())


class PromptedModel(SkippingModel):
    """The model with its head: finds the prompt tokens, and refuses what prompt statistics cannot serve."""

    eas: Any  # eas.attachment.state.Attachment

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        base_forward = super().forward
        if args:
            kwargs = {**kwargs, **inspect.signature(base_forward).bind_partial(*args).arguments}
        if self.training and self.eas.fold_mode is not None:
            raise ValueError("a folded model cannot be trained; call unfold(model) first")
        if not reads_prompt_from(cache_of(kwargs)) and self.needs_prompt():
            answered = kwargs.get("labels") is not None
            tokens = _token_mask(kwargs, answered) if self._text_model().running() else None
            masks = {"token_mask": tokens, "prompt_mask": self._prompt_mask(kwargs)}
        else:
            masks = {"prompt_mask": None}
        return base_forward(**{**kwargs, **masks})

    def needs_prompt(self) -> bool:
        """Whether anything in use depends on which tokens are the prompt's."""
        return self._text_model().needs_prompt()

    def _text_model(self) -> PromptedTextModel:
        text_model: PromptedTextModel = self.eas.anatomy.text_model
        return text_model

    def _prompt_mask(self, kwargs: dict[str, Any]) -> Tensor | None:
        known = kwargs.get("labels") is not None or kwargs.get("prompt_mask") is not None
        if self.training and torch.is_grad_enabled() and not known:
            raise ValueError(
                "a training step got neither labels nor prompt_mask, so the answer would count as prompt and leak into "
                "its statistics. Label smoothing and losses that are computed outside of the model keep the labels "
                "from it: wrap the collator in eas.WithPromptMask, or pass prompt_mask (batch, tokens)"
            )
        return _prompt_mask(kwargs)

    def prepare_inputs_for_generation(
        self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            *args, attention_mask=attention_mask, **kwargs
        )
        if not reads_prompt_from(cache_of(kwargs)) and self.needs_prompt():
            # the 2-D mask is needed, a static cache has made it 4-D; past the prompt come candidates of assisted
            # decoding or, without a cache, the tokens generated so far
            tokens = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
            prompt = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
            if (length := _prompt_length.get()) is not None:
                prompt[:, length:] = False
            inputs["prompt_mask"] = prompt if attention_mask is None else prompt & attention_mask.bool()
        return inputs

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        if not self.needs_prompt():
            return super().init_continuous_batching(*args, **kwargs)  # type: ignore[misc]
        raise ValueError(PER_SEQUENCE)

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        settings = generation_config if generation_config is not None else self.generation_config
        if self.asked("prefill_chunk_size", generation_config, kwargs) and self.needs_prompt():
            raise ValueError(
                "chunked prefill cannot be used with prompt statistics: the prompt's mean must be known before its "
                "first chunk is finished; unset prefill_chunk_size"
            )
        if reads_prompt_from(cache_of(kwargs)) and not settings.is_assistant:
            raise ValueError(
                "the cache was started with an earlier prompt, and statistics are those of one whole prompt; pass the "
                "whole text with a new cache"
            )
        lookup = self.asked("prompt_lookup_num_tokens", generation_config, kwargs)
        if (kwargs.get("assistant_model") is not None or lookup) and self._text_model().running():
            raise ValueError(
                "assisted decoding takes tokens back, but decode_pooling='running' has added them to its mean; "
                "use decode_pooling='frozen', or generate without an assistant"
            )
        given = (kwargs.get("inputs_embeds"), inputs, kwargs.get("input_ids"))
        outer = _prompt_length.set(next((prompt.shape[1] for prompt in given if prompt is not None), 1))
        try:
            return super().generate(inputs, generation_config, *args, **kwargs)
        finally:
            _prompt_length.reset(outer)


NO_PADDING = "give prompt_mask (batch, tokens) along with an attention mask that is not two-dimensional"


def _two_dimensional(attention_mask: Any) -> bool:
    return isinstance(attention_mask, Tensor) and attention_mask.ndim == 2


def prompt_tokens(labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """``(batch, tokens)``: True on the tokens before the first answer token, without padding.

    Args:
        labels: ``(batch, tokens)``, -100 on all tokens but the answer's.
        attention_mask: ``(batch, tokens)``, 0 on padding; None where there is none.

    Raises:
        ValueError: padding cannot be told from the mask.

    Example:
        >>> prompt_tokens(torch.tensor([[-100, -100, 7, -100]])).tolist()
        [[True, True, False, False]]
    """
    prompt = (labels != -100).cumsum(1) == 0
    if attention_mask is not None and not _two_dimensional(attention_mask):
        raise ValueError(NO_PADDING)
    return prompt if attention_mask is None else prompt & attention_mask.bool()


def require_prompt(prompt_mask: Tensor, labelled: bool) -> None:
    """Refuses a row without a prompt token: it has no statistics.

    Raises:
        ValueError: the message names the row, and what to do.
    """
    has_prompt = prompt_mask.any(1)
    if bool(has_prompt.all()):
        return
    where = f"row {int((~has_prompt).nonzero()[0])} has no prompt token"
    if labelled:
        raise ValueError(
            f"{where}: its labels start with the answer. Mask the prompt (image and question tokens) with -100 in the "
            "labels, or pass prompt_mask. TRL masks the prompt of rows with prompt and completion, and with "
            "assistant_only_loss=True that of messages, but nothing of other rows"
        )
    raise ValueError(f"{where}: its prompt_mask is False on every token that is no padding")


def _prompt_mask(kwargs: dict[str, Any]) -> Tensor | None:
    """``(batch, tokens)``: True on the tokens before the first answer token, without padding; None means every token.

    Raises:
        ValueError: packed rows, a row without a prompt token, or a mask from which padding cannot be told.
    """
    mask: Tensor | None = kwargs.get("prompt_mask")
    labels: Tensor | None = kwargs.get("labels")
    attention_mask: Any = kwargs.get("attention_mask")  # in generation with a static cache it is 4-D
    two_dimensional = _two_dimensional(attention_mask)
    _refuse_packing(kwargs, attention_mask if two_dimensional or attention_mask is None else mask)
    if mask is None and attention_mask is not None and not two_dimensional:
        raise ValueError(NO_PADDING)
    labelled = mask is None and labels is not None
    if mask is None and labels is not None:
        mask = prompt_tokens(labels)
    if mask is not None:
        tokens = next((kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None), mask)
        if mask.shape != tokens.shape[:2]:
            raise ValueError(
                f"prompt_mask has shape {tuple(mask.shape)}, but the batch has {tuple(tokens.shape[:2])} tokens; "
                "give one value for each token"
            )
        mask = mask.bool()
    if two_dimensional:
        mask = attention_mask.bool() if mask is None else mask & attention_mask.bool()
    if mask is None:  # nothing to leave out: a plain mean
        return None
    require_prompt(mask, labelled)
    return None if labels is None and mask.all() else mask


def _token_mask(kwargs: Mapping[str, Any], answered: bool) -> Tensor | None:
    """``(batch, tokens)``: True on all tokens but padding, answers included; None means every token.

    Args:
        kwargs: of the model.
        answered: whether there may be answers after the prompt.

    Raises:
        ValueError: padding cannot be told from the mask.
    """
    attention_mask: Any = kwargs.get("attention_mask")
    if attention_mask is None:
        return None
    if _two_dimensional(attention_mask):
        return attention_mask.bool()  # type: ignore[no-any-return]
    if answered:
        raise ValueError(
            "decode_pooling='running' needs a two-dimensional attention mask, to tell answers from padding"
        )
    return kwargs.get("prompt_mask")  # in generation with a static cache: nothing but the prompt is there yet


def _refuse_packing(kwargs: dict[str, Any], attended: Tensor | None) -> None:
    packed = any(kwargs.get(name) is not None for name in ("cu_seq_lens_q", "seq_idx"))
    positions = kwargs.get("position_ids")
    if positions is not None:
        rows = positions if positions.ndim == 2 else positions[0]  # with multimodal RoPE the first are the text's
        restarts = rows[:, 1:] < rows[:, :-1]
        if attended is not None:
            restarts = restarts & attended[:, 1:].bool() & attended[:, :-1].bool()
        kinds = kwargs.get("mm_token_type_ids")
        if kinds is not None and positions.ndim == 3 and len(positions) < 4:  # the first may be of columns (HunYuan-VL)
            of_image = kinds[:, 1 : rows.shape[1]] != 0
            restarts = restarts & ~pad(of_image, (0, restarts.shape[1] - of_image.shape[1]))  # candidates have no kind
        packed = packed or bool(restarts.any())
    if packed:
        raise ValueError(
            "several sequences are packed into one row: prompt statistics are per sequence. "
            "Turn packing and padding-free collation off"
        )
