"""`lmms-eval --model eas`: on tasks of its own form, a run gets what eas itself answers and scores."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from test_pipeline import SHORT

import eas
from eas.config import ConfigError
from eas.data.scenes import scenes
from eas.example import DataError, Example
from eas.pipeline import STEPS, Run, RunConfig
from eas.tasks.evaluation import answer, choice_losses, target_losses

pytestmark = pytest.mark.skipif(
    find_spec("lmms_eval") is None, reason="needs lmms-eval; `make test-lmms-eval` installs it"
)
EXAMPLES = [replace(example, id=str(number)) for number, example in enumerate(scenes("colour", "test", 5))]
CHOICES = ("red", "green", "blue", "yellow")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_visual: !function visual.{visual}
"""
KINDS = {
    "eas_words": """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false, until: ["zzz", "e"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "eas_choices": """
output_type: multiple_choice
doc_to_target: "{{answer}}"
doc_to_choice: ["red", "green", "blue", "yellow"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "eas_texts": """
output_type: loglikelihood
doc_to_target: "{{answer}}"
process_results: !function visual.results
metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}]
""",
}
VISUAL = """
from PIL import Image

def shown(doc):
    return [Image.open(doc["image"])]

def nothing(doc):
    return []

def results(doc, results):  # lmms-eval 0.7.3's own takes the first of one for two
    return {"perplexity": results[0][0]}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A tuned run, and what the command printed and wrote about it."""
    folder, tasks = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("tasks")
    values = {"output_dir": str(folder), "skip_set": [1, 3, 4, 5], "fold_mode": "shared"}
    run = Run.create(RunConfig().with_overrides(SHORT).with_values(values))
    for step in ("search", "tune"):
        STEPS[step](run)
    rows = []
    for example in EXAMPLES:
        (image,) = example.load_images()
        image.save(tasks / f"{example.id}.png")
        rows.append({"image": str(tasks / f"{example.id}.png"), "question": example.question, "answer": example.target})
    (tasks / "rows.json").write_text(json.dumps(rows))
    (tasks / "visual.py").write_text(VISUAL)
    for name, kind in KINDS.items():
        visual = "nothing" if name == "eas_texts" else "shown"
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, rows=tasks / "rows.json", visual=visual) + kind)
    command = [sys.executable, "-m", "lmms_eval", "--model", "eas", "--model_args", f"pretrained={folder}"]
    command += ["--tasks", ",".join(KINDS), "--include_path", str(tasks), "--batch_size", "2", "--log_samples"]
    command += ["--output_path", str(tasks / "out")]
    environment = {**os.environ, "HF_HOME": str(tasks / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tasks, timeout=600)
    written = list((tasks / "out").rglob("*_results.json"))
    assert len(written) == 1, shown.stdout + shown.stderr  # lmms-eval exits with 0 after an error, too
    samples = {}
    for name in KINDS:
        (file,) = (tasks / "out").rglob(f"*_samples_{name}.jsonl")
        found = [json.loads(line) for line in file.read_text().splitlines()]
        samples[name] = [row["filtered_resps"] for row in sorted(found, key=lambda row: row["doc_id"])]
    model = eas.load(run.load_base(), folder / "adapter")
    return SimpleNamespace(
        model=model.eval(),
        processor=run.processor,
        samples=samples,
        results=json.loads(written[0].read_text())["results"],
    )


def test_answers_are_those_of_eas_up_to_the_tasks_end(done):
    whole = [text for text, _ in answer(done.model, done.processor, EXAMPLES, batch_size=1, max_new_tokens=6)]
    want = [text.split("e")[0].strip() for text in whole]
    assert done.samples["eas_words"] == want != whole


def test_choices_rank_as_in_eas(done):
    ranked = choice_losses(done.model, done.processor, [(e, CHOICES) for e in EXAMPLES], 1)
    whole = [text for text, _ in answer(done.model, done.processor, EXAMPLES, batch_size=1, max_new_tokens=6)]
    for example, row in zip(EXAMPLES, done.samples["eas_choices"], strict=True):
        for choice, (loss, greedy) in zip(CHOICES, row, strict=True):
            assert float(loss) == pytest.approx(ranked[example.id][choice], rel=1e-3, abs=1e-5)
            assert greedy == str(choice == whole[int(example.id)])
    right = [min(each, key=each.__getitem__) for each in ranked.values()]
    want = sum(found == example.target for found, example in zip(right, EXAMPLES, strict=True)) / len(EXAMPLES)
    assert done.results["eas_choices"]["acc,none"] == want


def test_texts_without_images_have_a_perplexity(done):
    texts = [Example.ask(example.id, example.question, example.target) for example in EXAMPLES]
    tokens = [len(done.processor.tokenizer(e.target, add_special_tokens=False)["input_ids"]) + 1 for e in texts]
    losses = target_losses(done.model, done.processor, texts, 1)
    want = math.exp(sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / len(texts))
    assert done.results["eas_texts"]["perplexity,none"] == pytest.approx(want, rel=1e-3)


def test_what_eas_cannot_answer_is_refused():
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    kind = get_model("eas")
    with pytest.raises(ConfigError, match=r"batch_size = 'auto': expected a number"):
        kind.create_from_arg_string("pretrained=tiny", {"batch_size": "auto"})
    model = kind.create_from_arg_string("pretrained=tiny", {"batch_size": "1"})
    model.task_dict = {"t": {"test": [{}]}}

    def asked(options, visuals):
        arguments = ("what is this ?", options, lambda doc: visuals, 0, "t", "test")
        return [Instance("generate_until", arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})]

    assert len(model.generate_until(asked({"max_new_tokens": 2}, None))) == 1
    for options in ({"temperature": 0.7}, {"do_sample": True}, {"num_beams": 3}):
        with pytest.raises(ConfigError, match=r"t asks for .* add --gen_kwargs temperature=0"):
            model.generate_until(asked(options, []))
    with pytest.raises(DataError, match=r"t, example 0: it has str; eas reads texts and images"):
        model.generate_until(asked({}, ["film.mp4"]))
    with pytest.raises(ConfigError, match=r"t asks in several rounds"):
        model.generate_until_multi_round(asked({}, []))
