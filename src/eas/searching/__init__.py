"""The search for attentions that a task does not need: rules that learn from losses, and the phase that runs them."""

from eas.searching.fixed import FIXED, similarity_ranking
from eas.searching.phase import Round, SearchConfig, SearchPhase, SearchResult
from eas.searching.rules import RULES, Rule, make_rule, random_skip_set

__all__ = [
    "FIXED",
    "RULES",
    "Round",
    "Rule",
    "SearchConfig",
    "SearchPhase",
    "SearchResult",
    "make_rule",
    "random_skip_set",
    "similarity_ranking",
]
