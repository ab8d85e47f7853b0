"""Answers one request after another: with its own seed, and up to its stop strings.

The server of transformers leaves a stop string in the answer, looks for it in the prompt's last tokens too, and gives
a processor where the search needs a tokenizer. It seeds when a request comes, and not when the request's turn comes.
Here the answer's own text is searched, and ends before the stop string, as OpenAI's does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cli.serving.utils import (
    DirectStreamer,
    GenerateManager,
    GenerationState,
    _GenerationCancelled,
    _StreamError,
    get_response_template,
    response_events_to_chunks,
)


def asked(config: GenerationConfig, stops: Sequence[str], seed: int | None) -> GenerationConfig:
    """A request's configuration that says what ``GenerationConfig`` has no fields for."""
    config.stops, config.seed = tuple(stops), seed
    return config


def tokenizer_of(processor: Any) -> Any:
    """A processor's tokenizer, or the tokenizer itself."""
    return processor if isinstance(processor, PreTrainedTokenizerBase) else processor.tokenizer


def before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop string."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


class Pieces:
    """An answer's text, piece by piece, up to the first stop string. What may be the beginning of one waits.

    Example:
        >>> pieces = Pieces(["end"])
        >>> [pieces.add(piece) for piece in ("we", "ep; e", "at; en", "d")], pieces.found
        (['w', 'eep; ', 'eat; ', ''], True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.waiting, self.found = stops, "", False

    def add(self, piece: str) -> str:
        """What can be shown after one more piece."""
        if self.found:
            return ""
        text = self.waiting + piece
        shown = before(text, self.stops)
        if shown != text:
            self.found, self.waiting = True, ""
            return shown
        begun = [n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        cut = len(text) - max(begun, default=0)
        self.waiting = text[cut:]
        return text[:cut]


class _Decoding:
    """Decodes tokens to the pieces that can be shown."""

    def __init__(self, decoding: DecodeStream, pieces: Pieces) -> None:
        self.decoding, self.pieces = decoding, pieces

    def step(self, tokenizer: Any, token: int) -> str | None:
        piece = self.decoding.step(tokenizer, token)
        return None if piece is None else self.pieces.add(piece) or None


class _AtStop(StoppingCriteria):  # type: ignore[misc]
    """Ends an answer at its first stop string. A streamer may hear of a token later, so this decodes on its own."""

    def __init__(self, tokenizer: Any, config: GenerationConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.decoding = _Decoding(DecodeStream([], skip_special_tokens=True), Pieces(config.stops))

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        self.decoding.step(self.tokenizer, int(input_ids[0, -1]))
        found = self.decoding.pieces.found
        if found:
            self.config.max_new_tokens = None  # the server then says that a stop ended the answer, not its length
        return torch.full(input_ids.shape[:1], found, device=input_ids.device)


class _Streamer(DirectStreamer):  # type: ignore[misc]
    """Streams an answer up to its first stop string."""

    def __init__(self, *args: Any, stops: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.pieces = Pieces(stops)
        plain: DecodeStream = self._decode_stream
        self._decode_stream: Any = _Decoding(plain, self.pieces)

    def end(self) -> None:
        if rest := self.pieces.waiting:
            for item in [rest] if self._parser is None else response_events_to_chunks(self._parser.feed(rest)):
                self._enqueue(item)
        super().end()


class _Tokens(list[int]):
    """An answer's tokens, which know where their text ends."""

    stops: Sequence[str]


def anchored(template: Mapping[str, Any], prompt: str) -> bool:
    """Whether a prompt holds the mark behind which an answer begins; without the mark a parser takes the prompt for
    part of the answer. transformers has templates for Qwen's and Gemma's models, whatever their prompts look like."""
    if (pattern := template.get("start_anchor_pattern")) is not None:
        return re.search(pattern, prompt) is not None
    marks = template["start_anchor"]
    return any(mark in prompt for mark in ([marks] if isinstance(marks, str) else marks))


class Parses:
    """A tokenizer that parses an answer up to the first stop string."""

    def parse_response(self, response: Any, template: Any, *, prefix: str, **options: Any) -> Any:
        if isinstance(response, _Tokens):
            plain = not anchored(template, prefix)
            text = self.decode(response, skip_special_tokens=plain)  # type: ignore[attr-defined]
            response = before(text, response.stops)
            if plain:
                return {"content": response}
        return super().parse_response(response, template, prefix=prefix, **options)  # type: ignore[misc]


class Generating(GenerateManager):  # type: ignore[misc]
    """Generates in one thread. Configurations come from ``asked``."""

    def generate_streaming(
        self,
        model: PreTrainedModel,
        processor: Any,
        inputs: Mapping[str, Tensor],
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue[Any], DirectStreamer]:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        tokenizer = tokenizer_of(processor)
        if response_parser is not None:
            prompt = tokenizer.decode(inputs["input_ids"][0])
            response_parser = response_parser if anchored(get_response_template(processor, model), prompt) else None
        streamer = _Streamer(tokenizer._tokenizer, loop, queue, response_parser=response_parser, stops=gen_config.stops)

        def run() -> None:
            try:
                _generate(model, processor, inputs, gen_config, streamer)
            except _GenerationCancelled:
                loop.call_soon_threadsafe(queue.put_nowait, None)
            except Exception as error:
                loop.call_soon_threadsafe(queue.put_nowait, _StreamError(str(error)))

        self.submit(run)
        return queue, streamer

    async def generate_non_streaming(
        self,
        model: PreTrainedModel,
        processor: Any,
        inputs: Mapping[str, Tensor],
        gen_config: GenerationConfig,
        request_id: str,
    ) -> tuple[str, int, list[int]]:
        sequences = await self.async_submit(_generate, model, processor, inputs, gen_config)
        before_it = inputs["input_ids"].shape[-1]
        tokens = _Tokens(sequences[0, before_it:].tolist())
        tokens.stops = gen_config.stops
        text = tokenizer_of(processor).decode(tokens, skip_special_tokens=True)
        return before(text, tokens.stops), before_it, tokens


class OneAfterAnother(GenerationState):  # type: ignore[misc]
    """Has one thread for all requests."""

    def __init__(self) -> None:
        super().__init__()
        self.generating = Generating()

    def get_manager(self, model_id: str, use_cb: bool = False) -> Generating:
        return self.generating


def _generate(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Tensor],
    config: GenerationConfig,
    streamer: DirectStreamer | None = None,
) -> Any:
    tokenizer, seed = tokenizer_of(processor), config.seed
    stop = [_AtStop(tokenizer._tokenizer, config)] if config.stops else []
    with torch.random.fork_rng(enabled=seed is not None):  # the next request draws as if this one had not been
        if seed is not None:
            torch.manual_seed(seed)
        return model.generate(
            **inputs,
            generation_config=config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList(stop),
            tokenizer=tokenizer,  # for stop strings of the base itself
        )
