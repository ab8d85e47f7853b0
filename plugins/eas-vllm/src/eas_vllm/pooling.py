"""A running mean over the tokens of each sequence, as a state layer of vLLM: r sums and the number of tokens.

vLLM stores the state of a state layer for every sequence, in pages of its cache, and says which tokens of a step belong
to which state. So sequences may come and go, prompts may come in chunks, and cached prefixes keep their states.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, ReplicatedLinear
from vllm.model_executor.layers.mamba import short_conv  # noqa: F401  (declares the operator)
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum


class Pool(nn.Module, MambaBase):
    """What a running mean adds to the maps of an FFN.

    vLLM's operator for short convolutions hands the tokens of a step to this layer; nothing is convolved.
    """

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.rank, self.prefix = config.pool_rank, prefix
        self.down = ReplicatedLinear(config.hidden_size, self.rank, bias=False, prefix=f"{prefix}.down")
        self.gate_up_proj = MergedColumnParallelLinear(
            self.rank, [config.intermediate_size] * 2, bias=False, prefix=f"{prefix}.gate_up_proj"
        )
        self.kv_cache = (torch.tensor([]),)
        vllm_config.compilation_config.static_forward_context[prefix] = self

    def forward(self, n: Tensor) -> Tensor:
        """What is added to the outputs of gate and up, ``(tokens, 2 * intermediate / ranks)``.

        Args:
            n: the input of the FFN, ``(tokens, d)``.
        """
        new, _ = self.down(n)
        c = torch.zeros_like(new)
        torch.ops.vllm.short_conv(new, c, self.prefix)
        added, _ = self.gate_up_proj(c)
        return added

    def mean(self, hidden_states: Tensor, output: Tensor) -> None:
        """Writes the mean for each token, and the new states.

        Args:
            hidden_states: the new numbers of each token, ``(tokens, r)``: of sequences with one token, then of others.
            output: the means, ``(tokens, r)``.
        """
        said: Any = get_forward_context().attn_metadata
        if said is None:  # vLLM measures its memory
            return
        step, states = said[self.prefix], self.kv_cache[0]
        single, many = step.num_decode_tokens, step.num_prefill_tokens
        one = torch.ones(single + many, 1, device=output.device)
        new = torch.cat([hidden_states[: single + many].float(), one], -1)  # a sum and a number of tokens
        if single:
            at = step.state_indices_tensor_d.flatten()[:single].long()
            total = states[at] + new[:single]
            states[at] = total
            output[:single] = (total[:, :-1] / total[:, -1:]).to(output.dtype)
        if many:
            at, starts = step.state_indices_tensor_p.flatten().long(), step.query_start_loc_p.long()
            before = states[at].masked_fill(~step.has_initial_states_p[:, None], 0)
            total = new[single:].double().cumsum(0)
            past = torch.cat([total.new_zeros(1, self.rank + 1), total])[starts[:-1]]
            lengths = starts.diff()
            total += (before - past).repeat_interleave(lengths, 0, output_size=many)
            states[at] = total[starts[1:] - 1].float()
            output[single : single + many] = (total[:, :-1] / total[:, -1:]).to(output.dtype)

    forward_native = forward_cuda = mean

    def get_state_shape(self) -> tuple[tuple[int], ...]:
        return ((self.rank + 1,),)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return (torch.float32,)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.SHORT_CONV

    @property
    def is_kv_cache_tp_replicated(self) -> bool:
        return True
