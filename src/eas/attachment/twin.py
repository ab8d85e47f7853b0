"""Checks every family of an installation: a model that skips must decode the results of its whole forward pass."""

from __future__ import annotations

from eas.attachment.attach import twin_deviation
from eas.hf.twin import TOLERANCE
from eas.methods.eas import EASConfig
from eas.models.anatomy import FAMILIES, model_class

__all__ = ["FAMILIES", "TOLERANCE", "deviation"]


def deviation(family: str) -> float:
    """How far cached decoding is from the whole forward pass, for a tiny random model of a family with EAS.

    Args:
        family: a class of ``eas.models.anatomy.FAMILIES``.

    Returns:
        The difference of the logits, relative to their norm. More than ``TOLERANCE`` is wrong.

    Raises:
        TransformersChangedError: the installed transformers does not even take the cache where eas gives it.

    Example:
        >>> deviation("LlamaForCausalLM") < TOLERANCE
        True
    """
    return twin_deviation(model_class(family), model_class(family).config_class(), _METHOD)


_METHOD = EASConfig(num_skip=1, skip_rank=4, adapt_rank=2)
