"""Effective Attention Skipping: adapt a multimodal LLM to a task and make it faster (arXiv 2403.15226).

The names below are imported when they are first used: torch and transformers take seconds to load.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from eas.hf.versions import check as _check

if TYPE_CHECKING:
    from eas.attachment.attach import attach, disabled, fold, prune, select, unfold
    from eas.attachment.fast_decode import fast_decode
    from eas.attachment.freeze_router import FrozenRouter, freeze_router
    from eas.attachment.likelihood import log_likelihood
    from eas.attachment.load import load
    from eas.attachment.quantised import QuantisedFold, fold_quantised
    from eas.attachment.save import CheckpointError, save
    from eas.attachment.standalone import merge_and_save
    from eas.attachment.state import attached, skip_set
    from eas.config import ConfigError
    from eas.measure.count import Counts, count
    from eas.measure.latency import Latency, benchmark
    from eas.methods import METHODS, method_config
    from eas.methods.eas import EASConfig
    from eas.models.anatomy import UnsupportedModelError
    from eas.searching import SearchConfig, SearchResult, make_rule
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
    "attachment.attach": "attach disabled fold prune select unfold",
    "attachment.fast_decode": "fast_decode",
    "attachment.freeze_router": "FrozenRouter freeze_router",
    "attachment.likelihood": "log_likelihood",
    "attachment.load": "load",
    "attachment.quantised": "QuantisedFold fold_quantised",
    "attachment.save": "CheckpointError save",
    "attachment.standalone": "merge_and_save",
    "attachment.state": "attached skip_set",
    "config": "ConfigError",
    "measure.count": "Counts count",
    "measure.latency": "Latency benchmark",
    "methods": "METHODS method_config",
    "methods.eas": "EASConfig",
    "models.anatomy": "UnsupportedModelError",
    "searching": "SearchConfig SearchResult make_rule",
    "training": "EASTrainer WithPromptMask",
}
"""The imports above once more, for Python: module of eas -> its public names."""

_HOME = {name: f"eas.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
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
