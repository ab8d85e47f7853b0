"""Full tuning, and tuning the head alone: both train the base's own weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from eas.config import ConfigError, MethodConfig, method_name
from eas.models.anatomy import Anatomy
from eas.models.quantisation import is_quantised


@dataclass
class FullConfig(MethodConfig):
    """The whole language model with its head; the vision tower is not trained, as in LLaVA. METER's towers are tuned
    too.

    Example:
        >>> import eas
        >>> eas.FullConfig().name
        'full'
    """

    name: str = method_name("full")


def attach(model: PreTrainedModel, config: FullConfig) -> None:
    """Trains every parameter of the language model and the head.

    Raises:
        ConfigError: some of them are quantised.
    """
    anatomy = Anatomy.of(model)
    for module in (anatomy.text_model, *anatomy.head):
        if any(is_quantised(part) for part in module.modules()):
            raise ConfigError(
                "method 'full': quantised weights cannot be trained; load the base unquantised, or use 'lora' or 'eas'"
            )
    for module in (anatomy.text_model, *anatomy.head):
        module.requires_grad_(True)


@dataclass
class HeadConfig(MethodConfig):
    """The output head alone; of METER the task's head, the poolers and the token types.

    Example:
        >>> import eas
        >>> eas.HeadConfig().name
        'head'
    """

    name: str = method_name("head")


def attach_head(model: PreTrainedModel, config: HeadConfig) -> None:
    """Trains the head.

    Raises:
        ConfigError: the head shares its weights with the input embeddings.
    """
    head = Anatomy.of(model).head
    if any(p is model.get_input_embeddings().weight for module in head for p in module.parameters()):
        raise ConfigError("method 'head': this model's head is tied to its input embeddings; untie it, or use 'lora'")
    for module in head:
        module.requires_grad_(True)
