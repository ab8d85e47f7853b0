"""Runs of METER from a user's side: every task from a folder and official data to its page, and back after a stop."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from meter_original import checkpoint
from test_meter import tokenizer
from test_meter_contract import build
from test_meter_tasks import COLOURS, picture
from transformers import AutoConfig
from typer.testing import CliRunner

import eas
from eas import cli
from eas.models.meter import TASKS, MeterProcessor
from eas.paper.compare import compare_runs
from eas.paper.compare_config import CompareConfig
from eas.pipeline import Run, RunConfig, run_steps, steps
from eas.pipeline.frontier import frontier
from eas.searching.similarity import cosines

torch.set_num_threads(1)
ANSWERS = (*COLOURS, "left", "right")
SHORT = [
    "method.skip_rank=8",
    "method.adapt_rank=4",
    "method.num_skip=2",
    "search.train=true",
    "search.warmup_steps=1",
    "search.interval=1",
    "search.batch_size=4",
    "train.search_steps=3",
    "train.tune_steps=3",
    "train.batch_size=4",
    "train.save_steps=2",
    "eval_batch_size=4",
    "benchmark_repeats=1",
]


def vqa(folder):
    """Questions in the official files, of images enough for some to be held out."""
    for split, first in (("train2014", 0), ("val2014", 100)):
        questions, annotations = [], []
        for i in range(first, first + 14):
            name = list(COLOURS)[i % 3]
            picture(folder / split / f"COCO_{split}_{i:012d}.jpg", name)
            for j, (question, answer) in enumerate((("is this red", name), ("the cat", ("left", "right")[i % 2]))):
                row = {"image_id": i, "question_id": 10 * i + j}
                questions.append({**row, "question": question})
                answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(10)]
                rest = {"answer_type": "other", "question_type": "is", "multiple_choice_answer": answer}
                annotations.append({**row, **rest, "answers": answers})
        head = {"data_type": "mscoco", "data_subtype": split}
        for kind, rows in (("OpenEnded_mscoco_{}_questions", questions), ("mscoco_{}_annotations", annotations)):
            key = kind.rpartition("_")[2]
            (folder / f"v2_{kind.format(split)}.json").write_text(json.dumps({**head, key: rows}))
    return f"vqa2:{folder}"


def nlvr2(folder):
    for split, subfolder in (("train", "images/train/0"), ("dev", "dev"), ("test1", "test1")):
        rows = []
        for i, (left, right) in enumerate((("red", "blue"), ("blue", "red"), ("cat", "red"), ("red", "cat"))):
            for n, name in enumerate((left, right)):
                picture(folder / subfolder / f"{split}-{i}-0-img{n}.png", name)
            label = str(left == "red")
            rows.append({"identifier": f"{split}-{i}-0-0", "sentence": "the left is red", "label": label})
        rows = [{**row, "directory": 0} for row in rows] if split == "train" else rows
        (folder / f"{split}.json").write_text("\n".join(map(json.dumps, rows)))
    return f"nlvr2:{folder}"


def flickr30k(folder):
    images = []
    for split in ("train", "val", "test"):
        for name in COLOURS:
            file = f"{split}-{name}.jpg"
            picture(folder / "flickr30k-images" / file, name)
            sentences = [{"raw": text} for text in (f"this is {name}", f"a {name} in the left")]
            images.append({"filename": file, "split": split, "sentences": sentences})
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    return f"flickr30k:{folder}"


DATA = {"vqa": vqa, "nlvr2": nlvr2, "retrieval": flickr30k}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder of every head, as `eas convert meter` leaves it."""
    folder = tmp_path_factory.mktemp("meter")
    for task in TASKS:
        model = build(task)
        if task == "vqa":
            model.config.label2id = {answer: i for i, answer in enumerate(ANSWERS)}
            model.config.id2label = dict(enumerate(ANSWERS))
        model.save_pretrained(folder / task)
        MeterProcessor.of_size(tokenizer(), 16).save_pretrained(folder / task)
    return folder


def run(folder, models, task, *more):
    given = [f"model={models / task}", f"data={DATA[task](folder / 'data')}", f"output_dir={folder / 'run'}"]
    return Run.create(RunConfig().with_overrides([*given, *SHORT, *more]))


