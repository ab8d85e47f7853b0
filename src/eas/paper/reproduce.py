"""The paper's tables: the printed figures beside the figures of the models that this library builds.

``eas/paper/recipes/tables`` holds the printed figures and describes each row. A row names a recipe, the YAML file of a
run. Our columns are counted from the method of that recipe on the table's shape, and from nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import eas.paper.recipes
from eas.config import Config, ConfigError, MethodConfig, SkipConfig, option
from eas.hf.api import no_init_weights
from eas.measure.count import count, on_meta
from eas.measure.latency import git_revision
from eas.measure.modules import Counts, count_modules
from eas.measure.paper import BESIDE, PAPER_FOLDS, Meter, as_the_paper_counts
from eas.measure.shapes import SHAPES
from eas.methods import method_config
from eas.models.meter import MeterConfig
from eas.models.meter.heads import TASKS
from eas.pipeline.config import RunConfig

RECIPES = Path(eas.paper.recipes.__path__[0])
TABLES = (*(f"table{i}" for i in range(1, 9)), "fig4")
GIGA = 1e9
TEXT_TOKENS = 40
"""METER's, in Table 4."""


@dataclass
class RowSpec(Config):
    """A row of a table."""

    name: str = option("", "as the paper names it")
    paper: dict[str, Any] = field(default_factory=dict, metadata={"help": "the printed figures by column"})
    recipes: list[str] = field(
        default_factory=list, metadata={"help": "recipes whose runs give the row's accuracies, by column"}
    )
    method: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "keys that differ from the recipe's where FLOPs are counted"},
    )
    halves: bool = option(False, "half of the skipped modules are attentions, half FFNs")
    fold_mode: str | None = option(None, "'none' if the row is measured unfolded")
    beside: str | None = option(None, "what is trained beside the method, if it differs from the table's")
    choices: int | None = option(None, "METER: how many attentions are skipped, the paper does not say which")
    skip_set: list[int] | None = option(None, "METER: the skip set")
    unexplained: dict[str, str] = field(
        default_factory=dict, metadata={"help": "columns that no consistent counting gives, and why"}
    )
    note: str = option("", "what else to know")


