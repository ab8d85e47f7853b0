"""ScienceQA: both published prompt forms, every answer extraction, the official report, raw layout and Hub columns."""

import json
import os
import random
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eas.config import ConfigError
from eas.data import BENCHMARKS, load_data
from eas.data.benchmark import match
from eas.data.scienceqa import ScienceQAOptions, make_example
from eas.example import DataError
from eas.metrics.scienceqa import EXTRACTIONS, LETTERS, extract
from eas.tasks.evaluation import generated, score_answers

real = pytest.mark.skipif("EAS_REAL_DATA" not in os.environ, reason="EAS_REAL_DATA does not name the folder of data")
REAL = Path(os.environ.get("EAS_REAL_DATA", ".")) / "scienceqa"
SCIENCEQA = BENCHMARKS["scienceqa"]
PROBLEM = {
    "question": "Which is  magnetic?",
    "choices": ["a nail", "a cup"],
    "answer": 0,
    "hint": "Look.\nTwo things.",
    "image": "image.png",
    "task": "closed choice",
    "grade": "grade3",
    "subject": "natural science",
    "topic": "physics",
    "category": "Magnets",
    "skill": "Identify magnets",
    "lecture": "Iron is.\nWood is not.",
    "solution": "A nail is iron.",
    "split": "test",
}


def asked(problem=PROBLEM, caption="", **options):
    example = make_example("7", problem, Path("image.png"), caption, ScienceQAOptions(**options))
    return example.question, example.target


def test_lavins_form():
    prompt, target = asked(form="lavin")
    assert prompt == (
        "Question: Which is magnetic?\nContext: Look.\nTwo things.\nOptions: (A) a nail (B) a cup\nResponse:"
    )
    assert target == r"The answer is A. BECAUSE: Iron is.\nWood is not. A nail is iron."
    prompt, target = asked(PROBLEM | {"hint": "", "lecture": "", "solution": ""}, form="lavin")
    assert "\nContext: N/A\n" in prompt
    assert target == "The answer is A. BECAUSE:"
    assert "\nContext: A nail and a cup.\n" in asked(PROBLEM | {"hint": ""}, "A nail and a cup.", form="lavin")[0]


def test_llavas_form():
    prompt, target = asked()
    assert prompt == "Which is magnetic?\nContext: Look.\nTwo things.\nOptions: (A) a nail (B) a cup"
    assert target == "The answer is A. BECAUSE: Iron is.\nWood is not. A nail is iron."
    assert asked(order="QCM-LEA")[1] == "Iron is.\nWood is not. A nail is iron. The answer is A."
    bare = PROBLEM | {"lecture": "", "solution": ""}
    assert asked(bare)[1] == "The answer is A."
    # Three spaces became two, of which the prefix took one.
    assert asked(bare, order="QCM-LEA")[1] == " The answer is A."
    assert asked(order="CQM-A")[0].startswith("Context: Look.\nTwo things.\nQuestion: Which is magnetic?\nOptions: ")


def test_the_letter_form():
    instruction = "\nAnswer with the option's letter from the given choices directly."
    prompt, target = asked(form="letter")
    assert prompt == "Context: Look.\nTwo things.\nWhich is magnetic?\nA. a nail\nB. a cup" + instruction
    assert target == "A"
    assert asked(PROBLEM | {"hint": ""}, form="letter", instruction=False)[0] == (
        "Which is magnetic?\nA. a nail\nB. a cup"
    )


def test_the_choice_form_has_llavas_prompt_and_the_text_of_the_choice():
    assert asked(form="choice") == (asked()[0], "a nail")
    assert asked(PROBLEM | {"answer": 1}, form="choice", order="CQM-A") == (asked(order="CQM-A")[0], "a cup")


