"""Skipping in a model: flags on its blocks, and a cache that stores nothing for a skipped attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eas.hf.api import Cache, DynamicCache, cache_of, cached, output_cache, without_cache
from eas.hf.cache import PromptLayer, prepare_cache, require_filled
from eas.hf.versions import TransformersChangedError

PER_SEQUENCE = (
    "continuous batching packs sequences into one row, but prompt statistics are per sequence; "
    "use generate with padded batches"
)


class Request(NamedTuple):
    """The keyword ``request``, which the language model passes to its blocks.

    A mask is ``(batch, tokens)`` bool over the tokens of this call; None means every token.

    Args:
        states: the layer in which blocks store their prompt state and find it again in decoding; None without a cache.
        reading: whether this call reads the prompt; in decoding, a missing state is an error.
        prompt_mask: True on the tokens of the prompt.
        token_mask: True on all tokens but padding.
        routes: prompt states by block, if they do not come from the prompt (LaVIN).
    """

    states: PromptLayer | None = None
    reading: bool = True
    prompt_mask: Tensor | None = None
    token_mask: Tensor | None = None
    routes: list[Tensor] | None = None


class SkippableBlock(nn.Module):
    """A decoder block whose parts may be skipped; the method's ``forward`` computes their replacement."""

    index: int
    skip_mha: bool
    skip_ffn: bool

    def skipped_parts(self) -> set[str]:
        """The skipped parts: "mha", "ffn", both or none."""
        return {part for part, skipped in (("mha", self.skip_mha), ("ffn", self.skip_ffn)) if skipped}

    def stand_ins(self) -> Sequence[nn.Module]:
        """The method's own modules in this block that the skip set uses."""
        return []


class SkippingTextModel(nn.Module):
    """The language model: fits the cache to the skip set before the blocks use it, and checks that it comes back."""

    layers: nn.ModuleList
    config: Any

    def forward(self, *args: Any, use_cache: bool | None = None, **kw: Any) -> Any:
        cache, others = cache_of(kw), without_cache(kw)
        wanted = self.config.use_cache if use_cache is None else use_cache
        if cache is None:
            _refuse_lost_cache(kw)
            cache = DynamicCache(config=self.config) if wanted else None
        fresh = True
        paged = cache is not None and not isinstance(cache, Cache)  # continuous batching's, which owns all layers
        if paged and self.state_keys():
            raise ValueError(PER_SEQUENCE)
        if cache is not None and not paged:
            blocks = self.blocks()
            without = tuple(block.index for block in blocks if block.skip_mha)
            fresh = prepare_cache(cache, len(self.layers), without, blocks[0].built.reads_keys)
        given = self.with_request(cache, fresh, others)
        output = super().forward(*args, use_cache=use_cache, **cached(cache), **given)
        # in training, gradient checkpointing takes the cache away; a tuple has no names
        checked = fresh and wanted and not paged and not self.training and not torch.compiler.is_compiling()
        if checked and cache is not None and isinstance(output, Mapping):
            kept = [block.index for block in self.blocks() if not block.skip_mha]
            require_filled(cache, output_cache(output), self.state_keys(), kept)
        return output

    def blocks(self) -> list[Any]:
        """The layers whose parts may be skipped; in hybrids not all."""
        return [layer for layer in self.layers if isinstance(layer, SkippableBlock)]

    def with_request(self, cache: Cache | None, fresh: bool, kw: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the stock forward: those of ``kw``, with what the blocks need of them in a request.

        ``kw`` stays as it is: compiled code that was cut (a graph break) looks at it again.
        """
        return {**kw}

    def state_keys(self) -> list[int]:
        """Keys of the prompt states that a cache holds after the prompt was read."""
        return []


class SkippingModel(nn.Module):
    """The model with its head: refuses to draft with its own first layers."""

    generation_config: Any

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        # transformers would take layers away through the configuration, and leave them away after an error
        if self.asked("assistant_early_exit", generation_config, kwargs):
            raise ValueError(
                "assistant_early_exit drafts with the first layers alone, whose cache does not fit a model that skips; "
                "use prompt_lookup_num_tokens or an assistant_model"
            )
        return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]

    def asked(self, option: str, generation_config: Any, kwargs: Mapping[str, Any]) -> Any:
        """An option of ``generate``; what neither a call nor its configuration names is as the model's own says."""
        known = [
            kwargs,
            *(vars(config) for config in (generation_config, self.generation_config) if config is not None),
        ]
        return next((each[option] for each in known if each.get(option) is not None), None)


def _refuse_lost_cache(kw: Mapping[str, Any]) -> None:
    """Distinguishes "no cache" from "cache lost": a mask longer than the tokens covers tokens in a cache."""
    mask, tokens = kw.get("attention_mask"), kw.get("inputs_embeds")
    tokens = kw.get("input_ids") if tokens is None else tokens
    if isinstance(mask, Tensor) and mask.ndim == 2 and tokens is not None and mask.shape[1] > tokens.shape[1]:
        raise TransformersChangedError(
            f"the language model was given {tokens.shape[1]} tokens, an attention mask of {mask.shape[1]}, and no cache"
        )
