"""From one finished search: the loss and the savings of every k, and the k that fits a budget."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from eas.attachment.attach import attach, fold, select, unfold
from eas.attachment.load import load_into
from eas.attachment.state import candidates
from eas.config import ConfigError
from eas.files import write_text
from eas.measure.count import Counts, count
from eas.measure.latency import git_revision, hardware
from eas.pipeline.run import Run
from eas.pipeline.same_data import require_same_data
from eas.pipeline.savings import counted_size, fold_mode
from eas.progress import track
from eas.reports.frontier import write_frontier
from eas.searching.base import Array, SkipSet, shuffled
from eas.searching.linear import GuidedRule, RegressionRule
from eas.searching.scoring import loss_weight, score_sets
from eas.tasks.task import Size

POINTS = 5  # sets measured where none are named
TRIES = 8  # more sets that are measured to find a k within the budget


@dataclass(frozen=True)
class Budget:
    """Limits that a k must meet; None: no limit.

    Args:
        max_loss_increase: held-out loss above the lowest that was measured.
        max_macs: of a prefill, as a share of the base's.
        max_kv: keys and values per token, as a share of the base's.
        speedup: at least; what fewer bytes read allow in decoding, against the base.

    Raises:
        ConfigError: a limit that nothing meets, or that is no number.
    """

    max_loss_increase: float | None = None
    max_macs: float | None = None
    max_kv: float | None = None
    speedup: float | None = None

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            least = "0 or more" if name == "max_loss_increase" else "above 0"
            if limit is not None and not (
                math.isfinite(limit) and (limit > 0 or (limit == 0 and least == "0 or more"))
            ):
                raise ConfigError(f"--{name.replace('_', '-')} {limit}: must be a finite number, {least}")

    def recommend(self, rows: Sequence[dict[str, Any]], unmeasured: bool = False) -> int | None:
        """The smallest k that meets the budget; if only the loss is limited, the largest. None: no k fits.

        Args:
            rows: of ``frontier.json``.
            unmeasured: whether a k is named that was not measured, and that fits if its prediction holds.
        """
        if not any(limit is not None for limit in asdict(self).values()):
            return None
        lowest = min(row["measured"] for row in rows if row["measured"] is not None)
        fits = [
            row["k"]
            for row in rows[1:]
            if (unmeasured or row["measured"] is not None)
            and (self.max_loss_increase is None or _loss(row) - lowest <= self.max_loss_increase)
            and (self.max_macs is None or row["macs_share"] <= self.max_macs)
            and (self.max_kv is None or row["kv_share"] <= self.max_kv)
            and (self.speedup is None or row["decode_bound"] >= self.speedup)
        ]
        only_loss = self.max_macs is None and self.max_kv is None and self.speedup is None
        return (max if only_loss else min)(fits, default=None)


def frontier(
    run: Run, measure: Sequence[int] | None = None, examples: int = 256, budget: Budget | None = None
) -> dict[str, Any]:
    """Writes ``frontier.json`` and its figure beside the search's record.

    The linear model of ``RegressionRule``, or of ``GuidedRule`` after a guided search, is fitted to the search's
    losses, of every rule: its ranking gives the set of every k, its importances the differences between sets. The
    losses at k = 0 and at the run's own k are measured, and the prediction passes through both. If the search drew sets
    of several sizes, the fit also gives the level, and only k = 0 is an anchor. A k that is recommended was measured:
    predictions only say which k is measured next, ``TRIES`` of them at most.

    Args:
        run: a run whose search has finished.
        measure: the k to measure, besides 0 and the run's own; about five, evenly spread, by default.
        examples: maximum number of scored examples of the validation split.
        budget: limits of the recommended k.

    Raises:
        ConfigError: the run has no search with rounds, or a k is impossible.
        ChangedDataError: the validation split is not that of the search.
    """
    began, record, own = time.perf_counter(), run.require("search"), run.config.num_skip
    if not record["searched"] or not record.get("rounds"):
        raise ConfigError(f"{run.folder} holds no rounds to learn from; its skip set was not searched by losses")
    require_same_data(run, "search", "validation")
    base = run.load_base()
    prompt = counted_size(base, run.task.first(run, "validation")[1])
    base_counts = count(base, *prompt)
    model = _searched(run, base)
    del base
    number = len(candidates(model))
    most = len({block.index for block, _ in candidates(model)}) - 1  # at least one attention is kept
    if wrong := [k for k in measure or () if not 1 <= k <= most]:
        raise ConfigError(f"--measure {wrong}: k is 1 to {most} here")
    fit, varied = fit_rounds(record["rounds"], number, own, record.get("cosines"))
    sets: list[SkipSet] = [tuple(sorted(fit.ranking()[:k])) for k in range(most + 1)]
    spread = [round(k) for k in np.linspace(1, most, min(POINTS, most))]
    measured = sorted({0, own, *(spread if measure is None else measure)})
    searched = tuple(record["skip_set"])
    *losses, searched_loss = held_out_losses(run, model, [*(sets[k] for k in measured), searched], examples)
    known = dict(zip(measured, losses, strict=True))
    base_reads = base_counts.weight_bytes + prompt[0] * base_counts.kv_bytes_per_token
    rows = []
    for k, skip_set in enumerate(sets):
        part = 0.0 if varied else k / own  # of the anchor at the run's own k
        change, error = fit.contrast(_indicator(fit, skip_set) - part * _indicator(fit, sets[own]))
        costs = _costs(run, model, skip_set, prompt)
        rows.append(
            {
                "k": k,
                "skip_set": list(skip_set),
                "predicted": known[0] + part * (known[own] - known[0]) + change,
                "standard_error": error,
                "measured": known.get(k),
                "macs": costs.macs,
                "kv_bytes_per_token": costs.kv_bytes_per_token,
                "weight_bytes": costs.weight_bytes,
                "macs_share": costs.macs / base_counts.macs,
                "kv_share": costs.kv_bytes_per_token / (base_counts.kv_bytes_per_token or 1),  # METER has no cache
                "decode_bound": base_reads / (costs.weight_bytes + prompt[0] * costs.kv_bytes_per_token),
            }
        )
    limits, tried = budget or Budget(), list[int]()
    while (best := limits.recommend(rows, len(tried) < TRIES)) is not None and rows[best]["measured"] is None:
        if not tried:  # counting merges LoRA, and takes it off up to rounding
            del model
            model = _searched(run, run.load_base())
        (rows[best]["measured"],) = held_out_losses(run, model, [sets[best]], examples)
        tried.append(best)
    result = {
        "k": own,
        "candidates": number,
        "rule": run.config.search.rule,
        "evaluations": sum(len(r["losses"]) for r in record["rounds"]),
        "anchors": [0] if varied else [0, own],
        "prompt_tokens": prompt[0],
        "examples": min(examples, len(run.data("validation"))),
        "base": asdict(base_counts),
        "rows": rows,
        "searched": {"skip_set": list(searched), "measured": searched_loss},
        "budget": asdict(limits),
        "tried": tried,
        "recommended": best,
        "git_revision": git_revision(),
        "hardware": hardware(),
        "seconds": time.perf_counter() - began,
    }
    write_text(run.folder / "frontier.json", json.dumps(result, indent=1) + "\n")
    write_frontier(result, run.folder)
    return result


def fit_rounds(
    rounds: Sequence[dict[str, Any]], num_candidates: int, num_skip: int, cosines: Sequence[float] | None = None
) -> tuple[RegressionRule, bool]:
    """The linear model of a search's losses, and whether sets of unequal size were compared within some round.

    With the cosines that guided a search the model has its prior: such a search hardly skips what changes much, so that
    its losses alone say little about that.

    Raises:
        ConfigError: the rounds, or the cosines, are not of so many candidates.
    """
    fit = GuidedRule(num_candidates, num_skip, seed=0)  # told nothing, a ridge regression
    if cosines is not None:
        try:
            fit.guide(cosines)
        except ValueError as error:
            raise ConfigError(f"search.json: {error}") from error
    if strange := [s for r in rounds for s in r["skip_sets"] if not set(s) <= set(range(num_candidates))]:
        raise ConfigError(
            f"search.json: rounds hold the skip set {strange[0]}; the candidates are 0 to {num_candidates - 1}"
        )
    for r in rounds:
        fit.observe(r["skip_sets"], r["losses"])
    return fit, any(len({len(s) for s in r["skip_sets"]}) > 1 for r in rounds)


def held_out_losses(run: Run, model: Any, skip_sets: Sequence[SkipSet], examples: int) -> list[float]:
    """Mean loss of each set over the answers of the validation split, in the precision of the run's training."""
    collate, data, size = run.task.collator(run), run.data("validation"), run.config.search.batch_size
    low = "bfloat16" in (run.config.train.precision, run.config.search.score_dtype)
    total, weights = np.zeros(len(skip_sets)), 0
    drawn = shuffled(len(data), run.config.search_seed)[:examples]
    for at in track(range(0, len(drawn), size), f"scoring {len(skip_sets)} skip sets"):
        batch = collate([data[i] for i in drawn[at : at + size]])
        inputs = {key: t.to(model.device) for key, t in batch.items()}
        weight = loss_weight(model, inputs)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=low):
            total += weight * np.array(score_sets(model, inputs, skip_sets))
        weights += weight
    return [float(loss) for loss in total / weights]


def _searched(run: Run, base: Any) -> Any:
    """The base with the weights that the search left."""
    model = attach(base, run.config.method)
    load_into(model, run.folder / "search" / "adapter")
    return model.eval()


def _loss(row: dict[str, Any]) -> float:
    return float(row["predicted"] if row["measured"] is None else row["measured"])


def _indicator(fit: RegressionRule, skip_set: SkipSet) -> Array:
    return np.isin(np.arange(fit.num_candidates), skip_set).astype(float)


def _costs(run: Run, model: Any, skip_set: SkipSet, prompt: Size) -> Counts:
    """Of the model as it would be served: folded, where its method can be."""
    select(model, skip_set)
    if (mode := fold_mode(run)) is None:
        return count(model, *prompt)
    fold(model, mode)
    counts = count(model, *prompt)
    unfold(model)
    return counts
