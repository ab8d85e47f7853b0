"""``save_pretrained`` of an attached model: it writes nothing that the stock class would open with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import nn
from torch.distributed.fsdp import FSDPModule


class AttachedModel(nn.Module):
    """A model with its head and an attached method.

    ``from_pretrained`` of the stock class would drop the method, give random weights to attentions that are gone, and
    only warn. So there is no ``config.json`` for it, and the adapter lies beside the weights.
    """

    config: Any
    generation_config: Any

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes what ``transformers.Trainer`` resumes from (``model.safetensors``), and the adapter (``eas.load``).

        Args:
            save_directory: is created.
            kwargs: of ``PreTrainedModel.save_pretrained``; ``state_dict`` and ``is_main_process`` are used.

        Raises:
            ValueError: the model is sharded, or is to be pushed to the Hub.
        """
        if self.config.model_type.startswith("eas_"):  # a standalone folder's class knows how
            super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
            return
        if isinstance(self, FSDPModule):
            raise ValueError("save_pretrained cannot gather a sharded model; train it with EASTrainer, or use eas.save")
        if kwargs.get("push_to_hub"):
            raise ValueError("save_pretrained(push_to_hub=True): call model.push_to_hub(...) instead")
        if not kwargs.get("is_main_process", True):
            return
        from eas.checkpoint import save  # which reads what attach left, and so comes after it

        folder = Path(save_directory)
        save(self, folder)
        (folder / "config.json").unlink(missing_ok=True)  # of a base that lay there
        state = kwargs.get("state_dict") or self.state_dict()
        save_torch_state_dict(state, folder, max_shard_size=kwargs.get("max_shard_size", "50GB"))
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
