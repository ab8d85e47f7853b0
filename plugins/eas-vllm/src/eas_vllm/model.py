"""A decoder some of whose layers have no attention, made of vLLM's own Llama parts."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.interfaces import HasNoOps
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP
from vllm.model_executor.models.utils import AutoWeightsLoader, extract_layer_index, is_pp_missing_parameter

STACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""What vLLM keeps as one map."""


class NormedAttention(LlamaAttention):
    """Llama's attention with normalised queries and keys (Qwen3)."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q = self.q_norm(q.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        k = self.k_norm(k.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q, k, v))
        return output


class SkippedLayer(nn.Module):
    """A layer without attention: its FFN and the norm before it. It keeps no keys and values."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            vllm_config.quant_config,
            bias=config.mlp_bias,
            prefix=f"{prefix}.mlp",
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:  # the first layer
            return self.mlp(self.post_attention_layernorm(hidden_states)), hidden_states
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return self.mlp(hidden_states), residual


def layer(vllm_config: VllmConfig, prefix: str) -> nn.Module:
    """The layer of a name."""
    config = vllm_config.model_config.hf_config
    if extract_layer_index(prefix) in config.skip_set:
        return SkippedLayer(vllm_config, prefix)
    attention = NormedAttention if config.head_norms else LlamaAttention
    return LlamaDecoderLayer(vllm_config, prefix, attn_layer_type=attention)


class EASForCausalLM(LlamaForCausalLM, HasNoOps):
    """The decoder with its head."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads every weight, and refuses a file that lacks one: vLLM would compute with whatever is in memory.

        Raises:
            ValueError: naming the first missing weight.
        """
        wanted, found = set(self.stored_names()), set()

        def watched() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                found.add(name)
                yield name, tensor

        loaded = AutoWeightsLoader(self).load_weights(watched())
        if missing := sorted(wanted - found):
            raise ValueError(f"{missing[0]} is missing in the folder's weights ({len(missing)} are); export again")
        return loaded

    def stored_names(self) -> Iterator[str]:
        """The weights of this process by their names in the files."""
        for name, _ in self.named_parameters():
            one, _, kind = name.rpartition(".")
            at, _, part = one.rpartition(".")
            if not is_pp_missing_parameter(name, self):
                yield from (f"{at}.{own}.{kind}" for own in STACKED[part]) if part in STACKED else (name,)
