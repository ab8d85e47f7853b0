"""Training: the search and tune phases."""

from eas.training.prompt_mask import WithPromptMask
from eas.training.resuming import last_checkpoint
from eas.training.trainer import EASTrainer, Phase

__all__ = ["EASTrainer", "Phase", "WithPromptMask", "last_checkpoint"]
