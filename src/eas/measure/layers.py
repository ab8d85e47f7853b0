"""The costs of each block: the terms of the sums that ``eas.count`` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from eas.measure.coattention import layer_macs
from eas.measure.modules import block_macs, keeps_attention, kv_width
from eas.models.anatomy import Anatomy


@dataclass(frozen=True)
class BlockCost:
    """One block in its present state: selected, pruned or folded.

    Args:
        mha: MACs of the attention for the prompt, projections and products; 0 if it is skipped. Of METER's two those
            that are not.
        ffn: MACs of the FFN; 0 if it is skipped.
        other: MACs of what the method put there and did not fold away.
        kv_bytes: keys and values per token of one sequence.
    """

    mha: int
    ffn: int
    other: int
    kv_bytes: int


def block_costs(model: PreTrainedModel, prompt_tokens: int, images: int = 0) -> list[BlockCost]:
    """The cost of every block, first to last, in a prefill of ``prompt_tokens`` tokens, images included.

    Of METER, the text's co-attention layers and then the image's, with a text of ``prompt_tokens`` tokens that meets
    each of ``images`` images.
    """
    anatomy = Anatomy.of(model)
    if anatomy.form == "coattention":
        return [BlockCost(*macs, kv_bytes=0) for macs in layer_macs(model, prompt_tokens, images)]
    element: int = anatomy.text_model.get_input_embeddings().weight.element_size()

    def width(layer: Any) -> int:
        """Of keys and values together."""
        built = anatomy.built
        return kv_width(layer.get_submodule(built.mha.body), built.mha) if keeps_attention(layer, built) else 0

    return [
        BlockCost(*block_macs(layer, anatomy.built, prompt_tokens), kv_bytes=width(layer) * element)
        for layer in anatomy.layers
    ]
