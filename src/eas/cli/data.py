"""Data verbs: check data before it is used, score predictions without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eas.cli.app import DataOverrides, SkipBad, data_app
from eas.files import write_text
from eas.terminal import console, printable

if TYPE_CHECKING:
    from eas.example import Example


@data_app.command(name="check")
def data_check(
    data: Annotated[
        str | None, typer.Argument(help="A path, hub:ID, or another value of --data.", show_default=False)
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="A benchmark, in place of DATA.")] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder of the benchmark in the official layout, or hub:ID.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="One split; repeat for several. Default: the splits of a run.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Also try every row on this model's processor and chat template.")
    ] = None,
    skip_bad: SkipBad = False,
    option: DataOverrides = None,
) -> None:
    """Read all data once and check rows, labels, ids, images, and images that are in two splits.

    With --model, the check also finds what the model's own processor, tokenizer or chat template refuses. With
    -o metric=NAME, it finds examples that this metric cannot score.

    The last line is JSON. The exit status is 1 if something is wrong; with --skip-bad, only if it cannot be left out.
    """
    from eas.data.check import check_data, check_view
    from eas.pipeline import RunConfig

    if (data is None) == (dataset is None and data_dir is None) or (dataset is None) != (data_dir is None):
        raise ValueError("give either a path, or --dataset and --data-dir")
    spec = data if data is not None else f"{dataset}:{data_dir}"
    metrics = [given for given in option or [] if given.startswith("metric=")]
    metric = RunConfig(data=spec).with_overrides(metrics).metric_name
    options = data_options(spec, skip_bad, [given for given in option or [] if given not in metrics])
    trial = None if model is None else _trial(model, spec, options)
    check = check_data(spec, split or [], options, trial, metric)
    console().print(check_view(check, whole=skip_bad))
    print(printable(json.dumps({"data": spec, **check.summary()}, ensure_ascii=False)))
    if check.failures or (check.problems and not skip_bad):
        raise typer.Exit(1)


def _trial(model: str, spec: str, options: Mapping[str, object]) -> Callable[[Example], object]:
    from eas.pipeline import Run, RunConfig

    run = Run(RunConfig(model=model, data=spec, data_options=dict(options)))
    return run.task.trial(run, "test")


def score_predictions(
    dataset: str,
    data_dir: str,
    split: str,
    predictions: Path,
    json_file: Path | None,
    skip_bad: bool,
    option: list[str] | None,
) -> None:
    from eas.data.score import score_file
    from eas.reports.benchmark import report_table

    options = data_options(f"{dataset}:{data_dir}", skip_bad, option)
    result = score_file(dataset, data_dir, split, predictions, options)
    report = result.report
    out = console()
    out.print(report_table(f"{dataset} {split}: {predictions}", report, result.examples))
    for message in result.left_out:
        out.print(f"left out: {message}", highlight=False, soft_wrap=True)
    given = {"dataset": dataset, "data_dir": data_dir, "split": split, "predictions": str(predictions)}
    found = {"examples": result.examples, "score": report.score, "numbers": dict(report.numbers)}
    if json_file is not None:
        rest = {"counts": dict(report.counts), "left_out": result.left_out, "scores": dict(report.scores)}
        write_text(json_file, json.dumps({**given, **found, **rest}, indent=2, ensure_ascii=False) + "\n")
    print(printable(json.dumps({**given, **found, "left_out": len(result.left_out)}, ensure_ascii=False)))


def data_options(spec: str, skip_bad: bool, option: list[str] | None) -> dict[str, object]:
    from eas.pipeline import RunConfig

    for given in option or []:
        if not given.startswith("data_options."):
            raise ValueError(f"-o {given}: this command takes only data_options.KEY=VALUE")
    options = RunConfig(data=spec).with_overrides(option or []).data_options
    return options | {"skip_bad": True} if skip_bad else options
