"""VQA accuracy: the official procedure, written out annotator by annotator, against the product's; METER's targets."""

import gzip
import json
import os
import pickle
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from eas.data import load_data
from eas.data.score import score_file
from eas.data.vqa2 import VQA2, VQA2Options
from eas.example import DataError
from eas.metrics.vqa import (
    CONTRACTIONS,
    answer_vocabulary,
    normalise,
    normalise_word,
    percent,
    percent_by,
    soft_targets,
    vqa_accuracy,
)

REAL = Path(os.environ.get("EAS_REAL_DATA", "none")) / "vqa2"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="EAS_REAL_DATA does not name the folder of real data")
ANSWER_TYPES = ("number", "other", "yes/no")
# What the official procedure gives: overall, and by answer type.
FIGURES = {
    (2962, "first annotator"): [87.7, 87.65, 78.42, 96.62],
    (2962, "multiple_choice_answer"): [96.74, 96.37, 93.71, 100.0],
    (2962, "yes"): [22.37, 0.06, 0.83, 64.1],
    (8977, "first annotator"): [87.22, 87.3, 77.8, 97.0],
    (8977, "multiple_choice_answer"): [96.61, 96.54, 93.43, 100.0],
    (8977, "yes"): [20.85, 0.2, 1.06, 62.19],
}


@cache
def literal_punctuation(given, digits=re.ASCII):
    result = given
    for mark in [
        ";",
        "/",
        "[",
        "]",
        '"',
        "{",
        "}",
        "(",
        ")",
        "=",
        "+",
        "\\",
        "_",
        "-",
        ">",
        "<",
        "@",
        "`",
        ",",
        "?",
        "!",
    ]:
        if mark + " " in given or " " + mark in given or re.search(r"(\d)(\,)(\d)", given, digits):
            result = result.replace(mark, "")
        else:
            result = result.replace(mark, " ")
    return re.compile(r"(?!<=\d)(\.)(?!\d)", digits).sub("", result, int(re.UNICODE))


@cache
def literal_digit_article(given):
    numbers = "none:0 zero:0 one:1 two:2 three:3 four:4 five:5 six:6 seven:7 eight:8 nine:9 ten:10"
    digits = dict(pair.split(":") for pair in numbers.split())
    words = [digits.get(word, word) for word in given.lower().split()]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


def literal_accuracy(prediction, answers):
    clean = [text.replace("\n", " ").replace("\t", " ").strip() for text in answers]
    prediction = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len(set(clean)) > 1:
        clean = [literal_digit_article(literal_punctuation(text)) for text in clean]
        prediction = literal_digit_article(literal_punctuation(prediction))
    by_annotator = []
    for annotator in range(len(clean)):
        others = clean[:annotator] + clean[annotator + 1 :]
        by_annotator.append(min(1, float(len([text for text in others if text == prediction])) / 3))
    return float(sum(by_annotator)) / len(by_annotator)


# Words and marks that meet the rules, put together at random, besides any text at all.
pieces = st.sampled_from(
    [*" .,;-/?!`'()", ", ", "1", "23", "one", "None", "a", "The", "dont", "it's", "x", "É", "\n", "٣"]
)
texts = st.one_of(st.text(), st.lists(pieces, max_size=60).map("".join))


@given(texts)
@example("." * 40)
@example("1,000 - well-known")
@example("well-known, 5.5")
@example("٣,٣ a.٣")
def test_normalise_follows_the_procedure(text):
    assert normalise(text) == literal_digit_article(literal_punctuation(text))
    assert normalise_word(text) == literal_digit_article(literal_punctuation(text, re.UNICODE))
    assert "," not in normalise_word(text)  # which METER's normalize_word deletes at last


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The man's hat.", "man's hat"),
        ("well-known", "well known"),  # a mark within a word parts it,
        ("well-known -", "wellknown"),  # unless the same mark touches a space somewhere,
        ("well-known 1,000", "wellknown 1000"),  # or digits are grouped somewhere
        ("well-known, 1", "well known 1"),
        ("a.m. 5.5 .5 5.", "am 5.5 .5 5"),
        ("." * 34 + "x", "..x"),
        ("None of the two", "0 of 2"),
        ("dont", "don't"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("12:30", "12:30"),
        (" \n", ""),
    ],
)
def test_normalise_quirks(text, expected):
    assert normalise(text) == expected


