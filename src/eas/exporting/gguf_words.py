"""The tokenizer of a GGUF file, from that of transformers."""

from __future__ import annotations

import json
from typing import Any

from eas.exported import ExportError

SPLITS = {
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|": "llama-bpe",
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|": "qwen2",
}
"""A part of the pattern that splits texts before byte pairs are merged -> llama.cpp's name of the whole pattern."""
NORMAL, UNKNOWN, CONTROL, OWN, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def add_words(writer: Any, tokenizer: Any, size: int) -> None:
    """Writes tokens, merges, special tokens and the chat template.

    Args:
        writer: a ``gguf.GGUFWriter``.
        tokenizer: of transformers.
        size: rows of the embedding, which may be more than there are tokens.

    Raises:
        ExportError: llama.cpp has no such tokenizer, or there is none.
    """
    if tokenizer is None:
        raise ExportError("gguf: the file holds the tokenizer, and none was found; give --processor")
    if not tokenizer.is_fast:
        raise ExportError(f"gguf: {type(tokenizer).__name__} has no tokenizer.json; use --to decilm")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise ExportError(f"gguf: the tokenizer is a {model['type']}, and only byte pairs are written; use --to decilm")
    tokens = {index: token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for added in described["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], CONTROL if added["special"] else OWN
    if max(tokens) >= size:
        raise ExportError(f"gguf: the tokenizer has {max(tokens) + 1} tokens, the embedding {size} rows")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(scores(tokens, merges, size))
        kinds |= {i: BYTE for i, token in tokens.items() if len(token) == 6 and token.startswith("<0x")}
        kinds |= {i: UNKNOWN for i, token in tokens.items() if token == tokenizer.unk_token}
        writer.add_add_space_prefix(_prefixes_space(described))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pattern(described["pre_tokenizer"]))
        writer.add_token_merges(merges)
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([kinds.get(i, UNUSED) for i in range(size)])
    for name in ("bos", "eos", "unk", "pad"):
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    writer.add_add_eos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def pattern(pre: Any) -> str:
    """llama.cpp's name of how a text is split before byte pairs are merged.

    Raises:
        ExportError: none of the known names fits.
    """
    parts = [] if pre is None else pre.get("pretokenizers", [pre])
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"] and parts[0]["use_regex"] and not parts[0]["add_prefix_space"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1]["use_regex"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        for part, name in SPLITS.items():
            if part in parts[0]["pattern"].get("Regex", ""):
                return name
    raise ExportError(f"gguf: llama.cpp has no name for this tokenizer's splitting ({kinds}); use --to decilm")


def scores(tokens: dict[int, str], merges: list[str], size: int) -> list[float]:
    """SentencePiece's: the earlier a token is merged, the higher."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault(pair.replace(" ", ""), number)
    return [-float(rank[token]) if (token := tokens.get(i, "")) in rank else 0.0 for i in range(size)]


def _prefixes_space(described: dict[str, Any]) -> bool:
    normalizer = described["normalizer"] or {}
    parts = [*normalizer.get("normalizers", [normalizer]), described["pre_tokenizer"] or {}]
    return any(p.get("type") == "Prepend" or p.get("prepend_scheme") in ("first", "always") for p in parts)
