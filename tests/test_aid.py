"""AID, in a small folder of its layout: splits from seeds and lists, labels, accuracy."""

import json
from collections import Counter

import pytest
from PIL import Image

from eas.data import BENCHMARKS, load_data
from eas.example import DataError

AID = BENCHMARKS["aid"]
SIZES = {"Airport": 60, "BareLand": 50, "StorageTanks": 20}


@pytest.fixture
def folder(tmp_path):
    for name, size in SIZES.items():
        (tmp_path / name).mkdir()
        for number in range(1, size + 1):
            (tmp_path / name / f"{name.lower()}_{number}.jpg").write_bytes(b"no image")
    Image.new("RGB", (6, 6)).save(tmp_path / "Airport" / "airport_2.jpg", "PNG")
    return tmp_path


def ids(folder, split, **options):
    return [example.id for example in load_data(f"aid:{folder}", split, options=options)]


def test_splits_are_stratified_disjoint_and_whole(folder):
    everything = ids(folder, "all")
    assert everything[:3] == ["airport_1", "airport_2", "airport_3"]  # by number, not by name
    assert everything[-1] == "storagetanks_20"
    for share in (20, 50):
        train, test = ids(folder, f"train{share}"), ids(folder, f"test{share}")
        counts = Counter(id.partition("_")[0] for id in train)
        assert counts == {name.lower(): size * share // 100 for name, size in SIZES.items()}
        assert sorted(train + test) == sorted(everything)
        fit, held = ids(folder, f"fit{share}"), ids(folder, f"held{share}")
        assert sorted(fit + held) == sorted(train)
    assert Counter(id.partition("_")[0] for id in held) == {"airport": 3, "bareland": 2, "storagetanks": 1}
    assert ids(folder, "train50") == ids(folder, "train50", seed=0) != ids(folder, "train50", seed=1)
    # A class keeps its images, whatever other classes there are.
    first = [id for id in ids(folder, "train20") if id.startswith("airport")]
    for file in (folder / "BareLand").iterdir():
        file.unlink()
    assert [id for id in ids(folder, "train20") if id.startswith("airport")] == first
    parts = [ids(folder, part) for part in ("train", "validation", "test")]
    assert parts == [ids(folder, split) for split in ("fit20", "held20", "test20")]


def test_a_seed_gives_the_same_split_for_ever(folder):
    assert ids(folder, "train20")[-4:] == [f"storagetanks_{n}" for n in (7, 10, 15, 18)]


def test_splits_from_lists(folder, tmp_path):
    lines, rows = tmp_path / "train20.txt", tmp_path / "test20.json"
    lines.write_text("Airport/airport_2.jpg\nairport_10.jpg\nstoragetanks_1\n")
    rows.write_text(json.dumps([{"id": 0, "image": "BareLand/bareland_7.jpg"}, {"id": 1, "image": "airport_1.jpg"}]))
    both = {"train20": str(lines), "test20": str(rows)}
    assert ids(folder, "train20", lists=both) == ["airport_2", "airport_10", "storagetanks_1"]
    assert ids(folder, "test20", lists=both) == ["airport_1", "bareland_7"]
    assert len(ids(folder, "test20", lists={"train20": str(lines)})) == 130 - 3
    assert len(ids(folder, "train20", lists={"test20": str(rows)})) == 130 - 2
    assert len(ids(folder, "train50", lists=both)) == 65
    lines.write_text("airport_99.jpg")
    with pytest.raises(DataError, match=r"train20.txt lists 1 images that are not there \(airport_99"):
        ids(folder, "train20", lists=both)
    with pytest.raises(ValueError, match=r"lists = .*must be among train20, test20"):
        ids(folder, "train20", lists={"train": str(lines)})


def test_prompt_label_and_image(folder):
    examples = load_data(f"aid:{folder}", "all")
    assert examples[1].question == "What is the label for this image?\nAnswer the question using a single word."
    assert {example.target for example in examples} == {"airport", "bareland", "storagetanks"}
    assert examples[1].load_images()[0].size == (6, 6)
    with pytest.raises(DataError, match=r"example airport_1: .*airport_1.jpg is not a readable image"):
        examples[0].load_images()
    with pytest.warns(UserWarning, match="129 left out:\nexample airport_1: "):
        assert ids(folder, "all", skip_bad=True) == ["airport_2"]


def test_accuracy_is_equality_after_normalisation(folder, tmp_path):
    examples = load_data(f"aid:{folder}", "test20")
    right = {example.id: example.target for example in examples}
    assert AID.score(examples, right, AID.options()).numbers == {"accuracy": 100.0}
    other = {id: ("The  Airport." if target == "airport" else f"{target} field") for id, target in right.items()}
    result = AID.score(examples, other, AID.options())
    assert result.numbers == {"accuracy": 46.15}
    assert result.score == 48 / 104
    (tmp_path / "p.json").write_text(json.dumps({"Airport/airport_1.jpg": "airport"}))
    assert AID.read_predictions(tmp_path / "p.json") == {"airport_1": "airport"}


def test_bad_folders_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="aid has no split 'test'; use one of train20, test20"):
        AID.load(None, "test", AID.options())
    (folder / "Airport" / "bareland_1.jpg").touch()
    with pytest.raises(DataError, match=r"Airport/bareland_1.jpg is not named after its folder"):
        ids(folder, "all")
    with pytest.warns(UserWarning, match="not named after its folder"):
        ids(folder, "all", skip_bad=True)
    (folder / "Airport" / "bareland_1.jpg").rename(folder / "Airport" / "view.jpg")
    with pytest.raises(DataError, match="view: expected a name such as airport_1"):
        ids(folder, "all")
    (folder / "Airport" / "view.jpg").rename(folder / "Airport" / "airport_1.png")
    with pytest.raises(DataError, match=r"airport_1.png and .*airport_1.jpg have the same name"):
        ids(folder, "all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no folders of images; expected Airport/airport_1.jpg"):
        load_data(f"aid:{tmp_path / 'empty'}", "all")


def test_a_dataset_keeps_the_names(folder, tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    cells = [{"bytes": file.read_bytes(), "path": file.name} for file in sorted(folder.glob("*/*.jpg"))]
    data = Dataset.from_dict({"image": cells}, features=Features({"image": ImageFeature()}))
    data.save_to_disk(tmp_path / "saved")
    examples = load_data(f"aid:hub:{tmp_path / 'saved'}", "train50")
    assert [example.id for example in examples] == ids(folder, "train50")
    assert {example.target for example in examples} == {"airport", "bareland", "storagetanks"}
    everything = load_data(f"aid:hub:{tmp_path / 'saved'}", "all")
    assert everything[1].load_images()[0].size == (6, 6)
    with pytest.raises(DataError, match="example airport_1: image 'image' of row 0 is not a readable image"):
        everything[0].load_images()
