"""The search phase in one call, for those who write no trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

from eas.attachment.attach import select
from eas.attachment.state import attachment
from eas.config import ConfigError, SkipConfig
from eas.searching import SearchConfig, SearchResult
from eas.training.trainer import EASTrainer

EPOCHS, FEWEST_ROUNDS, MOST_STEPS = 1.5, 30, 2000
GUIDED_ROUNDS, ROUNDS = 20, 40
"""Of a search that does not train, with rule ``guided`` and with others. docs/smollm2.md: what 60 evaluations find."""
DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}

NO_MEANING = {
    "num_train_epochs": "give max_steps",
    "output_dir": "nothing is kept on disk; leave it out, or use EASTrainer(phase='search'), which keeps checkpoints",
    "resume_from_checkpoint": "nothing is kept on disk; use EASTrainer(phase='search'), which goes on after a stop",
    "push_to_hub": "nothing is kept to upload; leave it out, and eas.push_to_hub the tuned model",
}


def search(
    model: PreTrainedModel,
    train: Sequence[Any],
    held_out: Sequence[Any],
    collator: Callable[[list[Any]], Any],
    config: SearchConfig | None = None,
    **arguments: Any,
) -> SearchResult:
    """Finds the skip set: scores sampled sets on held-out examples, and trains the attached model in between if
    ``SearchConfig.trains``.

    The model is left under the skip set that was found, with the weights that were trained on the way; tune it further,
    or start over from the base. Nothing is kept on disk: ``EASTrainer(phase="search")`` is a search that can go on
    after a stop.

    Args:
        model: attached, with ``num_skip`` of at least 1.
        train: examples that are trained on.
        held_out: examples that sets are scored on.
        collator: makes a batch of a list of examples, with ``labels`` that are -100 on the prompt.
        config: settings of the search.
        arguments: of ``transformers.TrainingArguments`` (``max_steps``, ``learning_rate``, ``bf16``, ...). Without
            ``max_steps`` the search takes ``search_steps``; ``seed`` is the search's too, where ``config`` has none.

    Returns:
        The skip set, the ranking of all candidates, and the history.

    Raises:
        ConfigError: the model skips nothing; a split is empty; the rule needs no search; no round fits the steps; or an
            argument has no meaning here.
        ValueError: the model is not attached, or is folded or pruned.

    Example:
        >>> import eas
        >>> from eas.tasks.collate import Collator
        >>> from eas.example import Example
        >>> from eas.demo.tiny import load_tiny
        >>> model, processor = load_tiny()
        >>> model = eas.attach(model, eas.EASConfig(num_skip=4, skip_rank=8, adapt_rank=4))
        >>> examples = [Example.ask(str(i), "which is larger ?", "one") for i in range(8)]
        >>> settings = eas.SearchConfig(warmup_steps=2, interval=2, batch_size=4)
        >>> found = eas.search(model, examples[:4], examples[4:], Collator(processor, True), settings, max_steps=6)
        >>> len(found.skip_set), len(found.rounds), found.skip_set == eas.skip_set(model)
        (4, 3, True)
    """
    config, method = SearchConfig() if config is None else config, attachment(model).config
    trains = not isinstance(method, SkipConfig) or config.trains(method)
    if trains and len(train) == 0:
        raise ConfigError("the search needs examples to train on; the training split is empty")
    for name in NO_MEANING.keys() & arguments.keys():
        if arguments[name] is not None and arguments[name] is not False:
            raise ConfigError(f"{name} has no meaning in a search; {NO_MEANING[name]}")
    with TemporaryDirectory() as folder:
        given = {"seed": config.seed or 0, "dataloader_pin_memory": torch.cuda.is_available(), **DEFAULTS, **arguments}
        args = TrainingArguments(output_dir=folder, **given)
        if "max_steps" not in arguments:
            batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            args.max_steps = search_steps(config, len(train), batch, trains)
        trainer = EASTrainer(
            model,
            args,
            phase="search",
            search=replace(config, train=trains),
            held_out=held_out,
            train_dataset=train,
            data_collator=collator,
        )
        trainer.remove_callback(PrinterCallback)
        assert trainer.search_phase is not None
        if trains:
            trainer.train()
        else:
            trainer.search_phase.run(args.max_steps)
        result = trainer.search_result()
    select(model, result.skip_set)
    return result


def search_steps(config: SearchConfig, examples: int, batch: int, trains: bool = True) -> int:
    """Training steps of a search: 1.5 epochs, but at least its warm-up and 30 rounds, else at most 2000.

    A search that does not train counts the steps that it leaves out: as many as hold its rounds, 20 with rule
    ``guided`` and 40 with others.

    Example:
        >>> search_steps(SearchConfig(warmup_steps=100, interval=10), examples=16000, batch=16)
        1500
        >>> search_steps(SearchConfig(warmup_steps=100, interval=10), examples=16000, batch=16, trains=False)
        290
    """
    if not trains:
        rounds = GUIDED_ROUNDS if config.rule == "guided" else ROUNDS
        return (config.warmup_steps or config.interval) + (rounds - 1) * config.interval
    fewest = config.warmup_steps + FEWEST_ROUNDS * config.interval
    return max(fewest, min(math.ceil(EPOCHS * examples / batch), MOST_STEPS))
