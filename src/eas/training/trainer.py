"""``EASTrainer``: a ``transformers.Trainer`` that searches or tunes; its checkpoints hold only the adapter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eas.attachment.load import load_into
from eas.attachment.quantised import keep_gradients
from eas.attachment.save import CheckpointError, save
from eas.attachment.state import attachment, refuse_beside, unfrozen
from eas.distributed import from_all, from_main, is_main
from eas.errors import DataError
from eas.files import writing
from eas.hf.labelled import heads_all, labelled_only
from eas.hf.prompt import PromptedModel, prompt_tokens
from eas.hf.trainer import OPTIMIZER_NAME, PREFIX_CHECKPOINT_DIR, SCHEDULER_NAME, OpenTrainer
from eas.records import raised_as
from eas.searching import SearchConfig, SearchPhase, SearchResult
from eas.searching.base import SkipSet
from eas.searching.scoring import loss_weight, score_sets
from eas.searching.similarity import cosine_sums
from eas.training import sharded
from eas.training.grouping import GroupedByLength
from eas.training.resuming import PARTIAL, REMEDY, check_checkpoint, last_checkpoint
from eas.training.wide_weights import keep_float32

Phase = Literal["search", "tune"]
PART = 8
"""Examples of a part of a round's batch, where its examples differ much in length."""