def test_the_choice_form_is_ranked_and_scored_as_letters_are():
    options = {"form": "choice"}
    example = make_example("7", PROBLEM, None, "", ScienceQAOptions(**options))
    assert example.choices == ("a nail", "a cup")
    assert not generated("scienceqa", [example], options)
    assert generated("scienceqa", [example], {"form": "letter"})
    for text, right in {"A nail": 1, "a cup": 0, "The answer is A.": 1, "A": 1, "a spoon": 0}.items():
        assert score_answers("scienceqa", [example], {"7": text}, options).score == right
    assert score_answers("scienceqa", [example], {"7": "a nail"}, {"form": "llava"}).score == 0


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("QCM-A", "The answer is A."),
        ("QCM-AL", "The answer is A. BECAUSE: E"),  # crossed in the published converters
        ("QCM-AE", "The answer is A. BECAUSE: L"),
        ("QCM-ALE", "The answer is A. BECAUSE: L E"),
        ("QCM-AEL", "The answer is A. BECAUSE: E L"),
        ("QCM-LA", "L The answer is A."),
        ("QCM-EA", "E The answer is A."),
        ("QCM-ELA", "E L The answer is A."),
    ],
)
def test_orders_of_the_target(order, words):
    problem = PROBLEM | {"lecture": "L", "solution": "E"}
    assert asked(problem, order=order)[1] == asked(problem, order=order, form="lavin")[1] == words


def test_orders_of_the_upper_bounds():
    problem = PROBLEM | {"lecture": "L", "solution": "E", "hint": "C", "question": "Q"}
    last = "Options: (A) a nail (B) a cup"
    assert asked(problem, order="QCMLE-A")[0] == f"Q\nContext: C\n{last}\nBECAUSE: L E"
    assert asked(problem, order="QCEM-A")[0] == f"Q\nContext: C\nBECAUSE: E\n{last}"
    assert asked(problem | {"lecture": ""}, order="QCML-A")[0] == f"Q\nContext: C\n{last}"


free = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: "nswer" not in text and "BECAUSE" not in text
)


@given(free, free, free, free, st.lists(free.filter(str.strip), min_size=1, max_size=5), st.data())
def test_every_form_keeps_its_parts(question, hint, lecture, solution, choices, data):
    answer = data.draw(st.integers(0, len(choices) - 1))
    problem = PROBLEM | {"question": question, "hint": hint, "lecture": lecture, "solution": solution}
    problem |= {"choices": choices, "answer": answer}
    squeezed = "".join
    for form in ("lavin", "llava", "letter"):
        prompt, target = asked(problem, form=form)
        for part in (question, hint, *choices):
            assert squeezed(part.split()) in squeezed(prompt.split())
        for extraction in ("llava", "eas"):
            assert extract(target, extraction) == LETTERS[answer]
        if form != "letter" and (lecture + solution).strip():
            assert extract(target, "official") == extract(target, "lavin") == LETTERS[answer]


@pytest.mark.parametrize(
    ("text", "official", "llava", "eas", "lavin"),
    [
        ("The answer is B.", "B", "B", "B", "B"),
        ("The answer is B", None, None, None, None),  # the pattern wants a character after the letter
        ("The answer is B, as said. The answer is C.", None, None, None, "B"),
        ("So the answer is D.", None, None, "D", "D"),
        ("C", None, "C", "C", None),
        ("C. a cup", None, "C", "C", "C"),
        ("C a cup", None, None, None, "C"),
        ("F", None, None, None, None),
        ("The answer is Z.", "Z", "Z", "Z", "Z"),
        ("a cup", None, None, None, None),
        ("", None, None, None, None),
    ],
)
def test_extractions(text, official, llava, eas, lavin):
    assert [extract(text, name) for name in ("official", "llava", "eas", "lavin")] == [official, llava, eas, lavin]


@given(st.text(string.ascii_letters + " .\n", max_size=40))
def test_extractions_agree_where_they_should(text):
    assert extract(text, "llava") in (extract(text, "official"), text[:1])
    found = {name: extract(text, name) for name in EXTRACTIONS}
    assert all(letter is None or letter in string.ascii_uppercase for letter in found.values())


