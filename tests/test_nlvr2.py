"""The loaders of NLVR2 and Flickr30K, and NLVR2's metrics: official layouts, Hub layouts, real annotations."""

import gzip
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eas.data import load_data
from eas.data.flickr30k import FLICKR30K
from eas.data.nlvr2 import NLVR2, NLVR2Options
from eas.data.score import score_file
from eas.example import DataError
from eas.metrics.nlvr2 import consistency, correct, sentence
from eas.pipeline import Run, RunConfig

REAL = Path(os.environ.get("EAS_REAL_DATA", "none")) / "nlvr2"
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="EAS_REAL_DATA does not name the folder of real data")


def row(identifier, label="True", **more):
    return {"identifier": identifier, "sentence": f"s{identifier[-1]}", "label": label, **more}


@pytest.fixture
def nlvr2(tmp_path):
    """Two sentences with two pairs each in dev, one example in train; the .png files are JPEG."""
    dev = [row("dev-1-0-0"), row("dev-1-1-0", "False"), row("dev-1-0-1"), row("dev-1-1-1")]
    (tmp_path / "data").mkdir()
    with gzip.open(tmp_path / "data" / "dev.json.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, dev)))
    (tmp_path / "data" / "train.json").write_text(json.dumps(row("train-7-0-0", directory=5)))
    names = [f"dev/dev-1-{pair}-img{n}.png" for pair in range(2) for n in range(2)]
    for number, name in enumerate([*names, "images/train/5/train-7-0-img0.png", "images/train/5/train-7-0-img1.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number, 6)).save(path, "JPEG")
    return tmp_path


def test_official_layout(nlvr2):
    examples = load_data(f"nlvr2:{nlvr2}", "dev")
    assert [example.id for example in examples] == ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-1-1-1"]
    assert examples[1].messages[0]["content"] == [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "s0"}]
    assert (examples[1].target, examples[1].choices) == ("False", ("True", "False"))
    assert [image.size for image in examples[1].load_images()] == [(10, 6), (11, 6)]  # JPEG, though named .png
    assert pickle.loads(pickle.dumps(examples))[3] == examples[3]
    (train,) = load_data(f"nlvr2:{nlvr2}", "train", options={"prompt": "instruction"})
    assert train.question == "s0\nIs this true of the two images? Answer True or False."
    assert len(train.load_images()) == 2


def test_hub_layout(tmp_path):
    from datasets import Dataset, DatasetDict

    picture = Image.new("RGB", (5, 4))
    rows = [row(f"dev-1-{n}-0", label=n == 0) | {"left_image": picture, "right_image": picture} for n in range(2)]
    DatasetDict({"balanced_test_public": Dataset.from_list(rows)}).save_to_disk(tmp_path / "hub")
    examples = load_data(f"nlvr2:hub:{tmp_path / 'hub'}", "balanced_test1")
    assert [example.target for example in examples] == ["True", "False"]
    assert examples[0].load_images()[1].size == (5, 4)
    with pytest.raises(DataError, match=r"has no column 'truth'.*columns"):
        load_data(f"nlvr2:hub:{tmp_path / 'hub'}", "balanced_test1", options={"columns": {"label": "truth"}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "data" / "dev.json.gz").unlink(), "dev.json does not exist, nor dev.json.gz"),
        (lambda d: (d / "dev" / "dev-1-1-img0.png").unlink(), "example dev-1-1-0: image .*dev-1-1-img0.png does not"),
        (lambda d: (d / "dev.json").write_text(json.dumps(row("dev-1-0-0", "yes"))), "answer 'yes' is not among"),
        (lambda d: (d / "dev.json").write_text('{"sentence": "s"}'), "dev.json:1: no key 'identifier'"),
        (lambda d: (d / "dev.json").write_text(""), "dev.json holds no rows"),
        (lambda d: (d / "data" / "dev.json.gz").write_bytes(b"\x1f\x8bjunk"), "dev.json.gz is not a whole gzip"),
        (lambda d: (d / "dev.json").write_text(f"{json.dumps(row('dev-1-0-0'))}\n" * 2), "dev-1-0-0: this id occurs"),
    ],
)
def test_bad_files_are_named(nlvr2, change, words):
    change(nlvr2)
    with pytest.raises(DataError, match=words):
        load_data(f"nlvr2:{nlvr2}", "dev")


