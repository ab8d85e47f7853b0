"""Training: the search and tune phases."""

from eas.training.prompt_mask import WithPromptMask
from eas.training.resuming import last_checkpoint
from eas.training.trainer import EASTrainer, Phase
from eas.training.without_trainer import search, search_steps

__all__ = ["EASTrainer", "Phase", "WithPromptMask", "last_checkpoint", "search", "search_steps"]
