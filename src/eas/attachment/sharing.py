"""Variants of a base that share its weights, so that many of them fit into memory; for timing and counting."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from eas.attachment.attach import attach, prune, select
from eas.attachment.state import candidates
from eas.config import MethodConfig, SkipConfig


def attached_copy(base: Any, config: MethodConfig, skip_set: Sequence[int], pruned: bool = True) -> Any:
    """A copy of a base with an untrained method. All weights of the base are shared, the method's are in its dtype.

    Do not train the copy, and do not merge trained weights into it: both write to the base.

    Args:
        base: in evaluation mode; on the meta device too.
        config: of the method; its ``num_skip`` is replaced by the number of skipped candidates.
        skip_set: the candidates that the copy skips; empty for a method that skips nothing.
        pruned: whether the copy is pruned.
    """
    own = {id(parameter): parameter for parameter in base.parameters()}
    model = copy.deepcopy(base, own)
    attach(model, replace(config, num_skip=len(skip_set)) if isinstance(config, SkipConfig) else config)
    for parameter in model.parameters():
        if id(parameter) not in own:
            parameter.data = parameter.data.to(base.dtype)
    select(model, skip_set)
    if pruned and candidates(model):
        prune(model)
    return model.eval()