def result_of(folder):
    return json.loads((folder / "run" / "result.json").read_text())


@pytest.mark.parametrize("task", DATA)
def test_a_run_of_every_task(models, tmp_path, task):
    (tmp_path / "data").mkdir()
    began = run(tmp_path, models, task)
    run_steps(began)
    result = result_of(tmp_path)
    assert result["model"] | {"skip_set": None} == {
        "id": str(models / task),
        "class": TASKS[task].__name__,
        "layers": 4,
        "candidates": 8,
        "candidate_layers": None,
        "skip_set": None,
        "k": 2,
        "method": "eas",
        "dtype": "float32",
    }
    assert len(result["model"]["skip_set"]) == 2
    assert result["task"]["metric"] == {"vqa": "vqa2", "nlvr2": "nlvr2", "retrieval": "flickr30k"}[task]
    assert result["accuracy"].keys() == {"zero_shot", "tuned"}
    assert {"vqa": "overall", "nlvr2": "consistency", "retrieval": "TR@5"}[task] in result["categories"]["tuned"]
    assert result["latency"]["variants"]["tuned"]["prefill_ms"]["median"] > 0
    assert result["latency"]["variants"]["tuned"]["decode_ms"] is None
    assert result["latency"]["bounds"].keys() == {"prefill_ms"}
    assert len(result["layers"]["tuned"]) == 4
    assert [len(r["losses"]) for r in result["search"]["rounds"]] == [3, 3, 3]
    assert json.loads((tmp_path / "run" / "fold.json").read_text()) == {"mode": None, "errors": {}}

    page = (tmp_path / "run" / "report.html").read_text()
    assert "Without 2 of its 8 attentions" in page
    assert re.search("as fast|[0-9.]+x (faster|slower)", page)
    assert "MACs of a pass by layer" in page
    assert "Weights read per pass" in page
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "| Pass | " in card
    assert "Decode, per token" not in card + page
    if task == "retrieval":
        assert np.load(tmp_path / "run" / "scores" / "test-tuned.npy").shape == (3, 6)
    else:
        assert result["samples"][0]["tuned"] in (ANSWERS if task == "vqa" else ("True", "False"))

    curve = frontier(began, measure=[1])
    assert [row["k"] for row in curve["rows"]] == list(range(8))
    assert all(row["measured"] > 0 for row in curve["rows"][:3])
    assert (tmp_path / "run" / "frontier.png").is_file()

    tuned = eas.load(began.load_base(), tmp_path / "run" / "adapter")
    assert tuned.eas.config.train_projector  # of METER this is the head, which a run tunes along
    alone = eas.load(tmp_path / "run" / "model")
    assert all(torch.equal(tensor, tuned.state_dict()[key]) for key, tensor in alone.state_dict().items())
    assert MeterProcessor.from_pretrained(tmp_path / "run" / "model").max_text_length == 50

    refused = CliRunner().invoke(cli.app, ["generate", str(tmp_path / "run"), "--prompt", "is this red"])
    assert "generates no text; `eas eval` scores it" in str(refused.exception)


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_of_methods(models, tmp_path):
    (tmp_path / "data").mkdir()
    shared = {"model": str(models / "nlvr2"), "data": nlvr2(tmp_path / "data"), "eval_batch_size": 4}
    shared |= {"train": {"tune_steps": 2, "batch_size": 2}, "test_limit": 2, "validation_limit": 2}
    entries = [
        {"label": "base", "evaluate_only": True},
        {"label": "LoRA", "run": {"method": {"name": "lora", "rank": 2, "targets": ["q_proj"]}}},
        {"label": "EAS", "run": {"method": {"num_skip": 2, "skip_rank": 4, "adapt_rank": 2}, "skip_set": [0, 5]}},
    ]
    timing = {"repeats": 1}
    config = {"seeds": [0], "jobs": 1, "benchmark": timing, "run": shared, "entries": entries}
    result = compare_runs(CompareConfig.from_dict({**config, "output_dir": str(tmp_path / "compared")}))
    assert result["failed"] == 0
    assert [row["test"]["mean"] in (0.0, 0.5, 1.0) for row in result["rows"]] == [True, True, True]
    assert result["latency"]["variants"]["LoRA"]["prefill_ms"]["median"] > 0
    table = (tmp_path / "compared" / "comparison.md").read_text()
    assert "prefill" in table
    assert "decode" not in table
    assert (tmp_path / "compared" / "comparison.png").stat().st_size > 1000
    (folder,) = (Path(f) for row in result["rows"] if row["label"] == "EAS" for f in row["folders"])
    said = (folder / "adapter" / "README.md").read_text()
    assert "Without 2 of its 8 attentions" in said
    assert "type: visual-reasoning" in said


