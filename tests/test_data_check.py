"""`eas data check` and `eas eval --dataset`: what they find, what they print, and their exit status."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from eas.cli import app
from eas.data.check import check_data

REAL = Path(os.environ.get("EAS_REAL_DATA", "none"))
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="EAS_REAL_DATA does not name the folder of real data")


def run(*arguments):
    """Exit status, output, and its last line as JSON."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    last = result.stdout.strip().splitlines()[-1:] if result.exception is None or result.exit_code == 1 else []
    return result, json.loads(last[0]) if last and last[0].startswith("{") else None


def row(id, image, answer="red"):
    turns = [{"from": "human", "value": "<image>\nColour [b]?"}, {"from": "gpt", "value": answer}]
    return {"id": id, "image": image, "conversations": turns}


@pytest.fixture
def own(tmp_path):
    for number, name in enumerate(("a", "b", "c", "d")):
        Image.new("RGB", (7, 5), (number, 0, 0)).save(tmp_path / f"{name}.png")
    write(tmp_path, "train", row("1", "a.png"), row("2", "b.png"), row("3", "b.png"))
    write(tmp_path, "validation", row("1", "c.png"))
    write(tmp_path, "test", row("1", "d.png"))
    return tmp_path


def write(folder, split, *rows):
    (folder / f"{split}.jsonl").write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))


def test_good_data(own):
    result, summary = run("data", "check", own)
    assert result.exit_code == 0, result.output
    counts = {"missing": 0, "broken": 0, "repeated ids": 0, "bad rows": 0, "refused": 0, "end tokens": 0}
    assert summary["splits"]["train"] == {"examples": 3, "images": 2, "changed images": {}, **counts}
    assert summary["problems"] == 0
    assert "train: 1" in result.output
    assert "user: [image 7 x 5] Colour [b]?" in result.output  # the brackets are not taken for markup
    assert "target: red" in result.output


def test_everything_wrong_is_counted_and_named(own):
    (own / "broken.png").write_bytes((own / "a.png").read_bytes()[:45])
    extra = [row("2", "b.png"), row("4", "none.png"), row("5", "broken.png"), row("6", "broken.png"), "{broken"]
    write(own, "train", row("1", "a.png"), row("2", "b.png"), *extra)
    result, summary = run("data", "check", own)
    assert result.exit_code == 1
    expected = {"examples": 7, "images": 2, "missing": 1, "broken": 1, "repeated ids": 1, "bad rows": 1}
    expected |= {"refused": 0, "changed images": {}, "end tokens": 0}
    assert summary["splits"]["train"] == expected
    assert (summary["problems"], summary["failures"]) == (4, [])
    flat = " ".join(result.output.split())
    for words in ("none.png does not exist", "example 5:", "train.jsonl:7: broken JSON", "the id '2' occurs twice"):
        assert words in flat
    result, _ = run("data", "check", own, "--skip-bad")
    assert result.exit_code == 0
    assert result.output.count("left out: train:") == 4


def test_images_in_two_splits(own):
    write(own, "test", row("1", "a.png"), row("2", "e.png"))
    Image.new("RGB", (7, 5), (2, 0, 0)).save(own / "e.png")  # the pixels of c.png
    result, summary = run("data", "check", own, "--skip-bad")
    assert result.exit_code == 1
    (shared,) = summary["failures"]
    assert shared.startswith(f"image files in both train and test: 1 ({own / 'a.png'})")
    (alike,) = summary["alike"]
    assert alike.startswith("images of test that look exactly like one of validation under another name: 1")
    assert run("data", "check", own, "--split", "train")[0].exit_code == 0


def test_rows_in_two_splits(own, tmp_path, monkeypatch):
    write(own, "train", {"id": "x", "prompt": "2+2?", "completion": "4"}, {"id": "y", "prompt": "?", "completion": "4"})
    write(own, "test", {"id": "z", "prompt": "2+2?", "completion": "4"}, {"id": "y", "prompt": "?", "completion": "5"})
    result, summary = run("data", "check", own, "--skip-bad")
    assert result.exit_code == 1
    (shared,) = summary["failures"]
    assert shared.startswith("rows in both train and test, by their ids in train: 1 (x); the test would")
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (4, 3), (number, 0, 0)) for number in range(10)]
    data = datasets.Dataset.from_dict({"image": pictures, "prompt": ["?"] * 10, "completion": ["a"] * 10})
    data = data.cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "saved")
    arguments = ["data", "check", tmp_path / "saved", "--split", "train", "--split", "validation", "-o"]
    whole = run(*arguments, 'data_options.splits={validation: "train[80%:]"}')[1]
    assert "rows in both train and validation, by their ids in train: 2 (row-8, row-9);" in whole["failures"][0]
    cut = run(*arguments, 'data_options.splits={train: "train[:80%]", validation: "train[80%:]"}')[1]
    assert [split["examples"] for split in cut["splits"].values()] == [8, 2]
    assert cut["failures"] == []


