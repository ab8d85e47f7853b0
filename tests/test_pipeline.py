"""Runs from a new user's side: the command line, run folders, all steps, on generated, own and real data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from families import quick
from filelock import FileLock
from safetensors.torch import load_file
from transformers import TrainingArguments
from typer.testing import CliRunner

import eas
from eas import cli
from eas.attachment.load import load_base
from eas.data.scenes import scenes
from eas.demo import DEMOS
from eas.demo.tiny import load_tiny
from eas.files import WriteError
from eas.measure.vision import VISION_TOWERS
from eas.pipeline import STEPS, Run, RunConfig, run_steps
from eas.pipeline.run import Kept
from eas.searching import SearchConfig
from eas.tasks.collate import Collator
from eas.training import EASTrainer

SHORT = [
    "method.preset=null",
    "method.skip_rank=8",
    "method.adapt_rank=4",
    "method.num_skip=4",
    "search.train=true",
    "search.warmup_steps=1",
    "search.interval=1",
    "search.batch_size=4",
    "train.search_steps=3",
    "train.tune_steps=3",
    "train.batch_size=4",
    "train.save_steps=2",
    "train_limit=8",
    "validation_limit=8",
    "test_limit=6",
    "benchmark_repeats=1",
    "benchmark_new_tokens=2",
    "max_new_tokens=4",
]


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that runs load from now on."""
    loads: list[str] = []

    def counted(name, **given):
        loads.append(name)
        return load_base(name, **given)

    monkeypatch.setattr("eas.pipeline.run.load_base", counted)
    return loads


def short_run(folder: Path, *more: str) -> Run:
    run = Run.create(RunConfig().with_overrides([f"output_dir={folder}", *SHORT, *more]))
    run_steps(run)
    return run


def test_all_steps_leave_a_result_and_are_not_done_twice(tmp_path, monkeypatch, capsys):
    loads = count_loads(monkeypatch)
    run = short_run(tmp_path, "data=scenes:relation")
    assert "note: the tuned model is not surely above blind answers, as " in capsys.readouterr().out
    assert len(loads) == 4  # search, fold, eval's base, eval's tuned; 7 if every step loaded its own
    assert run.kept == Kept()  # nothing stays in memory
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"]["k"] == len(result["model"]["skip_set"]) == 4
    assert result["accuracy"]["folded"] == result["accuracy"]["tuned"]
    assert result["counts"]["tuned"]["kv_bytes_per_token"] == result["counts"]["base"]["kv_bytes_per_token"] * 8 // 12
    assert result["latency"]["larger"]["variants"].keys() == {"base", "folded"}
    assert result["latency"]["width"] == 128
    assert json.loads((tmp_path / "fold.json").read_text())["relative_error"] < 1e-5
    assert (tmp_path / "report.html").read_text().count("data:image/png") >= 1

    tuned = eas.load(run.load_base(), tmp_path / "adapter")
    alone = eas.load(tmp_path / "model")
    assert alone.state_dict().keys() == tuned.state_dict().keys()
    assert all(torch.equal(tensor, tuned.state_dict()[key]) for key, tensor in alone.state_dict().items())

    again = Run.create(run.config.with_overrides([f"output_dir={tmp_path / 'again'}"]))
    STEPS["search"](again)
    assert again.require("search")["rounds"] == run.require("search")["rounds"]  # nothing but the seed decides
    STEPS["tune"](Run.open(tmp_path / "again"))  # as after a stop: the search's model is loaded
    ours, theirs = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

    written = {step: (tmp_path / f"{step}.json").stat().st_mtime_ns for step in STEPS}
    record = json.loads((tmp_path / "measure.json").read_text())
    record["made"]["hardware"]["cpu"] = "another machine"
    record["made"]["git_revision"] = "older"
    (tmp_path / "measure.json").write_text(json.dumps(record))
    written["measure"] = (tmp_path / "measure.json").stat().st_mtime_ns
    run_steps(Run.open(tmp_path))
    gathered = json.loads((tmp_path / "result.json").read_text())
    assert gathered["versions"]["eas"] == eas.__version__
    assert (gathered["hardware"]["cpu"], gathered["git_revision"]) == ("another machine", "older")  # where it was timed
    assert written == {step: (tmp_path / f"{step}.json").stat().st_mtime_ns for step in STEPS}
    with pytest.raises(eas.ConfigError, match=r"train\.tune_steps = 3 \(now 4\)"):
        short_run(tmp_path, "data=scenes:relation", "train.tune_steps=4")


def test_a_run_trains_on_one_of_several_gpus(tmp_path, monkeypatch, capsys):
    class Several(TrainingArguments):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 2 * (self.device.type == "cpu")  # the property sets it for good

    monkeypatch.setattr("eas.pipeline.phases.TrainingArguments", Several)
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *SHORT, "skip_set=[0, 3, 5, 11]"]))
    for step in ("search", "tune"):
        STEPS[step](run)
    assert "note: this run trains on one of 2 GPUs" in capsys.readouterr().out


