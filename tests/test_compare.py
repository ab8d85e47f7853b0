"""`eas compare` from a user's side: what it refuses, runs, repeats and reports, on the tiny model and a few steps."""

from __future__ import annotations

import csv
import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from typer.testing import CliRunner

import eas
from eas import cli
from eas.files import WriteError
from eas.paper import compare, compare_timing
from eas.paper.compare import choose_rate, compare_runs
from eas.paper.compare_config import CompareConfig
from eas.pipeline import Run, steps
from eas.pipeline.fit import check_method
from eas.reports.comparison import comparison_table, write_comparison
from eas.reports.page import ReportError

ROOT = Path(__file__).parents[1]
SHARED: dict[str, Any] = {
    "train_limit": 16,
    "validation_limit": 8,
    "test_limit": 8,
    "max_new_tokens": 4,
    "data": "scenes:relation",
    "method": {"skip_rank": 8, "adapt_rank": 4},
    "search": {"train": True, "warmup_steps": 1, "interval": 1, "batch_size": 4},
    "train": {"search_steps": 2, "tune_steps": 3, "batch_size": 4, "logging_steps": 1},
}
EAS = {"label": "EAS", "skips": [3, 4]}
BASE = {"label": "base", "evaluate_only": True}


def config(folder: Path, *entries: dict[str, Any], **more: Any) -> CompareConfig:
    values = {"output_dir": str(folder), "run": SHARED, "seeds": [0, 1], "jobs": 1, "benchmark": {"repeats": 0}}
    return CompareConfig.from_dict({**values, "entries": list(entries), **more})


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/result.json"))}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    entries = [
        {**EAS, "learning_rates": [0.001, 0.01]},
        {"label": "deep|prompt", "run": {"method": {"name": "deep_prompt", "num_tokens": 2}, "visual_tokens": 4}},
        {"label": "EAS, given", "skips": [4], "run": {"skip_set": [1, 2, 3, 4]}, "learning_rate_of": "EAS"},
        BASE,
    ]
    timing = {"repeats": 1, "new_tokens": 1, "hidden_size": 256, "prompt_tokens": 8}
    compare_runs(config(folder, *entries, trial_steps=2, benchmark=timing), "eas compare")
    return folder


