"""Datasets with columns of pictures and turns: saved by save_to_disk, in parquet files, or of the Hub."""

import pytest
from PIL import Image

from eas.data import load_data
from eas.data.hub import HubRows
from eas.example import DataError

ANSWER = {"role": "assistant", "content": "red"}


def test_datasets_with_the_same_columns(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    from datasets import Dataset, DatasetDict, Features, List, Value
    from datasets import Image as ImageFeature

    pictures = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    features = Features(
        {
            "images": List(ImageFeature()),
            "messages": List({"role": Value("string"), "content": Value("string")}),
        }
    )
    question = {"role": "user", "content": "Are <image> and <image> alike?"}
    rows = [
        {"images": pictures, "messages": [question, ANSWER, {"role": "user", "content": "Sure?"}, ANSWER]},
        {"images": [], "messages": [{"role": "user", "content": "2+2?"}, ANSWER]},
    ]
    data = Dataset.from_list(rows, features=features)
    DatasetDict({"train": data, "test": data.select([1])}).save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "train.parquet")
    for spec in (str(tmp_path / "saved"), f"hub:{tmp_path / 'saved'}", f"hub:{tmp_path / 'parquet'}"):
        first, second, plain = load_data(spec, "train")
        assert (first.id, second.id, plain.id) == ("row-0#1", "row-0#2", "row-1")
        assert [image.getpixel((0, 0)) for image in second.load_images()] == [(255, 0, 0), (0, 0, 255)]
        assert [part["type"] for part in first.messages[0]["content"]] == ["text", "image", "text", "image", "text"]
        assert plain.images == ()
    assert len(load_data(str(tmp_path / "saved"), "test")) == 1
    rows = [{"prompt": "q", "completion": "red", "choices": ["red", "blue", "red"]}]
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(tmp_path / "twice")
    with pytest.raises(DataError, match=r"row 0 of .*twice: choices are .*: 'red' is there twice.* drop the row"):
        load_data(str(tmp_path / "twice"), "test")
    with pytest.raises(DataError, match="has no split 'validation'; use one of train, test"):
        load_data(str(tmp_path / "saved"), "validation")
    spec, parts = f"hub:{tmp_path / 'parquet'}", {"validation": "train[1:]"}
    assert [example.id for example in load_data(spec, "validation", options={"splits": parts})] == ["row-0"]
    for either in (str(tmp_path / "saved"), spec):
        parts = {"train": "train[:50%]", "validation": "train[50%:]"}
        read = {part: load_data(either, part, options={"splits": parts}) for part in parts}
        assert {part: [example.question for example in examples] for part, examples in read.items()} == {
            "train": ["Are   and   alike?", "Sure?"],
            "validation": ["2+2?"],
        }
        assert len(load_data(either, "validation", options={"validation_split": "train"})) == 3
        for options, words in (
            (
                {"splits": {"vaildation": "train"}},
                "splits names 'vaildation', which nothing reads; the splits are train,",
            ),
            ({"splits": {"test": "train[half]"}}, "train.half.*"),
            ({"images": str(tmp_path)}, "holds its pictures itself: data_options.images has no meaning here"),
            ({"images": "nowhere"}, "data_options.images = 'nowhere' is not a folder"),
        ):
            with pytest.raises(DataError, match=words):
                load_data(either, "test" if "splits" in options else "train", options=options)
    for option in ({"stream": 1}, {"config": "x"}, {"revision": "x"}):
        with pytest.raises(
            DataError, match=f"saved was written by save_to_disk: data_options.{next(iter(option))} has no"
        ):
            load_data(str(tmp_path / "saved"), "train", options=option)
    broken = data.remove_columns("messages").add_column("text", ["a", "b"])
    broken.save_to_disk(tmp_path / "broken")
    with pytest.raises(DataError, match=r"row 0 of .*broken: the row has the keys \['images'\]; expected"):
        load_data(str(tmp_path / "broken"), "train")


def test_columns_that_would_be_lost_are_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"prompt": ["q"], "completion": ["a"], "picture": [Image.new("RGB", (2, 2))]})
    rows = rows.cast_column("picture", datasets.Image())
    rows.save_to_disk(tmp_path / "picture")
    with pytest.raises(DataError, match=r"images in the column 'picture'.*columns=\{image: picture\}"):
        load_data(str(tmp_path / "picture"), "train")
    (example,) = load_data(str(tmp_path / "picture"), "train", options={"columns": {"image": "picture"}})
    assert len(example.images) == 1
    rows = rows.remove_columns("picture")
    rows.add_column("video", ["a.mp4"]).save_to_disk(tmp_path / "video")
    with pytest.raises(DataError, match="has the column 'video', which would be lost"):
        load_data(str(tmp_path / "video"), "train")
    rows.add_column("system", ["be brief"]).save_to_disk(tmp_path / "system")
    with pytest.raises(DataError, match=r"row 0 of .*system: system \('be brief'\) would be lost"):
        load_data(str(tmp_path / "system"), "train")


def test_a_class_label_of_minus_one_is_no_label():
    """Not the last class, as Python's index -1 would have it."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"kind": datasets.ClassLabel(names=["cat", "dog"])})
    rows = datasets.Dataset.from_dict({"kind": [0, 1, -1]}, features=features)
    assert [row["kind"] for row in HubRows(rows, {"kind": "kind"}, "rows")] == ["cat", "dog", None]
