"""The training phases of a run: attach the model, collate the data, build the trainer, continue after a stop."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import PrinterCallback, TrainingArguments

from eas.attachment.attach import attach
from eas.attachment.load import read_adapter_record
from eas.config import SkipConfig
from eas.distributed import from_main, is_main
from eas.hf.trainer import checkpoint_activations
from eas.pipeline.plan import Plan, estimate
from eas.pipeline.progress import Clock, ProgressBar
from eas.pipeline.run import Run
from eas.pipeline.same_data import pin_data
from eas.pipeline.tuned import require_set
from eas.terminal import console as make_console
from eas.training import EASTrainer, Phase, last_checkpoint
from eas.training.grouping import grouped_lengths

console = make_console(quiet=os.environ.get("RANK", "0") != "0")  # of several processes one prints


def attached_base(run: Run) -> Any:
    """The base with the run's method; its start values come from the run's seed."""
    model = run.load_base(on_host=parse_flag_from_env("ACCELERATE_USE_FSDP"))  # FSDP places what it shards
    torch.manual_seed(run.config.seed)  # of the PIAs
    return attach(model, run.config.method)


def make_trainer(run: Run, model: Any, phase: Phase, steps: int) -> EASTrainer:
    """The trainer of a phase: it trains for so many steps in all and leaves its checkpoints in the phase's folder.

    Raises:
        ChangedDataError: there are checkpoints already, and they saw other examples.
    """
    pin_data(run, phase)
    settings, cuda = run.config.train, torch.cuda.is_available()
    args = TrainingArguments(
        output_dir=str(run.folder / phase),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        bf16=settings.precision == "bfloat16",
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=settings.logging_steps,
        report_to=settings.report_to,
        seed=run.config.seed,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
    )
    if args.n_gpu > 1:  # Trainer would copy the model to all of them, and split more than the batch
        console.print(
            f"note: this run trains on one of {args.n_gpu} GPUs; docs/distributed.md says how to use all",
            soft_wrap=True,
        )
        args._n_gpu = 1
    search, method = replace(run.config.search, seed=run.config.search_seed), run.config.method
    if isinstance(method, SkipConfig):
        search = replace(search, train=search.trains(method))  # FSDP refuses a search that does not train
    lengths = grouped_lengths(run.data("train"), settings.batch_size, settings.group_by_length)
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    trainer = EASTrainer(
        model,
        args,
        phase=phase,
        search=search,
        held_out=run.data("validation") if phase == "search" else (),
        lengths=lengths,
        train_dataset=run.data("train"),
        data_collator=run.task.collator(run),
        callbacks=[ProgressBar(phase)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def announce(run: Run, trainer: EASTrainer, planned: Plan) -> None:
    """Says, before a phase trains, how long it will, and whether its batches are grouped by length."""
    grouped = "batches of about one length" if len(trainer.lengths) > 0 and planned.rounds is None else ""
    console.print("; ".join(filter(None, (str(planned), grouped, estimate(run, trainer, planned)))), highlight=False)


@dataclass(frozen=True)
class Trained:
    """What ``train`` did.

    Args:
        steps: of this call.
        seconds: of all calls that led to this one; None where a checkpoint of an older version does not say.
    """

    steps: int
    seconds: float | None


def train(run: Run, trainer: EASTrainer) -> Trained:
    """Trains from the last checkpoint on.

    Raises:
        ConfigError: the checkpoint of a tune phase is for another skip set than search.json says.
    """
    clock = Clock()
    trainer.add_callback(clock)
    searching = trainer.search_phase is not None
    checkpoint = from_main(last_checkpoint(trainer.args.output_dir, searching) if is_main() else None)
    if checkpoint is not None:
        if not searching:
            require_set(run, read_adapter_record(Path(checkpoint))["skip_set"], Path(checkpoint))
        console.print(f"going on from {checkpoint}")
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressBar):
                callback.close()
    return Trained(trainer.state.global_step - clock.first_step, clock.seconds(trainer.state))


def logged_losses(trainer: EASTrainer) -> list[dict[str, float]]:
    """Training losses by step, those before a resumption included."""
    return [{"step": e["step"], "loss": e["loss"]} for e in trainer.state.log_history if "loss" in e]