def test_every_run_leaves_its_result_and_one_table_gathers_them(done):
    found = results(done)
    assert len(found) == 2 * 2 + 2 + 2 + 1  # the base once: no seed changes it
    one = found["EAS-k3-s1"]
    assert one["seed"] == one["config"]["seed"] == one["config"]["search"]["seed"] == 1
    assert one["k"] == len(one["skip_set"]) == 3
    assert one["fold_keeps_answers"] is True
    assert len(one["losses"]) == 3
    assert one["versions"]["eas"] == eas.__version__
    assert one["config"]["method"]["name"] == "eas"
    assert sorted(path.name for path in (done / "runs" / "EAS-k3-s1").iterdir()) == [
        *("adapter", "result.json", "run.yaml", "search.json", "tune.json")
    ]
    card = (done / "runs" / "EAS-k3-s1" / "adapter" / "README.md").read_text()
    assert re.search(rf"reaches {100 * one['score']['test']:.1f} % \([\d.]+–[\d.]+\) on scenes:", card)
    assert "Seed: 1" in card
    trial = json.loads((done / "trials" / "EAS-k4-lr0.01" / "result.json").read_text())
    assert trial["score"].keys() == {"validation"}
    assert trial["config"]["train"]["tune_steps"] == 2

    comparison = json.loads((done / "comparison.json").read_text())
    rows = {row["row"]: row for row in comparison["rows"]}
    assert list(rows) == ["EAS_3", "EAS_4", "deep|prompt", "EAS, given", "base"]
    assert comparison["failed"] == 0
    assert rows["EAS_3"]["seeds"] == [0, 1]
    scores = [found[f"EAS-k3-s{seed}"]["score"]["test"] for seed in (0, 1)]
    assert rows["EAS_3"]["test"]["values"] == scores
    assert rows["EAS_3"]["test"]["mean"] == pytest.approx(sum(scores) / 2)
    assert rows["EAS_3"]["test"]["sd"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    reports = [found[f"EAS-k3-s{seed}"]["report"] for seed in (0, 1)]
    assert rows["EAS_3"]["report"].keys() == reports[0].keys() == {"exact"}
    assert rows["EAS_3"]["report"]["exact"]["values"] == [report["exact"] for report in reports]
    assert rows["EAS, given"]["learning_rate"] == rows["EAS_4"]["learning_rate"]
    assert rows["base"]["test"]["sd"] is None
    assert rows["base"]["counts"]["params_trained"] == 0
    assert rows["EAS_3"]["counts"]["kv_bytes_per_token"] == rows["base"]["counts"]["kv_bytes_per_token"] * 9 // 12
    assert comparison["latency"]["variants"].keys() == {"base", *rows}
    assert comparison["latency"]["own_prompt_tokens"] == {"deep|prompt": comparison["latency"]["prompt_tokens"] - 12}
    wide = comparison["latency"]["wide"]
    assert wide["variants"].keys() | wide["left_out"].keys() == {"base", *rows}
    assert {"base", "EAS_3", "EAS_4", "EAS, given"} <= wide["variants"].keys()
    assert "no other number of its tokens" in wide["left_out"]["deep|prompt"]
    assert rows["deep|prompt"]["counts"]["macs"] < rows["EAS_3"]["counts"]["macs"]  # it reads 4 of 16 visual tokens


def test_what_is_done_is_not_done_again(done, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    settings = CompareConfig.from_dict(
        {**json.loads((folder / "comparison.json").read_text())["config"], "output_dir": str(folder)}
    )
    before = json.loads((folder / "comparison.json").read_text())
    once = results(folder)["EAS-k4-s1"]
    shutil.rmtree(folder / "runs" / "EAS-k4-s1")
    ran = []
    run_job = compare.run_job
    monkeypatch.setattr(compare, "run_job", lambda job: (ran.append(job.folder.name), run_job(job))[1])
    after = compare_runs(settings)
    assert ran == ["EAS-k4-s1"]
    again = results(folder)["EAS-k4-s1"]
    assert (again["score"], again["losses"]) == (once["score"], once["losses"])  # nothing but the seed decides
    assert after["latency"] == before["latency"]  # timed once
    jobs = settings.jobs_of_seed(0, {"EAS": 0.001})
    assert compare_timing.time_rows(settings, jobs, before["latency"]) == before["latency"]
    monkeypatch.setattr(compare_timing, "_variants", lambda *args: "timed again")
    one = jobs[0].config
    for other in (  # models and prompts, with the same skip sets
        replace(one, method=replace(one.method, skip_rank=9)),
        replace(one, revision="other"),
        replace(one, data="scenes:odd"),
        replace(one, test_limit=1),
    ):
        changed = [replace(jobs[0], config=other), *jobs[1:]]
        assert compare_timing.time_rows(settings, changed, before["latency"])["variants"] == "timed again"

    values = settings.to_dict()
    values["run"]["train"]["tune_steps"] = 4
    with pytest.raises(eas.ConfigError, match=r"'EAS'.*train\.tune_steps = 3 \(now 4\)"):
        compare_runs(CompareConfig.from_dict(values))


@pytest.mark.slow
def test_two_processes_give_what_one_gives(done, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "_cores", lambda: 2)  # a thread each, as here
    compare_runs(
        config(tmp_path, {**EAS, "skips": [3], "learning_rates": [results(done)["EAS-k3-s0"]["learning_rate"]]}, jobs=2)
    )
    one, two = results(done), results(tmp_path)
    assert two.keys() == {"EAS-k3-s0", "EAS-k3-s1"}
    for name in two:
        assert two[name]["hardware"]["threads"] == 1
        for key in ("skip_set", "losses", "score", "counts"):
            assert two[name][key] == one[name][key], (name, key)


def test_a_failed_run_leaves_its_error_and_is_tried_again(tmp_path, monkeypatch):
    tune = steps.tune

    def fails(run: Any) -> None:
        if run.config.seed == 1:
            raise eas.ConfigError("EASConfig.num_skip = 3: no space left")
        tune(run)

    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(config(tmp_path / "out", {"label": "EAS", "skips": [3]}, BASE).to_dict()))
    command = ["compare", "--config", str(path), "--jobs", "1"]
    monkeypatch.setattr(steps, "tune", fails)
    shown = CliRunner().invoke(cli.app, command)
    assert shown.exit_code == 1, shown.output
    assert json.loads(shown.stdout.splitlines()[-1]) == {
        "comparison": str(tmp_path / "out" / "comparison.json"),
        "runs": 3,
        "failed": 1,
    }
    assert "failed: ConfigError: method.num_skip = 3: no space left (" in shown.stdout
    assert "failed: 1" in shown.stdout
    error = tmp_path / "out" / "runs" / "EAS-k3-s1" / "error.txt"
    assert "no space left" in error.read_text()
    assert "failed: 1" in (tmp_path / "out" / "comparison.md").read_text()

    monkeypatch.setattr(steps, "tune", tune)
    shown = CliRunner().invoke(cli.app, command)
    assert shown.exit_code == 0, shown.output
    assert "[1/1] EAS k 3 seed 1" in shown.stdout
    assert not error.exists()


def test_what_stops_in_a_later_seed_leaves_the_table_of_those_before(tmp_path, monkeypatch):
    run_job = compare.run_job

    def stopping(job):
        if job.config.seed == 1:
            raise KeyboardInterrupt
        return run_job(job)

    monkeypatch.setattr(compare, "run_job", stopping)
    wanted = config(tmp_path, {"label": "deep", "run": {"method": {"name": "deep_prompt", "num_tokens": 2}}}, BASE)
    with pytest.raises(KeyboardInterrupt):
        compare_runs(wanted)
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert [(row["row"], row["seeds"], row["failed"]) for row in record["rows"]] == [("deep", [0], 0), ("base", [0], 0)]
    assert "deep" in (tmp_path / "comparison.md").read_text()
    monkeypatch.undo()
    assert [row["seeds"] for row in compare_runs(wanted)["rows"]] == [[0, 1], [0]]


def test_the_rate_with_the_better_validation_score_is_chosen(tmp_path, monkeypatch):
    settings = config(tmp_path, {**EAS, "skips": [2, 3, 4]}, BASE, learning_rates=[0.001, 0.003, 0.01])
    (trials,) = settings.trials().values()
    assert [job.config.num_skip for job in trials] == [3, 3, 3]
    assert choose_rate(settings, "EAS") is None
    scores: list[float | None] = [0.5, 0.75, None]  # the last one diverged
    for job, score in zip(trials, scores, strict=True):
        job.folder.mkdir(parents=True)
        (job.folder / "result.json").write_text(json.dumps({"seed": 0, "score": {"validation": score}}))
    assert choose_rate(settings, "EAS") == 0.003
    assert {job.config.train.learning_rate for job in settings.jobs_of_seed(1, {"EAS": 0.003})} == {0.003}


def test_a_trial_that_diverges_is_a_result_and_one_that_fails_holds_its_entry_back(tmp_path, monkeypatch):
    def stop(run: Any) -> None:
        raise (FloatingPointError if run.config.train.learning_rate > 0.5 else RuntimeError)("stopped")

    monkeypatch.setattr(steps, "search", stop)
    comparison = compare_runs(config(tmp_path, {**EAS, "learning_rates": [0.1, 1.0]}, BASE))
    assert comparison["failed"] == 4
    assert [row["failed"] for row in comparison["rows"]] == [2, 2, 0]
    assert "diverged" in (tmp_path / "trials" / "EAS-k4-lr1" / "result.json").read_text()
    assert (tmp_path / "trials" / "EAS-k4-lr0.1" / "error.txt").is_file()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"run": {"method": {"name": "lorra"}}}, "'X'.*lorra"),
        ({"run": {"method": {"skip_rnk": 3}}}, "'X'.*skip_rank"),
        ({"run": {"train": {"tune_steps": 0}}}, "'X'.*tune_steps"),
        ({"run": {"data": "scenes:odd"}}, "'X'.*run.data is the same for all"),
        ({"run": {"method": {"name": "deep_prompt"}}, "skips": [3]}, "'X'.*num_skip"),
        ({"run": {"skip_set": [1, 2]}, "skips": [3]}, "'X'.*skip_set"),
        ({"skips": [3, 3]}, "'X'.*skips"),
        ({"learning_rate_of": "Y"}, "'X'.*learning_rate_of = 'Y'"),
        ({"learning_rates": [0.1, -1]}, "'X'.*learning_rates"),
        ({"learning_rates": [0.1], "run": {"train": {"learning_rate": 1.0}}}, "'X'.*give one of"),
        ({"evaluate_only": True, "skips": [3]}, "'X'.*evaluate_only"),
        ({"skip": [3]}, "'X'.*skips"),
        ({"label": "base"}, "'base'.*label"),
        ({"label": "?"}, "label"),
    ],
)
def test_config_errors_name_the_label(tmp_path, entry, words):
    with pytest.raises(eas.ConfigError, match=words):
        config(tmp_path, {"label": "X", **entry}, BASE)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"jobs": 0}, "jobs"),
        ({"entries": []}, "entries"),
        ({"entries": ["LoRA"]}, "mapping with a label"),
        ({"run": {"seed": 3}}, "use seeds"),
        ({"run": {"model": "some/llava"}, "benchmark": {"hidden_size": 1024}}, "hidden_size.*'tiny'"),
        ({"benchmark": {"hidden_size": 100}}, "hidden_size"),
        ({"trial_step": 3}, "trial_steps"),
    ],
)
def test_a_bad_comparison_is_refused(tmp_path, values, words):
    with pytest.raises(eas.ConfigError, match=words):
        CompareConfig.from_dict({"output_dir": str(tmp_path), "entries": [EAS], **values})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"skips": [3, 12]}, "'X': EASConfig.num_skip = 12: the model has 12 attentions"),
        (
            {"run": {"skip_set": [1, 12]}, "skips": [2]},
            r"'X': skip_set = .*: skip set names \[12\]; the model's candidates are 0 to 11",
        ),
        ({"run": {"method": {"name": "llama_adapter", "num_layers": 13}}}, "'X': .*num_layers = 13: the model has 12"),
        ({"run": {"train": {"report_to": "wanda"}}}, "'X': train.report_to = 'wanda': use one of none, all, "),
        ({"run": {"train": {"report_to": "wandb"}}}, "'X': train.report_to = 'wandb': the tracker is not installed"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_is_computed(tmp_path, entry, words, monkeypatch):
    monkeypatch.setattr("eas.pipeline.fit.get_available_reporting_integrations", lambda: ["tensorboard"])
    settings = config(tmp_path, BASE, {"label": "X", **entry}, learning_rates=[0.001, 0.003])
    with pytest.raises(eas.ConfigError, match=words):
        compare_runs(settings)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path, monkeypatch):
    lora = {"label": "LoRA", "run": {"method": {"name": "lora"}}}
    (job,) = config(tmp_path, lora, seeds=[0]).jobs_of_seed(0, {})
    trained = sum(p.numel() for p in check_method(Run(job.config)).parameters() if p.requires_grad)
    need = 3 * 16 * trained + 2 * 4 * trained  # checkpoints of one run at a time, adapters of both
    for free, fits in ((need - 1, False), (need, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        monkeypatch.setattr(compare, "_do", lambda *given: None)
        with nullcontext() if fits else pytest.raises(WriteError, match="checkpoints and adapters need about"):
            compare_runs(config(tmp_path, lora, BASE))


def test_damaged_files_are_named(done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done, folder)
    settings = CompareConfig.from_dict(
        {**json.loads((folder / "comparison.json").read_text())["config"], "output_dir": str(folder)}
    )
    one = folder / "runs" / "EAS-k3-s1"
    for path, text, words in (
        (folder / "comparison.json", "{", r"comparison\.json is damaged .*; remove it, the runs are kept"),
        (one / "result.json", "{", r"EAS-k3-s1/result\.json is damaged"),
        (
            one / "result.json",
            "{}",
            r"result\.json is no record of a comparison \(it has no 'seed'\); remove ",
        ),
        (folder / "comparison.json", '{"latency": {}}', r"comparison\.json: latency has no 'settings'; remove it"),
        (one / "run.yaml", None, r"'EAS': .*EAS-k3-s1 holds results but no run\.yaml; remove it"),
    ):
        whole = path.read_text()
        path.write_text(text) if text else path.unlink()
        with pytest.raises(eas.ConfigError, match=words):
            compare_runs(settings)
        path.write_text(whole)


def test_one_comparison_at_a_time_works_in_a_folder(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(WriteError, match="another eas compare works in it"):
        compare_runs(config(tmp_path, BASE))


def test_another_method_takes_the_place_of_the_shared_one_and_the_same_is_merged(tmp_path):
    entries = [
        {"label": "narrow", "run": {"method": {"adapt_rank": 2}}},
        {"label": "p", "run": {"method": {"name": "deep_prompt"}}},
    ]
    narrow, prompts = (job.config.method for job in config(tmp_path, *entries).jobs_of_seed(0, {}))
    assert (narrow.skip_rank, narrow.adapt_rank) == (8, 2)
    assert prompts.name == "deep_prompt"


def test_reports_from_a_comparison_file(done, tmp_path):
    for row in range(2):
        result = json.loads((done / "comparison.json").read_text())
        result["rows"][row] |= {"failed": 2, "seeds": []}
        for key in ("test", "validation", "counts", "learning_rate"):
            del result["rows"][row][key]
    result["rows"][0]["row"] = "[red]EAS|3"
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(result))
    write_comparison(path)
    text = (tmp_path / "comparison.md").read_text()
    assert "deep\\|prompt" in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    head, *rows = csv.reader((tmp_path / "comparison.csv").open())
    table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert table["EAS_4"]["test_mean"] == ""
    assert table["base"]["macs"] == str(result["rows"][-1]["counts"]["macs"])
    assert float(table["base"]["wide_prefill_ms_median"]) > 0
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    drawing = (tmp_path / "comparison.svg").read_text()
    assert "EAS, given" in drawing
    assert "EAS_4" not in drawing
    assert comparison_table(result).row_count == len(result["rows"])

    path.write_text("{")
    with pytest.raises(ReportError, match=r"comparison\.json is missing or damaged"):
        write_comparison(path)


def test_the_documented_comparison_is_accepted():
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(), flags=re.DOTALL)
    settings = CompareConfig.from_dict(yaml.safe_load(example))
    assert {job.row for job in settings.jobs_of_seed(0, {})} >= {"EAS_3", "base"}
