"""What is done with a finished run: questions answered in bulk, its costs, its page written elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from test_pipeline import SHORT
from typer.testing import CliRunner

from eas import cli
from eas.config import ConfigError
from eas.data.scenes import scenes
from eas.demo.tiny import load_tiny
from eas.example import DataError, Example
from eas.files import WriteError, locked
from eas.pipeline import STEPS, Run, RunConfig
from eas.pipeline.predict import predict, read_questions
from eas.progress import Bar
from eas.tasks.evaluation import Answer, answer


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run [bold] 1"
    run = Run.create(
        RunConfig().with_overrides(SHORT).with_values({"output_dir": str(folder), "skip_set": [1, 3, 4, 5]})
    )
    for step in ("search", "tune", "eval"):
        STEPS[step](run)
    return folder


@pytest.fixture
def questions(tmp_path) -> Path:
    rows = []
    for i, example in enumerate(scenes("colour", "test", 5)):
        (image,) = example.load_images()
        image.save(tmp_path / f"{i}.png")
        rows.append({"id": f"q{i}", "image": f"{i}.png", "prompt": example.question})
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_questions_is_answered_and_a_stopped_one_goes_on(tuned, questions, tmp_path, monkeypatch):
    command = ["predict", str(tuned), str(questions), "--batch-size", "2", "--max-new-tokens", "3", "--output"]
    done = CliRunner().invoke(cli.app, [*command, str(tmp_path / "all.jsonl")])
    assert done.exit_code == 0, (done.output, done.exception)
    whole = lines(tmp_path / "all.jsonl")
    assert [line["id"] for line in whole] == [f"q{i}" for i in range(5)]
    assert json.loads(done.stdout.splitlines()[-1])["answers"] == 5
    elsewhere = tmp_path / "elsewhere" / "questions.jsonl"
    elsewhere.parent.mkdir()
    elsewhere.write_text(questions.read_text())
    again = [*command[:2], str(elsewhere), *command[3:], str(tmp_path / "again.jsonl")]
    assert "0.png" in str(CliRunner().invoke(cli.app, again).exception)
    assert CliRunner().invoke(cli.app, [*again, "--images", str(tmp_path)]).exit_code == 0
    assert lines(tmp_path / "again.jsonl") == whole
    first = json.loads(questions.read_text().splitlines()[0])["prompt"]
    single = ["generate", str(tuned), "--image", str(tmp_path / "0.png"), "--max-new-tokens", "3", "--prompt", first]
    asked = CliRunner().invoke(cli.app, single)
    assert asked.stdout.strip() == whole[0]["answer"]

    part, calls = tmp_path / "part.jsonl", []
    from eas.tasks.evaluation import answer as really

    def answer(model, processor, examples, **more):
        calls.append([example.id for example in examples])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return really(model, processor, examples, **more)

    monkeypatch.setattr("eas.pipeline.predict.answer", answer)
    advanced, advance = [], Bar.advance
    monkeypatch.setattr(Bar, "advance", lambda bar, done=None: (advance(bar, done), advanced.append(bar.line()))[0])
    monkeypatch.setattr("sys.argv", ["eas", *command, str(part)])
    stopped = CliRunner().invoke(cli.app, [*command, str(part)])
    assert stopped.exit_code == 130
    assert "continues where it stopped" in stopped.output
    with part.open("a") as file:
        file.write('{"id": "q2", "ans')  # killed while it wrote
    assert CliRunner().invoke(cli.app, [*command, str(part)]).exit_code == 0
    assert lines(part) == whole
    assert calls == [["q0", "q1"], ["q2", "q3"], ["q2", "q3"], ["q4"]]
    assert CliRunner().invoke(cli.app, [*command, str(part)]).exit_code == 0
    assert len(calls) == 4  # nothing is left to answer
    assert [line.partition(",")[0] for line in advanced if line.startswith("answering")] == [
        *("answering: 2 of 5", "answering: 4 of 5", "answering: 5 of 5")
    ]


def test_an_output_of_something_else_is_never_written_over(tuned, questions, tmp_path):
    run, output = Run.open(tuned), tmp_path / "out.jsonl"
    predict(run, questions, output, max_new_tokens=2)
    before = output.read_bytes()
    with pytest.raises(ConfigError, match="holds answers with another max_new_tokens"):
        predict(run, questions, output, max_new_tokens=3)
    other = shutil.copy(questions, tmp_path / "other.jsonl")
    Path(other).write_text(questions.read_text() + '{"prompt": "more ?"}\n')
    with pytest.raises(ConfigError, match="holds answers with another questions; name another --output"):
        predict(run, Path(other), output, max_new_tokens=2)
    with pytest.raises(
        ConfigError, match=r"exists already, and there is no questions\.jsonl\.about\.json that names its run"
    ):
        predict(run, questions, questions, max_new_tokens=2)
    assert output.read_bytes() == before
    output.write_text(output.read_text().replace("q1", "q9"))
    with pytest.raises(ConfigError, match=r"out\.jsonl:2 does not answer question 'q1'"):
        predict(run, questions, output, max_new_tokens=2)
    with locked(tmp_path / ".new.jsonl.lock", "mine"):
        pid = os.fork()
        if pid == 0:
            try:
                predict(run, questions, tmp_path / "new.jsonl")
            except WriteError as error:
                os._exit(0 if "another eas predict writes it" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


USER, BOT = {"role": "user", "content": "a ?"}, {"role": "assistant", "content": "b"}


def test_an_answer_ends_at_every_token_that_ends_one_of_the_base():
    model, processor = load_tiny()

    def answered(most=12):
        (given,) = answer(model.eval(), processor, scenes("caption", "test", 1), batch_size=1, max_new_tokens=most)
        return given.text.split(), given.cut

    whole, _ = answered()
    assert len(whole) > 3
    assert answered(3) == (whole[:3], True)
    model.generation_config.eos_token_id = [7, processor.tokenizer.convert_tokens_to_ids(whole[2])]
    assert answered() == (whole[:3], False)
    assert answered(3) == (whole[:3], False)
    assert answered(2) == (whole[:2], True)
    own = {"min_new_tokens": 12, "num_beams": 3, "repetition_penalty": 9.0, "return_dict_in_generate": True}
    model.generation_config.update(**own)  # a base's settings for talk, which answers do not follow
    assert answered() == (whole[:3], False)


def test_a_cut_answer_is_told(tuned, questions, tmp_path):
    first = lines(questions)[0]["prompt"]

    def said(most, name):
        options = ["--max-new-tokens", str(most)]
        single = ["generate", str(tuned), "--image", str(tmp_path / "0.png"), "--prompt", first, *options]
        many = ["predict", str(tuned), str(questions), *options, "--output", str(tmp_path / name)]
        one, all_of_them = CliRunner().invoke(cli.app, single), CliRunner().invoke(cli.app, many)
        assert (one.exit_code, all_of_them.exit_code) == (0, 0), (one.output, all_of_them.output)
        return " ".join(one.stderr.split()), " ".join(all_of_them.stderr.split()), lines(tmp_path / name)

    one, many, rows = said(1, "short.jsonl")
    assert "note: the answer is cut at --max-new-tokens = 1" in one
    assert "note: 5 of 5 answers are cut at --max-new-tokens = 1, and their lines say so" in many
    assert all(row["cut"] is True for row in rows)
    _, again, same = said(1, "short.jsonl")  # nothing is left to answer
    assert same == rows
    assert again.startswith("note: 5 of 5 answers are cut")
    one, many, rows = said(64, "long.jsonl")
    assert "cut" not in one + many
    assert all(row.keys() == {"id", "answer"} for row in rows)


@pytest.mark.parametrize(
    ("row", "turns", "last"),
    [
        ({"prompt": "a ?"}, 1, "a ?"),
        ({"prompt": "a ?", "completion": "b", "choices": ["b", "c"]}, 1, "a ?"),
        ({"prompt": [USER]}, 1, "a ?"),
        ({"messages": [USER]}, 1, "a ?"),
        ({"prompt": [USER], "completion": [BOT, {"role": "user", "content": "c ?"}, BOT]}, 3, "c ?"),
        ({"messages": [USER, BOT]}, 1, "a ?"),
        ({"messages": [USER, BOT, {"role": "user", "content": "c ?"}]}, 3, "c ?"),
        ({"conversations": [{"from": "human", "value": "a ?"}]}, 1, "a ?"),
        ({"conversations": [{"from": "human", "value": "a ?"}, {"from": "gpt", "value": "b"}]}, 1, "a ?"),
    ],
)
def test_questions_need_no_answers(tmp_path, row, turns, last):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"id": 7, **row}))
    (example,) = read_questions(path)
    assert (example.id, len(example.messages), example.question) == ("7", turns, last)
    assert isinstance(example, Example)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no rows"),
        ('{"id": 1, "prompt": "a ?"}\n{"id": 1, "prompt": "b ?"}', "q.jsonl:2: the id '1' occurs twice"),
        ('{"question": "a ?"}', "q.jsonl:1: the row has the keys"),
        ('{"prompt": "a ?", "image": "none.png"}', "q.jsonl:1: image"),
        ('{"messages": []}', "q.jsonl:1: the turns are"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "q.jsonl:1: the turns are"),
        (
            '{"messages": [{"role": "user", "content": "x"}], "prompt": "a ?"}',
            "q.jsonl:1: the row has messages, and",
        ),
        ("{", "q.jsonl:1: broken JSON"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, text, words):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as refused:
        read_questions(path)
    assert words in str(refused.value)


def test_a_run_s_folder_is_counted_as_it_stands(tuned):
    run = CliRunner().invoke(cli.app, ["count", str(tuned)])
    assert run.exit_code == 0, (run.output, run.exception)
    given = ["--skip-set", "1,3,4,5", "-o", "skip_rank=8", "-o", "adapt_rank=4", "-o", "preset=null"]
    by_hand = CliRunner().invoke(cli.app, ["count", "tiny", *given, "-o", "train_projector=true"])
    assert json.loads(run.output.splitlines()[-1]) == json.loads(by_hand.output.splitlines()[-1])
    refused = CliRunner().invoke(cli.app, ["count", str(tuned), "--skip", "2"])
    assert "is a run with its own method; leave out --method, --skip" in str(refused.exception)


def test_a_page_is_written_elsewhere_and_nothing_into_the_run(tuned, tmp_path):
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in [tuned, *tuned.rglob("*")]}

    before, page = state(), tmp_path / "new" / "page.html"
    done = CliRunner().invoke(cli.app, ["report", str(tuned), "--output", str(page)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert state() == before
    assert list(page.parent.iterdir()) == [page]
    assert json.loads(done.output.splitlines()[-1]) == {"page": str(page), "left_out": []}
    text = page.read_text()
    assert "run [bold] 1" in text
    assert text.count("data:image/png") >= 1
    assert str(tmp_path) not in text
    assert str(tuned.parent) not in text
    refused = CliRunner().invoke(cli.app, ["report", str(tuned), "--output", "a.html", "--output-dir", "b"])
    assert "give one of them" in str(refused.exception)


def test_answers_do_not_reach_the_terminal_raw(tuned, monkeypatch):
    monkeypatch.setattr("eas.tasks.evaluation.answer", lambda *_, **__: [Answer("\x1b[2Jred", cut=False)])
    said = CliRunner().invoke(cli.app, ["generate", str(tuned), "--prompt", "what ?"])
    assert said.stdout == "\\u001b[2Jred\n"


def test_a_full_disk_does_not_hide_why_a_step_failed(tuned, tmp_path, monkeypatch):
    def fail(run: Run) -> None:
        raise ValueError("the step's own words")

    def full(run: Run) -> None:
        raise WriteError("no space left")

    shutil.copytree(tuned, tmp_path / "run")
    monkeypatch.setitem(STEPS, "fold", fail)
    monkeypatch.setattr("eas.pipeline.steps.report", full)
    run = CliRunner().invoke(cli.app, ["run", "--output-dir", str(tmp_path / "run")])
    assert str(run.exception) == "the step's own words"
    assert "the report could not be written: no space left" in run.output
