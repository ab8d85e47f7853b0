"""A decoder some of whose layers have no attention, made of vLLM's own Llama parts."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.mamba.mamba_utils import get_temporal_copy_spec
from vllm.model_executor.models.interfaces import HasInnerState, HasNoOps, IsHybrid
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM, LlamaMLP, LlamaModel
from vllm.model_executor.models.utils import AutoWeightsLoader, extract_layer_index, is_pp_missing_parameter
from vllm.sequence import IntermediateTensors

from eas_vllm.pooling import Pool

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


class KeptLayer(LlamaDecoderLayer):
    """A layer with attention."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        attention = NormedAttention if vllm_config.model_config.hf_config.head_norms else LlamaAttention
        super().__init__(vllm_config, prefix, attn_layer_type=attention)
        self.index = extract_layer_index(prefix)

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, images: IntermediateTensors | None
    ) -> tuple[Tensor, Tensor]:
        hidden_states, residual = super().forward(positions, hidden_states, residual)
        return seen(hidden_states, self.index, images), residual


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
        if config.pool_rank:
            self.mlp.pool = Pool(vllm_config, f"{prefix}.mlp.pool")
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.index, self.pooled = extract_layer_index(prefix), config.pool_rank > 0

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None, images: IntermediateTensors | None
    ) -> tuple[Tensor, Tensor]:
        if residual is None:  # the first layer
            residual, hidden_states = hidden_states, self.post_attention_layernorm(hidden_states)
        else:
            hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        return seen(self.ffn(hidden_states), self.index, images), residual

    def ffn(self, n: Tensor) -> Tensor:
        """The FFN, ``(tokens, d)``."""
        if not self.pooled:
            return self.mlp(n)
        gate_up, _ = self.mlp.gate_up_proj(n)
        out, _ = self.mlp.down_proj(self.mlp.act_fn(gate_up + self.mlp.pool(n)))
        return out


def seen(hidden_states: Tensor, index: int, images: IntermediateTensors | None) -> Tensor:
    """What a layer gives, with what Qwen3-VL adds behind its first layers: features of the images."""
    if images is None or index >= len(images):
        return hidden_states
    return hidden_states + images[f"deepstack_input_embeds_{index}"]


def layer(vllm_config: VllmConfig, prefix: str) -> nn.Module:
    """The layer of a name."""
    skipped = extract_layer_index(prefix) in vllm_config.model_config.hf_config.skip_set
    return SkippedLayer(vllm_config, prefix) if skipped else KeptLayer(vllm_config, prefix)


@support_torch_compile(  # the last axis of positions has the tokens; they may have three positions each
    dynamic_arg_dims={
        "input_ids": 0,
        "positions": -1,
        "intermediate_tensors": 0,
        "inputs_embeds": 0,
        "deepstack_input_embeds": 0,
    }
)
class EASModel(LlamaModel):
    """The decoder without its head."""

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        deepstack_input_embeds: IntermediateTensors | None = None,
    ) -> Any:
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, images=deepstack_input_embeds)


class EASDecoder(LlamaForCausalLM):
    """The decoder with its head."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=layer)
        self.whole = not prefix
        self.found: set[str] = set()

    def _init_model(self, vllm_config: VllmConfig, prefix: str = "", layer_type: Any = layer) -> EASModel:
        return EASModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads weights. In a model that reads images they may come in several parts."""

        def watched() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                self.found.add(name)
                yield name, tensor

        loaded = AutoWeightsLoader(self).load_weights(watched())
        if self.whole:
            self.require_complete()
        return loaded

    def require_complete(self) -> None:
        """Refuses files that lack a weight: vLLM would compute with whatever is in memory.

        Raises:
            ValueError: naming the first missing weight.
        """
        if missing := sorted(set(self.stored_names()) - self.found):
            raise ValueError(f"{missing[0]} is missing in the folder's weights ({len(missing)} are); export again")

    def stored_names(self) -> Iterator[str]:
        """The weights of this process by their names in the files."""
        for name, _ in self.named_parameters():
            one, _, kind = name.rpartition(".")
            at, _, part = one.rpartition(".")
            if not is_pp_missing_parameter(name, self):
                yield from (f"{at}.{own}.{kind}" for own in STACKED[part]) if part in STACKED else (name,)


class EASForCausalLM(EASDecoder, HasNoOps):
    """A decoder without states."""


class EASPooledForCausalLM(EASDecoder, HasInnerState, IsHybrid):
    """A decoder whose layers without attention keep a running mean."""

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        return (torch.float32,)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int], ...]:
        return ((vllm_config.model_config.hf_config.get_text_config().pool_rank + 1,),)

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[Any, ...]:
        return (get_temporal_copy_spec,)
