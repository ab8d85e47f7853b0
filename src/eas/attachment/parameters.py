"""How many parameters of a model are trained."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel


class ParameterCounts(NamedTuple):
    """Numbers of parameters.

    Args:
        trained: that training changes.
        total: of the whole model, with what a method added.

    Example:
        >>> import eas
        >>> eas.ParameterCounts(trained=10, total=1000).trained
        10
    """

    trained: int
    total: int


def parameter_counts(model: PreTrainedModel) -> ParameterCounts:
    """Counts the parameters that require gradients, and all. Of 4-bit weights every weight counts, not every byte.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.LoRAConfig(rank=8))
        >>> eas.parameter_counts(model).trained
        282624
    """
    return ParameterCounts(model.num_parameters(only_trainable=True), model.num_parameters())


def print_trainable_parameters(model: PreTrainedModel) -> None:
    """Prints the numbers of ``parameter_counts`` in one line, in the form of PEFT.

    Example:
        >>> import eas
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.LoRAConfig(rank=8))
        >>> eas.print_trainable_parameters(model)
        trainable params: 282,624 || all params: 3,941,728 || trainable%: 7.1701
    """
    trained, total = parameter_counts(model)
    print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")