def test_a_run_that_was_stopped_goes_on(models, tmp_path, monkeypatch):
    """Killed in the search, after a checkpoint and a round: the same end as of an undisturbed run."""
    for name in ("whole", "stopped"):
        (tmp_path / name / "data").mkdir(parents=True)
    whole = run(tmp_path / "whole", models, "retrieval")
    steps.search(whole)
    steps.tune(whole)
    from eas.searching import SearchPhase

    undisturbed, rounds = SearchPhase.round, []

    def stop(self, step):
        undisturbed(self, step)
        rounds.append(step)
        if step == 3:  # after the checkpoint of step 2
            raise KeyboardInterrupt

    monkeypatch.setattr(SearchPhase, "round", stop)
    stopped = run(tmp_path / "stopped", models, "retrieval")
    with pytest.raises(KeyboardInterrupt):
        steps.search(stopped)
    monkeypatch.undo()
    stopped = Run.open(tmp_path / "stopped" / "run")
    steps.search(stopped)
    steps.tune(stopped)
    assert rounds == [1, 2, 3]
    assert stopped.require("search")["rounds"] == whole.require("search")["rounds"]
    assert stopped.require("tune")["log"] == whole.require("tune")["log"]


def test_a_checkpoint_is_converted_with_the_names_of_its_answers(tmp_path):
    (tmp_path / "data").mkdir()
    data, words = vqa(tmp_path / "data"), tmp_path / "words"
    tokenizer().save_pretrained(words)

    def convert(task, *more):
        torch.save({"state_dict": checkpoint(task)}, tmp_path / f"{task}.ckpt")
        args = [tmp_path / f"{task}.ckpt", tmp_path / "out", "--tokenizer", words, "--answers", tmp_path / "data"]
        return CliRunner().invoke(cli.app, ["convert", "meter", *map(str, args), *more])

    assert convert("pretraining", "--task", "vqa").exit_code == 0
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.label2id == {"red": 0, "left": 1, "blue": 2, "right": 3, "cat": 4}
    assert config.num_answers == 5
    given = RunConfig().with_overrides([f"model={tmp_path / 'out'}", f"data={data}", f"output_dir={tmp_path / 'run'}"])
    (began := Run.create(given)).task.check(began)
    labels = began.task.collator(began)(began.data("train")[:2])["labels"]
    assert labels.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert "7 classes, and 5 answers are to name them" in str(convert("vqa").exception)
    refused = convert("pretraining", "--task", "nlvr2").exception
    assert "--answers names the classes of the VQA head; this is a MeterForNLVR2" in str(refused)