def test_unknown_split(nlvr2):
    with pytest.raises(DataError, match="nlvr2 has no split 'nope'; use one of train, dev, test1"):
        load_data(f"nlvr2:{nlvr2}", "nope")


def test_accuracy_and_consistency(nlvr2):
    examples = load_data(f"nlvr2:{nlvr2}", "dev")
    answers = {"dev-1-0-0": "true", "dev-1-1-0": "TRUE", "dev-1-0-1": "True", "dev-1-1-1": " true"}
    report = NLVR2.score(examples, answers, NLVR2Options())
    assert report.numbers == {"accuracy": 75.0, "consistency": 50.0}
    assert (report.score, report.counts) == (0.75, {"consistency": 2})
    assert [report.scores[example.id] for example in examples] == [1, 0, 1, 1]
    assert correct("true.", "True") == 0
    # NLVR v1: "n-m", the sentences of one n.
    assert [sentence("12-3"), sentence("dev-850-2-1")] == ["12", "dev-850--1"]
    assert consistency({"1-0": 1, "1-1": 0, "2-0": 1}) == 0.5


def test_prediction_files(nlvr2, tmp_path):
    file = tmp_path / "predictions.csv"

    def score(*lines, **options):
        file.write_text("\n".join(lines))
        return score_file("nlvr2", str(nlvr2), "dev", file, options)

    right = ["dev-1-0-0,True", "dev-1-1-0,false", "dev-1-0-1,True", "dev-1-1-1,True"]
    assert score(*right).report.numbers == {"accuracy": 100.0, "consistency": 100.0}
    with pytest.raises(DataError, match=r"lack 1 of 4 ids and have 1 of others \(dev-1-0-0, dev-9-0-0"):
        score(*right[1:], "dev-9-0-0,True")
    skipped = score(*right[1:], "dev-9-0-0,True", skip_bad=True)
    assert skipped.report.numbers == {"accuracy": 75.0, "consistency": 50.0}
    assert [message.split(";")[0] for message in skipped.left_out] == [
        "no prediction for dev-1-0-0",
        "prediction for dev-9-0-0, which is not in the split",
    ]
    with pytest.raises(DataError, match=r"predictions.csv:5: dev-1-0-0 occurs twice"):
        score(*right, right[0])
    with pytest.raises(DataError, match=r"predictions.csv:1: expected identifier,prediction; found 'dev-1-0-0'"):
        score("dev-1-0-0")


@real_data
@pytest.mark.parametrize(
    ("split", "examples", "sentences", "true"),
    [
        ("dev", 6982, 2018, 3551),
        ("test1", 6967, 1995, 3558),
        ("test2", 6970, 1996, 3584),
        ("balanced_dev", 2300, 1116, 1150),
        ("unbalanced_dev", 3562, 1526, 1802),
        ("balanced_test1", 2316, 1128, 1158),
        ("unbalanced_test1", 3536, 1526, 1844),
    ],
)
def test_nlvr2_as_published(split, examples, sentences, true):
    loaded = list(load_data(f"nlvr2:{REAL}", split, images=False))
    assert len(loaded) == examples
    assert Counter(example.target for example in loaded) == {"True": true, "False": examples - true}
    report = NLVR2.score(loaded, {example.id: "true" for example in loaded}, NLVR2Options())
    assert report.counts["consistency"] == sentences
    assert report.numbers["accuracy"] == round(100 * true / examples, 2)
    groups = {}  # as the definition reads: the third field blanked
    for example in loaded:
        fields = example.id.split("-")
        fields[2] = ""
        groups.setdefault("-".join(fields), []).append(example.target == "True")
    assert report.numbers["consistency"] == round(100 * sum(map(all, groups.values())) / len(groups), 2)


# ------------------------------------------------------------------------------------------------ Flickr30K


