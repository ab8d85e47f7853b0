"""``EASTrainer``: a ``transformers.Trainer`` that searches or tunes, and checkpoints the adapter, not the model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from eas.checkpoint import CheckpointError, load_into, save
from eas.distributed import from_all, from_main, is_main
from eas.files import writing
from eas.quantised import keep_gradients
from eas.records import raised_as
from eas.search import SearchConfig, SearchPhase, SearchResult
from eas.search.base import SkipSet
from eas.search.scoring import answers, score_sets
from eas.surgery import attachment
from eas.training import sharded
from eas.training.resuming import PARTIAL, REMEDY, check_checkpoint, last_checkpoint

Phase = Literal["search", "tune"]


class EASTrainer(Trainer):  # type: ignore[misc]
    """Trains the PIAs of an attached model.

    In the search phase every step trains under a sampled skip set, and rounds score sets on held-out examples;
    afterwards ``search_result()`` holds the skip set. In the tune phase the selected set stays fixed. Checkpoints hold
    the adapter, the search's state, optimizer, scheduler and random states, so that
    ``train(resume_from_checkpoint=...)`` goes on exactly.

    Args:
        model: an attached model.
        args: ``transformers.TrainingArguments``.
        phase: "search" or "tune".
        search: settings of the search phase.
        held_out: examples for the search's rounds, not trained on.
        kwargs: everything else a ``Trainer`` takes (``train_dataset``, ``data_collator``, ``callbacks``, ...).

    Raises:
        ValueError: the model is not attached, or is folded; or rounds cannot be scored in ``search.score_dtype``; or
            the method cannot be trained under the given parallelism.
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        phase: Phase = "tune",
        search: SearchConfig | None = None,
        held_out: Sequence[Any] = (),
        **kwargs: Any,
    ) -> None:
        if phase not in ("search", "tune"):
            raise ValueError(f"phase {phase!r} is unknown; use 'search' or 'tune'")
        state = attachment(model)
        if state.fold_mode is not None:
            raise ValueError("the model is folded; call unfold(model) before training")
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end is not supported; call eas.checkpoint.load_into(model, checkpoint)"
            )
        args.remove_unused_columns = False  # the collator reads whole examples
        if args.ddp_find_unused_parameters is None:  # unless pruned, PIAs without use; the projector's, without images
            args.ddp_find_unused_parameters = not state.pruned or state.config.train_projector
        known = vars(model).pop("_hf_peft_config_loaded", False)
        model._hf_peft_config_loaded = True  # Trainer wants adapters on a quantised base, and knows of PEFT's only
        super().__init__(model=model, args=args, **kwargs)
        model._hf_peft_config_loaded = known
        keep_gradients(model)
        if self.is_fsdp_enabled:
            sharded.prepare(model, self.accelerator.state.fsdp_plugin)
            if search is not None and not search.train:
                raise ValueError("search.train = False under FSDP, which shards what it trains; search with DDP")
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError("DeepSpeed ZeRO 3 is not supported, it hides the weights; use FSDP2, or ZeRO 2")
        self.search_phase: SearchPhase | None = None
        self.score_dtype = search.score_dtype if search is not None else None
        if phase == "search":
            if self.score_dtype is not None and args.fp16:
                raise ValueError("fp16 training scores in fp16; leave search.score_dtype = null")
            self.search_phase = SearchPhase(model, search or SearchConfig(), held_out, self.score)
            self.add_callback(self.search_phase)

    def search_result(self) -> SearchResult:
        """What the search phase found.

        Raises:
            ValueError: this is a tune phase.
        """
        if self.search_phase is None:
            raise ValueError("this trainer tunes; search_result belongs to phase='search'")
        return self.search_phase.result()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer``'s; a checkpoint is read as a whole first, and True passes over broken ones with a note.

        Raises:
            CheckpointError: the checkpoint is damaged; or True, and there is none that is whole.
        """
        searching = self.search_phase is not None
        if resume_from_checkpoint is True:
            found = last_checkpoint(self.args.output_dir, searching) if is_main() else None
            if (resume_from_checkpoint := from_main(found)) is None:
                raise CheckpointError(f"{self.args.output_dir} holds no whole checkpoint; start over without one")
        elif resume_from_checkpoint:
            with raised_as(CheckpointError):
                check_checkpoint(Path(resume_from_checkpoint), searching)
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss.item()} at step {self.state.global_step}; the last checkpoint in "
                f"{self.args.output_dir} is intact. Lower learning_rate or train in float32"
            )
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if self.search_phase is not None and self.search_phase.rounds:
            losses = self.search_phase.rounds[-1].losses
            logs = {**logs, "held_out_loss": sum(losses) / len(losses)}
        super().log(logs, *args, **kwargs)

    def score(self, skip_sets: list[SkipSet], examples: list[Any]) -> list[float]:
        """Mean loss of each skip set over these examples, which the processes share; the model is left under the last.

        Of several processes all must call it.
        """
        was_training = self.model.training
        self.model.eval()
        share = examples[self.args.process_index :: self.args.world_size]
        inputs = self._prepare_inputs(self.data_collator(share or examples[:1]))  # FSDP gathers from all processes
        weight = answers(self.model, inputs) if share else 0
        own = self.score_dtype is None
        with self.accelerator.autocast() if own else torch.autocast(self.args.device.type, torch.bfloat16):
            losses = score_sets(self.model, inputs, skip_sets)
        self.model.train(was_training)
        shares = from_all((weight, losses))
        total = sum(weight for weight, _ in shares)
        return [sum(weight * losses[i] for weight, losses in shares) / total for i in range(len(skip_sets))]

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        sharded.keep_class_names(self.model)
        if resume_from_checkpoint is not None and self.search_phase is not None:
            self.search_phase.load(Path(resume_from_checkpoint))
        return prepared

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:  # Trainer would go one step beyond a last checkpoint
            super()._run_epoch(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.control.should_log |= self.control.should_save  # a running mean must not span a checkpoint
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes it aside and renames it as a whole: what bears a checkpoint's name is complete.

        Raises:
            WriteError: it cannot be written; those before it are intact.
        """
        folder, name = Path(self.args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if is_main():
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)  # a killed process's
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(folder / PARTIAL)
        try:
            with writing(folder):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if is_main():
                    shutil.rmtree(folder / name, ignore_errors=True)
                    os.replace(folder / PARTIAL / name, folder / name)
        finally:
            self.args.output_dir = str(folder)
            if is_main():
                shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        best = f"{folder / PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        self.state.best_model_checkpoint = None  # was looked for in the folder aside
        if is_main():
            rotate_checkpoints(str(folder), self.args.save_total_limit, best, use_mtime=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.is_fsdp_enabled:
            self._save(output_dir)  # gathers what is trained, and nothing else
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        save(self.model, folder)
        if self.search_phase is not None and is_main():
            self.search_phase.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        sharded.keep_class_names(self.model)
        load_into(self.model, resume_from_checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        sharded.save_optimizer(self.optimizer, Path(output_dir) / OPTIMIZER_NAME)
        if is_main():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            try:
                super()._load_optimizer_and_scheduler(checkpoint)
            except (ValueError, KeyError) as error:  # of other parameter groups
                raise CheckpointError(
                    f"{checkpoint}: its optimizer is of another training ({error}); {REMEDY}"
                ) from error
            return
        sharded.load_optimizer(self.optimizer, Path(checkpoint) / OPTIMIZER_NAME)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