@pytest.mark.slow
def test_a_row_of_table_4_trains_as_it_is_once_weights_and_data_are_in_place(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "table4", "--train", "--row", "LoRA", "--output-dir", "out", "-o", "train.tune_steps=2"]
    words += ["-o", "train.batch_size=4", "-o", "train.accumulation=1", "-o", "benchmark_repeats=1"]
    places = {"vqa": ("VQA", "meter-vqa"), "nlvr2": ("NLVR2", "meter-nlvr2"), "retrieval": ("Flickr30K", "meter-f30k")}
    for data, _ in places.values():
        (tmp_path / "data" / data).mkdir(parents=True)
    missing = CliRunner().invoke(cli.app, words)
    assert re.search("the model models/meter-vqa is not there.*--answers data/VQA", str(missing.exception))
    assert not (tmp_path / "out" / "runs").exists()
    for task, (data, model) in places.items():
        DATA[task](tmp_path / "data" / data)
        shutil.copytree(models / task, tmp_path / "models" / model)
    shown = CliRunner().invoke(cli.app, words, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    result = json.loads((tmp_path / "out" / "table4.json").read_text())
    row = next(row for row in result["rows"] if row["name"] == "LoRA")
    assert row["trained"].keys() == {"meter-vqa/lora", "meter-nlvr2/lora", "meter-f30k/lora"}
    assert {"nlvr2_testP", "f30k_IR1", "f30k_TR1"} <= row["difference"].keys()
    assert "vqa_testdev" not in row["difference"]  # ours is of val2014


def test_attentions_are_dropped_by_their_similarity(models, tmp_path):
    (tmp_path / "data").mkdir()
    given = [f"model={models / 'nlvr2'}", f"data={nlvr2(tmp_path / 'data')}", f"output_dir={tmp_path / 'run'}"]
    more = ["method.name=drop", "method.rank=2", "search.rule=similarity", *SHORT[2:]]
    steps.search(began := Run.create(RunConfig().with_overrides([*given, *more])))
    found = began.require("search")
    model = eas.attach(began.load_base(), eas.METHODS["drop"].config(num_skip=2, rank=2)).eval()
    batch = began.task.collator(began)(began.data("train")[:4])
    closest = cosines(model, [batch])
    assert found["ranking"] == sorted(range(8), key=lambda c: -closest[c])
    assert found["skip_set"] == sorted(found["ranking"][:2])
    steps.tune(began)
    steps.fold_step(began)
    assert began.require("fold")["mode"] == "merged"


@pytest.mark.parametrize("method", ["das", "lora"])
@pytest.mark.usefixtures("undrawn")
def test_what_skips_layers_and_what_merges(models, tmp_path, method):
    (tmp_path / "data").mkdir()
    more = {"das": SHORT[:3], "lora": ["method.rank=2"]}[method]
    given = [f"model={models / 'nlvr2'}", f"data={nlvr2(tmp_path / 'data')}", f"output_dir={tmp_path / 'run'}"]
    run_steps(Run.create(RunConfig().with_overrides([*given, f"method.name={method}", *more, *SHORT[3:]])))
    result = result_of(tmp_path)
    if method == "lora":
        assert result["accuracy"]["folded"] == result["accuracy"]["tuned"]
        assert json.loads((tmp_path / "run" / "fold.json").read_text())["relative_error"] < 1e-4
        assert "folded" in result["latency"]["variants"]
    else:
        assert "folded" not in result["accuracy"]
        assert "Without 2 of its 4 layers" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("task", "more", "words"),
    [
        ("vqa", ["data=scenes:textures"], "this METER's head is for vqa; give vqa2:FOLDER, or convert"),
        ("vqa", ["metric=exact"], "METER's vqa is scored officially; leave metric out"),
        ("nlvr2", ["fold_mode=shared"], "on METER eas cannot be folded; leave fold_mode out"),
        ("nlvr2", ["train.max_length=40"], "cuts texts itself, at its max_text_length; leave it out"),
        ("nlvr2", ["method.pooling=causal"], "EASConfig.pooling = 'causal': METER's tokens have no order"),
        ("nlvr2", ["method={name: llama_adapter}"], "'llama_adapter' does not exist for this model: its gated prompts"),
        (
            "nlvr2",
            ["model=PRETRAINING"],
            "pretraining head has no task to tune for; convert the checkpoint with --task",
        ),
        ("nlvr2", ["model=UNNAMED"], "does not name the 5 answers of its head; convert the checkpoint with --answers"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(models, tmp_path, monkeypatch, task, more, words):
    (tmp_path / "data").mkdir()
    if more == ["model=UNNAMED"]:
        build("vqa").save_pretrained(tmp_path / "unnamed")  # as it was before answers were named
        more = [f"model={tmp_path / 'unnamed'}", f"data={vqa(tmp_path / 'data')}"]
    more = [f"model={models / 'pretraining'}"] if more == ["model=PRETRAINING"] else more
    monkeypatch.setattr(Run, "load_base", lambda self: pytest.fail("the base was loaded"))
    began = run(tmp_path, models, task, *more)
    with pytest.raises(eas.ConfigError, match=words):
        steps.search(began)
