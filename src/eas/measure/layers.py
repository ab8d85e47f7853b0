"""What each block costs: the terms of the sums that ``eas.count`` gives."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from eas.measure.coattention import layer_macs
from eas.measure.modules import block_macs, module_macs, skipped_parts
from eas.models.anatomy import Anatomy


@dataclass(frozen=True)
class BlockCost:
    """One block as it stands: selected, pruned or folded.

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
    anatomy, costs = Anatomy.of(model), []
    if anatomy.form == "coattention":
        return [BlockCost(*macs, kv_bytes=0) for macs in layer_macs(model, prompt_tokens, images)]
    element = anatomy.text_model.get_input_embeddings().weight.element_size()
    for layer in anatomy.layers:
        skipped, mha, ffn, kv = skipped_parts(layer), 0, 0, 0
        if "mha" not in skipped:  # a pruned one is gone
            attention = layer.self_attn
            mha = module_macs(attention, prompt_tokens) + 2 * attention.q_proj.out_features * prompt_tokens**2
            kv = (attention.k_proj.out_features + attention.v_proj.out_features) * element
        if "ffn" not in skipped:
            ffn = module_macs(layer.mlp, prompt_tokens)
        costs.append(BlockCost(mha, ffn, block_macs(layer, prompt_tokens) - mha - ffn, kv))
    return costs
