"""Prompt states in the key-value cache: the request holds what decoding needs of the prompt, no module does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eas.hf.api import Cache, CacheLayerMixin, DummyLayer
from eas.hf.versions import TransformersChangedError


class PromptLayer(DummyLayer):  # type: ignore[misc]
    """One extra cache layer that holds the prompt state of every PIA, ``(batch, 1, 2 + r)`` or ``(batch, 1, 2)``.

    As a layer of the cache, it takes part in reordering (beams), repetition, selection and reset. As a ``DummyLayer``,
    it does not count in masks and lengths. States are constant after the prompt was read, so cropping in assisted
    decoding does not change them; a running mean cannot be cropped and refuses. ``kept`` holds the form of a state that
    a fold mode needs, and ``folded`` the request's own folded modules.
    """

    def __init__(self, skip_set: tuple[int, ...]) -> None:
        super().__init__()
        self.skip_set = skip_set
        self.states: dict[int, Tensor] = {}  # by block, ~block for the PIA in place of its FFN
        self.kept: dict[tuple[int, str], Tensor] = {}  # by block and mode
        self.folded: dict[int, nn.Module] = {}
        self.running = False

    @property
    def is_croppable(self) -> bool:
        """Whether assisted decoding may take tokens back: not from a running mean."""
        return not self.running

    def reset(self) -> None:
        self.states.clear()
        self.kept.clear()
        self.folded.clear()

    def crop(self, tokens_to_remove: int) -> None:
        if self.running:
            raise ValueError("a running mean cannot give tokens back; use decode_pooling='frozen'")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda state: state.index_select(0, indices.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda state: state.repeat_interleave(repeats, 0))

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        self.states = {key: change(state) for key, state in self.states.items()}
        self.kept = {key: change(kept) for key, kept in self.kept.items()}

    def nbytes(self) -> int:
        """Bytes of all states; they do not grow with the number of tokens."""
        return sum(state.nbytes for state in (*self.states.values(), *self.kept.values()))


class EmptyLayer(DummyLayer):  # type: ignore[misc]
    """A layer without keys and values, for language models that ask every layer how many it has (Mllama)."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = self.values = torch.empty(0)


def prompt_layer(cache: Cache | None) -> PromptLayer | None:
    """The prompt states in a cache, None if there are none, as in that of continuous batching."""
    if not isinstance(cache, Cache) or not cache.layers or not isinstance(cache.layers[-1], PromptLayer):
        return None
    return cache.layers[-1]


def reads_prompt_from(cache: Cache | None) -> bool:
    """Whether the cache holds the prompt's states: the next tokens are then no longer prompt."""
    layer = prompt_layer(cache)
    return layer is not None and bool(layer.states)


def prepare_cache(cache: Cache, num_layers: int, skip_set: tuple[int, ...], empty_keys: bool = False) -> bool:
    """Makes a cache fit a skip set: no keys and values for skipped attentions, one layer of prompt states.

    Args:
        cache: of the model, empty or prepared before.
        num_layers: of the model.
        skip_set: the layers whose attention is skipped.
        empty_keys: whether these layers have keys and values of size zero, in place of none.

    Returns:
        Whether the cache is fresh, that is, still empty.

    Raises:
        ValueError: the cache was filled by another model or under another skip set, or cannot be adapted.
    """
    layer = prompt_layer(cache)
    if layer is not None:
        if layer.skip_set != skip_set:
            raise ValueError(f"the cache was filled under skip set {layer.skip_set}, not {skip_set}; start a new cache")
        # a compiled step is never the first; a cache that was reset is fresh again
        return not layer.states and (torch.compiler.is_compiling() or int(cache.get_seq_length()) == 0)
    if len(cache.layers) not in (0, num_layers):
        raise ValueError(f"the cache has {len(cache.layers)} layers, the model {num_layers}; start a new cache")
    if not cache.layers:  # DynamicCache() without a config fills up lazily; the dummy layers need their places now
        cache.layers.extend(cache.layer_class_to_replicate() for _ in range(num_layers))
    if cache.get_seq_length() > 0:
        raise ValueError("the cache was filled before the model was attached or selected; start a new cache")
    for i in skip_set:
        cache.layers[i] = EmptyLayer() if empty_keys else DummyLayer()
    cache.layers.append(PromptLayer(skip_set))
    return True


def require_filled(cache: Any, returned: Any, states: Iterable[int], attentions: Iterable[int]) -> None:
    """Checks, after the first call with a cache, that the model returned the prepared cache and filled it for decoding.

    Args:
        cache: the cache from ``prepare_cache``.
        returned: the cache in the model's output.
        states: keys of the PIAs in use that have a state.
        attentions: the layers with an attention that is kept.

    Raises:
        TransformersChangedError: the cache was lost on its way to the blocks or back.
    """
    if returned is None or returned is not cache:
        raise TransformersChangedError("the model did not return the cache that was prepared for it")
    layer = prompt_layer(cache)
    missing = sorted(set(states) - (layer.states.keys() if layer is not None else set()))
    if missing:
        raise TransformersChangedError(f"the cache has no prompt state of blocks {missing}: it was lost on its way")
    kept = {i: cache.layers[i] for i in attentions}
    if empty := [i for i, own in kept.items() if not own.is_initialized or int(own.get_seq_length()) == 0]:
        raise TransformersChangedError(f"the cache has no keys and values of layers {empty}: it was lost on its way")


def kv_cache_bytes(cache: Cache) -> int:
    """Bytes of keys, values and prompt states that a cache holds now; without the states of a hybrid's other layers."""
    kept = [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)]
    keys_and_values = sum(t.nbytes for layer in kept for t in (layer.keys, layer.values) if isinstance(t, torch.Tensor))
    layer = prompt_layer(cache)
    return keys_and_values + (0 if layer is None else layer.nbytes())
