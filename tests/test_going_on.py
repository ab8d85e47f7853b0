"""A run that goes on in its folder: under the same settings, with the same skip set and data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import eas
from eas import cli
from eas.data import load_data
from eas.data.digest import digest
from eas.paper.compare import compare_runs
from eas.paper.compare_config import CompareConfig
from eas.pipeline import STEPS, Run, RunConfig, run_steps
from eas.pipeline.same_data import ChangedDataError

FEW: dict[str, Any] = {
    "data": "scenes:colour",
    "method": {"name": "eas", "skip_rank": 8, "adapt_rank": 4, "num_skip": 3},
    "search": {"warmup_steps": 1, "interval": 1, "samples": 2, "batch_size": 4},
    "train": {"search_steps": 2, "tune_steps": 4, "batch_size": 2, "save_steps": 2},
    "train_limit": 8,
    "validation_limit": 4,
    "test_limit": 4,
    "benchmark_repeats": 1,
    "benchmark_new_tokens": 2,
    "max_new_tokens": 4,
}


def started(folder: Path, **more: Any) -> Run:
    return Run.create(RunConfig.from_dict(FEW | {"output_dir": str(folder)} | more))


def do(run: Run, *steps: str) -> Run:
    for step in steps:
        STEPS[step](run)
    return run


def edited(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_goes_on_under_another_spelling(tmp_path, monkeypatch):
    do(started(tmp_path / "mine", skip_set=[1, 2, 3]), "search")
    monkeypatch.chdir(tmp_path)
    assert started(Path("mine"), skip_set=[1, 2, 3]).record("search") is not None


def test_checkpoints_of_a_tune_phase_belong_to_their_settings(tmp_path):
    do(started(tmp_path, skip_set=[1, 2, 3]), "search", "tune")
    for record in tmp_path.glob("*.json"):
        record.unlink()
    with pytest.raises(eas.ConfigError, match=r"train\.learning_rate = .* \(now 0\.5\)"):
        started(tmp_path, skip_set=[1, 2, 3], train=FEW["train"] | {"learning_rate": 0.5})
    (tmp_path / "run.yaml").unlink()
    with pytest.raises(eas.ConfigError, match=r"checkpoint-\d is of a run, but there is no .*run\.yaml"):
        started(tmp_path, skip_set=[4, 5, 6])


def test_a_skip_set_edited_by_hand_is_refused_where_weights_are_for_another(tmp_path):
    run = do(started(tmp_path, skip_set=[1, 2, 3]), "search", "tune")
    edited(tmp_path / "search.json", skip_set=[4, 5, 6])
    for step, trained in (("tune", "tune/checkpoint-4"), ("fold", "adapter"), ("eval", "adapter")):
        with pytest.raises(eas.ConfigError, match=rf"\[4, 5, 6\], but .*{trained} is for \[1, 2, 3\]; put"):
            STEPS[step](Run.open(run.folder))


def test_a_searched_skip_set_edited_by_hand_is_refused(tmp_path):
    run = do(started(tmp_path), "search")
    found = run.require("search")["skip_set"]
    other = [i for i in range(12) if i not in found][:3]
    edited(tmp_path / "search.json", skip_set=other)
    with pytest.raises(eas.ConfigError, match="search/adapter is for") as refused:
        STEPS["tune"](Run.open(tmp_path))
    assert f"-o skip_set={other}".replace(" ", "") in str(refused.value).replace(" ", "")


def rows(folder: Path, split: str, count: int, word: str = "red", side: int = 8) -> None:
    """Data of the user's own: pictures, and questions to them."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (side, side), (i * 20, 0, 0)).save(folder / f"{split}{i}.png")
    asked = [{"role": "user", "content": "<image>what color ?"}, {"role": "assistant", "content": word}]
    lines = [json.dumps({"id": i, "image": f"{split}{i}.png", "messages": asked}) for i in range(count)]
    (folder / f"{split}.jsonl").write_text("\n".join(lines))


def own(folder: Path) -> str:
    for split in ("train", "validation", "test"):
        rows(folder, split, 4)
    return str(folder)


def test_the_digest_of_a_split_tells_texts_and_pictures_but_not_folders(tmp_path):
    own(tmp_path / "a")
    first = digest(load_data(str(tmp_path / "a"), "test"))
    assert first["rows"] == 4
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert digest(load_data(str(tmp_path / "b"), "test")) == first
    for change in ({"count": 3}, {"count": 4, "word": "blue"}, {"count": 4, "side": 64}):
        rows(tmp_path / "b", "test", **change)
        assert digest(load_data(str(tmp_path / "b"), "test")) != first
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "data", None)  # nothing is drawn of data that its name tells
        assert started(tmp_path / "run").digests("train", "test") == {}


@pytest.mark.usefixtures("undrawn")
def test_a_run_refuses_data_that_is_not_that_of_its_steps(tmp_path):
    data, folder = tmp_path / "own", tmp_path / "run"
    run = do(started(folder, data=own(data)), "search")
    rows(data, "train", 4, "blue")
    with pytest.raises(ChangedDataError, match=r"search\.json: the split 'train' of .* \(4 other rows\)"):
        STEPS["tune"](Run.open(folder))
    rows(data, "train", 4)
    do(Run.open(folder), "tune")
    rows(data, "train", 3)
    with pytest.raises(ChangedDataError, match=r"3 rows now, 4 then\); use another output_dir, or do .*rm -r"):
        run_steps(Run.open(folder))
    assert run.record("eval") is None
    (folder / "search.json").write_text(json.dumps({"skip_set": run.require("search")["skip_set"], "searched": False}))
    (folder / "tune.json").unlink()
    with pytest.raises(ChangedDataError, match=r"tune/data\.json: the split 'train'"):  # the checkpoints saw others
        STEPS["tune"](Run.open(folder))
    rows(data, "train", 4)
    run_steps(Run.open(folder))
    rows(data, "test", 2)
    with pytest.raises(ChangedDataError, match=r"eval\.json: the split 'test' .*rm -r .*run/eval\.json$"):
        run_steps(Run.open(folder))
    (folder / "eval.json").unlink()
    run_steps(Run.open(folder))
    assert run.require("eval")["examples"] == run.require("eval")["data"]["test"]["rows"] == 2


