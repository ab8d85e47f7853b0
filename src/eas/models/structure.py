"""How the language models of the families are built: the terms of their blocks' equations, and the names of the parts.

With x the residual stream, every decoder block computes

    n  = Na(x)
    x += rho * Pa(MHA(n))
    x += rho * Pf(FFN(Nf(x)))
    x  = lam * (x + PLE(x))

in the terms that its family has. Na and Nf are the norms before attention and FFN (`Branch.norm`), Pa and Pf what is
applied to the output of a branch before it is added (`Branch.behind`). Where a family has no such term, a norm is the
identity, rho and lam are 1 and PLE is 0. In a parallel block the FFN reads n.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple


class Branch(NamedTuple):
    """A part of a layer with a residual connection around it.

    Args:
        part: "mha" or "ffn".
        body: name of the attention or FFN in the layer.
        norm: name of its norm, before it or (METER) after the residual; None without one.
        across: whether keys and values are the other modality's.
        behind: name of what is applied to its output before it is added; None without one.
        inputs: names of the linear maps that read its input.
        output: name of its last linear map.
        activation: name of an FFN's activation; None: SiLU without a module.
    """

    part: str
    body: str
    norm: str | None
    across: bool = False
    behind: str | None = None
    inputs: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    output: str = "o_proj"
    activation: str | None = None


MHA = Branch("mha", "self_attn", "input_layernorm")
FFN = Branch(
    "ffn",
    "mlp",
    "post_attention_layernorm",
    inputs=("gate_proj", "up_proj"),
    output="down_proj",
    activation="act_fn",
)


class TextModel(NamedTuple):
    """The structure of a language model.

    Args:
        form: "decoder", or "coattention": two modalities, each with layers of its own, that read each other (METER).
        sides: names of the lists of its layers, the text's first.
        branches: of every layer, in order.
        post_norm: whether norms come after the residuals (METER).
        poolers: names of the modules before the head; they are new after pretraining.
        parallel: whether attention and FFN read the same n, and both are added to the same x.
        norms: what norms multiply ``x / rms(x)`` by: "weight", after it was rounded; "wide weight", in float32; or
            "1 + weight", in float32.
        epsilon: name of a norm's epsilon.
        multiplier: name of rho in the layer; None where it is 1.
        after: whether a layer ends with ``lam * (x + PLE(x))`` (Gemma 4).
        more: names of other modules that layers may have: what some layers have in place of attention, and PLE.
        beside: names of linear maps beside the layers, through which every token goes.
        shares_keys: whether an attention may read the keys and values of an earlier one (Gemma 4).
        reads_keys: whether the language model asks every layer how many keys it has, skipped or not, and the first
            layer with keys for the length of the text, which therefore keeps its attention (Mllama).
        foreign: names of arguments of a layer that its attention does not take.
        final: name of the norm before the head.
        whole: whether only the whole model gives its logits. Else they are those of blocks, final norm and head, called
            one after the other: nothing is added between the layers, which are alike, and logits are not scaled.
        prompts: which prompt methods fit. "tokens": all; keys are the rotated ``k_proj`` of a token. "keys": those that
            train keys and values, as keys are also normalised, scaled or rotated otherwise. "none": none.
        refused: options of the configuration with which a model is built otherwise, and how.
        uncompiled: why decode steps cannot be compiled over a static cache; None where they can.
    """

    form: str = "decoder"
    sides: tuple[str, ...] = ("layers",)
    branches: tuple[Branch, ...] = (MHA, FFN)
    post_norm: bool = False
    poolers: tuple[str, ...] = ()
    parallel: bool = False
    norms: Literal["weight", "wide weight", "1 + weight"] = "weight"
    epsilon: str = "variance_epsilon"
    multiplier: str | None = None
    after: bool = False
    more: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    shares_keys: bool = False
    reads_keys: bool = False
    foreign: tuple[str, ...] = ()
    final: str = "norm"
    whole: bool = False
    prompts: Literal["tokens", "keys", "none"] = "keys"
    refused: tuple[tuple[str, str], ...] = ()
    uncompiled: str | None = None

    @property
    def mha(self) -> Branch:
        """A decoder layer's attention."""
        return self.branches[0]

    @property
    def ffn(self) -> Branch:
        """A decoder layer's FFN."""
        return self.branches[-1]


def decoder(mha: dict[str, Any] | None = None, ffn: dict[str, Any] | None = None, **terms: Any) -> TextModel:
    """Llama's blocks with other terms: those of the attention's branch, of the FFN's, and of the layer.

    Example:
        >>> decoder(ffn={"body": "feed_forward"}).ffn.body
        'feed_forward'
    """
    return TextModel(branches=(MHA._replace(**(mha or {})), FFN._replace(**(ffn or {}))), **terms)


