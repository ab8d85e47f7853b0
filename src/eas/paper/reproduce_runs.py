"""The slow parts of a table of the paper: timing its rows in full size, and running its recipes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eas.attachment.attach import fold
from eas.attachment.sharing import attached_copy
from eas.config import ConfigError, MethodConfig, SkipConfig, read_assignments, read_yaml
from eas.demo import DEMOS
from eas.hf.api import no_init_weights
from eas.measure.latency import benchmark, hardware
from eas.measure.modules import count_modules
from eas.measure.shapes import build
from eas.methods.lora import unwrap
from eas.models.anatomy import Anatomy
from eas.models.folder import model_config
from eas.paper.reproduce import RECIPES, RowSpec, recipe, row_method, skipped, table_spec
from eas.pipeline.config import RunConfig
from eas.pipeline.run import Run
from eas.pipeline.steps import run_steps
from eas.records import RecordError

PAPER_LAYERS = 32


def require_possible(
    table: str, only: Sequence[str] | None, measure: bool = False, training: Mapping[str, Any] | None = None
) -> None:
    """Refuses what cannot be reproduced, before a model is built.

    Args:
        table: one of ``TABLES``.
        only: names of rows, None for all.
        measure: whether the rows are to be timed.
        training: arguments of ``training_configs``, where the rows are to be trained.

    Raises:
        ConfigError: there is no such table or row, the rows have no recipe, the table cannot be timed, or weights or
            data are missing.
    """
    spec = table_spec(table)
    names = [row.name for row in spec.rows]
    if wrong := [name for name in only or [] if name not in names]:
        raise ConfigError(f"{table} has no row {wrong[0]!r}; its rows are {', '.join(names)}")
    if measure and spec.shape is None:
        raise ConfigError(f"{table} cannot be timed: METER has no timed rows in the paper; leave --measure out")
    if training is not None:
        training_configs(table, only, **training)


def add_latency(
    result: dict[str, Any],
    only: Sequence[str] | None,
    repeats: int,
    new_tokens: int,
    share_blocks: bool = False,
) -> None:
    """Times every row, or those named, each alternated with the base, at the table's size with random weights.

    Args:
        result: of ``reproduce_table``.
        only: the rows, None for all.
        repeats: of prefill and decoding.
        new_tokens: decoded in each.
        share_blocks: all blocks hold the weights of one, in the memory of one; depth and work stay.

    Raises:
        ConfigError: the table has no shape, or the model does not fit into the memory of GPU or machine.
    """
    require_possible(result["table"], only, measure=True)
    geometry, spec = result["geometry"], table_spec(result["table"])
    shape, images, tokens = geometry["shape"], geometry.get("images", 0), next(iter(geometry["prompts"].values()))
    rows = [(row, r) for row, r in zip(spec.rows, result["rows"], strict=True) if not only or row.name in only]
    methods = [(row_method(row), row, r) for row, r in rows if row.recipes]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16
    _require_memory(result["table"], shape, [(m, row) for m, row, _ in methods if m], tokens, device, share_blocks)
    base = build(shape, device, dtype, share_blocks=share_blocks)
    inputs = _inputs(base, tokens, images)
    for i, (method, row, r) in enumerate(methods, 1):
        assert method is not None
        timed = {"base": base, "row": _variant(base, method, row)}
        title = f"{result['table']}: timing {row.name} and the base, row {i} of {len(methods)}"
        found = benchmark(timed, inputs, new_tokens=new_tokens, repeats=repeats, title=title)
        r["latency"] = {**asdict(found["row"]), **{f"base_{k}": v for k, v in asdict(found["base"]).items()}}
    result["timing"] = {
        "hardware": hardware(),
        "dtype": str(dtype).removeprefix("torch."),
        "prompt_tokens": tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "block_bytes_shared": _bytes(Anatomy.of(base).layers[0]) if share_blocks else None,
    }


def _require_memory(
    table: str,
    shape: str,
    rows: Sequence[tuple[MethodConfig, RowSpec]],
    tokens: int,
    device: torch.device,
    share_blocks: bool,
) -> None:
    """Refuses what does not fit; the model and its variants are built without storage to see."""
    need = _need(shape, rows, tokens, share_blocks)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if need <= free:
        return
    where = "the GPU" if device.type == "cuda" else "this machine"
    remedy = "name a smaller model, as in --shape llava-0.5b --prompt-tokens 300"
    if not share_blocks:
        less = _need(shape, rows, tokens, share_blocks=True)
        remedy = f"add --share-blocks (all blocks hold one block's weights: about {less / 2**30:.0f} GiB), or {remedy}"
    raise ConfigError(
        f"{table} --measure: {shape} needs about {need / 2**30:.0f} GiB, and {where} has {free / 2**30:.0f} GiB free; "
        f"use a machine with more memory, {remedy}"
    )


def _need(shape: str, rows: Sequence[tuple[MethodConfig, RowSpec]], tokens: int, share_blocks: bool) -> float:
    """Bytes of the base, which all rows share, with the largest row's own modules, the folded weights of a request and
    two caches, and a fifth for activations."""
    with torch.device("meta"), no_init_weights():
        base = build(shape, dtype=torch.bfloat16, share_blocks=share_blocks)
        cache = tokens * count_modules(base, tokens).kv_bytes_per_token
        largest, held = 0, {id(parameter) for parameter in base.parameters()}
        for method, row in rows:
            variant = _variant(base, method, row)
            own = sum(p.nbytes for p in variant.parameters() if id(p) not in held)
            largest = max(largest, own + count_modules(variant, tokens).fold_bytes)
    return 1.2 * (_bytes(base) + largest + 2 * cache)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _variant(base: PreTrainedModel, method: MethodConfig, row: RowSpec) -> PreTrainedModel:
    """The base with a method's untrained modules, pruned and folded; it shares the base's weights."""
    chosen = skipped(row, method, base.config.get_text_config().num_hidden_layers) or ()
    model: PreTrainedModel = attached_copy(base, method, chosen)
    if model.eas.method.fold is not None and row.fold_mode != "none":
        fold(model)
    unwrap(model)
    return model


def _inputs(model: Any, tokens: int, images: int) -> dict[str, Tensor]:
    """A prompt of so many tokens, its images' among them."""
    config, g = model.config, torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1000, (1, tokens), generator=g)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if images:
        taken = images * config.image_seq_length
        if taken >= tokens:
            raise ConfigError(f"{images} images take {taken} tokens; a prompt of {tokens} tokens has no room for text")
        ids[:, 1 : 1 + taken] = config.image_token_id
        side = config.vision_config.image_size
        inputs["pixel_values"] = torch.randn(images, 3, side, side, generator=g).to(model.dtype)
    return {key: value.to(model.device) for key, value in inputs.items()}


