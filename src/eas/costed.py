"""Modules that count their own cost, because it is not that of linear maps applied to every token."""

from __future__ import annotations

from torch import nn


class Costed(nn.Module):
    """A module that counts its own cost; the counter does not count the modules inside it."""

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates for one sequence of so many tokens."""
        raise NotImplementedError

    def decode_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        return sum(p.nbytes for p in self.parameters())
