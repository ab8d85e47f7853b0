"""Prompt states in the key-value cache: what decoding needs of the prompt travels with the request, not on modules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DummyLayer


class PromptStates(DummyLayer):  # type: ignore[misc]
    """One extra cache layer that holds the prompt state of every PIA, ``(batch, 1, 2 + r)`` or ``(batch, 1, 2)``.

    Being a layer of the cache, it follows its reordering (beams), repetition, selection and reset; being a
    ``DummyLayer``, it is passed over where masks and lengths are read. States are constant once the prompt has been
    read, so cropping, as assisted decoding does, leaves them alone; a mean that runs on cannot go back, and refuses.
    ``kept`` holds what a fold mode made of a state, and ``folded`` the request's own folded modules.
    """

    def __init__(self, skip_set: tuple[int, ...]) -> None:
        super().__init__()
        self.skip_set = skip_set
        self.states: dict[int, Tensor] = {}  # by block, ~block for the PIA in place of its FFN
        self.kept: dict[tuple[int, str], Tensor] = {}  # by block and mode
        self.folded: dict[int, nn.Module] = {}
        self.running = False

    def reset(self) -> None:
        self.states.clear()
        self.kept.clear()
        self.folded.clear()

    def crop(self, tokens_to_remove: int) -> None:
        if self.running:
            raise ValueError(
                "assisted decoding takes tokens back, but decode_pooling='running' has added them to its mean; "
                "use decode_pooling='frozen', or generate without an assistant"
            )

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


def prompt_states(cache: Cache | None) -> PromptStates | None:
    """The states that travel with a cache, None if there are none."""
    if cache is None or not cache.layers or not isinstance(cache.layers[-1], PromptStates):
        return None
    return cache.layers[-1]


def reads_prompt_from(cache: Cache | None) -> bool:
    """Whether the cache holds the prompt's states: what comes now is not prompt any more."""
    states = prompt_states(cache)
    return states is not None and bool(states.states)


def prepare_cache(cache: Cache, num_layers: int, skip_set: tuple[int, ...]) -> None:
    """Makes a fresh cache fit a skip set: no keys and values for skipped attentions, one layer of prompt states.

    Raises:
        ValueError: the cache was filled by another model or under another skip set, or cannot be adapted.
    """
    states = prompt_states(cache)
    if states is not None:
        if states.skip_set != skip_set:
            raise ValueError(
                f"the cache was filled under skip set {states.skip_set}, not {skip_set}; start a new cache"
            )
        return
    if len(cache.layers) not in (0, num_layers):
        raise ValueError(f"the cache has {len(cache.layers)} layers, the model {num_layers}; start a new cache")
    if not cache.layers:  # DynamicCache() without a config fills up lazily; the dummy layers need their places now
        cache.layers.extend(cache.layer_class_to_replicate() for _ in range(num_layers))
    if cache.get_seq_length() > 0:
        raise ValueError("the cache was filled before the model was attached or selected; start a new cache")
    for i in skip_set:
        cache.layers[i] = DummyLayer()
    cache.layers.append(PromptStates(skip_set))


def kv_cache_bytes(cache: Cache) -> int:
    """Bytes of keys, values and prompt states that a cache holds now."""
    kept = [layer for layer in cache.layers if not isinstance(layer, DummyLayer)]
    keys_and_values = sum(t.nbytes for layer in kept for t in (layer.keys, layer.values) if isinstance(t, torch.Tensor))
    states = prompt_states(cache)
    return keys_and_values + (0 if states is None else states.nbytes())