def test_a_standalone_folder_ends_answers_as_scores_do(tmp_path, monkeypatch):
    def of_another_end(name, **given):
        model = load_base(name, **given)
        model.generation_config.eos_token_id = 7
        return model

    monkeypatch.setattr("eas.pipeline.run.load_base", of_another_end)
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}", *SHORT, "skip_set=[0, 3, 5, 11]"]))
    for step in ("search", "tune", "fold"):
        STEPS[step](run)
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [7, run.processor.tokenizer.eos_token_id]


@pytest.mark.usefixtures("undrawn")
def test_own_conversations_and_a_given_skip_set_and_generate(tmp_path):
    rows = []
    for i, example in enumerate(scenes("colour", "train", 40)):
        (image,) = example.load_images()
        image.save(tmp_path / f"{i}.png")
        turns = [{"from": "human", "value": f"<image>\n{example.question}"}, {"from": "gpt", "value": example.target}]
        rows.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    (tmp_path / "own.json").write_text(json.dumps(rows))
    out = tmp_path / "run"
    short_run(out, f"data={tmp_path / 'own.json'}", "skip_set=[0,3,5,11]", "fold_mode=per_example")
    assert json.loads((out / "result.json").read_text())["model"]["skip_set"] == [0, 3, 5, 11]
    command = ["generate", str(out), "--image", str(tmp_path / "0.png"), "--prompt", "what color ?"]
    answered = CliRunner().invoke(cli.app, command)
    assert answered.exit_code == 0, answered.output
    assert answered.output.strip()

    folded = CliRunner().invoke(cli.app, ["fold", str(out), "--mode", "shared"])
    assert folded.exit_code == 0, folded.output
    assert "eval.json and measure.json may belong to another mode" in folded.output
    refused = CliRunner().invoke(cli.app, ["fold", str(out), "--mode", "constant"])
    assert "use mode 'shared', or eas.freeze_router" in str(refused.exception)
    assert "must be null or one of ('auto', 'shared'" in str(
        CliRunner().invoke(cli.app, ["fold", str(out), "--mode", "best"]).exception
    )
    assert json.loads((out / "fold.json").read_text())["mode"] == Run.open(out).config.fold_mode == "shared"


@pytest.mark.usefixtures("undrawn")
def test_a_run_whose_images_cannot_be_counted_says_so(tmp_path, monkeypatch):
    monkeypatch.delitem(VISION_TOWERS, "LlavaForConditionalGeneration")
    short_run(tmp_path, "data=scenes:relation", "skip_set=[0,3,5,11]")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["task"]["images_left_out"]
    assert (result["counts"]["base"]["vision_macs"], result["latency"]["bounds"].keys()) == (0, {"decode_ms"})
    assert "MACs of a prefill, without the images" in (tmp_path / "report.html").read_text()


def test_one_process_at_a_time_works_in_a_run_folder(tmp_path):
    run = Run.create(RunConfig().with_overrides([f"output_dir={tmp_path}"]))
    with FileLock(tmp_path / ".lock"), pytest.raises(WriteError, match="another eas command works in it"):
        run_steps(run)


