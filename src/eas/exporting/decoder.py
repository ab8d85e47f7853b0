"""What every engine computes: a Llama decoder of plain weights, some of whose layers have no attention.

It is the reference that every exported weight is checked with, and the graph of the ONNX and OpenVINO forms. Weights
have the names of the Llama format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eas.exported import ExportError


@dataclass(frozen=True)
class Sizes:
    """The shape of a decoder.

    Args:
        layers: how many.
        kept: the layers with an attention.
        hidden: width d.
        heads: query heads of an attention.
        kv_heads: key-value heads.
        head_dim: numbers of a head.
        intermediate: width of an FFN.
        vocab: rows of the embedding.
        eps: of the norms.
        context: the longest sequence.
        rope: the model's parameters of its rotary positions.
        tied: whether the head is the embedding.
        biased: whether q, k, v, gate or up have biases.
        head_norms: whether queries and keys are normalised (Qwen3).
    """

    layers: int
    kept: tuple[int, ...]
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    eps: float
    context: int
    rope: dict[str, object]
    tied: bool
    biased: bool
    head_norms: bool

    @property
    def skipped(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.layers) if i not in self.kept)


class Norm(nn.Module):
    """``g x / rms(x)`` over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        return out


class PlainAttention(nn.Module):
    """Rotary attention with keys and values of earlier tokens."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def __init__(self, sizes: Sizes, names: Mapping[str, Tensor], at: str) -> None:
        super().__init__()
        d, inner, outer = sizes.hidden, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.head_dim, self.groups = sizes.head_dim, sizes.heads // sizes.kv_heads
        for name, (width, out) in {"q": (d, inner), "k": (d, outer), "v": (d, outer), "o": (inner, d)}.items():
            setattr(self, f"{name}_proj", nn.Linear(width, out, f"{at}.{name}_proj.bias" in names))
        self.q_norm = Norm(sizes.head_dim, sizes.eps) if sizes.head_norms else nn.Identity()
        self.k_norm = Norm(sizes.head_dim, sizes.eps) if sizes.head_norms else nn.Identity()

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The output ``(batch, new, d)``, and keys and values of all tokens, ``(batch, kv heads, tokens, head)``."""
        heads = [part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = self.q_norm(heads[0]), self.k_norm(heads[1]), heads[2]
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        q, k = rotated(q, *turn), torch.cat([past[0], rotated(k, *turn)], 2)
        v = torch.cat([past[1], v], 2)
        keys, values = (part.repeat_interleave(self.groups, 1) if self.groups > 1 else part for part in (k, v))
        out = F.scaled_dot_product_attention(q, keys, values, mask[:, None])
        return self.o_proj(out.transpose(1, 2).flatten(2)), k, v


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, by halves; ``(batch, heads, new, head)``, the angles ``(batch, 1, new, head)``."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin


class PlainFFN(nn.Module):
    """``down(silu(gate x) * up x)``."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    def __init__(self, sizes: Sizes, names: Mapping[str, Tensor], at: str) -> None:
        super().__init__()
        d, wide = sizes.hidden, sizes.intermediate
        for name, (width, out) in {"gate": (d, wide), "up": (d, wide), "down": (wide, d)}.items():
            setattr(self, f"{name}_proj", nn.Linear(width, out, f"{at}.{name}_proj.bias" in names))

        self.pool = PlainPool(names, at) if f"{at}.pool.down.weight" in names else None

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.pool is not None:
            c = self.pool(x)
            gate, up = gate + self.pool.gate_proj(c), up + self.pool.up_proj(c)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class PlainPool(nn.Module):
    """What a running mean adds to the maps of an FFN; it sees whole sequences without padding."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down: nn.Linear

    def __init__(self, names: Mapping[str, Tensor], at: str) -> None:
        super().__init__()
        for name in ("down", "gate_proj", "up_proj"):
            out, width = names[f"{at}.pool.{name}.weight"].shape
            setattr(self, name, nn.Linear(width, out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """For each token the mean over it and the tokens before it, ``(batch, tokens, r)``."""
        c: Tensor = self.down(x).cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return c


class PlainLayer(nn.Module):
    """A block; without attention only its FFN is left."""

    def __init__(self, sizes: Sizes, names: Mapping[str, Tensor], index: int) -> None:
        super().__init__()
        at = f"model.layers.{index}"
        kept = index in sizes.kept
        self.input_layernorm = Norm(sizes.hidden, sizes.eps) if kept else None
        self.self_attn = PlainAttention(sizes, names, f"{at}.self_attn") if kept else None
        self.post_attention_layernorm = Norm(sizes.hidden, sizes.eps)
        self.mlp = PlainFFN(sizes, names, f"{at}.mlp")


class PlainModel(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, sizes: Sizes, names: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocab, sizes.hidden)
        self.layers = nn.ModuleList([PlainLayer(sizes, names, i) for i in range(sizes.layers)])
        self.norm = Norm(sizes.hidden, sizes.eps)


class PlainDecoder(nn.Module):
    """The decoder with its head.

    Args:
        sizes: its shape.
        tensors: its weights, which it does not copy.
        frequencies: of the rotary positions, ``(head_dim / 2,)``.

    Raises:
        ExportError: a weight is missing, left over or of another shape.
    """

    frequencies: Tensor

    def __init__(self, sizes: Sizes, tensors: Mapping[str, Tensor], frequencies: Tensor) -> None:
        super().__init__()
        self.sizes = sizes
        with torch.device("meta"):
            self.model = PlainModel(sizes, tensors)
            self.lm_head = None if sizes.tied else nn.Linear(sizes.hidden, sizes.vocab, bias=False)
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if wrong := sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name)):
            first = wrong[0]
            raise ExportError(
                f"{first}: the weights have shape {found.get(first)}, the model needs {own.get(first)} "
                f"({len(wrong)} such weights); nothing was written"
            )
        self.load_state_dict(dict(tensors), assign=True)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.requires_grad_(False)

    def forward(
        self, tokens: Tensor, padding: Tensor, wanted: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of new tokens.

        Args:
            tokens: the new ones, ``(batch, new)``.
            padding: how many tokens at the start of each row are none, ``(batch,)``.
            wanted: the places among the new tokens whose logits are wanted, ``(places,)``.
            past: keys and values of earlier tokens, of one kept attention after the other, ``(batch, kv heads, past,
                head)``; past is 0 at first.

        Returns:
            The logits, ``(batch, places, vocab)``, and the keys and values of all tokens.
        """
        before, new = past[0].shape[2], tokens.shape[1]
        query, key = torch.arange(before, before + new), torch.arange(before + new)
        own = key[None] == query[:, None]  # padding sees itself, as a softmax over nothing is no number
        real = key[None, None] >= padding[:, None, None]
        mask = (real & (key[None] <= query[:, None])) | own
        places = (query[None] - padding[:, None]).clamp(min=0)
        angles = (places[..., None].to(self.frequencies.dtype) * self.frequencies).repeat(1, 1, 2)[:, None]
        turn, x = (angles.cos(), angles.sin()), self.model.embed_tokens(tokens)
        present: list[Tensor] = []
        layer: Any
        for layer in self.model.layers:
            if layer.self_attn is not None:
                at = len(present)
                attended, k, v = layer.self_attn(layer.input_layernorm(x), turn, mask, (past[at], past[at + 1]))
                x, present = x + attended, [*present, k, v]
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        x = self.model.norm(x[:, wanted])
        logits = F.linear(x, self.model.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)
        return logits, present

    def empty(self, batch: int = 1, past: int = 0) -> list[Tensor]:
        """Keys and values of no tokens, or of some zeros."""
        shape = (batch, self.sizes.kv_heads, past, self.sizes.head_dim)
        return [torch.zeros(shape) for _ in range(2 * len(self.sizes.kept))]
