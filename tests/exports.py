"""Tiny models to export, and a reader of DeciLM folders that is written from the format's description alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

import eas

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPORTED = {"router": "constant", "pooling": "none", "skip_rank": 8, "adapt_rank": 4}
RUNNING = {**EXPORTED, "pooling": "causal", "decode_pooling": "running"}


def base(family: str = "Llama", **options: Any) -> Any:
    """A random model whose norms are away from one and whose biases are away from zero."""
    torch.manual_seed(0)
    config = getattr(tf, f"{family}Config")(**{**SIZES, **options})
    return shaken(getattr(tf, f"{family}ForCausalLM")(config))


def shaken(model: Any) -> Any:
    """Random norms, biases and modules of methods."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * draw.clamp(-2, 2))
            elif "pia" in name or "lora_" in name or name.endswith("bias"):
                parameter.copy_(0.2 * draw)
    return model.eval()


def tuned(
    family: str = "Llama", skip_set: tuple[int, ...] = (1, 3), config: Any = None, pruned: bool = True, **options: Any
) -> Any:
    """A model with a method whose modules are away from zero; EAS in its residual form by default."""
    config = config or eas.EASConfig(num_skip=len(skip_set), **EXPORTED)
    model = shaken(eas.attach(base(family, **options), config))
    if skip_set:
        eas.select(model, skip_set)
    if pruned and skip_set:
        eas.prune(model)
    return model


def words() -> Any:
    """A tokenizer of bytes that are letters, and a few pairs of them."""
    letters = [*map(chr, range(33, 127)), "Ġ"]
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *letters])}
    merges = [("Ġ", "t"), ("h", "e"), ("Ġ", "c"), ("i", "s"), ("a", "n"), ("an", "c")]
    vocab |= {"".join(pair): len(vocab) + i for i, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template="{{ messages }}"
    )


def llama2_words() -> Any:
    """The same in the manner of Llama 2: spaces are letters, and bytes stand in for letters that it has not."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127))]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "s"), ("▁", "F"), ("▁", "c"), ("a", "n")]
    vocab |= {"".join(pair): len(vocab) + i for i, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def read_decilm(folder: Path, ids: list[int]) -> Tensor:
    """Log-probabilities after each token, ``(tokens, vocab)``, as a DeciLM engine computes them from the files."""
    config = json.loads((folder / "config.json").read_text())
    w = {name.removeprefix("language_model."): t.float() for name, t in load_file(folder / "model.safetensors").items()}
    config = config.get("text_config", config)
    head, heads = config["head_dim"], config["num_attention_heads"]
    frequencies = config["rope_theta"] ** (-torch.arange(0, head, 2) / head)
    angles = torch.outer(torch.arange(len(ids)).float(), frequencies)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * w[f"{name}.weight"]

    def linear(x: Tensor, name: str, biased: bool) -> Tensor:
        return x @ w[f"{name}.weight"].T + (w[f"{name}.bias"] if biased else 0)

    def turned(x: Tensor) -> Tensor:  # a number of the first half and one of the second are a point in the plane
        point = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat([point.real, point.imag], -1)

    x = w["model.embed_tokens.weight"][ids]
    for i, block in enumerate(config["block_configs"]):
        at, attention = f"model.layers.{i}", block["attention"]
        if not attention["no_op"]:
            n = norm(x, f"{at}.input_layernorm")
            q, k, v = (
                linear(n, f"{at}.self_attn.{part}_proj", config["qkv_bias"]).unflatten(-1, (-1, head)) for part in "qkv"
            )
            q, k, out = turned(q), turned(k), []
            for h in range(heads):
                scores = q[:, h] @ k[:, h // attention["n_heads_in_group"]].T / head**0.5
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
                out.append(scores.softmax(-1) @ v[:, h // attention["n_heads_in_group"]])
            x = x + linear(torch.cat(out, -1), f"{at}.self_attn.o_proj", config["attention_bias"])
        n, wide = (
            norm(x, f"{at}.post_attention_layernorm"),
            int(2 * block["ffn"]["ffn_mult"] * config["hidden_size"] / 3),
        )
        gate, up = (linear(n, f"{at}.mlp.{part}_proj", config["mlp_bias"]) for part in ("gate", "up"))
        assert gate.shape[-1] == -(-wide // 256) * 256
        x = x + linear(gate * gate.sigmoid() * up, f"{at}.mlp.down_proj", config["mlp_bias"])
    top = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return linear(norm(x, "model.norm"), top, False).log_softmax(-1)


def require_expected(log_probs: Tensor, want: dict[str, Any], within: float = 1e-3) -> None:
    """Compares log-probabilities after the prompt's last token and each expected one, ``(24, vocab)``."""
    assert len(log_probs) == len(want["tokens"]) == 24
    found = log_probs.gather(1, torch.tensor(want["likeliest"]))
    assert (found - torch.tensor(want["log_probs"])).abs().max() < within
    free = log_probs.clone()
    free[:, SIZES["eos_token_id"]] = -torch.inf
    assert free.argmax(-1).tolist() == want["tokens"]
