"""A numeric check of an installation: cached decoding against the whole forward, on a tiny random model of one class.

An error in the way of the cache leaves every single forward pass right, and decoding wrong without a word. On a model
whose adapters are zero it cannot be seen, so all weights of the twin are random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from eas.config import ConfigError
from eas.hf.api import attention_implementation, set_attention_implementation
from eas.hf.versions import TransformersChangedError

TOLERANCE = 1e-4
"""Largest relative deviation that is rounding: right installations stay below 1e-6, wrong ones above 3e-3."""
NEW_TOKENS = 4
VOCABULARY = 64
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "dtype": None,
}
MORE: dict[str, Any] = {
    "cross_attention_layers": [],  # of Mllama; its twin reads no image
    "num_kv_shared_layers": 0,  # of Gemma 4
    "vocab_size_per_layer_input": VOCABULARY,
    "per_layer_config": {},
}
"""Of what only some families have."""
TOWER = {name: TEXT[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
TOWER |= {"num_hidden_layers": 1, "num_blocks": 1}
"""Of towers inside of a language model (Phi-4-multimodal), which no text goes through."""
ROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [2, 1, 1],  # Qwen-VL's
    "llama_4_scaling_beta": 0.1,  # Ministral 3's
    "original_max_position_embeddings": 8,
}
"""What the rotary embeddings of any family read."""


def deviation(cls: type, config: Any, text_path: str, prepare: Callable[[Any], None]) -> float:
    """How far cached decoding of a twin is from its whole forward pass, relative to the logits' norm.

    Args:
        cls: the model's class, with its head.
        config: the model's configuration; the twin's is a small one of the same kind.
        text_path: where the model keeps its language model. Other parts of the twin hold no weights.
        prepare: attaches the method to the twin, and skips something of block 0.

    Raises:
        TransformersChangedError: the twin cannot be built, or does not run.
        ConfigError: the method refuses the model.
    """
    with _trying(cls):
        model = _twin(cls, config, text_path)
        prepare(model)
        _randomise(model)
        return _decoding_error(model.eval())


def unlike_base(cls: type, config: Any, text_path: str, prepare: Callable[[Any], None]) -> float:
    """How far a method takes the logits of a twin from those of before, relative to their norm.

    Args:
        cls, config, text_path: as for ``deviation``.
        prepare: attaches the method to the twin, untrained.

    Raises:
        TransformersChangedError: the twin cannot be built, or does not run.
    """
    with _trying(cls):
        model = _twin(cls, config, text_path)
        _randomise(model)
        ids = torch.arange(1, 15).reshape(2, 7)
        before = model.eval()(input_ids=ids).logits
        prepare(model)
        return float((model(input_ids=ids).logits - before).norm() / before.norm())


@contextmanager
def _trying(cls: type) -> Iterator[None]:
    """Within it random numbers, devices and precision are the twin's own, and an error names the class."""
    no_autocast = torch.autocast("cpu", enabled=False)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad(), no_autocast:
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs, which are not forked
        try:
            yield
        except (TransformersChangedError, ConfigError):  # a ConfigError is about what was asked for
            raise
        except Exception as error:  # of whatever kind; a wrong number would have been the alternative
            why = f"{type(error).__name__}: {error}"
            raise TransformersChangedError(f"a tiny random {cls.__name__} does not run ({why})") from error


def _twin(cls: Any, config: Any, text_path: str) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    for name, value in TEXT.items():
        setattr(text, name, value)
    given = text.to_dict()
    for name in MORE.keys() & given.keys():
        setattr(text, name, MORE[name])
    for tower in text.sub_configs:
        for name in TOWER.keys() & given[tower].keys():
            setattr(getattr(text, tower), name, TOWER[name])
    if (kinds := given.get("layer_types")) is not None:
        text.layer_types = _few(kinds)
        text.num_hidden_layers = len(text.layer_types)
    by_kind = given.get("rope_parameters") or {}
    turned = {kind for kind, value in by_kind.items() if isinstance(value, dict)}
    text.rope_parameters = {kind: dict(ROPE) for kind in turned} or dict(ROPE)
    own = attention_implementation(text)
    set_attention_implementation(config, "eager")  # not every vision tower has another
    with torch.device("meta"):
        model = cls(config)
    language_model = model.get_submodule(text_path)
    fused = own != "eager" and type(language_model)._supports_sdpa
    set_attention_implementation(text, "sdpa" if fused else "eager")
    model.set_submodule(text_path, type(language_model)(text))
    model.set_output_embeddings(nn.Linear(text.hidden_size, VOCABULARY, bias=False))
    for module in model.modules():  # what no text goes through
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.is_meta:
                setattr(module, name, nn.Parameter(torch.empty(0)) if name in module._parameters else torch.empty(0))
    model.generation_config = GenerationConfig(pad_token_id=0, suppress_tokens=_special(config))
    return model


def _few(kinds: list[str]) -> list[str]:
    """Of the kinds of a model's layers: its first attention, one of each other kind, its last attention."""
    attention = [kind for kind in kinds if kind.endswith("attention") and kind != "linear_attention"]
    others = dict.fromkeys(kind for kind in kinds if kind not in attention)
    return [attention[0], *others, attention[-1]]


def _special(config: Any) -> list[int]:
    """Tokens that stand for something else than text."""
    ids = [value for name, value in config.to_dict().items() if name.endswith("_token_id")]
    return [0, *(i for i in ids if isinstance(i, int) and 0 < i < VOCABULARY)]


def _randomise(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        around = 1.0 if parameter.ndim == 1 and "norm" in name else 0.0
        parameter.copy_(around + 0.3 * torch.randn(parameter.shape).to(parameter))


def _decoding_error(model: Any) -> float:
    plain = torch.tensor([i for i in range(VOCABULARY) if i not in model.generation_config.suppress_tokens])
    ids = plain[torch.randint(len(plain), (2, 7))]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    labels = out.sequences.clone()
    labels[:, : ids.shape[1]] = -100
    mask = torch.cat([mask, torch.ones_like(labels[:, ids.shape[1] :])], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # as generate counts them; not all families turn by distance alone
    out_of_whole = model(input_ids=out.sequences, attention_mask=mask, position_ids=positions, labels=labels)
    whole = out_of_whole.logits[:, ids.shape[1] - 1 : -1]
    return float((torch.stack(out.logits, 1) - whole).norm() / whole.norm())