def test_a_comparison_refuses_other_data_than_that_of_its_rows(tmp_path):
    data = tmp_path / "own"
    shared = {key: value for key, value in FEW.items() if key != "method"} | {"data": own(data)}
    settings = {"seeds": [0], "jobs": 1, "benchmark": {"repeats": 0}, "output_dir": str(tmp_path / "compare")}
    entry = {"label": "LoRA", "run": {"method": {"name": "lora", "rank": 2}}}
    compare_runs(CompareConfig.from_dict(settings | {"run": shared, "entries": [entry]}))
    later = settings | {"run": shared, "entries": [entry, {"label": "base", "evaluate_only": True}]}
    for split, record in (("train", "tune"), ("validation", "result"), ("test", "result")):
        rows(data, split, 3)
        with pytest.raises(ChangedDataError, match=rf"{record}\.json: the split '{split}' .*or remove {tmp_path}/comp"):
            compare_runs(CompareConfig.from_dict(later))
        rows(data, split, 4)
    result = tmp_path / "compare" / "runs" / "LoRA-k0-s0" / "result.json"
    found = json.loads(result.read_text())
    assert found["dtype"] == "float32"
    result.write_text(json.dumps(found | {"dtype": "bfloat16"}))  # of a machine on which "auto" was another
    with pytest.raises(eas.ConfigError, match=r"holds another run: dtype = bfloat16 \(now float32\)"):
        compare_runs(CompareConfig.from_dict(later))
    old = {key: value for key, value in found.items() if key not in ("data", "dtype")}
    result.write_text(json.dumps(old))  # as records were before they said it
    assert compare_runs(CompareConfig.from_dict(later))["failed"] == 0
    evaluated = CliRunner().invoke(cli.app, ["eval", str(result.parent)])
    assert evaluated.output.strip().endswith("eval.json is written")  # a report on one run is refused


def test_the_seconds_of_a_tune_phase_are_those_of_all_its_sessions(tmp_path):
    run = do(started(tmp_path, skip_set=[1, 2, 3]), "search", "tune")

    def stopped(**last: float) -> dict[str, Any]:
        """As after a kill behind the second step, whose checkpoint's log ends in such an entry."""
        shutil.rmtree(tmp_path / "tune" / "checkpoint-4")
        (tmp_path / "tune.json").unlink()
        path = tmp_path / "tune" / "checkpoint-2" / "trainer_state.json"
        log = json.loads(path.read_text())["log_history"]
        assert 0 < log[-1].pop("seconds", 1) < 1000
        edited(path, log_history=[*log[:-1], log[-1] | last])
        return do(Run.open(tmp_path), "tune").require("tune")

    assert 0 < run.require("tune")["seconds"] < 1000
    assert 1000 < stopped(seconds=1000.0)["seconds"] < 2000
    written = (tmp_path / "tune.json").stat().st_mtime_ns
    do(Run.open(tmp_path), "tune")
    assert (tmp_path / "tune.json").stat().st_mtime_ns == written
    (tmp_path / "tune.json").unlink()  # killed between the last checkpoint and the record
    again = do(Run.open(tmp_path), "tune").require("tune")
    assert 1000 < again["seconds"] < 2000
    edited(tmp_path / "tune" / "checkpoint-2" / "trainer_state.json", log_history=[{"step": 2, "loss": 1.0}])
    assert "seconds" not in stopped()  # an older version's checkpoint


def reported(folder: Path, *more: str) -> tuple[str, dict[str, Any], str]:
    """The page, its last line and the result, of a report that leaves something out."""
    shown = CliRunner().invoke(cli.app, ["report", str(folder), *more])
    assert shown.exit_code == 1, shown.output
    last = json.loads(shown.output.splitlines()[-1])
    return Path(last["page"]).read_text(), json.loads((folder / "result.json").read_text()), "".join(last["left_out"])


def test_a_page_is_written_where_data_and_base_are_gone(tmp_path, monkeypatch):
    data, folder = tmp_path / "own", tmp_path / "run"
    run_steps(started(folder, data=own(data), skip_set=[1, 2, 3]))
    whole = json.loads((folder / "result.json").read_text())
    assert whole["model"]["dtype"] == "float32"
    assert len(whole["samples"]) == 4

    rows(data, "test", 4, "blue")
    page, result, left_out = reported(folder)
    assert "the split 'test'" in left_out
    assert result == whole  # the old questions to the old answers
    data.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(Run, "load_config", lambda run: (_ for _ in ()).throw(OSError("no such base")))
    page, result, left_out = reported(folder)
    assert "no such base" in left_out
    assert result == whole
    assert page.count("what color ?") >= 4
    monkeypatch.undo()
    page, _, left_out = reported(folder, "--output", str(tmp_path / "page.html"))
    assert "unknown data" in left_out
    assert page.count("data:image/png") >= 4
    run_steps(Run.open(folder))  # as nothing is left to do
    assert json.loads((folder / "result.json").read_text()) == whole

    edited(folder / "eval.json", score=1)
    page, result, left_out = reported(folder)
    assert "eval.json: score = 1 must be" in left_out
    assert (result["accuracy"], result["samples"]) == (None, [])
    assert result["counts"] == whole["counts"]