@pytest.mark.parametrize("limit", [None, 2])
def test_a_limit_says_that_consistency_is_of_the_whole_split(nlvr2, tmp_path, recwarn, limit):
    given = {"data": f"nlvr2:{nlvr2}", "test_limit": limit, "data_options": {"test_split": "dev"}}
    run = Run(RunConfig.from_dict({**given, "output_dir": str(tmp_path / "run")}))
    assert len(run.data("test")) == (limit or 4)
    told = [str(warning.message) for warning in recwarn if "consistency is that of the whole" in str(warning.message)]
    assert len(told) == (limit is not None)


@pytest.fixture
def flickr30k(tmp_path):
    """Three test images with two captions each, one train image."""
    splits = {"a.jpg": "test", "b.jpg": "train", "c.jpg": "test", "d.jpg": "test"}
    rows = [
        {"filename": name, "split": split, "sentences": [{"raw": f"{name} {n}"} for n in range(2)]}
        for name, split in splits.items()
    ]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": rows, "dataset": "flickr30k"}))
    (tmp_path / "flickr30k-images").mkdir()
    for name in splits:
        Image.new("RGB", (4, 4)).save(tmp_path / "flickr30k-images" / name)
    return tmp_path


def test_flickr30k_layouts(flickr30k):
    from datasets import Dataset, DatasetDict

    examples = load_data(f"flickr30k:{flickr30k}", "test")
    ids = [f"{name}.jpg#{n}" for name in "acd" for n in range(2)]
    assert [example.id for example in examples] == ids
    assert (examples[3].target, examples[3].question) == (
        "c.jpg 1",
        "Provide a one-sentence caption for the provided image.",
    )
    assert examples[3].load_images()[0].size == (4, 4)
    assert len(load_data(f"flickr30k:{flickr30k}", "train")) == 2
    with pytest.raises(DataError, match="the split 'val' is empty"):
        load_data(f"flickr30k:{flickr30k}", "val")

    picture = Image.new("RGB", (3, 2))
    captions = {"a.jpg": "test", "b.jpg": "train"}
    rows = [{"image": picture, "caption": ["one", "two"], "filename": f, "split": s} for f, s in captions.items()]
    data = Dataset.from_list(rows)
    DatasetDict({"test": data}).save_to_disk(flickr30k / "hub")
    hub = load_data(f"flickr30k:hub:{flickr30k / 'hub'}", "train")
    assert [(example.id, example.target) for example in hub] == [("b.jpg#0", "one"), ("b.jpg#1", "two")]
    assert hub[0].load_images()[0].size == (3, 2)
    DatasetDict({"test": data.remove_columns("split")}).save_to_disk(flickr30k / "mixed")
    with pytest.raises(DataError, match=r"no column 'split', so its test images cannot be told.*nlphuji/flickr30k"):
        load_data(f"flickr30k:hub:{flickr30k / 'mixed'}", "test")
    taken = load_data(f"flickr30k:hub:{flickr30k / 'mixed'}", "test", options={"splits": {"test": "test"}})
    assert len(taken) == 4


def test_flickr30k_scores_a_matrix(flickr30k, tmp_path):
    file = tmp_path / "scores.npy"
    scores = np.zeros((3, 6), np.float32)
    scores[[0, 1, 2], [0, 2, 4]] = 1  # of every image one caption is found, the other ties with all others
    np.save(file, scores)
    result = score_file("flickr30k", str(flickr30k), "test", file, {})
    assert list(result.report.numbers) == ["IR@1", "IR@5", "IR@10", "TR@1", "TR@5", "TR@10", "mean R@1"]
    assert result.report.numbers["TR@1"] == 100
    assert result.report.numbers["IR@1"] == 66.67  # ties go to the first image
    assert result.report.counts["IR@1"] == 6
    np.save(file, scores.T)
    with pytest.raises(DataError, match=r"the scores are \(6, 3\), for 3 images x 6 captions"):
        score_file("flickr30k", str(flickr30k), "test", file, {})
    file.write_text("junk")
    with pytest.raises(DataError, match=r"scores.npy is not a .npy file"):
        score_file("flickr30k", str(flickr30k), "test", file, {})
    with pytest.raises(DataError, match="scored from a matrix"):
        FLICKR30K.score([], {}, FLICKR30K.options())
