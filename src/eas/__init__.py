"""Effective Attention Skipping: adapt a multimodal LLM to a task and make it faster (arXiv 2403.15226).

The names below are imported when they are first used: torch and transformers take seconds to load.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

from eas.hf.versions import check as _check

if TYPE_CHECKING:
    from eas.attachment.attach import attach, fold, prune, select, unfold
    from eas.attachment.families import register_family
    from eas.attachment.fast_decode import fast_decode
    from eas.attachment.freeze_router import FrozenRouter, freeze_router
    from eas.attachment.hub import push_to_hub
    from eas.attachment.likelihood import log_likelihood
    from eas.attachment.load import load
    from eas.attachment.parameters import ParameterCounts, parameter_counts, print_trainable_parameters
    from eas.attachment.quantised import QuantisedFold, fold_quantised
    from eas.attachment.save import CheckpointError, save
    from eas.attachment.several import set_adapter
    from eas.attachment.standalone import save_standalone
    from eas.attachment.state import attached, skip_set
    from eas.attachment.undo import detach, disabled
    from eas.config import ConfigError
    from eas.exported import ExportError
    from eas.exporting.export import explain, export
    from eas.measure.count import Counts, count
    from eas.measure.latency import Latency, benchmark
    from eas.methods import METHODS, method_config
    from eas.methods.adapter import AdapterConfig, ParallelAdapterConfig
    from eas.methods.das import DASConfig
    from eas.methods.drop import DropConfig
    from eas.methods.eas import EASConfig
    from eas.methods.full import FullConfig, HeadConfig
    from eas.methods.lavin_adapter import LavinAdapterConfig
    from eas.methods.llama_adapter import LlamaAdapterConfig
    from eas.methods.lora import LoRAConfig
    from eas.methods.mam import MAMConfig
    from eas.methods.prefix import PrefixConfig
    from eas.methods.prompts import DeepPromptConfig, ShallowPromptConfig
    from eas.models.anatomy import UnsupportedModelError
    from eas.models.visual_tokens import fit_processor, keep_visual_tokens
    from eas.searching import SearchConfig, SearchResult, make_rule
    from eas.training import EASTrainer, WithPromptMask, search

_check()

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "AdapterConfig",
    "CheckpointError",
    "ConfigError",
    "Counts",
    "DASConfig",
    "DeepPromptConfig",
    "DropConfig",
    "EASConfig",
    "EASTrainer",
    "ExportError",
    "FrozenRouter",
    "FullConfig",
    "HeadConfig",
    "Latency",
    "LavinAdapterConfig",
    "LlamaAdapterConfig",
    "LoRAConfig",
    "MAMConfig",
    "ParallelAdapterConfig",
    "ParameterCounts",
    "PrefixConfig",
    "QuantisedFold",
    "SearchConfig",
    "SearchResult",
    "ShallowPromptConfig",
    "UnsupportedModelError",
    "WithPromptMask",
    "attach",
    "attached",
    "benchmark",
    "count",
    "detach",
    "disabled",
    "explain",
    "export",
    "fast_decode",
    "fit_processor",
    "fold",
    "fold_quantised",
    "freeze_router",
    "keep_visual_tokens",
    "load",
    "log_likelihood",
    "make_rule",
    "method_config",
    "parameter_counts",
    "print_trainable_parameters",
    "prune",
    "push_to_hub",
    "register_family",
    "save",
    "save_standalone",
    "search",
    "select",
    "set_adapter",
    "skip_set",
    "unfold",
]

_NAMES = {
    "attachment.attach": "attach fold prune select unfold",
    "attachment.families": "register_family",
    "attachment.fast_decode": "fast_decode",
    "attachment.freeze_router": "FrozenRouter freeze_router",
    "attachment.hub": "push_to_hub",
    "attachment.likelihood": "log_likelihood",
    "attachment.load": "load",
    "attachment.parameters": "ParameterCounts parameter_counts print_trainable_parameters",
    "attachment.quantised": "QuantisedFold fold_quantised",
    "attachment.save": "CheckpointError save",
    "attachment.several": "set_adapter",
    "attachment.standalone": "save_standalone",
    "attachment.state": "attached skip_set",
    "attachment.undo": "detach disabled",
    "config": "ConfigError",
    "exported": "ExportError",
    "exporting.export": "explain export",
    "measure.count": "Counts count",
    "measure.latency": "Latency benchmark",
    "methods": "METHODS method_config",
    "methods.adapter": "AdapterConfig ParallelAdapterConfig",
    "methods.das": "DASConfig",
    "methods.drop": "DropConfig",
    "methods.eas": "EASConfig",
    "methods.full": "FullConfig HeadConfig",
    "methods.lavin_adapter": "LavinAdapterConfig",
    "methods.llama_adapter": "LlamaAdapterConfig",
    "methods.lora": "LoRAConfig",
    "methods.mam": "MAMConfig",
    "methods.prefix": "PrefixConfig",
    "methods.prompts": "DeepPromptConfig ShallowPromptConfig",
    "models.anatomy": "UnsupportedModelError",
    "models.visual_tokens": "fit_processor keep_visual_tokens",
    "searching": "SearchConfig SearchResult make_rule",
    "training": "EASTrainer WithPromptMask search",
}
"""The imports above once more, for Python: module of eas -> its public names."""

_RENAMED = {"merge_and_save": "save_standalone"}
"""Former names, which work until 0.3."""

_HOME = {name: f"eas.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warn(f"eas.{name} is called eas.{_RENAMED[name]}; the former name goes in 0.3", DeprecationWarning, 2)
        return __getattr__(_RENAMED[name])
    if name not in _HOME:
        raise AttributeError(f"module 'eas' has no attribute {name!r}")
    import_module("eas.attachment.standalone")  # the Auto classes of transformers know our model types from here on
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "transformers" in sys.modules:  # its Auto classes may be the next that is used
    import_module("eas.attachment.standalone")
