"""The command line: values of flags are values, errors name keys as they are typed, nothing of a text is swallowed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from filelock import FileLock
from typer.testing import CliRunner

import eas
from eas import cli
from eas.demo.tiny import load_tiny
from eas.keys import as_typed
from eas.pipeline import STEPS, Run, RunConfig
from eas.pipeline.run import CONFIG_FILE

NAMES = ["exp #2", "2024", "yes", "null", "1e5", "a: b", "{x}", "[1]", "&a", "'q", "😀", "é\u2028x", "010", "-1", "~"]


def error_of(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["eas", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr().err.strip()
    assert stopped.value.code == 1
    assert "Traceback" not in printed
    return printed


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_is_the_run_s(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("eas.pipeline.steps.search", lambda run: seen.append(run.folder))
    monkeypatch.setitem(STEPS, "tune", lambda run: seen.append(run.folder))
    monkeypatch.setitem(STEPS, "fold", lambda run: seen.append(run.folder))
    for command in (["search", name, "--skip", "4"], ["search", name], ["tune", name], ["fold", name]):
        verb, folder, *rest = command
        done = CliRunner().invoke(cli.app, [verb, *rest, "--", folder])
        assert done.exit_code == 0, (done.output, done.exception)
    assert seen == [Path(name)] * 4
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert Run.open(name).config.output_dir == RunConfig.from_file(Path(name) / CONFIG_FILE).output_dir == name


@pytest.mark.parametrize("name", NAMES)
def test_a_model_and_data_of_any_name_are_values(tmp_path, monkeypatch, name):
    monkeypatch.setattr("eas.pipeline.steps.search", lambda run: None)
    done = CliRunner().invoke(cli.app, ["search", str(tmp_path), f"--model={name}", f"--data={name}", "--skip", "1"])
    assert done.exit_code == 0, (done.output, done.exception)
    config = Run.open(tmp_path).config
    assert (config.model, config.data, config.num_skip) == (name, name, 1)


def test_a_mode_and_a_task_are_values(tmp_path, monkeypatch):
    Run.create(RunConfig(output_dir=str(tmp_path)))
    refused = CliRunner().invoke(cli.app, ["fold", str(tmp_path), "--mode", "null"])
    assert "fold_mode = 'null': must be null or one of" in str(refused.exception)
    refused = CliRunner().invoke(cli.app, ["demo", "--output-dir", str(tmp_path / "d"), "--task", "odd #2"])
    assert "odd #2" in str(refused.exception)


def test_the_folder_is_named_once(tmp_path):
    refused = CliRunner().invoke(cli.app, ["search", str(tmp_path / "a"), "-o", f"output_dir={tmp_path / 'b'}"])
    assert "-o output_dir: the run folder is" in str(refused.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("-o 'skip_set=[1,2'", "-o skip_set: the value is not YAML: expected ',' or ']'"),
        ("-o 'train.cut={'", "-o train.cut: the value is not YAML"),
        ("-o '*x'", "-o *x: write key=value"),
        ("-o metric=*x", "-o metric: the value is not YAML: found undefined alias 'x'"),
        ("-o metric=!!python/name:os.system", "could not determine a constructor"),
        ("-o seed=12:30", "seed = '12:30': must be int"),
        ("-o seed=010", "seed = '010': must be int"),
        ("-o seed=-1", "seed = -1: must be at least 0"),
        ("-o data=2024", "data (--data) = 2024: must be str; put quotes around it"),
        ("-o search.samples=1000000000", "search.samples = 1000000000: must be at most 1000"),
        (
            "-o method.name=das -o method.preset=released",
            "method.preset = 'released': must be one of llava, lavin, meter",
        ),
        ("-o method.name=lora -o method.preset=meter", "method has no key 'preset'"),
        ("-o method.name=das -o method.hidden_scale=2", "method has no key 'hidden_scale'"),
        ("-o search.finalists=4", "search has no key 'finalists'"),
        ("-o search.stop_when_settled=true", "search has no key 'stop_when_settled'"),
        ("-o train.tune_steps=1000000000", "train.tune_steps = 1000000000: must be at most 10000000"),
        ("-o train.learning_rat=1", "train has no key 'learning_rat'; did you mean 'learning_rate'?"),
        ("-o trian.x=1", "-o trian.x: there is no section 'trian'"),
        ("-o modle=x", "there is no key 'modle'; did you mean 'model'?"),
        ("-o method.skip_rank=0", "method.skip_rank = 0: must be at least 1"),
        ("-o search=3", "search = 3: must be a mapping"),
        ("-o 'skip_set=[a]'", "skip_set = ['a']: must be list"),
        ("-o 'search.num_skip_range=[a, b]'", "search.num_skip_range = ['a', 'b']: must be list"),
        ("--skip 12", "method.num_skip (--skip) = 12: the model has 12 attentions"),
        ("--skip 2 -o search.num_skip_range=[1,12]", "search.num_skip_range = [1, 12]: the model has 12 attentions"),
        ("--skip 2 -o skip_set=[1,12]", "skip_set = [1, 12]: skip set names [12]; the model's candidates are 0 to 11"),
        ("--skip 2 -o skip_set=[1,1]", "skip_set = [1, 1]: skip set [1, 1] names a candidate twice"),
        ("--skip 3 -o skip_set=[1,2]", "skip_set = [1, 2] does not hold method.num_skip = 3 candidates"),
        ("--method nothing", "method 'nothing' is unknown"),
        (
            "-o train.report_to=wandb --skip 2",
            "train.report_to = 'wandb': the tracker is not installed; pip install wandb",
        ),
        ("-o train.report_to=wand --skip 2", "train.report_to = 'wand': use one of none, all,"),
        ("-o metric=choice --skip 2 --data own.json", "has no choices; use the metric `exact`"),
        ("-o metric=vqa --skip 2 --data few.json", "1 of 4 `answers` that metric=vqa needs"),
        ("--data own.json --skip 0", "method.num_skip (--skip) = 0: there is nothing to search"),
        ("--data alone.jsonl --skip 2", "alone.jsonl: the split 'train' is empty"),
    ],
)
def test_a_setting_that_cannot_work_is_one_line_before_a_model_is_loaded(
    tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": i, "prompt": "what ?", "completion": "red"} for i in range(30)]
    Path("own.json").write_text(json.dumps(rows))
    Path("few.json").write_text(json.dumps([row | {"answers": ["red"]} for row in rows]))
    Path("alone.jsonl").write_text(json.dumps(rows[0]))
    monkeypatch.setattr("eas.pipeline.run.load_base", lambda *_, **__: pytest.fail("the model was loaded"))
    said = error_of(monkeypatch, capsys, "search", str(tmp_path / "run"), *shlex.split(arguments))
    assert said.count("\n") == 0
    assert words in said
    assert "Config" not in said
    assert not (tmp_path / "run" / "search.json").exists()


def test_what_does_not_fit_into_memory_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 2**20}))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = error_of(monkeypatch, capsys, "search", str(tmp_path / "run"), "--skip", "2")
    assert "method: what eas trains needs 0 GiB, and this machine has 0 GiB; lower the method's ranks" in said


def test_long_values_are_shortened(tmp_path, monkeypatch, capsys):
    said = error_of(monkeypatch, capsys, "search", str(tmp_path / "run"), "-o", f"metric={'x' * 50_000}")
    assert "metric = 'xxx" in said
    assert "(50002 characters)" in said
    assert len(said) < 800
    said = error_of(monkeypatch, capsys, "search", str(tmp_path / "run"), "-o", f"metric={'x' * 2_000_000}")
    assert "-o metric: the value is longer than 1000000 characters" in said


def test_keys_are_named_as_they_are_typed():
    assert as_typed("EASConfig.num_skip = 3: no", "run") == "method.num_skip (--skip) = 3: no"
    assert as_typed("EASConfig.num_skip = 3: no", "tune") == "method.num_skip = 3: no"
    assert as_typed("LoRAConfig.train_projector = True: no", "compare") == "method.train_projector = True: no"
    assert as_typed("EASConfig.num_skip = 3: no", "count") == "--skip = 3: no"
    assert as_typed("LoRAConfig has no key 'r'; did you mean 'rank'?", "count") == (
        "there is no key 'r'; did you mean 'rank'?"
    )
    assert as_typed("BenchConfig.prompt_tokens = 1: no", "bench") == "--prompt = 1: no"
    assert as_typed("BenchConfig.model = 'x': no", "bench") == "MODEL = 'x': no"
    assert as_typed("BenchConfig.batch_sizes = [0]: no", "bench") == "--batch-sizes = [0]: no"
    assert as_typed("a.yaml: RunConfig.dtype = 3: no", "run") == "a.yaml: dtype = 3: no"
    assert as_typed("LoRAConfig.targets: no such maps", "run") == "method.targets: no such maps"
    assert as_typed("CompareConfig.run.seed: no", "compare") == "run.seed: no"
    assert as_typed("VQA2Options.images = 3: no", "data") == "data_options.images = 3: no"
    assert as_typed("entry 'X': TrainConfig.cut = 3: no", "compare") == "entry 'X': train.cut = 3: no"


def test_brackets_of_an_error_are_shown(tmp_path, monkeypatch, capsys):
    said = error_of(monkeypatch, capsys, "tune", str(tmp_path / "[red]a[/] :smile:"))
    assert "[red]a[/] :smile: holds no run.yaml" in said


def test_config_shows_brackets():
    shown = " ".join(CliRunner().invoke(cli.app, ["config"]).output.split())
    assert "[low, high]" in shown


def commands(app: typer.Typer, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], object]]:
    group = typer.main.get_command(app)

    def walk(command: object, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], object]]:
        below = getattr(command, "commands", {})
        return [(path, command)] + [found for name, sub in below.items() for found in walk(sub, (*path, name))]

    return walk(group, path)


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*found, id=" ".join(found[0]) or "eas") for found in commands(cli.app)]
)
def test_every_word_of_the_help_is_shown(path, command):
    shown = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(cli.app, [*path, "-h"])
    assert shown.exit_code == 0
    text = re.sub(r"\W+", "", shown.output)
    for parameter in command.params:
        assert re.sub(r"\W+", "", getattr(parameter, "help", None) or "") in text


def test_version():
    shown = CliRunner().invoke(cli.app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"eas {eas.__version__}\n")


def test_a_step_says_what_it_wrote(tmp_path, monkeypatch):
    Run.create(RunConfig(output_dir=str(tmp_path / "a b")))
    monkeypatch.setitem(STEPS, "measure", lambda run: None)
    done = CliRunner().invoke(cli.app, ["measure", str(tmp_path / "a b")])
    assert done.output == f"{tmp_path}/a b/measure.json is written; `eas report '{tmp_path}/a b'` shows it\n"


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path, monkeypatch):
    def stop(run: Run) -> None:
        raise KeyboardInterrupt

    Run.create(RunConfig(output_dir=str(tmp_path)))
    for verb, words in (("tune", "continues where it stopped"), ("measure", "starts over")):
        monkeypatch.setitem(STEPS, verb, stop)
        monkeypatch.setattr("sys.argv", ["eas", verb, str(tmp_path)])
        stopped = CliRunner().invoke(cli.app, [verb, str(tmp_path)])
        assert stopped.exit_code == 130
        assert stopped.output == f"stopped; the same command {words}: eas {verb} {tmp_path}\n"


@pytest.mark.parametrize("verb", ["search", "tune", "fold", "eval", "measure", "frontier"])
def test_one_command_at_a_time_works_in_a_run_folder(tmp_path, verb):
    Run.create(RunConfig(output_dir=str(tmp_path)))
    with FileLock(tmp_path / ".lock"):
        refused = CliRunner().invoke(cli.app, [verb, str(tmp_path)])
    assert f"{tmp_path}: another eas command works in it" in str(refused.exception)


def test_a_second_command_does_not_change_the_settings_of_the_first(tmp_path):
    Run.create(RunConfig(output_dir=str(tmp_path), seed=1))
    with FileLock(tmp_path / ".lock"):
        refused = CliRunner().invoke(cli.app, ["run", "--output-dir", str(tmp_path), "-o", "seed=2"])
    assert "another eas command works in it" in str(refused.exception)
    assert Run.open(tmp_path).config.seed == 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An adapter and a standalone model of one base, and a run's folder without a model."""
    root = tmp_path_factory.mktemp("folders")
    model = eas.attach(load_tiny()[0], eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
    eas.select(model, [2, 5])
    eas.prune(model)
    eas.save(model, root / "adapter")
    eas.save_standalone(model, root / "standalone")
    RunConfig(output_dir=str(root / "run")).to_file(root / "run" / CONFIG_FILE)
    return root


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("adapter", "adapter holds an adapter and no model; name its base ("),
        (
            "standalone",
            "standalone is a standalone model: it has its method, and lacks attentions already; name its base",
        ),
        ("run", "run is the folder of a run and no model; name its base, the model in its run.yaml"),
    ],
)
def test_what_is_no_base_is_named_wherever_a_base_is_asked_for(folders, kind, words, tmp_path, monkeypatch, capsys):
    folder, out = str(folders / kind), str(tmp_path / "out")
    entry = {"label": "EAS", "skips": [2]}
    (tmp_path / "compare.yaml").write_text(json.dumps({"run": {"model": folder}, "entries": [entry]}))
    shared = ["--data", "scenes:relation", "--skip", "2"]
    for arguments in (
        ["run", "--model", folder, *shared, "--output-dir", out],
        ["search", out, "--model", folder, *shared],
        ["compare", "--config", str(tmp_path / "compare.yaml"), "--output-dir", out],
        ["data", "check", "scenes:relation", "--model", folder],
        ["bench", folder, "--output", str(tmp_path / "bench.json")],
        ["export", str(folders / "adapter"), "--base", folder, "--to", "vllm", "--output", f"{out}2"],
    ):
        assert words in error_of(monkeypatch, capsys, *arguments), arguments
    if kind == "standalone":
        with pytest.raises(ValueError, match="is a standalone model"):
            eas.count(folder, 32, method="lora")