def test_splits_that_cannot_be_read(own):
    (own / "test.jsonl").unlink()
    write(own, "validation")
    result, summary = run("data", "check", own)
    assert result.exit_code == 1
    missing, empty = sorted(summary["failures"], reverse=True)
    assert missing.startswith("validation: ")
    assert "holds no rows" in missing
    assert "needs either test.jsonl or test.json" in empty
    result, _ = run("data", "check")
    assert "give either a path, or --dataset and --data-dir" in str(result.exception)


def test_labels_outside_the_choices(tmp_path):
    line = {"identifier": "dev-1-0-0", "sentence": "s", "label": "Maybe"}
    (tmp_path / "dev.json").write_text(json.dumps(line))
    check = check_data(f"nlvr2:{tmp_path}", ["dev"], {})
    assert len(check.splits["dev"].of("bad rows")) == 1
    assert "dev-1-0-0: answer 'Maybe' is not among the choices" in check.problems[0]


def test_too_few_annotators_for_the_metric(own):
    write(own, "test", row("7", "d.png") | {"answers": ["red"]})
    result, summary = run("data", "check", own)
    assert (result.exit_code, summary["failures"]) == (0, [])
    assert "note: test: examples with fewer than 4 `answers`: 1 (7); metric=vqa" in " ".join(result.output.split())
    result, summary = run("data", "check", own, "-o", "metric=vqa", "--skip-bad")
    assert result.exit_code == 1
    assert summary["failures"][0].startswith("test: example 7: 1 of 4 `answers`")
    assert run("data", "check", own, "-o", "metric=exact")[0].exit_code == 0
    assert "example 1 has no choices" in run("data", "check", own, "-o", "metric=choice")[1]["failures"][0]


def test_many_problems_are_cut_short(tmp_path):
    write(tmp_path, "train", *(row(str(n), f"{n}.png") for n in range(9)))
    result, _ = run("data", "check", tmp_path, "--split", "train")
    assert "... and 4 more missing in train; --skip-bad lists them" in result.output


def test_eval_takes_a_run_or_a_file(tmp_path):
    for arguments, words in (
        ((), "without a run folder, --dataset, --data-dir, --split, --predictions must be given"),
        (("--dataset", "nlvr2", "--split", "dev"), "without a run folder, --data-dir, --predictions must be given"),
        ((tmp_path, "--dataset", "nlvr2"), "a run folder and --dataset: give one of them"),
        ((tmp_path, "--json", "x"), "a run folder and --json"),
        ((tmp_path, "--skip-bad"), "--skip-bad is for a file of predictions; a run folder has its settings already"),
        ((tmp_path, "-o", "data_options.test_split=x"), "-o is for a file of predictions; a run folder has"),
        ((tmp_path,), "holds no run.yaml"),
    ):
        result, _ = run("eval", *arguments)
        assert result.exit_code == 1
        assert words in str(result.exception)


def test_eval_scores_a_file(tmp_path):
    lines = [{"identifier": f"dev-1-{n}-0", "sentence": "s", "label": "True"} for n in range(2)]
    (tmp_path / "dev.json").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "p.csv").write_text("dev-1-0-0,True\n")
    arguments = ["eval", "--dataset", "nlvr2", "--data-dir", tmp_path, "--split", "dev"]
    arguments += ["--predictions", tmp_path / "p.csv", "--json", tmp_path / "report.json"]
    result, _ = run(*arguments)
    assert "lack 1 of 2 ids" in str(result.exception)
    result, summary = run(*arguments, "--skip-bad", "-o", "data_options.prompt=instruction")
    assert result.exit_code == 0, result.output
    assert (summary["score"], summary["numbers"]) == (0.5, {"accuracy": 50.0, "consistency": 0.0})
    assert (summary["examples"], summary["left_out"]) == (2, 1)
    assert "left out: no prediction for dev-1-1-0; counted as wrong" in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["scores"] == {"dev-1-0-0": 1, "dev-1-1-0": 0}
    assert report["left_out"] == ["no prediction for dev-1-1-0; counted as wrong"]
    result, _ = run(*arguments, "-o", "seed=3")
    assert "this command takes only data_options.KEY=VALUE" in str(result.exception)


@real_data
def test_slake_in_all_languages_is_caught():
    """English train and test are disjoint; with both languages they share 142 images."""
    check = check_data(f"slake:{REAL / 'slake'}", ["train", "test"], {"language": "all"})
    assert [split.examples for split in check.splits.values()] == [9835, 2094]
    assert any(message.startswith("image files in both train and test: 142 ") for message in check.failures)
    english = check_data(f"slake:{REAL / 'slake'}", ["val", "test"], {})
    assert [split.examples for split in english.splits.values()] == [1053, 1061]
    assert english.failures == []


@real_data
def test_real_images_are_opened():
    check = check_data(f"nlvr:{REAL / 'nlvr'}", ["validation"], {})
    assert check.splits["validation"].images == check.splits["validation"].examples == 226
    assert check.problems == []
