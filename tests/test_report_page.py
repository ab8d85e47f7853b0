"""Several runs and comparisons on one page, and the page in a browser."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from results import comparison, run_result, write
from typer.testing import CliRunner

from eas.cli import app
from eas.paper.compare_config import CompareConfig
from eas.reports.front import Point, front_plot, pareto, points_of
from eas.reports.page import Page, write_page
from eas.reports.pattern import of_frontier
from eas.reports.sources import ReportError
from eas.reports.together import together

ROOT = Path(__file__).parents[1]
SLOW = 180_000  # milliseconds, on a busy machine
COSTS = ("prefill", "decode", "macs", "kv_bytes_per_token")
OF_SEVERAL = ("pattern", "losses", "importances")
OF_A_RUN = {"accuracy", "latency", "decode", "importance", "loss", "categories", "layers"}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page of three runs, a comparison, and what is broken in every way."""
    root = tmp_path_factory.mktemp("several")
    for name in ("a", "b", "c", "text", "json", "cut", "foreign", "cmp"):
        (root / name).mkdir()
    write(root / "a", run_result(0, 4))
    write(root / "b", run_result(1, 4))
    write(root / "c", run_result(0, 2))
    (root / "b" / "frontier.json").write_text("[")
    write(root / "text", {"accuracy": {"tuned": "high"}})
    (root / "json" / "result.json").write_text("{")
    whole = json.dumps(run_result(0, 4))
    (root / "cut" / "result.json").write_text(whole[: len(whole) // 2])
    (root / "foreign" / "result.json").write_text('{"status": "ok", "values": [1, 2]}')
    (root / "cmp" / "comparison.json").write_text(json.dumps(comparison()))
    for name, text in (("EAS-k2-s0", "{}"), ("EAS-k2-s1", "{")):
        (root / "cmp" / "runs" / name).mkdir(parents=True)
        (root / "cmp" / "runs" / name / "result.json").write_text(text)
        (root / "cmp" / "runs" / name / "run.yaml").write_text("seed: 0\n")
    return write_page(
        [root / name for name in ("a", "b", "c", "text", "json", "cut", "foreign", "gone", "cmp")], root / "page"
    )


def test_what_is_broken_is_named_and_the_rest_is_shown(several: Page) -> None:
    page, root = several.path.read_text(), several.path.parents[1]
    broken = ["b/frontier.json", "text/result.json", "json/result.json", "gone/result.json"]
    broken += ["cut/result.json", "foreign/result.json"]
    broken += ["cmp/runs/EAS-k2-s1/result.json"]
    assert len(several.left_out) == len(broken)
    for name in broken:
        assert any(str(root / name) in message for message in several.left_out), name
        assert name in page
    assert str(root) not in page
    assert "The folders of 3 runs are gone" in page
    assert "3 runs and 1 comparison, side by side" in page


def test_every_figure_is_there(several: Page) -> None:
    wanted = {f"run{i}-{name}" for i in (1, 2, 3) for name in OF_A_RUN}
    wanted |= {f"task1-{name}" for name in (*COSTS, *OF_SEVERAL)}
    wanted |= {f"comparison1-{name}" for name in ("macs", "kv_bytes_per_token", "pattern")}  # it has no times
    assert {path.stem for path in (several.path.parent / "figures").glob("*.svg")} == wanted
    assert {path.stem for path in (several.path.parent / "figures").glob("*.png")} == wanted
    page = several.path.read_text()
    assert set(re.findall(r'<figure id="([^"]+)">', page)) == wanted
    assert page.count("<svg role=") == len(wanted)


def test_cells_lead_to_configuration_and_seed(several: Page) -> None:
    page = several.path.read_text()
    ids, links = re.findall(r'\sid="([^"]+)"', page), re.findall(r'href="([^"]+)"', page)
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert re.findall(r'href="(#[^"]+)" aria-label="seed 1: 72.0 %', page) == ["#run2-settings"]
    assert '"num_skip": 4' in unescape(page[page.index('id="run2-settings"') :])
    (row,) = re.findall(r'<tr id="comparison1-row2-seed0">(.*?)</tr>', page, flags=re.DOTALL)
    assert "70.0 %" in row
    assert "skip_rank" in row
    (folder,) = re.findall(r'href="([^"]+)"', row)
    assert (several.path.parent / folder).is_file()
    assert not re.findall(r"""src\s*=\s*["'](?!data:)|url\((?!#)|@import|<script[^>]|<link""", page)


def test_headings_are_in_order(several: Page) -> None:
    levels = [int(level) for level in re.findall(r"<h([1-6])", several.path.read_text())]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_runs_of_one_task_are_a_comparison() -> None:
    runs = {"a": run_result(0, 4), "b": run_result(1, 4), "c": run_result(0, 2)}
    (group,) = together(runs)
    base, four, two = group["rows"]
    assert (base["method"], base["test"]["mean"]) == (None, 0.074)
    assert (four["row"], four["seeds"], four["test"]["values"]) == ("eas_4", [0, 1], [0.7, 0.72])
    assert (two["row"], two["seeds"], two["test"]["sd"]) == ("eas_2", [0], None)
    assert group["latency"]["variants"].keys() == {"base", "eas_4", "eas_2"}
    unscored = run_result(2, 4) | {"accuracy": {}}
    assert together({**runs, "unscored": unscored})[0]["rows"][1]["seeds"] == [0, 1]
    other = run_result(0, 4) | {"task": {"data": "scenes:odd", "metric": "exact"}}
    assert together({"a": runs["a"], "other": other}) == []
    few = run_result(0, 4)
    few["config"]["test_limit"], few["task"]["examples"] = 50, 50
    assert together({"a": runs["a"], "few": few}) == []  # the base has another score on them
    runs["d"] = run_result(0, 4)
    runs["d"]["config"]["train"] = {"learning_rate": 0.1}
    names = [row["row"] for row in together(runs)[0]["rows"]]
    assert names == ["base", "eas_4", "eas_2", "eas_4, learning_rate 0.1"]


def test_the_pareto_front() -> None:
    numbers = {"a": (1, 0.5), "b": (2, 0.4), "c": (2, 0.6), "d": (3, 0.6), "e": (4, 0.9), "f": (1, 0.3)}
    points = [Point(name, name, 0, accuracy, None, cost) for name, (cost, accuracy) in numbers.items()]
    best = pareto(points)
    assert [p.name for p in best] == ["a", "c", "e"]

    def beaten(p: Point) -> bool:
        return any(
            q.cost <= p.cost and q.accuracy >= p.accuracy and (q.cost, q.accuracy) != (p.cost, p.accuracy)
            for q in points
        )

    assert [p for p in points if not beaten(p)] == best


def test_the_front_says_what_it_shows() -> None:
    plot = front_plot(comparison(), "macs")
    assert plot is not None
    assert plot.note == "By the means, nothing is both better and cheaper than 2 EAS_6; 1 EAS_2."
    assert "EAS_2 72.0 % at 96" in plot.alt
    assert [p.sd for p in points_of(comparison(), "macs")] == [0.014, 0.014]
    assert front_plot(comparison(), "prefill_ms") is None


def test_the_pattern_names_every_set() -> None:
    rows = [{"k": 0, "skip_set": []}, {"k": 1, "skip_set": [5]}, {"k": 2, "skip_set": [0, 5]}]
    for told, number in ({}, 6), ({"candidates": 8}, 8):
        plot = of_frontier({"rows": rows, **told})
        assert plot is not None
        assert plot.alt == "Skipped candidates. k = 1: 5; k = 2: 0 5."
        kept, skipped = plot.figure.axes[0].collections
        assert (len(kept.get_offsets()), len(skipped.get_offsets())) == (2 * number - 3, 3)


def test_the_command_goes_on_with_the_rest(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write(tmp_path / "a", {"accuracy": {"tuned": 0.5}})
    (tmp_path / "b" / "run.yaml").write_text("modle: tiny\n")
    given = ["report", str(tmp_path / "a"), str(tmp_path / "b"), "--output-dir", str(tmp_path / "page")]
    shown = CliRunner().invoke(app, given)
    assert shown.exit_code == 1, shown.output
    last = json.loads(shown.output.splitlines()[-1])
    assert (tmp_path / "page" / "report.html").is_file()
    assert last["page"] == str(tmp_path / "page" / "report.html")
    assert [str(tmp_path / "b") in message for message in last["left_out"]] == [True]
    with pytest.raises(ReportError, match=r"b.result\.json is missing"):
        write_page([tmp_path / "b"], tmp_path / "nothing")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("categories", "folded"), {"all": {"of": 1}}, "categories['folded']['all'] = {'of': 1} must be float"),
        (("layers", "tuned"), [{"mha": 1}], "layers['tuned'][0] has no 'ffn'"),
        (("search", "importances"), ["high", 0.1], "search.importances[0] = 'high' must be float"),
        (("search", "rounds"), [{"step": 1, "importances": 2}], "search.rounds[0].importances = 2 must be list[float]"),
        (("counts", "tuned", "macs"), 10**400, "must be below 1e308"),
        (("samples",), [{"images": ["../../secret.png"]}], "samples[0] has no 'question'"),
        (("training", "tune"), [{"step": 1}], "training.tune[0] has no 'loss'"),
        (("latency", "variants", "base"), {"prefill_ms": {"median": 1.0}}, "['base']['prefill_ms'] has no 'low'"),
        (("accuracy",), [0.5], "accuracy = [0.5] must be dict[str, float or None]"),
        (("model", "skip_set"), "1 2", "model.skip_set = '1 2' must be list[int]"),
        (("task", "examples"), "many", "task.examples = 'many' must be int"),
    ],
)
def test_a_result_of_the_wrong_kind_takes_nothing_else_along(
    keys: tuple[str, ...], value: Any, words: str, tmp_path: Path
) -> None:
    bad = run_result(0, 4)
    place: Any = bad
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    for name, result in (("good", {"accuracy": {"tuned": 0.5}}), ("bad", bad)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, result)
    page = write_page([tmp_path / "bad", tmp_path / "good"], tmp_path / "page")
    (message,) = page.left_out
    assert str(tmp_path / "bad" / "result.json") in message
    assert words in message
    with pytest.raises(ReportError, match=re.escape(words)):  # alone, too
        write_page([tmp_path / "bad"], tmp_path / "page")
    assert "reaches 50.0" in page.path.read_text()