@dataclass
class TableSpec(Config):
    """A table of the paper."""

    title: str = option("", "its title")
    shape: str | None = option(None, "of eas.measure.shapes; null for METER")
    prompts: dict[str, Any] = field(default_factory=dict, metadata={"help": "FLOPs column -> tokens of the prompt"})
    meter: dict[str, Any] = field(default_factory=dict, metadata={"help": "FLOPs column -> METER's image size"})
    images: int = option(0, "images of the prompt")
    beside: str | None = option(None, f"what is trained beside every method: {', '.join(BESIDE)}")
    accuracy: list[str] = field(default_factory=list, metadata={"help": "the columns that hold accuracies"})
    scores: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "accuracy column -> folder of its recipes, number of their metric"}
    )
    notes: list[str] = field(default_factory=list, metadata={"help": "notes on the whole table"})
    rows: list[Any] = field(default_factory=list, metadata={"help": "rows of the table"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rows = [row if isinstance(row, RowSpec) else RowSpec.from_dict(row) for row in self.rows]


def table_spec(name: str) -> TableSpec:
    """One of ``TABLES``.

    Raises:
        ConfigError: there is no such table.
    """
    if name not in TABLES:
        raise ConfigError(f"{name!r} is no table of the paper; use one of {', '.join(TABLES)}, all")
    return TableSpec.from_file(RECIPES / "tables" / f"{name}.yaml")


def recipe(name: str) -> RunConfig:
    """The run of one row."""
    return RunConfig.from_file(RECIPES / f"{name}.yaml")


def reproduce_table(name: str, shape: str | None = None, prompt_tokens: int | None = None) -> dict[str, Any]:
    """Counts a table's rows on the meta device and sets them beside the printed figures.

    Args:
        name: one of ``TABLES``.
        shape: another shape than the table's.
        prompt_tokens: another prompt length than the table's.

    Returns:
        what the reports show: ``rows`` with ``paper``, ``ours``, ``difference`` (ours - paper) and ``verdict`` by
        column ("reproduced", "differs", "unexplained"), and each row's honest counts by FLOPs column.
    """
    spec = table_spec(name)
    if spec.shape is None:
        if shape is not None or prompt_tokens is not None:
            raise ConfigError(f"{name} is about METER, which has one size; leave out shape and prompt tokens")
        bases = {size: count(_meter(size), TEXT_TOKENS, 1) for size in {*spec.meter.values()}}
        rows = [_meter_row(spec, row, bases) for row in spec.rows]
    else:
        spec.shape = shape or spec.shape
        if spec.shape not in SHAPES:
            raise ConfigError(f"shape {spec.shape!r} is unknown; use one of {', '.join(SHAPES)}")
        spec.prompts = {column: prompt_tokens or tokens for column, tokens in spec.prompts.items()}
        base = on_meta(spec.shape, None)
        rows = [_row(spec, row, base) for row in spec.rows]
    for row, row_spec in zip(rows, spec.rows, strict=True):
        row |= _compared(row_spec, row["ours"])
    geometry = {key: getattr(spec, key) for key in ("shape", "prompts", "images", "meter")}
    return {
        "table": name,
        "title": spec.title,
        "geometry": {key: value for key, value in geometry.items() if value},
        "accuracy": spec.accuracy,
        "notes": spec.notes,
        "git_revision": git_revision(),
        "rows": rows,
    }


def row_method(row: RowSpec, counted: bool = False) -> MethodConfig | None:
    """The method of a row's first recipe; with ``counted``, as the paper counts its FLOPs. None for the base."""
    if not row.recipes:
        return None
    values = recipe(row.recipes[0]).method.to_dict() | {"train_projector": False}
    return method_config(values | (row.method if counted else {}))


def skipped(row: RowSpec, method: MethodConfig | None, layers: int) -> list[int] | None:
    """A skip set of the row's cost, the topmost candidates; None where the method skips nothing."""
    if not isinstance(method, SkipConfig):
        return None
    k = method.num_skip
    if row.halves:  # of different blocks
        return [*range(layers - k // 2, layers), *range(2 * layers - k, 2 * layers - k // 2)]
    last = 2 * layers if method.candidates == "either" else layers
    return list(range(last - k, last))


def _row(spec: TableSpec, row: RowSpec, base: Any) -> dict[str, Any]:
    method, counted = row_method(row), row_method(row, counted=True)
    skip_set = skipped(row, method, base.config.get_text_config().num_hidden_layers)
    model = on_meta(str(spec.shape), method, skip_set=skip_set, fold_mode=PAPER_FOLDS)
    other = model if counted == method else on_meta(str(spec.shape), counted, fold_mode=PAPER_FOLDS)
    ours: dict[str, float] = {}
    honest: dict[str, dict[str, int]] = {}
    for column, tokens in spec.prompts.items():
        counts, before = (count_modules(m, tokens, spec.images) for m in (model, base))
        if method is not None:
            beside = row.beside or spec.beside
            trained = counts.params_trained + (BESIDE[beside](model.config) if beside else 0)
            ours |= {"params": 100 * trained / before.params_total, "params_M": trained / 1e6}
        paper = as_the_paper_counts(counts if other is model else count_modules(other, tokens, spec.images))
        ours[column] = paper.macs / GIGA
        ours["delta"] = ours[column] - as_the_paper_counts(before).macs / GIGA
        honest[column] = dataclasses.asdict(counts)
    return {"name": row.name, "ours": ours, "honest": honest, "note": row.note}


def _meter_row(spec: TableSpec, row: RowSpec, bases: Mapping[int, Counts]) -> dict[str, Any]:
    """A row of METER with its VQA head; where the paper leaves open which attentions it skipped, the range of all
    choices, without the adapters that take their place."""
    ours: dict[str, Any] = {}
    honest: dict[str, dict[str, int]] = {}
    method = row_method(row)
    for column, size in spec.meter.items():
        base = bases[size]
        if row.choices is not None:
            least, most = Meter((size // 16) ** 2 + 1, TEXT_TOKENS).savings(row.choices)
            ours[column] = [-most / GIGA, -least / GIGA]
        counts = count(_meter(size), TEXT_TOKENS, 1, method=method, skip_set=row.skip_set, convention="paper")
        ours["params_M"] = counts.params_trained / 1e6
        ours[column.replace("delta_flops", "base")] = base.macs / GIGA
        if row.choices is None:
            ours[column] = (counts.macs - base.macs) / GIGA
        honest[column] = dataclasses.asdict(counts)
    return {"name": row.name, "ours": ours, "honest": honest, "note": row.note}


def _meter(image_size: int) -> Any:
    with torch.device("meta"), no_init_weights():
        model = TASKS["vqa"](MeterConfig())
        model.resize_images(image_size)
    return model


def _compared(row: RowSpec, ours: Mapping[str, Any]) -> dict[str, Any]:
    difference, verdict = {}, {}
    for column, printed in row.paper.items():
        if column not in ours:
            continue
        low, high = ours[column] if isinstance(ours[column], list) else (ours[column], ours[column])
        nearest = min(max(printed, low), high)
        difference[column] = nearest - printed
        reproduced = agrees(column, printed, nearest)
        verdict[column] = "reproduced" if reproduced else "unexplained" if column in row.unexplained else "differs"
    unexplained = {c: why for c, why in row.unexplained.items() if verdict.get(c) == "unexplained"}
    return {"paper": row.paper, "difference": difference, "verdict": verdict, "unexplained": unexplained}


def agrees(column: str, printed: float, ours: float) -> bool:
    """Whether ours is the printed figure: parameters rounded or cut to its digits (the paper does both), FLOPs within
    0.3 %, the difference of two printed totals within 0.3 % or 0.1 G."""
    off = ours - printed
    if column in ("params", "params_M"):
        digit = 0.01 if column == "params" or round(printed, 1) != printed else 0.1
        return -digit / 2 <= off < digit
    return abs(off) <= max(0.003 * abs(printed), 0.1 if column == "delta" else 0.005)
