"""Folders of `datasets` in which a file is damaged, or a column holds something else."""

import io
import json
from unittest import mock

from PIL import Image

from eas.data import load_data
from malformed import Case, flipped

GOOD = {"prompt": "what ?", "completion": "red"}


def saved(folder, **columns):
    """A folder that `save_to_disk` wrote."""
    import datasets

    bytes_of = io.BytesIO()
    Image.new("RGB", (4, 4)).save(bytes_of, "PNG")
    values = {"image": {"bytes": bytes_of.getvalue(), "path": None}, **GOOD, **columns}
    data = datasets.Dataset.from_dict({name: [value] for name, value in values.items()})
    if isinstance(values["image"], dict | None):
        data = data.cast_column("image", datasets.Image(decode=False))
    datasets.DatasetDict({"train": data}).save_to_disk(folder / "data")
    return folder / "data"


def damaged(name, file, damage):
    def make(folder):
        path = saved(folder)
        found = next(path.rglob(file))
        if damage is None:
            found.unlink()
        else:
            found.write_bytes(damage(found.read_bytes()))
        return lambda: [example.load_images() for example in load_data(str(path), "train")]

    return Case(name, make, "data", may_read=True)


def column(name, names, **columns):
    def make(folder):
        path = saved(folder, **columns)
        return lambda: [example.load_images() for example in load_data(str(path), "train")]

    return Case(name, make, names)


def plain(name, content, names="plain", file="train.jsonl"):
    """A folder that `load_dataset` reads."""

    def make(folder):
        import datasets

        (folder / "plain").mkdir()
        (folder / "plain" / file).write_bytes(content)

        def call():
            with mock.patch.object(datasets.config, "HF_DATASETS_CACHE", folder / "cache"):
                return list(load_data(f"hub:{folder / 'plain'}", "train"))

        return call

    return Case(name, make, names)


CASES = [
    *(damaged(f"{file} is missing", file, None) for file in ("dataset_dict.json", "dataset_info.json", "*.arrow")),
    *(damaged(f"{file} is cut", file, lambda data: data[:-40]) for file in ("state.json", "*.arrow")),
    *(damaged(f"{file} is empty", file, lambda data: b"") for file in ("dataset_dict.json", "state.json", "*.arrow")),
    *(
        damaged(f"state.json, seed {seed}", "state.json", lambda data, seed=seed: flipped(data, seed, 4))
        for seed in range(4)
    ),
    column("a cell that is no picture", "row-0.*image 'image' of row 0", image={"bytes": b"no", "path": None}),
    column("an image that is a number", "row 0 of .*images are 3", image=3),
    column("a question that is a number", "row 0 of .*prompt is 7 and completion", prompt=7),
    column("no answer", "row 0 of .*completion None; expected texts", completion=None),
    column("a long question", "row 0 of .*1,000,003 characters", prompt="x" * 10**6),
    plain("broken lines", b'{"prompt": \n{"x'),
    plain("no Parquet", b"PAR1" + bytes(99), file="train.parquet"),
    plain("no Arrow", b"ARROW1" + bytes(99), file="train.arrow"),
    plain("other columns", json.dumps({"a": 1}).encode()),
]
