"""The prompt mask as part of the batch, for trainers that call the language model without its head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eas.hf.prompt import prompt_tokens, require_prompt


@dataclass(frozen=True)
class WithPromptMask:
    """Adds ``prompt_mask`` to a collator's batch: True on the tokens before the first answer token, without padding.

    TRL's ``SFTTrainer`` fuses the head into the loss and keeps the labels from the model, which then could not tell the
    prompt: ``trainer.data_collator = WithPromptMask(trainer.data_collator)``. Our ``Collator`` adds the mask itself.

    Args:
        collator: returns a batch with ``labels`` and ``attention_mask``, each ``(batch, tokens)``.

    Raises:
        ValueError: when called, a row of the batch has no prompt token; the message says which rows TRL masks. Or the
            batch has no labels, or no attention mask.

    Example:
        >>> import eas
        >>> import torch
        >>> row = {"labels": torch.tensor([[-100, -100, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
        >>> eas.WithPromptMask(lambda rows: dict(row))([])["prompt_mask"].tolist()
        [[True, True, False]]
    """

    collator: Callable[[list[Any]], dict[str, Any]]

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = self.collator(examples)
        if missing := [name for name in ("labels", "attention_mask") if name not in batch]:
            raise ValueError(
                f"the collator returns no {' and no '.join(missing)}, so the prompt cannot be told from the answer and "
                "from padding. Turn packing and padding_free off; with DPO, GRPO and others that have no labels, use a "
                "method that does not read the prompt, such as lora"
            )
        batch["prompt_mask"] = prompt_tokens(batch["labels"], batch["attention_mask"])
        require_prompt(batch["prompt_mask"], labelled=True)
        return batch