@pytest.mark.usefixtures("undrawn")
def test_a_failing_step_leaves_the_report_on_those_before_it(tmp_path, monkeypatch):
    def stop(run: Run) -> None:
        raise ValueError("no space left")

    monkeypatch.setitem(STEPS, "tune", stop)
    with pytest.raises(ValueError, match="no space left"):
        short_run(tmp_path, "data=scenes:odd", "skip_set=[4,2,3,1]")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"]["skip_set"] == [1, 2, 3, 4]
    assert result["accuracy"] is None
    assert "not measured" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_real_nlvr_images_and_sentences(tmp_path):
    if "EAS_REAL_DATA" not in os.environ:
        pytest.skip("EAS_REAL_DATA names no folder with the real NLVR files")
    short_run(tmp_path, f"data=nlvr:{os.environ['EAS_REAL_DATA']}/nlvr")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["task"]["examples"] == 6
    assert all(sample["target"] in ("true", "false") and sample["images"] for sample in result["samples"])
    assert result["accuracy"]["folded"] == result["accuracy"]["tuned"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "tiny", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "tiny", "--data", "scenes:colours"], "textures"),
        (["-o", "train.learning_rat=1"], "learning_rate"),
        (["-o", "method.skip_rank"], "key=value"),
        (["--skip", "12"], "num_skip"),
        (["--skip", "-1"], "num_skip"),
        (["--skip", "0"], "nothing to search"),
        (["-o", "skip_set=[1,2,12]", "--skip", "3"], "0 to 11"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["-o", "metric=bleu"], "contains"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr("sys.argv", ["eas", "run", "--output-dir", str(tmp_path / "run"), *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 1
    assert printed.startswith("error:")
    assert words in printed


def test_help_teaches_and_config_lists_every_key():
    runner = CliRunner()
    for command in ([], ["run"], ["demo"], ["search"], ["generate"]):
        assert runner.invoke(cli.app, [*command, "--help"]).exit_code == 0
    keys = {key for key, _, help in RunConfig().describe() if help}
    assert {"model", "method.skip_rank", "search.samples", "train.learning_rate"} <= keys
    assert len(keys) == len(list(RunConfig().describe()))


@pytest.mark.parametrize(
    ("installed", "given", "model", "data"),
    [
        (True, [], "smol", "openmoji:group"),
        (False, [], "tiny", "scenes:textures"),
        (True, ["--model", "tiny", "--task", "odd"], "tiny", "scenes:odd"),
        (False, ["--model", "smol", "--task", "odd"], "smol", "scenes:odd"),  # whose packages it then misses
    ],
)
def test_the_demo_shows_the_real_model_if_it_is_installed(tmp_path, monkeypatch, installed, given, model, data):
    monkeypatch.setattr("eas.models.smol.packages_installed", lambda: installed)
    monkeypatch.setattr("eas.pipeline.run_steps", lambda run: None)
    monkeypatch.setattr("eas.cli.run._show", lambda folder: None)
    done = CliRunner().invoke(cli.app, ["demo", "--output-dir", str(tmp_path), *given])
    assert done.exit_code == 0, (done.output, done.exception)
    assert ("are not installed: pip install gguf" in done.output) == (not installed and not given)
    assert (Run.open(tmp_path).config.model, Run.open(tmp_path).config.data) == (model, data)
    other = CliRunner().invoke(cli.app, ["demo", "--output-dir", str(tmp_path), "--model", "mine"])
    assert "the demo shows smol or tiny; `eas run` takes any model" in str(other.exception)


def test_run_config_round_trips_and_ships_the_demo(tmp_path):
    changed = RunConfig().with_overrides(["method.adapt_rank=9", "method.preset=lavin", "train.learning_rate=1e-4"])
    assert (changed.method.skip_rank, changed.method.adapt_rank, changed.train.learning_rate) == (None, 9, 1e-4)
    assert changed.method.at_width(4096).skip_rank == 32
    das = RunConfig().with_overrides(["method.preset=meter", "method.name=das", "method.num_skip=2"]).method
    assert das == eas.DASConfig(num_skip=2, preset="meter", train_projector=None)
    with pytest.raises(eas.ConfigError, match="batch_size"):
        RunConfig().with_overrides(["train.batch_size=many"])
    for name, layers in {"tiny": 12, "smol": 30}.items():
        config = RunConfig.from_file(DEMOS[name])
        config.to_file(tmp_path / "a.yaml")
        assert RunConfig.from_file(tmp_path / "a.yaml") == config
        assert yaml.safe_load((tmp_path / "a.yaml").read_text())["method"]["num_skip"] >= layers // 3


@pytest.mark.parametrize("seed", quick(range(5), [0]))
def test_search_finds_a_planted_redundant_attention(tmp_path, seed):
    """One attention of the embedded model contributes nothing; all others are made to matter."""
    model, processor = load_tiny()
    planted = 1 + 2 * seed
    with torch.no_grad():
        for i, layer in enumerate(model.model.language_model.layers):
            if i == planted:
                layer.self_attn.o_proj.weight.zero_()
                layer.input_layernorm.weight.fill_(1.0)
                continue
            # the base computes what it did, bit for bit; in the paper's form a skip hands the FFN 32 times its input
            layer.input_layernorm.weight.mul_(32)
            for name in ("q_proj", "k_proj", "v_proj"):
                layer.self_attn.get_submodule(name).weight.div_(32)
    eas.attach(model, eas.EASConfig(1, skip_rank=4, adapt_rank=4, form="paper"))
    mixed = [example for family in ("colour", "position", "existence") for example in scenes(family, "train", 32, seed)]
    args = TrainingArguments(str(tmp_path), max_steps=24, per_device_train_batch_size=2, learning_rate=1e-5)
    args.report_to, args.save_strategy, args.seed, args.disable_tqdm = [], "no", seed, True
    trainer = EASTrainer(
        model,
        args,
        phase="search",
        search=SearchConfig(warmup_steps=0, interval=1, samples=6, batch_size=16, seed=seed),
        held_out=mixed[::2],
        train_dataset=mixed[1::2],
        data_collator=Collator(processor, training=True),
    )
    trainer.train()
    assert trainer.search_result().skip_set == (planted,), trainer.search_result().importances
