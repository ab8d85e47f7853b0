"""Training: the search and tune phases."""

from eas.training.prompt_mask import WithPromptMask
from eas.training.trainer import EASTrainer, Phase, last_checkpoint

__all__ = ["EASTrainer", "Phase", "WithPromptMask", "last_checkpoint"]