@pytest.fixture
def folder(tmp_path):
    """Three problems in the official layout: with image and hint, with hint, with neither; images that are none."""
    problems = {
        "7": PROBLEM,
        "8": PROBLEM | {"image": None, "subject": "social science", "grade": "grade8", "answer": 1},
        "9": PROBLEM | {"image": None, "hint": "", "subject": "language science", "grade": "grade12"},
    }
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["9", "7", "8"], "minitest": ["8"]}))
    (tmp_path / "captions.json").write_text(json.dumps({"captions": {"7": "Two things on a table."}}))
    image = tmp_path / "images" / "test" / "7" / "image.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(image, "JPEG")  # not what its suffix says
    return tmp_path


def test_the_official_layout(folder):
    examples = load_data(f"scienceqa:{folder}", "test", options={"captions": True})
    assert [example.id for example in examples] == ["9", "7", "8"]
    assert [len(example.images) for example in examples] == [0, 1, 0]
    assert examples[1].messages[0]["content"][0] == {"type": "image"}
    assert examples[1].load_images()[0].size == (4, 3)
    assert "Two things.\nOptions" in examples[2].question
    assert "Two things. Two things on a table.\nOptions" in examples[1].question
    assert [example.id for example in load_data(f"scienceqa:{folder}", "minitest")] == ["8"]
    assert {example.id for example in load_data(f"scienceqa:{folder}", "test", limit=2)} == {"7", "8"}
    (folder / "pid_splits.json").unlink()
    assert [example.id for example in load_data(f"scienceqa:{folder}", "test")] == ["7", "8", "9"]


def report(folder, predictions, **options):
    examples = load_data(f"scienceqa:{folder}", "test", images=False)
    path = folder / "predictions.json"
    path.write_text(predictions if isinstance(predictions, str) else json.dumps(predictions))
    given, _ = match(examples, SCIENCEQA.read_predictions(path))
    return SCIENCEQA.score(examples, given, ScienceQAOptions(**options))


def test_the_official_report(folder):
    result = report(folder, {"7": 0, "8": 0, "9": 0})
    assert result.numbers == {
        **{"NAT": 100.0, "SOC": 0.0, "LAN": 100.0, "TXT": 50.0, "IMG": 100.0, "NO": 100.0},
        **{"G1-6": 100.0, "G7-12": 50.0, "average": 66.67},
    }
    assert (result.counts["TXT"], result.counts["G7-12"], result.counts["average"]) == (2, 2, 3)
    assert result.scores == {"7": 1.0, "8": 0.0, "9": 1.0}
    assert result.score == 2 / 3
    assert report(folder, {"acc": 1, "results": {"7": 0, "8": 0, "9": 0}}) == result
    rows = [{"question_id": pid, "text": text} for pid, text in (("7", "A"), ("8", "The answer is A."), ("9", "A. x"))]
    assert report(folder, "\n".join(map(json.dumps, rows))) == result