def test_a_run_of_a_comparison_is_not_overwritten(tmp_path: Path) -> None:
    record = json.dumps({"row": "EAS_2", "trial": False, "score": {"test": 0.5}})
    (tmp_path / "run.yaml").write_text("seed: 0\n")
    (tmp_path / "result.json").write_text(record)
    shown = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert shown.exit_code == 1
    assert "one run of a comparison" in str(shown.exception)
    assert (tmp_path / "result.json").read_text() == record


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: the machine's own, or playwright's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
        path = found[0] if found else started.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip("there is no Chromium; install it, or run `playwright install chromium`")
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # its sandbox refuses root
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [], timeout=SLOW)
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_in_a_browser(several: Page, browser: Any, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url))
    page.goto(several.path.as_uri(), timeout=SLOW)
    assert not said
    drawn = page.eval_on_selector_all(
        "figure svg", "all => all.map(svg => [svg.getBoundingClientRect().width, svg.getBoundingClientRect().right])"
    )
    assert len(drawn) == 3 * len(OF_A_RUN) + len(COSTS) + len(OF_SEVERAL) + 3
    assert all(wide > 250 and right <= width for wide, right in drawn)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    hinted = 'one.classList.contains("wider") === (one.scrollWidth > one.clientWidth + 1)'
    assert page.evaluate(f"[...document.querySelectorAll('.scroll')].every(one => {hinted})")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    faults = page.evaluate("axe.run()")["violations"]
    serious = [f"{f['id']}: {f['nodes'][0]['html']}" for f in faults if f["impact"] in ("serious", "critical")]
    assert not serious
    page.context.close()


