"""A decoder block whose parts may be skipped, in the terms of its family's equations (`eas.models.structure`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from eas.hf.classes import become
from eas.hf.norms import UnitNorm
from eas.hf.skipping import SkippableBlock
from eas.models.structure import Branch, TextModel


class Block(SkippableBlock):
    """The steps that the blocks of all methods are made of. ``built`` says which terms the family has."""

    built: TextModel

    def normed(self, branch: Branch, x: Tensor) -> Tensor:
        """Na(x) or Nf(x), ``(batch, tokens, d)``; x where the branch has no norm before it."""
        return x if branch.norm is None else getattr(self, branch.norm)(x)

    def attend(self, x: Tensor, z: Tensor, attention: Any, kwargs: dict[str, Any]) -> Tensor:
        """``x + rho * Pa(MHA(z))``."""
        taken = {name: value for name, value in kwargs.items() if name not in self.built.foreign}
        attended, *_ = attention(hidden_states=z, **taken)
        return self._add(x, self.built.mha, attended)

    def feed(self, x: Tensor, z: Tensor, ffn: Any) -> Tensor:
        """``x + rho * Pf(FFN(z))``; an FFN of experts may also return how it routed the tokens."""
        output = ffn(z)
        output = output[0] if isinstance(output, tuple) else output
        return self._add(x, self.built.ffn, output.view(x.shape))

    def scaled(self, y: Tensor) -> Tensor:
        """``rho * y``."""
        return y if self.built.multiplier is None else y * getattr(self, self.built.multiplier)

    def _add(self, x: Tensor, branch: Branch, y: Tensor) -> Tensor:
        return x + self.scaled(y if branch.behind is None else getattr(self, branch.behind)(y))

    def end(self, x: Tensor, args: tuple[Any, ...]) -> Tensor:
        """``lam * (x + PLE(x))`` of Gemma 4, x of other families. The language model gives the layer's own input of PLE
        as the second positional argument."""
        if not self.built.after:
            return x
        layer: Any = self
        if "per_layer_input_gate" in layer._modules:  # not every Gemma 4 has PLE
            gated = layer.act_fn(layer.per_layer_input_gate(x)) * args[0]
            x = x + layer.post_per_layer_input_norm(layer.per_layer_projection(gated))
        ended: Tensor = x * layer.layer_scalar
        return ended

    def gain(self) -> Tensor | None:
        """g, ``(d,)``: what the FFN's norm multiplies ``x / rms(x)`` by; None where the FFN's input has no norm of its
        own."""
        if self.built.parallel or self.built.ffn.norm is None:
            return None
        weight: Tensor = getattr(self, self.built.ffn.norm).weight
        match self.built.norms:
            case "1 + weight":
                return 1.0 + weight.float()
            case "wide weight":
                return weight.float()
            case _:
                return weight

    def unit_norm_of_ffn(self) -> UnitNorm | None:
        """The FFN's norm without its weight; None where its input has no norm of its own."""
        if self.gain() is None:
            return None
        norm = getattr(self, self.built.ffn.norm or "")
        return UnitNorm(getattr(norm, self.built.epsilon), wide=self.built.norms != "weight")


class OtherLayer(nn.Module):
    """A layer of a hybrid that has no attention: it is never skipped, and runs its own forward pass."""

    def forward(self, *args: Any, request: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def become_blocks(layers: Any, built: TextModel, mixin: type[Block]) -> list[Any]:
    """Makes blocks of a model's layers, with nothing skipped, and returns them.

    Layers without an attention of their own become `OtherLayer`.
    """
    blocks = []
    for index, layer in enumerate(layers):
        if has_attention(layer, built):
            layer.index, layer.skip_mha, layer.skip_ffn, layer.built = index, False, False, built
            become(layer, mixin)
            blocks.append(layer)
        else:
            become(layer, OtherLayer)
    return blocks


def has_attention(layer: Any, built: TextModel) -> bool:
    """Whether a layer has an attention that nothing else depends on.

    Layers of a hybrid may have another module in its place. In Gemma 4 an attention may read the keys and values of an
    earlier one. In Mllama the keys of layer 0 tell the length of the text.
    """
    attention = layer._modules.get(built.mha.body)
    if built.reads_keys and attention is not None and attention.layer_idx == 0:
        return False
    if built.shares_keys and attention is not None and attention.config.num_kv_shared_layers:
        return not (attention.is_kv_shared_layer or attention.store_full_length_kv)
    return attention is not None