def test_failed_answers_are_wrong_or_random_by_seed(folder):
    failed = dict.fromkeys("789", -1)
    assert report(folder, failed).score == 0
    chosen = [report(folder, failed, fallback_seed=seed).score for seed in range(40)]
    assert chosen == [report(folder, failed, fallback_seed=seed).score for seed in range(40)]
    assert 0.3 < sum(chosen) / len(chosen) < 0.7
    # A letter outside the choices has failed, too.
    assert report(folder, dict.fromkeys("789", 4)).score == 0


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ({"7": 0, "8": 0}, r"lack 1 of 3 ids and have 0 of others \(9, "),
        ({"7": 0, "8": 0, "9": 0, "10": 0}, r"lack 0 of 3 ids and have 1 of others \(10, "),
        ({"7": 0, "8": None, "9": 0}, "the prediction for 8 is None; expected the index"),
        (
            '{"question_id": "7", "text": "A"}\n{"question_id": "7", "text": "A"}',
            "predictions.json:2: the id '7' occurs",
        ),
        ('{"question_id": "7", "text": "A"}\n{"question_id": "8"}', "predictions.json:2: the row has the keys"),
        ('{"7": 0,\n"8"', r"predictions.json:1: broken JSON"),
    ],
)
def test_bad_predictions_are_named(folder, predictions, words):
    with pytest.raises(DataError, match=words):
        report(folder, predictions)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer": 2}, "problem 7: answer 2 is outside its 2 choices; fix or drop"),
        ({"answer": True}, "problem 7: answer True is outside"),
        ({"choices": "ab"}, "problem 7: choices are 'ab'; expected a list"),
        ({"image": "gone.png"}, r"example 7: image .*test/7/gone.png does not exist"),
    ],
)
def test_bad_problems_are_named_or_left_out(folder, change, words):
    path = folder / "problems.json"
    problems = json.loads(path.read_text())
    problems["7"] |= change
    path.write_text(json.dumps(problems))
    with pytest.raises(DataError, match=words):
        load_data(f"scienceqa:{folder}", "test")
    with pytest.warns(UserWarning, match=f"1 left out:\n.*{words[:9]}"):
        kept = load_data(f"scienceqa:{folder}", "test", options={"skip_bad": True})
    assert [example.id for example in kept] == ["9", "8"]


def test_bad_folders_are_named(folder):
    with pytest.raises(DataError, match=r"pid_splits.json has no split 'dev'; use one of test, minitest"):
        load_data(f"scienceqa:{folder}", "dev")
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["7", "8", "9", "10"]}))
    with pytest.raises(DataError, match=r"problems.json lacks 1 of the 4 problems .*\(10, \.\.\.\)"):
        load_data(f"scienceqa:{folder}", "test")
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["7", "7"]}))
    with pytest.raises(DataError, match="example 7: this id occurs twice"):
        load_data(f"scienceqa:{folder}", "test")
    (folder / "problems.json").write_text('{"7": {}}')
    with pytest.raises(DataError, match="problem 7: 'choices' is missing"):
        load_data(f"scienceqa:{folder}", "test")
    (folder / "problems.json").write_text('{\n"7": ')
    with pytest.raises(DataError, match=r"problems.json:2: broken JSON at column 6"):
        load_data(f"scienceqa:{folder}", "test")
    (folder / "problems.json").unlink()
    with pytest.raises(DataError, match=r"problems.json does not exist"):
        load_data(f"scienceqa:{folder}", "test")
    with pytest.raises(ConfigError, match="has no key 'ordr'; did you mean 'order'"):
        load_data(f"scienceqa:{folder}", "test", options={"ordr": "QCM-A"})
    with pytest.raises(ConfigError, match="order = 'QMC-A': must join one of QCM"):
        load_data(f"scienceqa:{folder}", "test", options={"order": "QMC-A"})