LLAMA = decoder(prompts="tokens")
QWEN3 = decoder()
SANDWICH: dict[str, Any] = {
    "mha": {"behind": "post_attention_layernorm"},
    "ffn": {"norm": "pre_feedforward_layernorm", "behind": "post_feedforward_layernorm"},
}
FUSED_FFN: dict[str, Any] = {"inputs": ("gate_up_proj",), "activation": "activation_fn"}
GEMMA: dict[str, Any] = {"norms": "1 + weight", "epsilon": "eps", "whole": True}
PHI = decoder(
    {"inputs": ("qkv_proj",), "behind": "resid_attn_dropout"},
    {**FUSED_FFN, "behind": "resid_mlp_dropout"},
    prompts="none",
)
GLM = decoder(
    {"behind": "post_self_attn_layernorm"}, {**FUSED_FFN, "behind": "post_mlp_layernorm"}, whole=True, prompts="none"
)
COHERE = decoder(ffn={"norm": "input_layernorm"}, parallel=True, whole=True)
OLMO2 = decoder(
    {"norm": None, "behind": "post_attention_layernorm"}, {"norm": None, "behind": "post_feedforward_layernorm"}
)
GRANITE = decoder(multiplier="residual_multiplier", whole=True)
MOLMO = decoder(refused=(("norm_after", "norms behind attention and FFN"),))
GEMMA4 = decoder(
    **SANDWICH,
    norms="wide weight",
    epsilon="eps",
    after=True,
    more=("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm"),
    beside=("per_layer_model_projection",),
    shares_keys=True,
    whole=True,
    prompts="none",
    refused=(("enable_moe_block", "experts beside its FFN, which read the stream itself"),),
)
QWEN3_5 = decoder(**GEMMA, more=("linear_attn",), prompts="none")
LFM2 = decoder(
    {"norm": "operator_norm", "output": "out_proj"},
    {"body": "feed_forward", "norm": "ffn_norm", "inputs": ("w1", "w3"), "output": "w2", "activation": None},
    more=("conv",),
    final="embedding_norm",
    whole=True,
    prompts="none",
)
MLLAMA = decoder(
    more=("cross_attn",),
    reads_keys=True,
    foreign=("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"),
    whole=True,
    prompts="none",
    uncompiled="reads the length of the text from its keys, which a static cache makes as long as itself",
)
METER = TextModel(
    "coattention",
    ("cross_modal_text_layers", "cross_modal_image_layers"),
    (
        Branch("mha", "self_attn", "self_attn_norm"),
        Branch("mha", "cross_attn", "cross_attn_norm", across=True),
        Branch("ffn", "mlp", "mlp_norm", inputs=("up_proj",), output="down_proj"),
    ),
    post_norm=True,
    poolers=("token_type_embeddings", "cross_modal_text_pooler", "cross_modal_image_pooler"),
    prompts="tokens",
)

TEXT_MODELS: dict[str, TextModel] = {
    "LlamaModel": LLAMA,
    "MistralModel": LLAMA,
    "Qwen2Model": LLAMA,
    "Qwen2VLTextModel": LLAMA,
    "Qwen2_5_VLTextModel": LLAMA,
    "Qwen2_5OmniThinkerTextModel": LLAMA,
    "SeedOssModel": LLAMA,
    "Ministral3Model": QWEN3,
    "Qwen3Model": QWEN3,
    "Qwen3VLTextModel": decoder(whole=True),
    "SmolLM3Model": QWEN3,
    "Ernie4_5Model": QWEN3,
    "PaddleOCRTextModel": QWEN3,
    "HunYuanVLTextModel": QWEN3,
    "Molmo2TextModel": MOLMO,
    "GemmaModel": decoder(**GEMMA),
    "Gemma2Model": decoder(**SANDWICH, **GEMMA),
    "Gemma3TextModel": decoder(**SANDWICH, **GEMMA),
    "Gemma4TextModel": GEMMA4,
    "Gemma4UnifiedTextModel": GEMMA4._replace(
        refused=(),
        uncompiled="reads images otherwise with a static cache, in both directions in layers with a window only",
    ),
    "Glm4Model": GLM,
    "Glm4vTextModel": GLM,
    "Phi3Model": PHI,
    "Phi4MultimodalModel": PHI._replace(uncompiled="looks for image tokens in every step"),
    "GraniteModel": GRANITE,
    "Granite4VisionTextModel": GRANITE,
    "CohereModel": COHERE,
    "Cohere2Model": COHERE,
    "Olmo2Model": OLMO2,
    "Olmo3Model": OLMO2,
    "Exaone4Model": OLMO2,
    "Exaone4_5_Model": OLMO2,
    "Lfm2Model": LFM2,
    "MllamaTextModel": MLLAMA,
    "Qwen3_5TextModel": QWEN3_5,
    "Qwen3_5MoeTextModel": QWEN3_5,
    "Qwen3MoeModel": QWEN3,
    "MixtralModel": QWEN3,
    "Qwen3VLMoeTextModel": decoder(whole=True),
    "Qwen3OmniMoeThinkerTextModel": decoder(whole=True),
    "Glm4vMoeTextModel": decoder(whole=True, prompts="none"),
    "Llama4TextModel": decoder(
        ffn={"body": "feed_forward", "activation": "activation_fn"}, epsilon="eps", whole=True, prompts="none"
    ),
    "MeterModel": METER,
}
"""By class."""