@pytest.mark.parametrize("trials", [True, False])
def test_a_comparison_without_a_table_yet_is_not_finished(trials: bool, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.yaml").write_text("seed: 0\n")
    with pytest.raises(ReportError, match=r"result\.json is missing; name the folder of a run"):
        write_page([tmp_path], tmp_path / "page")
    entry = {"label": "EAS, own", "skips": [3], "learning_rates": [1e-3, 3e-3]}
    settings = CompareConfig.from_dict({"output_dir": str(tmp_path), "entries": [entry]})
    jobs = settings.trials()["EAS, own"] if trials else settings.jobs_of_seed(0, {})
    jobs[0].folder.mkdir(parents=True)
    jobs[0].config.to_file(jobs[0].folder / "run.yaml")
    with pytest.raises(
        ReportError, match=r"a comparison that is not finished.* continue it with the same `eas compare`"
    ):
        write_page([tmp_path], tmp_path / "page")


def test_the_readmes_picture_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn by today's code, from a run with the settings that `eas demo` has today."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("readme_picture")
    record = json.loads(script.SOURCE.read_text(encoding="utf-8"))
    assert script.drawing_code() == record["drawing_code"], "run `python scripts/readme_picture.py`"
    assert script.file_hash(script.PICTURE) == record["picture"], "run `python scripts/readme_picture.py`"
    drawn_from = record["result"]["config"]
    for key, value in yaml.safe_load((ROOT / "src" / "eas" / "demo" / "smol.yaml").read_text()).items():
        same = value.items() <= drawn_from[key].items() if isinstance(value, dict) else drawn_from[key] == value
        assert same, f"smol.yaml's {key} has changed: run `eas demo`, then `python scripts/readme_picture.py runs/demo`"
