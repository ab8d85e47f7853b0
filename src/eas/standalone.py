"""Standalone folders: a pruned, tuned model that opens without its base.

``merge_and_save`` writes them; ``eas.load(folder)`` or, after ``import eas.standalone``,
``AutoModel....from_pretrained(folder)`` opens them. Their model type (``eas_llava``, ...) and their weight files
(``model.eas.safetensors``) have names of their own: the stock class would fill the skipped attentions with random
weights and only warn, so it must find neither.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import safetensors
from transformers import AutoConfig, PreTrainedModel

from eas.checkpoint import CheckpointError
from eas.methods import method_config
from eas.models.anatomy import COATTENTION, FAMILIES, auto_class, model_class
from eas.surgery import attach, attachment, candidates, prune, select, skip_set

VARIANT = "eas"
FLOAT32 = ["skip_pia", "adapt_pia", "ffn_pia", "adapter", "skip_adapter", "lora_A", "lora_B", "prompt"]
FLOAT32 += ["modality_token", "prefix"]
"""Modules that methods add, which stay float32 whatever dtype the folder is opened in."""


def merge_and_save(model: PreTrainedModel, folder: str | Path) -> None:
    """Writes the pruned model with its PIAs as one self-describing folder; the model itself is left as it is.

    Raises:
        ValueError: the model is not attached, not pruned (``prune`` it first), or folded (``unfold`` it first).
    """
    state = attachment(model)
    if candidates(model) and not state.pruned:
        raise ValueError("prune(model) first: a standalone folder holds no skipped attention")
    if state.fold_mode is not None:
        raise ValueError(
            "unfold(model) first: a standalone folder holds the PIAs themselves, folds are made on loading"
        )
    config = STANDALONE[type(model).__name__].config_class.from_dict(model.config.to_dict())
    config.eas = {"config": state.config.to_dict(), "skip_set": list(skip_set(model))}
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    if model.can_generate():
        names = {"mha": "attention", "ffn": "mlp"}
        skipped = {block.index: sorted(names[part] for part in block.skipped_parts()) for block, _ in candidates(model)}
        config.get_text_config().per_layer_config = {i: {"skip": parts} for i, parts in skipped.items() if parts}
    # the family's own key renames do not apply to eas_ types
    PreTrainedModel.save_pretrained(model, folder, variant=VARIANT, save_original_format=False)
    config.save_pretrained(folder)


def _standalone_class(name: str) -> Any:
    """The class that opens a standalone folder of one family: builds the base, then attaches, selects and prunes."""
    base = model_class(name)

    def __init__(self: Any, config: Any) -> None:
        base.__init__(self, config)
        attach(self, method_config(config.eas["config"]))
        select(self, config.eas["skip_set"])
        if candidates(self):
            prune(self)
        self.eas.fingerprint = None  # the weights are yet to come

    def from_pretrained(cls: Any, /, folder: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        load = super(STANDALONE[name], cls).from_pretrained
        try:
            model, info = load(
                folder, *args, variant=VARIANT, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{folder} is truncated or damaged ({error}); copy or write it again") from error
        # transformers fills what is missing or does not fit with random values and only warns
        if wrong := {kind: keys for kind, keys in info.items() if keys}:
            raise CheckpointError(f"{folder} is not a complete standalone folder: {wrong}; write it again")
        return (model, info) if output_loading_info else model

    def save_pretrained(self: Any, folder: Any, **kwargs: Any) -> None:
        base.save_pretrained(self, folder, **{"variant": VARIANT, **kwargs})

    body = {
        "__init__": __init__,
        "from_pretrained": classmethod(from_pretrained),
        "save_pretrained": save_pretrained,
        "config_class": _config_class(base.config_class),
        "_keep_in_fp32_modules_strict": [*FLOAT32, *(base._keep_in_fp32_modules_strict or ())],
        "__module__": __name__,  # where pickle finds it
    }
    return type(name, (base,), body)


@cache
def _config_class(base: Any) -> Any:
    """One for all heads of a family."""
    return type(f"EAS{base.__name__}", (base,), {"model_type": f"eas_{base.model_type}", "__module__": __name__})


STANDALONE: dict[str, Any] = {name: _standalone_class(name) for name in (*FAMILIES, *COATTENTION)}

for _class in STANDALONE.values():
    globals()[_class.__name__] = _class
    globals()[_class.config_class.__name__] = _class.config_class
    AutoConfig.register(_class.config_class.model_type, _class.config_class, exist_ok=True)
    auto_class(_class.config_class.model_type).register(_class.config_class, _class)