def test_the_table_of_contractions():
    assert len(CONTRACTIONS) == 120
    odd = {key: value for key, value in CONTRACTIONS.items() if key.replace("'", "") != value.replace("'", "")}
    assert odd == {}
    assert {key for key in CONTRACTIONS if key != key.lower()} == {"Id've", "I'dve", "Im", "Ive"}


@given(texts, st.lists(texts, min_size=10, max_size=10), st.integers(0, 10))
def test_accuracy_follows_the_procedure(prediction, answers, agreeing):
    answers[:agreeing] = [prediction] * agreeing
    assert vqa_accuracy(prediction, answers) == literal_accuracy(prediction, answers)


@pytest.mark.parametrize(("matches", "expected"), enumerate([0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1]))
def test_accuracy_by_matches(matches, expected):
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy("red", answers) == pytest.approx(expected, abs=1e-12)


def test_unanimous_answers_are_compared_raw():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy(" yes\n", ["yes", "yes\t"] * 5) == 1
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1


def test_soft_targets():
    vocabulary = answer_vocabulary(["The red", "red", "blue", "none", "none", "0"], min_count=2)
    assert vocabulary == {"red": 0, "0": 1}
    answers = ["red"] * 4 + ["The red"] + ["0"] * 2 + ["none"] * 3
    assert soft_targets(answers, vocabulary) == {0: 1.0, 1: 0.6}  # raw answers: neither "The red" nor "none" counts
    assert [soft_targets(["red"] * n, vocabulary).get(0, 0) for n in range(6)] == [0, 0.3, 0.6, 0.9, 1, 1]


@pytest.fixture(scope="module", params=["2962", "8977"])
def annotations(request):
    if not REAL.is_dir():
        pytest.skip("EAS_REAL_DATA does not name the folder of real data")
    with gzip.open(REAL / f"v2_mscoco_train2014_sub{request.param}_annotations.json.gz") as file:
        return json.load(file)["annotations"]


@pytest.mark.parametrize("answer", ["first annotator", "multiple_choice_answer", "yes"])
def test_the_official_figures(annotations, answer):
    scores, types, literal = [], defaultdict(list), []
    for row in annotations:
        answers = [each["answer"] for each in row["answers"]]
        prediction = {"first annotator": answers[0], "yes": "yes"}.get(answer) or row["multiple_choice_answer"]
        scores.append(vqa_accuracy(prediction, answers))
        literal.append(literal_accuracy(prediction, answers))
        types[row["answer_type"]].append(literal[-1])
    assert percent(scores) == round(100 * float(sum(literal)) / len(literal), 2)
    by_type = {kind: round(100 * float(sum(values)) / len(values), 2) for kind, values in types.items()}
    assert percent_by(scores, (row["answer_type"] for row in annotations)) == by_type
    assert FIGURES[len(annotations), answer] == [percent(scores), *(by_type[kind] for kind in ANSWER_TYPES)]


@real_data
def test_published_vocabulary_is_normalised_answers(annotations):
    """The subsets hold too few answers for all 3,129 classes; what they find frequent is among them."""
    published = set(json.loads((REAL / "lxmert_trainval_ans2label.json").read_text()))
    assert len(published) == 3129
    vocabulary = answer_vocabulary(row["multiple_choice_answer"] for row in annotations)
    assert list(vocabulary.values()) == list(range(len(vocabulary)))
    assert vocabulary.keys() <= published
    unanimous = Counter(len({each["answer"] for each in row["answers"]}) == 1 for row in annotations)
    assert unanimous[True] == {2962: 1060}.get(len(annotations), unanimous[True])


# ------------------------------------------------------------------------------------------------ loader, result file


def asked(number, image=1):
    return {"question_id": image * 1000 + number, "image_id": image, "question": f"q{number}?"}


