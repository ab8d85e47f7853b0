"""``transformers.Trainer``; the private methods that eas changes have eas's own names here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals as random_states
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

__all__ = [
    "INTEGRATION_TO_CALLBACK",
    "OPTIMIZER_NAME",
    "PREFIX_CHECKPOINT_DIR",
    "SCHEDULER_NAME",
    "TRAINER_STATE_NAME",
    "OpenTrainer",
    "checkpoint_activations",
    "get_available_reporting_integrations",
    "random_states",
]


class OpenTrainer(Trainer):  # type: ignore[misc]
    """A trainer whose subclass writes and reads the checkpoints.

    It never trains beyond its last step, and logs whenever it saves.
    """

    by_tokens = False
    label_smoother: Any

    def __init__(self, model: Any, args: Any, **kwargs: Any) -> None:
        known = vars(model).pop("_hf_peft_config_loaded", False)
        model._hf_peft_config_loaded = True  # Trainer wants adapters on a quantised base, and knows of PEFT's only
        try:
            super().__init__(model=model, args=args, **kwargs)
        finally:
            model._hf_peft_config_loaded = known

    def prepared(self, checkpoint: str | None) -> None:
        """Called when model and optimizer are ready to train; ``checkpoint`` is the folder to resume from."""

    def order(self) -> Any:
        """The sampler of the training examples; None for ``Trainer``'s."""

    def prepared_inputs(self, inputs: Any) -> Any:
        """Called with every batch, of training and of evaluation; returns what the loss is computed from."""
        return inputs

    def write_checkpoint(self, write: Callable[[], None]) -> None:
        """Writes a checkpoint: ``write`` does it, into a folder in ``args.output_dir``."""
        write()

    def write_weights(self, folder: Path) -> None:
        """Writes the trained weights."""
        raise NotImplementedError

    def read_weights(self, folder: Path) -> None:
        """Reads what ``write_weights`` wrote."""
        raise NotImplementedError

    def write_optimizer(self, folder: Path, write: Callable[[], None]) -> None:
        """Writes the states of optimizer and scheduler; ``write`` does it for states that are not sharded."""
        write()

    def read_optimizer(self, folder: Path, read: Callable[[], None]) -> None:
        """Reads what ``write_optimizer`` wrote."""
        read()

    def weigh_by_tokens(self) -> None:
        """Makes a step's loss the mean over its labels, however they lie in batches and processes, where a model gives
        the mean of a batch (Qwen2.5-VL, Gemma 3, ...)."""
        self.by_tokens = not self.model_accepts_loss_kwargs
        self.model_accepts_loss_kwargs: bool = True  # so ``Trainer`` counts the labels

    def on_device(self, batch: Any) -> Any:
        """A batch where the model is."""
        return self._prepare_inputs(batch)

    def rotate(self) -> None:
        """Deletes checkpoints beyond ``args.save_total_limit``, but never the best one."""
        folder = Path(self.args.output_dir)
        best = f"{folder / PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        rotate_checkpoints(str(folder), self.args.save_total_limit, best, use_mtime=True)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """``Trainer``'s, or see ``weigh_by_tokens``."""
        if not self.by_tokens or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if not (inputs["labels"][:, 1:] != -100).any():  # the mean of nothing is no number
            loss = 0.0 * outputs.logits.sum()
        share = (inputs["labels"] != -100).sum() / num_items_in_batch
        if self.args.average_tokens_across_devices:  # whose gradients are averaged
            share = share * self.accelerator.num_processes
        return (loss * share, outputs) if return_outputs else loss * share

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order() or super()._get_train_sampler(train_dataset)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return self.prepared_inputs(super()._prepare_inputs(inputs))

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self.prepared(resume_from_checkpoint)
        return prepared

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:  # Trainer would go one step beyond a last checkpoint
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.control.should_log |= self.control.should_save  # a running mean must not span a checkpoint
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        parent: Any = super()
        self.write_checkpoint(lambda: parent._save_checkpoint(model, trial))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.is_fsdp_enabled:
            self._save(output_dir)  # gathers what is trained, and nothing else
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.write_weights(Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.read_weights(Path(resume_from_checkpoint))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        parent: Any = super()
        self.write_optimizer(Path(output_dir), lambda: parent._save_optimizer_and_scheduler(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        parent: Any = super()
        if checkpoint is None:
            parent._load_optimizer_and_scheduler(checkpoint)
        else:
            self.read_optimizer(Path(checkpoint), lambda: parent._load_optimizer_and_scheduler(checkpoint))


def checkpoint_activations(model: PreTrainedModel, use_reentrant: bool = False) -> None:
    """Has the blocks computed a second time in the backward pass, to save memory; renamed in transformers 5.24."""
    renamed = "activation_checkpointing_enable" in dir(PreTrainedModel)
    enable = model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
