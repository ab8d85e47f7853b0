"""The search's second stage: tunes each of a few skip sets a little, to see which one is best after tuning."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eas.attachment.attach import select
from eas.attachment.load import load_into
from eas.attachment.save import save
from eas.config import ConfigError
from eas.distributed import from_main, is_main
from eas.files import write_text
from eas.pipeline.phases import attached, console, make_trainer, train
from eas.pipeline.records import FinalsRecord
from eas.pipeline.run import Run
from eas.records import raised_as, read_record
from eas.searching import Rule, successive_halving
from eas.searching.base import SkipSet
from eas.training import last_checkpoint

FOLDER = "finals"
"""In the search's folder: the losses so far and every finalist's checkpoints; of no use once the search is recorded."""
WINNER = "finalist"
"""In the search's folder: the winner's adapter, tuned for the steps of all rungs."""


def finals(run: Run, rule: Rule, first: SkipSet) -> dict[str, Any]:
    """Tunes finalists on from the search's adapter, by successive halving, and leaves the winner's adapter.

    The finalists are the search's own set and others that its rule proposes. All see the same batches, and the learning
    rate falls to zero at the end of every rung. A stopped run continues with the losses that it has.

    Returns:
        The winner's ``skip_set``, the ``rungs``, and the ``finals_seconds`` they took, as JSON values.
    """
    settings, folder = run.config.search, run.folder / "search" / FOLDER
    proposed = [first, *rule.propose(settings.finalists)]
    finalists = from_main(list(dict.fromkeys(proposed))[: settings.finalists])
    size, held_out = settings.batch_size, run.data("validation")
    count = min(len(held_out), settings.finalist_batches * size)
    batches = [[held_out[i] for i in range(at, min(at + size, count))] for at in range(0, count, size)]
    known: FinalsRecord = from_main(_read(folder / "losses.json"))

    def tuned_loss(skip_set: SkipSet, steps: int) -> float:
        key = f"{list(skip_set)} after {steps} steps"
        if key not in known["losses"]:
            start, model = time.perf_counter(), attached(run)
            load_into(model, run.folder / "search" / "adapter")
            select(model, skip_set)
            trainer = make_trainer(run, model, "tune", steps, folder / _name(skip_set))
            train(trainer)
            losses = [len(batch) * trainer.score([skip_set], batch)[0] for batch in batches]
            known["losses"][key] = sum(losses) / count
            known["seconds"] += time.perf_counter() - start
            if is_main():
                write_text(folder / "losses.json", json.dumps(known))
        loss: float = known["losses"][key]
        console.print(f"{key}: held-out loss {loss:.4f}", highlight=False)
        return loss

    winner, rungs = successive_halving(finalists, settings.finalist_steps, tuned_loss)
    model = attached(run)
    load_into(model, from_main(last_checkpoint(folder / _name(winner)) or ""))
    save(model, run.folder / "search" / WINNER)
    return {"skip_set": winner, "rungs": [asdict(rung) for rung in rungs], "finals_seconds": known["seconds"]}


def _name(skip_set: SkipSet) -> str:
    return "-".join(map(str, skip_set))


def _read(path: Path) -> FinalsRecord:
    if not path.exists():
        return {"losses": {}, "seconds": 0.0}
    with raised_as(ConfigError):
        return read_record(path, FinalsRecord, "remove it to tune the finalists again")
