"""Effective Attention Skipping: adapt a multimodal LLM to a task and make it faster (arXiv 2403.15226)."""

__version__ = "0.1.0"

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
from eas.search import SearchConfig, SearchResult, make_rule
from eas.standalone import merge_and_save
from eas.surgery import attach, attached, disabled, fold, prune, select, skip_set, unfold
from eas.training import EASTrainer, WithPromptMask

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