def scaled(method: MethodConfig, text_config: Any) -> MethodConfig:
    """A method of the paper's 32 layers and width 4096 in a model of other sizes: the same share of layers is skipped,
    and ranks are the same share of the width (a multiple of four)."""
    layers, width = text_config.num_hidden_layers, text_config.hidden_size
    if isinstance(method, SkipConfig) and layers != PAPER_LAYERS:
        method = replace(method, num_skip=max(1, round(method.num_skip * layers / PAPER_LAYERS)))
    return method.rescaled(width)


def add_training(
    result: dict[str, Any],
    only: Sequence[str] | None,
    output_dir: Path,
    model: str | None = None,
    data: str | None = None,
    options: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> None:
    """Runs the recipes of every row, or of those named, and sets their scores beside the paper's.

    A finished run is not repeated, and a stopped run continues.

    Args:
        result: of ``reproduce_table``.
        only: the rows, None for all.
        output_dir: each run has a folder in its ``runs``.
        model: another model than the recipes'; "tiny" is embedded.
        data: other data than the recipes'; its scores are not those of the paper's columns.
        options: ``key=value`` for all runs.
        seeds: one run of every recipe for each; by default the recipe's own.

    Raises:
        ConfigError: the rows have no recipe; weights or data are missing, and the message says what to get and where to
            put it. Nothing has been trained then.
    """
    spec = table_spec(result["table"])
    configs = training_configs(result["table"], only, output_dir, model, data, options, seeds)
    for row, r in zip(spec.rows, result["rows"], strict=True):
        if (only and row.name not in only) or not row.recipes:
            continue
        r["trained"] = {}
        for name in row.recipes:
            found = [_trained(config) for config in configs[name]]
            kept = {"seeds": [config.seed for config in configs[name]], "scores": [score for score, _ in found]}
            r["trained"][name] = kept | {"folders": [config.output_dir for config in configs[name]]}
            if configs[name][0].metric_name != recipe(name).metric_name:
                continue  # another task's accuracy is none of the paper's
            for column, (group, number) in spec.scores.items():
                values = [numbers[number] for _, numbers in found if number in numbers]
                if group == name.split("/")[0] and column in row.paper and values:
                    _compare_score(r, column, values)
    first = next(iter(configs.values()))[0]
    said = f"scores: {first.model} on {first.data}, {first.metric_name}"
    if model is not None or data is not None:
        said += "; not the paper's model and data: k is the same share of the layers, ranks of the width"
    result["training_notes"] = [said]


def training_configs(
    table: str,
    only: Sequence[str] | None,
    output_dir: Path,
    model: str | None = None,
    data: str | None = None,
    options: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> dict[str, list[RunConfig]]:
    """The runs of ``add_training`` by recipe, one for each seed; it refuses what that refuses."""
    spec = table_spec(table)
    recipes = [name for row in spec.rows if not only or row.name in only for name in row.recipes]
    if not recipes:
        raise ConfigError(f"{table} has no recipe for these rows; leave out --train, or name other rows with --row")
    if spec.shape is None and model == "tiny":
        raise ConfigError(f"{table} is about METER, which has another form than the embedded model; leave it out")
    configs = {
        name: [training_config(name, output_dir, model, data, options, seed) for seed in seeds or (None,)]
        for name in recipes
    }
    for name, of_seeds in configs.items():
        require_inputs(name, of_seeds[0])
    return configs


def _trained(config: RunConfig) -> tuple[float, dict[str, float]]:
    """Runs what is not done; gives the score of the folded or tuned model, and all numbers of the metric."""
    run_steps(run := Run.create(config))
    found = run.require("eval")
    scores, reports = found["score"], found["report"]
    kind = "folded" if "folded" in scores else "tuned"
    return scores[kind], reports[kind]


def _compare_score(row: dict[str, Any], column: str, values: Sequence[float]) -> None:
    mean = statistics.mean(values)
    row["ours"][column] = mean
    row.setdefault("spread", {})[column] = statistics.stdev(values) if len(values) > 1 else None
    row["difference"][column] = mean - row["paper"][column]


def training_config(
    name: str,
    output_dir: Path,
    model: str | None = None,
    data: str | None = None,
    options: Sequence[str] = (),
    seed: int | None = None,
) -> RunConfig:
    """A recipe's run, in a folder below ``output_dir``; of the embedded model with the settings of `eas demo`."""
    config = recipe(name)
    if model == "tiny":
        run = RunConfig.from_file(DEMOS["tiny"])
        run.method = scaled(config.method, Run(run).load_config().get_text_config())
        config, data = replace(run, search=replace(run.search, rule=config.search.rule)), data or "scenes:textures"
    folder = output_dir / "runs" / (name if seed is None else f"{name}-s{seed}")
    changes: dict[str, Any] = {"output_dir": str(folder)}
    changes |= {} if data is None else {"data": data, "data_options": {}}
    changes |= {} if model is None else {"model": model}
    changes |= {} if seed is None else {"seed": seed, "search.seed": seed}
    return config.with_values(changes | read_assignments(options))


def require_inputs(name: str, config: RunConfig) -> None:
    """Refuses a run whose weights or data are not there.

    Raises:
        ConfigError: something is missing; the message says how to get it, and where to put it.
    """
    needs = read_yaml((RECIPES / "needs.yaml").read_text(encoding="utf-8"))

    def refuse(what: str, where: str) -> ConfigError:
        how = needs.get(where, "put it there, or name another place with -o model=... or -o data=...")
        return ConfigError(f"recipe {name}: {what} {where} is not there. {how}")

    kind, _, place = config.data.partition(":")
    if kind not in ("scenes", "hub") and not place.startswith("hub:") and not Path(place or kind).exists():
        raise refuse("the data", place or kind)
    if config.model == "tiny" or Path(config.model).exists():
        return
    if config.model in needs and config.model.startswith("models/"):
        raise refuse("the model", config.model)
    try:
        model_config(config.model, config.revision)
    except (OSError, RecordError) as error:
        raise refuse("the model", config.model) from error