def answered(number, *answers, image=1, kind="other"):
    given = [answers[n % len(answers)] for n in range(10)]
    records = [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(given, 1)]
    keys = {key: value for key, value in asked(number, image).items() if key != "question"}
    return keys | {"answers": records, "multiple_choice_answer": answers[0], "answer_type": kind, "question_type": "is"}


@pytest.fixture
def vqa2(tmp_path):
    """A subset of train2014 in the official layout: three questions about two images."""

    def write(questions, annotations, split="train2014_sub3"):
        header = {"data_subtype": "train2014", "data_type": "mscoco"}
        with gzip.open(tmp_path / f"v2_OpenEnded_mscoco_{split}_questions.json.gz", "wt") as file:
            json.dump(header | {"questions": questions}, file)
        if annotations is not None:
            (tmp_path / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"annotations": annotations}))
        return tmp_path

    (tmp_path / "train2014").mkdir()
    for image in (1, 2):
        Image.new("RGB", (6, 4)).save(tmp_path / "train2014" / f"COCO_train2014_{image:012d}.jpg")
    questions = [asked(0), asked(1), asked(0, image=2)]
    write(questions, [answered(0, "yes", kind="yes/no"), answered(1, "a dog", "cat"), answered(0, "2", image=2)])
    return tmp_path, write


def test_official_layout(vqa2):
    folder, write = vqa2
    examples = load_data(f"vqa2:{folder}", "train2014_sub3")
    assert [(example.id, example.target) for example in examples] == [("1000", "yes"), ("1001", "a dog"), ("2000", "2")]
    assert examples[0].question == "q0?\nAnswer the question using a single word or phrase."
    assert examples[1].metadata["answers"] == ("a dog", "cat") * 5
    assert examples[2].load_images()[0].size == (6, 4)
    assert pickle.loads(pickle.dumps(examples))[2] == examples[2]
    bare = load_data(f"vqa2:{folder}", "train2014_sub3", options={"prompt": "question"})
    assert bare[0].question == "q0?"

    write([asked(0)], None, split="test2015")
    (test,) = load_data(f"vqa2:{folder}", "test2015")
    assert (test.target, test.metadata["answers"]) == ("", ())
    with pytest.raises(DataError, match="question 1000 has no answers to score against; upload"):
        VQA2.score([test], {"1000": "yes"}, VQA2Options())


def test_a_tenth_of_the_images_is_held_out(vqa2):
    folder, write = vqa2
    questions = [asked(n, image) for image in range(1, 60) for n in range(2)]
    write(questions, [answered(n, "yes", image=image) for image in range(1, 60) for n in range(2)], "train2014")
    whole, fit, held = (
        [example.id for example in load_data(f"vqa2:{folder}", split, images=False)]
        for split in ("train2014", "train", "validation")
    )
    assert sorted(fit + held) == sorted(whole)
    assert 0 < len(held) < len(whole) / 4
    assert {id[:-3] for id in fit}.isdisjoint(id[:-3] for id in held)


