"""Effective Attention Skipping: adapt a multimodal LLM to a task and make it faster (arXiv 2403.15226).

The names below are imported when they are first used: torch and transformers take seconds to load.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from eas.hf.versions import check as _check

if TYPE_CHECKING:
    from eas.checkpoint import CheckpointError, load, save
    from eas.config import ConfigError
    from eas.decoding import fast_decode
    from eas.likelihood import log_likelihood
    from eas.measure.count import Counts, count
    from eas.measure.latency import Latency, benchmark
    from eas.methods import METHODS, method_config
    from eas.methods.eas import EASConfig
    from eas.models.anatomy import UnsupportedModelError
    from eas.quantised import QuantisedFold, fold_quantised
    from eas.router import FrozenRouter, freeze_router
    from eas.searching import SearchConfig, SearchResult, make_rule
    from eas.standalone import merge_and_save
    from eas.surgery import attach, attached, disabled, fold, prune, select, skip_set, unfold
    from eas.training import EASTrainer, WithPromptMask

_check()

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "CheckpointError",
    "ConfigError",
    "Counts",
    "EASConfig",
    "EASTrainer",
    "FrozenRouter",
    "Latency",
    "QuantisedFold",
    "SearchConfig",
    "SearchResult",
    "UnsupportedModelError",
    "WithPromptMask",
    "attach",
    "attached",
    "benchmark",
    "count",
    "disabled",
    "fast_decode",
    "fold",
    "fold_quantised",
    "freeze_router",
    "load",
    "log_likelihood",
    "make_rule",
    "merge_and_save",
    "method_config",
    "prune",
    "save",
    "select",
    "skip_set",
    "unfold",
]

_NAMES = {
    "checkpoint": "CheckpointError load save",
    "config": "ConfigError",
    "decoding": "fast_decode",
    "likelihood": "log_likelihood",
    "measure.count": "Counts count",
    "measure.latency": "Latency benchmark",
    "methods": "METHODS method_config",
    "methods.eas": "EASConfig",
    "models.anatomy": "UnsupportedModelError",
    "quantised": "QuantisedFold fold_quantised",
    "router": "FrozenRouter freeze_router",
    "searching": "SearchConfig SearchResult make_rule",
    "standalone": "merge_and_save",
    "surgery": "attach attached disabled fold prune select skip_set unfold",
    "training": "EASTrainer WithPromptMask",
}
"""The imports above once more, for Python: module of eas -> its public names."""

_HOME = {name: f"eas.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eas' has no attribute {name!r}")
    import_module("eas.standalone")  # the Auto classes of transformers know our model types from here on
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "transformers" in sys.modules:  # its Auto classes may be the next that is used
    import_module("eas.standalone")