def test_hub_columns(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    from datasets import Dataset, DatasetDict, Features, List, Value
    from datasets import Image as ImageFeature

    problems = json.loads((folder / "problems.json").read_text())
    picture = Image.new("RGB", (4, 3), "red")
    rows = [{**problems[pid], "image": picture if pid == "7" else None} for pid in ("9", "7", "8")]
    texts = dict.fromkeys(
        [name for name in PROBLEM if name not in ("image", "choices", "answer", "split")], Value("string")
    )
    features = Features({"image": ImageFeature(), "choices": List(Value("string")), "answer": Value("int8")} | texts)
    data = Dataset.from_list([{key: row[key] for key in features} for row in rows], features=features)
    DatasetDict({"test": data, "validation": data}).save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "test-00000-of-00001.parquet")

    raw = load_data(f"scienceqa:{folder}", "test")
    for name, split in (("saved", "test"), ("parquet", "test"), ("saved", "val")):
        spec = f"scienceqa:hub:{tmp_path / name}"
        examples = load_data(spec, split)
        assert [example.id for example in examples] == ["row-0", "row-1", "row-2"]
        assert [example.messages for example in examples] == [example.messages for example in raw]
        assert [example.target for example in examples] == [example.target for example in raw]
        assert [example.metadata for example in examples] == [example.metadata for example in raw]
        assert examples[1].load_images()[0].getpixel((0, 0)) == (255, 0, 0)
    spec, pids = f"scienceqa:hub:{tmp_path / 'parquet'}", {"pid_splits": str(folder / "pid_splits.json")}
    assert [example.id for example in load_data(spec, "test", options=pids)] == ["9", "7", "8"]
    assert [example.id for example in load_data(spec, "test", options=pids | {"stream": 2})] == ["9", "7"]
    assert load_data(spec, "test", options={"stream": 2})[1].load_images()[0].size == (4, 3)
    with pytest.raises(DataError, match=r"has 1 ids for minitest, but .* has 3 rows"):
        load_data(spec, "minitest", options=pids | {"splits": {"minitest": "test"}})
    with pytest.raises(DataError, match="has no split 'validation'; use one of test"):
        load_data(spec, "val")
    with pytest.raises(DataError, match=r"has no column 'ask' but .*question.*columns=\{question: COLUMN\}"):
        load_data(spec, "test", options={"columns": {"question": "ask"}})
    with pytest.raises(DataError, match=r"data_options.columns names 'ask'; the columns are image"):
        load_data(spec, "test", options={"columns": {"ask": "question"}})
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        load_data(f"scienceqa:hub:{tmp_path / 'none'}", "test")


# The sizes of the official test split's categories.
SIZES = {"NAT": 2252, "SOC": 889, "LAN": 1100, "TXT": 2046, "IMG": 2017, "NO": 1435, "average": 4241}


@real
def test_the_4241_test_problems(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", lambda *_: pytest.fail("an image was opened at load"))
        examples = load_data(f"scienceqa:{REAL}", "test", images=False)
    pids = json.loads((REAL / "pid_splits.json").read_text())["test"]
    problems = json.loads((REAL / "problems_test.json").read_text())
    assert [example.id for example in examples] == pids
    draw = random.Random(5)
    indices = {pid: draw.randrange(-1, 5) for pid in pids}
    (tmp_path / "predictions.json").write_text(json.dumps(indices))
    texts = SCIENCEQA.read_predictions(tmp_path / "predictions.json")
    for extraction in EXTRACTIONS:
        result = SCIENCEQA.score(examples, texts, ScienceQAOptions(extraction=extraction))
        assert {name: result.counts[name] for name in SIZES} == SIZES
        assert result.counts["G1-6"] + result.counts["G7-12"] == 361  # whose grade is known here
        right = {pid: indices[pid] == problems[pid]["answer"] for pid in pids}
        members = {
            "average": pids,
            "SOC": [pid for pid in pids if problems[pid]["subject"] == "social science"],
            "NO": [pid for pid in pids if not problems[pid]["hint"] and not problems[pid]["image"]],
            "IMG": [pid for pid in pids if problems[pid]["image"]],
        }
        for name, group in members.items():
            assert f"{result.numbers[name]:.2f}" == f"{sum(right[pid] for pid in group) / len(group) * 100:.2f}"
    perfect = SCIENCEQA.score(examples, {example.id: example.target for example in examples}, ScienceQAOptions())
    assert set(perfect.numbers.values()) == {100.0}


@real
def test_the_subset_with_images():
    options = {"pid_splits": "pid_splits_subset.json"}
    sizes = {}
    for split in ("train", "val"):
        examples = load_data(f"scienceqa:{REAL}", split, options=options, images=False)
        sizes[split] = len(examples)
        found = [example for example in examples if all(image.is_file() for image in example.images)]
        seen = [example for example in found if example.images]
        assert seen
        assert all(example.load_images()[0].mode == "RGB" for example in seen[:20])
        assert all(extract(example.target, "official") in LETTERS for example in examples)
    assert sizes == {"train": 1041, "val": 371}
    with pytest.raises(DataError, match=r"lacks 11685 of the 12726 problems .*name the ids of a subset"):
        load_data(f"scienceqa:{REAL}", "train")
