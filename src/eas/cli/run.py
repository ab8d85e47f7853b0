"""Verbs of one run: all steps at once, and every single step."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eas.cli.app import ConfigFile, Data, DataOverrides, Folder, Method, Model, Overrides, Skip, SkipBad, app
from eas.cli.data import score_predictions
from eas.terminal import console, printable

if TYPE_CHECKING:
    from eas.pipeline import Run


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    model: Annotated[
        str | None,
        typer.Option(help="'smol', a real small model, or 'tiny'; by default smol if its packages are installed."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Another task of the procedural world, for example odd.")] = None,
    option: Overrides = None,
) -> None:
    """Show all steps of EAS on a model of packages or on the embedded one: a few minutes on two cores."""
    from eas.demo import DEMOS
    from eas.models.smol import packages_installed
    from eas.packaged import INSTALL
    from eas.pipeline import Run, RunConfig, run_steps
    from eas.pipeline.run import working

    if model is None and not packages_installed():
        print(f"The model is tiny, because the packages of the model smol are not installed: {INSTALL}")
    name = model or ("smol" if packages_installed() else "tiny")
    if name not in DEMOS:
        raise ValueError(f"--model {name}: the demo shows {' or '.join(DEMOS)}; `eas run` takes any model")
    config = RunConfig.from_file(DEMOS[name])
    data = {} if task is None else {"data": f"scenes:{task}"}
    config = config.with_values(data | _options(output_dir, option))
    with working(output_dir):
        run_steps(Run.create(config))
        _show(output_dir)


@app.command()
def run(
    output_dir: Annotated[Path, typer.Option(help="The run folder.", show_default=False)],
    model: Model = None,
    data: Data = None,
    method: Method = None,
    skip: Skip = None,
    config: ConfigFile = None,
    option: Overrides = None,
) -> None:
    """Search, tune, fold, evaluate, measure and report, in one command.

    Later settings replace earlier ones: --config, then --model, --data and --skip, then -o. `eas config` lists them.

    Example: [bold]eas run --model llava-hf/llava-1.5-7b-hf --data my.jsonl --skip 12 --output-dir runs/mine[/]
    """
    from eas.pipeline import run_steps

    with _started(output_dir, model, data, method, skip, config, option) as opened:
        run_steps(opened)
        _show(output_dir)


@app.command()
def search(
    folder: Folder,
    model: Model = None,
    data: Data = None,
    method: Method = None,
    skip: Skip = None,
    config: ConfigFile = None,
    option: Overrides = None,
) -> None:
    """Step 1: find the skip set (search.json). If the folder is new, this starts the run; settings as in `eas run`."""
    from eas.pipeline.steps import search as find

    with _started(folder, model, data, method, skip, config, option) as opened:
        find(opened)


@app.command()
def tune(folder: Folder) -> None:
    """Step 2: train the PIAs under the found skip set (adapter/)."""
    _step(folder, "tune")


@app.command()
def fold(
    folder: Folder,
    mode: Annotated[
        str | None,
        typer.Option(help="Fold mode: auto, shared, per_example, constant, ...; by default the run's fold_mode."),
    ] = None,
) -> None:
    """Step 3: check that folding changes nothing, and write the standalone model (model/).

    A mode given here becomes the run's fold_mode: `eas eval`, `eas measure` and `eas generate` use it from then on. In
    every mode the folders keep the PIAs; eas folds a model after it loads the model.
    """
    from eas.pipeline import STEPS, Run
    from eas.pipeline.run import CONFIG_FILE, working

    opened = Run.open(folder)
    if mode is not None:
        opened = Run(opened.config.with_values({"fold_mode": mode}))
    with working(folder):
        STEPS["fold"](opened)
        if mode is None:
            return
        opened.config.to_file(folder / CONFIG_FILE)  # not where the mode was refused
    if old := [step for step in ("eval", "measure") if opened.record(step) is not None]:
        again = f"eas {old[0]} {shlex.quote(str(folder))}"
        print(f"{' and '.join(f'{step}.json' for step in old)} may belong to another mode; run `{again}` again")


@app.command(name="eval")
def evaluate(
    folder: Annotated[Path | None, typer.Argument(help="A run folder.", show_default=False)] = None,
    dataset: Annotated[str | None, typer.Option(help="Benchmark of a file of predictions.")] = None,
    data_dir: Annotated[
        str | None, typer.Option(help="Folder of the benchmark in the official layout, or hub:ID.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="An official split.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="File of predictions in the benchmark's result format.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report and every score to this file.")
    ] = None,
    skip_bad: SkipBad = False,
    option: DataOverrides = None,
) -> None:
    """Step 4: score base, tuned and folded model on the test split (eval.json).

    Without a run and a model, the command scores predictions as the benchmark's official evaluator does (docs/data.md).
    With --skip-bad, a missing prediction counts as wrong, and an extra one is dropped. The last line is JSON.

    Example: [bold]eas eval --dataset vqa2 --data-dir VQA --split val2014 --predictions results.json[/]
    """
    scoring = {"--dataset": dataset, "--data-dir": data_dir, "--split": split, "--predictions": predictions}
    if folder is not None:
        if extra := [name for name, value in scoring.items() if value] + ["--json"] * bool(json_file):
            raise ValueError(f"a run folder and {extra[0]}: give one of them")
        if skip_bad or option:
            raise ValueError(
                f"{'--skip-bad' if skip_bad else '-o'} is for a file of predictions; a run folder has its settings "
                "already: start another run with other settings"
            )
        return _step(folder, "eval")
    if missing := [name for name, value in scoring.items() if value is None]:
        raise ValueError(f"without a run folder, {', '.join(missing)} must be given")
    score_predictions(str(dataset), str(data_dir), str(split), Path(str(predictions)), json_file, skip_bad, option)


@app.command()
def measure(folder: Folder) -> None:
    """Step 5: count and time base and folded model (measure.json)."""
    _step(folder, "measure")


@app.command()
def generate(
    folder: Folder,
    prompt: Annotated[str, typer.Option(help="The question.", show_default=False)],
    image: Annotated[list[Path] | None, typer.Option(help="An image; repeat for several.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of the answer.")] = 64,
) -> None:
    """Answer one question with the tuned, folded model of a run."""
    from eas.attachment.attach import fold as fold_model
    from eas.attachment.load import load
    from eas.example import Example
    from eas.pipeline import Run
    from eas.pipeline.savings import fold_mode
    from eas.tasks.evaluation import answer

    opened = Run.open(folder)
    opened.task.check_generation(opened)
    opened.require("tune")
    model = load(opened.load_base(), opened.folder / "adapter")
    if (mode := fold_mode(opened)) is not None:
        fold_model(model, mode)
    example = Example.ask("prompt", prompt, "", *(image or []))
    ((text, cut),) = answer(model, opened.processor, [example], batch_size=1, max_new_tokens=max_new_tokens)
    print(printable(text))
    if cut:
        console(stderr=True).print(f"note: the answer is cut at --max-new-tokens = {max_new_tokens}")


@app.command()
def config() -> None:
    """List every key of the run configuration with its default and meaning."""
    from rich.table import Table

    from eas.pipeline import RunConfig

    table = Table("key", "default", "meaning", title="Keys of a run's YAML file and of -o key=value")
    for key, default, help in RunConfig().describe():
        table.add_row(key, str(default), help)
    console().print(table)


@contextmanager
def _started(
    folder: Path,
    model: str | None,
    data: str | None,
    method: str | None,
    skip: int | None,
    config: Path | None,
    option: list[str] | None,
) -> Iterator[Run]:
    """The run in a folder, started or gone on with, and no other command in the folder meanwhile."""
    from eas.pipeline import Run, RunConfig
    from eas.pipeline.run import working

    flags = {"model": model, "data": data, "method.name": method, "method.num_skip": skip}
    given = {key: value for key, value in flags.items() if value is not None}
    if (folder / "run.yaml").is_file() and not given and not option and config is None:
        opened = Run.open(folder)
        with working(folder):
            yield opened
        return
    settings = RunConfig.from_file(config) if config else RunConfig()
    settings = settings.with_values(given | _options(folder, option))
    with working(folder):
        yield Run.create(settings)


def _options(folder: Path, option: list[str] | None) -> dict[str, Any]:
    from eas.config import read_assignments

    given = read_assignments(option or [])
    if "output_dir" in given:
        raise ValueError(f"-o output_dir: the run folder is {folder} already; leave it out")
    return {"output_dir": str(folder)} | given


def _step(folder: Path, name: str) -> None:
    from eas.distributed import is_main
    from eas.pipeline import STEPS, Run
    from eas.pipeline.run import working
    from eas.reports.sources import is_of_comparison

    opened = Run.open(folder)
    with working(folder):
        STEPS[name](opened)
    if is_main():
        shown = "" if is_of_comparison(folder) else f"; `eas report {shlex.quote(str(folder))}` shows it"
        console().print(f"{folder / f'{name}.json'} is written{shown}", highlight=False, soft_wrap=True)


def _show(folder: Path) -> None:
    """Ends a run: the table, and the page by name."""
    from eas.distributed import is_main
    from eas.reports.sources import read_json
    from eas.reports.terminal import summary_view

    if is_main():
        console().print(summary_view(read_json(folder / "result.json")))
        console().print(f"page: {folder / 'report.html'}", highlight=False, soft_wrap=True)