def test_hub_layout(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = [asked(0) | answered(0, "yes", "no") | {"image": Image.new("RGB", (5, 4))}]
    DatasetDict({"validation": Dataset.from_list(rows)}).save_to_disk(tmp_path / "hub")
    (example,) = load_data(f"vqa2:hub:{tmp_path / 'hub'}", "val2014")
    assert (example.id, example.target, example.metadata["answers"]) == ("1000", "yes", ("yes", "no") * 5)
    assert example.load_images()[0].size == (5, 4)


@pytest.mark.parametrize(
    ("questions", "annotations", "words"),
    [
        ([asked(0)], [], "question 1000 has no annotation"),
        ([asked(0)], [answered(0, "y"), answered(1, "y")], r"0 question_ids occur twice and 1 are not .*\(1001\)"),
        ([asked(0)], [answered(0, "y"), answered(0, "y")], "1 question_ids occur twice and 0 are not"),
        ([asked(0), asked(0)], [answered(0, "y")], "example 1000: this id occurs twice"),
        ([{"question_id": 1}], [], "an entry of 'questions' has no question_id or image_id"),
        ({}, [], "has no list under 'questions'"),
        ([asked(0, image=3)], [answered(0, "y", image=3)], "image .*COCO_train2014_000000000003.jpg does not exist"),
    ],
)
def test_bad_files_are_named(vqa2, questions, annotations, words):
    folder, write = vqa2
    write(questions, annotations)
    with pytest.raises(DataError, match=words):
        load_data(f"vqa2:{folder}", "train2014_sub3")


def test_missing_splits_are_named(vqa2):
    folder, _ = vqa2
    with pytest.raises(DataError, match="has no split 'train2014_sub4'; use one of train2014_sub3"):
        load_data(f"vqa2:{folder}", "train2014_sub4")
    with pytest.raises(DataError, match=r"v2_OpenEnded_mscoco_val2014_questions.json does not exist, nor .*gz"):
        load_data(f"vqa2:{folder}", "val2014")


def test_result_files(vqa2, tmp_path):
    folder, _ = vqa2
    file = tmp_path / "results.json"

    def score(answers, **options):
        rows = [{"question_id": id, "answer": text} for id, text in answers.items()]
        file.write_text(json.dumps(rows))
        return score_file("vqa2", str(folder), "train2014_sub3", file, options)

    report = score({1000: "yes", 1001: "Dog.", 2000: "Two"}).report
    # Five of ten say "a dog"; "2" is unanimous, so that "Two" is compared as it stands.
    assert report.numbers == {"overall": 66.67, "other": 50.0, "yes/no": 100.0, "question type: is": 66.67}
    assert report.scores == {"1000": 1, "1001": 1, "2000": 0}
    assert report.counts["other"] == 2
    with pytest.raises(DataError, match=r"lack 2 of 3 ids and have 1 of others \(1001, 2000, 7"):
        score({1000: "yes", 7: "no"})
    skipped = score({1000: "yes", 7: "no"}, skip_bad=True)
    assert (skipped.report.numbers["overall"], len(skipped.left_out)) == (33.33, 3)
    file.write_text('[{"question_id": 1000, "answer": "a"}, {"question_id": 1000, "answer": "b"}]')
    with pytest.raises(DataError, match="question 1000 occurs twice"):
        score_file("vqa2", str(folder), "train2014_sub3", file, {})
    file.write_text('[{"question_id": 1000}]')
    with pytest.raises(DataError, match=r"results.json\[0\]: expected"):
        score_file("vqa2", str(folder), "train2014_sub3", file, {})
    with pytest.raises(DataError, match="there is no benchmark 'vqa'; use one of"):
        score_file("vqa", str(folder), "train2014_sub3", file, {})


@real_data
def test_loading_the_real_subsets():
    for number, types in ((2962, (966, 976, 1020)), (8977, None)):
        examples = load_data(f"vqa2:{REAL}", f"train2014_sub{number}", images=False)
        assert len(examples) == number
        found = Counter(example.metadata["answer_type"] for example in examples)
        assert types is None or tuple(found[kind] for kind in ANSWER_TYPES) == types


@pytest.mark.parametrize(("right", "of", "expected"), [(29, 160, 18.13), (1, 32, 3.13), (3, 32, 9.38), (1, 3, 33.33)])
def test_exact_ties_go_up_as_in_the_official_program(right, of, expected):
    """Of Python 2, which rounds 18.125 to 18.13; Python 3 goes to the even digit."""
    assert percent([1.0] * right + [0.0] * (of - right)) == expected


def test_digits_of_other_scripts_are_none_to_the_official_program():
    """In its Python 2; in METER's and the Slake authors' Python 3 they are digits."""
    assert (normalise("٣,٣"), normalise_word("٣,٣")) == ("٣ ٣", "٣٣")
    assert (normalise("a.٣"), normalise_word("a.٣")) == ("a٣", "a.٣")
    assert normalise("2,000 1.5.") == normalise_word("2,000 1.5.") == "2000 1.5"