class EASTrainer(OpenTrainer):
    """Trains the PIAs of an attached model.

    In the search phase every step trains under a sampled skip set, and rounds score sets on held-out examples;
    afterwards ``search_result()`` holds the skip set. In the tune phase the selected set stays fixed. Checkpoints hold
    the adapter, the search's state, optimizer, scheduler and random states, so that
    ``train(resume_from_checkpoint=...)`` continues exactly.

    Args:
        model: an attached model.
        args: ``transformers.TrainingArguments``.
        phase: "search" or "tune".
        search: settings of the search phase. ``train()`` trains where ``search.train`` is null; False is refused.
        held_out: examples for the search's rounds, not trained on.
        lengths: of the training examples, in any unit; with them each batch holds examples of about one length.
        kwargs: everything else a ``Trainer`` takes (``train_dataset``, ``data_collator``, ``callbacks``, ...).

    Raises:
        ValueError: the model is not attached, or is folded; or rounds cannot be scored in ``search.score_dtype``; or
            the method cannot be trained under the given parallelism; or one process has several GPUs; or there is not
            one length for each example.

    Example:
        >>> import eas
        >>> from transformers import TrainingArguments
        >>> from eas.demo.tiny import load_tiny
        >>> model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
        >>> args = TrainingArguments("runs/tune", report_to="none")
        >>> trainer = eas.EASTrainer(model, args, train_dataset=[])  # then trainer.train()
    """

    def __init__(
        self,
        model: Any,
        args: Any,
        *,
        phase: Phase = "tune",
        search: SearchConfig | None = None,
        held_out: Sequence[Any] = (),
        lengths: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        if phase not in ("search", "tune"):
            raise ValueError(f"phase {phase!r} is unknown; use 'search' or 'tune'")
        state = attachment(model)
        if state.fold_mode is not None:
            raise ValueError("the model is folded; call unfold(model) before training")
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end is not supported; call eas.attachment.load.load_into(model, checkpoint)"
            )
        args.remove_unused_columns = False  # the collator reads whole examples
        if args.ddp_find_unused_parameters is None:  # unless pruned, PIAs without use; the projector's, without images
            args.ddp_find_unused_parameters = not state.pruned or state.config.train_projector
        train_dataset = kwargs.get("train_dataset")
        if len(lengths) > 0 and (not isinstance(train_dataset, Sized) or len(train_dataset) != len(lengths)):
            raise ValueError(f"lengths has {len(lengths)} values; give one for each example of train_dataset")
        self.lengths = lengths
        super().__init__(model, args, **kwargs)
        if self.args.n_gpu > 1:  # not of a model that lies on several
            raise ValueError(
                f"one process sees {self.args.n_gpu} GPUs, and nn.DataParallel would drop parts of a batch; start the "
                "processes with torchrun (docs/distributed.md), or set CUDA_VISIBLE_DEVICES=0"
            )
        if self.label_smoother is not None and model.can_generate():  # Trainer shifts the labels of text models only
            self.label_smoother = partial(self.label_smoother, shift_labels=True)
        keep_gradients(model)
        # a loss that is computed outside of the model reads the logits of every token
        outside = self.label_smoother is not None or self.compute_loss_func is not None
        own = type(self).compute_loss is not OpenTrainer.compute_loss
        inside = model.can_generate() and not outside and not own
        self.labelled_only = inside and not heads_all(model)
        if inside:
            self.weigh_by_tokens()
        if self.is_fsdp_enabled:
            sharded.prepare(model, self.accelerator.state.fsdp_plugin)
            if phase == "search" and search is not None and search.train is False:
                raise ValueError(
                    "a search without training does not work under FSDP, which shards trained weights; set "
                    "search.train = true, or search with DDP"
                )
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ValueError("DeepSpeed ZeRO 3 is not supported, it hides the weights; use FSDP2, or ZeRO 2")
        self.search_phase: SearchPhase | None = None
        self.score_dtype = search.score_dtype if search is not None else None
        if phase == "search":
            if self.score_dtype is not None and args.fp16:
                raise ValueError("fp16 training scores in fp16; leave search.score_dtype = null")
            search = SearchConfig() if search is None else search
            seeded = search if search.seed is not None else replace(search, seed=args.seed)
            self.search_phase = SearchPhase(model, seeded, held_out, self.score, self.cosines)
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
            ValueError: weights were unfrozen that the method does not train; no checkpoint would hold them.
        """
        refuse_beside(self.model, unfrozen(self.model), "EASTrainer does not start")
        searching = self.search_phase is not None
        if resume_from_checkpoint is True:
            found = last_checkpoint(self.args.output_dir, searching) if is_main() else None
            if (resume_from_checkpoint := from_main(found)) is None:
                raise CheckpointError(f"{self.args.output_dir} holds no whole checkpoint; start over without one")
        elif resume_from_checkpoint:
            with raised_as(CheckpointError):
                check_checkpoint(Path(resume_from_checkpoint), searching)
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def order(self) -> GroupedByLength | None:
        if len(self.lengths) == 0:
            return None
        return GroupedByLength(self.lengths, self.args.train_batch_size * self.args.world_size, self.args.seed)

    def prepared_inputs(self, inputs: Any) -> Any:
        # label smoothing, compute_loss_func and an overridden compute_loss take the labels away, which mark the prompt
        prompted = isinstance(self.model, PromptedModel) and self.model.needs_prompt()
        if prompted and inputs.get("labels") is not None and inputs.get("prompt_mask") is None:
            inputs = {**inputs, "prompt_mask": prompt_tokens(inputs["labels"], inputs.get("attention_mask"))}
        if self.model.training and self.labelled_only and inputs.get("labels") is not None:
            inputs = labelled_only(inputs)
        return inputs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if num_items_in_batch is not None and not num_items_in_batch:
            raise DataError(
                f"step {self.state.global_step} has no label: every token of its examples is -100. Leave out examples "
                "without an answer, and those whose answer was cut off"
            )
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
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
        share, scored = examples[self.args.process_index :: self.args.world_size], []
        with self.evaluating():
            for inputs in self.parts(share or examples[:1]):  # FSDP gathers from all processes
                weight = loss_weight(self.model, inputs) if share else 0
                own = self.score_dtype is None
                with self.accelerator.autocast() if own else torch.autocast(self.args.device.type, torch.bfloat16):
                    scored.append((weight, score_sets(self.model, inputs, skip_sets)))
        scored = [one for each in from_all(scored) for one in each]
        total = sum(weight for weight, _ in scored)
        return [sum(weight * losses[i] for weight, losses in scored) / total for i in range(len(skip_sets))]

    def cosines(self, examples: list[Any]) -> list[float]:
        """Every candidate's similarity of input and output over these examples, which the processes share.

        Of several processes all must call it.
        """
        share = examples[self.args.process_index :: self.args.world_size]
        with self.evaluating(), self.accelerator.autocast():
            own = cosine_sums(self.model, self.parts(share or examples[:1]))
        total, tokens = torch.stack(from_all(own if share else torch.zeros_like(own))).sum(0)
        return [float(value) for value in total / tokens]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in evaluation; afterwards, also after an error, it trains as before."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)

    def parts(self, examples: list[Any]) -> list[Any]:
        """The inputs of these examples: one batch, or batches of about one length where one would be a third padding.

        Under FSDP it is one batch, as all processes must take as many passes.
        """
        whole = self.data_collator(examples)
        mask = whole.get("attention_mask")
        if mask is None or self.is_fsdp_enabled or len(examples) < 2 * PART or mask.numel() < 1.5 * int(mask.sum()):
            return [self.on_device(whole)]
        order = mask.sum(1).argsort(stable=True).tolist()
        sorted_ = [[examples[i] for i in order[at : at + PART]] for at in range(0, len(order), PART)]
        return [self.on_device(self.data_collator(each)) for each in sorted_]

    def prepared(self, checkpoint: str | None) -> None:
        sharded.keep_class_names(self.model)
        self.keep_float32()
        if checkpoint is not None and self.search_phase is not None:
            self.search_phase.load(Path(checkpoint))

    def write_checkpoint(self, write: Callable[[], None]) -> None:
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
                write()
                self.accelerator.wait_for_everyone()
                if is_main():
                    shutil.rmtree(folder / name, ignore_errors=True)
                    os.replace(folder / PARTIAL / name, folder / name)
        finally:
            self.args.output_dir = str(folder)
            if is_main():
                shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        self.state.best_model_checkpoint = None  # was looked for in the folder aside
        if is_main():
            self.rotate()

    def write_weights(self, folder: Path) -> None:
        save(self.model, folder)
        if self.search_phase is not None and is_main():
            self.search_phase.save(folder)

    def read_weights(self, folder: Path) -> None:
        sharded.keep_class_names(self.model)
        load_into(self.model, folder)

    def write_optimizer(self, folder: Path, write: Callable[[], None]) -> None:
        if not self.is_fsdp_enabled:
            write()
            return
        sharded.save_optimizer(self.optimizer, folder / OPTIMIZER_NAME)
        if is_main():
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_NAME)

    def keep_float32(self) -> None:
        """Gives trained weights of 16 bits their copies; again, it does nothing.

        Raises:
            ValueError: there are such weights, and gradients are scaled: those of the copies would stay so.
        """
        if self.is_deepspeed_enabled:  # which keeps copies itself
            return
        narrow = [name for name, p in self.model.named_parameters() if p.requires_grad and p.dtype != torch.float32]
        if narrow and self.accelerator.scaler is not None:
            raise ValueError(
                f"fp16 training scales gradients, and {narrow[0]} ({len(narrow)} in all) is trained in 16 bits; load "
                "the base in float32, or train with bf16=True"
            )
        keep_float32(self.optimizer.optimizer)  # accelerate's holds the optimizer

    def read_optimizer(self, folder: Path, read: Callable[[], None]) -> None:
        self.keep_float32()
        if not self.is_fsdp_enabled:
            try:
                read()
            except (ValueError, KeyError) as error:  # of other parameter groups
                raise CheckpointError(f"{folder}: its optimizer is of another training ({error}); {REMEDY}") from error
            return
        sharded.load_optimizer(self.optimizer, folder / OPTIMIZER_NAME)
        self.lr_scheduler.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
