"""Slake: languages, splits, the authors' accuracies, raw files and Hub columns."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eas.config import ConfigError
from eas.data import BENCHMARKS, load_data
from eas.data.benchmark import match
from eas.example import DataError, Example
from eas.metrics.slake import exact_match, recall, score_slake

real = pytest.mark.skipif("EAS_REAL_DATA" not in os.environ, reason="EAS_REAL_DATA does not name the folder of data")
REAL = Path(os.environ.get("EAS_REAL_DATA", ".")) / "slake"
SLAKE = BENCHMARKS["slake"]


def row(qid, language="en", **more):
    return {
        **{"img_id": 1, "img_name": f"xmlab{qid}/source.jpg", "question": "Is it normal?", "answer": "No", "qid": qid},
        **{"q_lang": language, "answer_type": "CLOSED", "content_type": "Organ", "triple": ["vhead", "_", "_"]},
        **more,
    }


@pytest.fixture
def folder(tmp_path):
    rows = {"train": [row(1), row(2, "zh")], "validate": [row(3)], "test": [row(4), row(5, answer_type="OPEN ")]}
    for name, entries in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
        for entry in entries:
            (tmp_path / "imgs" / f"xmlab{entry['qid']}").mkdir(parents=True)
            Image.new("RGB", (3, 3)).save(tmp_path / "imgs" / f"xmlab{entry['qid']}" / "source.jpg", "PNG")
    return tmp_path


def ids(spec, split, **options):
    return [example.id for example in load_data(spec, split, options=options)]


def test_the_official_layout(folder):
    spec = f"slake:{folder}"
    assert [ids(spec, split) for split in ("train", "validation", "val", "test")] == [["1"], ["3"], ["3"], ["4", "5"]]
    assert ids(spec, "val+test") == ids(spec, "test", test_split="val+test") == ["3", "4", "5"]
    assert ids(spec, "train", language="all") == ["1", "2"]
    assert ids(spec, "train", language="zh") == ["2"]
    (example,) = load_data(spec, "train")
    assert example.question == "Is it normal?\nAnswer the question using a single word or phrase."
    assert (example.target, example.metadata) == ("No", {"content_type": "Organ", "answer_type": "CLOSED"})
    assert example.load_images()[0].size == (3, 3)
    assert load_data(spec, "train", options={"instruction": False})[0].question == "Is it normal?"
    (folder / "imgs").rename(folder / "elsewhere")
    assert ids(spec, "train", images=str(folder / "elsewhere")) == ["1"]
    with pytest.raises(DataError, match=r"example 1: image .*imgs/xmlab1/source.jpg does not exist"):
        load_data(spec, "train")
    (folder / "validate.json").rename(folder / "validation.json")  # as the copy on the Hub has it
    assert len(load_data(spec, "val", images=False)) == 1


def test_hub_columns(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    hub = f"slake:hub:{folder / 'parquet'}"
    (folder / "parquet").mkdir()
    names = ("img_name", "question", "answer", "q_lang", "answer_type")
    features = Features({"image": ImageFeature(), "qid": Value("int64")} | dict.fromkeys(names, Value("string")))
    rows = [row(qid, image=Image.new("RGB", (5, 5))) for qid in (1, 2)] + [row(3, "zh", image=None)]
    data = Dataset.from_list([{name: row[name] for name in features} for row in rows], features=features)
    data.to_parquet(folder / "parquet" / "train.parquet")
    data.remove_columns("image").to_parquet(folder / "parquet" / "validation.parquet")
    assert ids(hub, "train") == ["1", "2"]
    assert load_data(hub, "train")[0].load_images()[0].size == (5, 5)
    assert ids(hub, "val", images=str(folder / "imgs"), language="all") == ["1", "2", "3"]
    for split, number in (("val", 0), ("train", 2)):
        with pytest.raises(DataError, match=rf"row {number} of .* has no image; unzip imgs.zip"):
            load_data(hub, split, options={"language": "all"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer_type": "YES"}, r"test.json\[0\]: answer_type of question 4 is 'YES'; expected OPEN or CLOSED"),
        ({"qid": 5}, "example 5: this id occurs twice"),
        ({"q_lang": None}, None),
    ],
)
def test_bad_rows_are_named_or_left_out(folder, change, words):
    (folder / "test.json").write_text(json.dumps([row(4) | change, row(5)]))
    if words is None:
        assert ids(f"slake:{folder}", "test") == ["5"]
        return
    with pytest.raises(DataError, match=words):
        load_data(f"slake:{folder}", "test")
    with pytest.warns(UserWarning, match="1 left out"):
        assert ids(f"slake:{folder}", "test", skip_bad=True) == ["5"]


def test_bad_files_are_named(folder):
    (folder / "test.json").write_text('{"qid": 1}\n{"qid":')
    with pytest.raises(DataError, match=r"test.json:2: broken JSON"):
        load_data(f"slake:{folder}", "test")
    (folder / "test.json").write_text('[{"qid": 1}]')
    with pytest.raises(DataError, match=r"test.json\[0\]: no key 'q_lang'"):
        load_data(f"slake:{folder}", "test")
    (folder / "test.json").write_text("[]")
    with pytest.raises(DataError, match=r"test.json holds no rows"):
        load_data(f"slake:{folder}", "test")
    (folder / "test.json").unlink()
    with pytest.raises(DataError, match=r"test.json does not exist"):
        load_data(f"slake:{folder}", "test")
    with pytest.raises(DataError, match=r"slake has no split 'dev'; use one of train, val, test, val\+test"):
        load_data(f"slake:{folder}", "dev")
    with pytest.raises(ConfigError, match=r"language = 'fr': must be one of en, zh, all"):
        load_data(f"slake:{folder}", "test", options={"language": "fr"})


def scored(*answers):
    """The report of (type, answer, prediction) triples."""
    rows = [
        Example.ask(str(n), "q", answer, metadata={"answer_type": kind}) for n, (kind, answer, _) in enumerate(answers)
    ]
    return score_slake(rows, {str(n): prediction for n, (_, _, prediction) in enumerate(answers)})


def test_the_authors_accuracies():
    result = scored(
        ("CLOSED", "No", "It is normal"),  # a substring, also inside a word
        ("CLOSED", "None", "no"),  # a number by then: 0
        ("OPEN", "Left Lung, Right", "the left lung"),
        ("OPEN", "Two", "There are 2."),
    )
    assert result.scores == {"0": 1.0, "1": 0.0, "2": 0.0, "3": 1.0}
    assert result.numbers == {
        **{"open": 50.0, "closed": 50.0, "overall": 50.0, "open_recall": 83.33, "open_exact_match": 66.67},
        **{"open_equal": 0.0, "closed_equal": 0.0, "overall_equal": 0.0},
    }
    assert result.counts["overall"] == 4
    assert "open" not in scored(("CLOSED", "No", "no")).numbers


def test_the_authors_exact_match_of_a_perfect_answer_may_be_below_one():
    assert exact_match("left lung left", "left lung left") == 2 / 3
    assert (exact_match("", "x"), recall("", "x"), recall("y", "x")) == (0.0, 0.0, 0.0)
    assert recall("x x", "x y") == 2 / 3  # the prediction's words count as often as they stand there


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(words, words)
def test_properties_of_the_accuracies(answer, prediction):
    same = scored(("OPEN", answer, answer), ("CLOSED", answer, answer.upper().lower()))
    assert (same.scores["0"], same.numbers["open_equal"]) == (1.0, 100.0)
    assert 0 <= recall(prediction, answer) <= 1
    assert 0 <= exact_match(prediction, answer) <= 1
    result = scored(("OPEN", answer, prediction))
    assert result.numbers["open_equal"] <= result.numbers["open"]
    assert result.numbers["overall"] == result.numbers["open"] == 100 * result.score


@real
def test_the_published_questions(tmp_path):
    sizes = {
        "train": (4919, 2976, 1943),
        "val": (1053, 631, 422),
        "test": (1061, 645, 416),
        "val+test": (2114, 1276, 838),
    }
    images, questions = {}, {}
    for split, (count, opened, closed) in sizes.items():
        examples = load_data(f"slake:{REAL}", split, images=False)
        types = [example.metadata["answer_type"] for example in examples]
        assert (len(types), types.count("OPEN"), types.count("CLOSED")) == (count, opened, closed)
        images[split] = {example.images[0] for example in examples}
        questions[split] = examples
    assert [len(images[split]) for split in ("train", "val", "test")] == [450, 96, 96]
    assert images["train"].isdisjoint(images["val+test"])
    assert images["val"].isdisjoint(images["test"])
    everything = [load_data(f"slake:{REAL}", split, options={"language": "all"}, images=False) for split in sizes]
    assert [len(examples) for examples in everything] == [9835, 2099, 2094, 4193]
    shared = {e.images[0] for e in everything[0]} & {e.images[0] for e in everything[2]}
    assert len(shared) == 142  # why the language comes first

    examples = questions["val+test"]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(json.dumps({"question_id": e.id, "text": e.target}) for e in examples))
    given, _ = match(examples, SLAKE.read_predictions(path))
    result = SLAKE.score(examples, given, SLAKE.options())
    assert result.numbers.pop("open_exact_match") == 99.18  # what the authors' tool prints for perfect answers
    assert set(result.numbers.values()) == {100.0}
    with pytest.raises(DataError, match=r"lack 1 of 2114 ids"):
        match(examples, dict(list(given.items())[1:]))
