"""Draw the README's picture, docs/demo.png, and leave what it was drawn from beside it, docs/demo.json.

python scripts/readme_picture.py runs/demo   # from a run of `eas demo`
python scripts/readme_picture.py             # again from docs/demo.json, where the figures' code has changed
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from eas.reports import figures, summary
from eas.reports.sections import typical_sample

ROOT = Path(__file__).parents[1]
PICTURE, SOURCE = ROOT / "docs" / "demo.png", ROOT / "docs" / "demo.json"
COLUMNS = (("sample",), ("accuracy", "latency"), ("importance",))
SECTIONS = ("git_revision", "versions", "hardware", "config", "seed", "model", "task", "accuracy", "latency", "search")


def drawing_code() -> str:
    """The code that decides what the picture looks like, as a hash."""
    text = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (figures, summary))
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sample_figure(sample: dict[str, Any]) -> Figure:
    """A picture of the test split, its question, and the answers before and after."""
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(figures.WIDTH, 5))
        axes, below = figure.subplots(2, 1, height_ratios=(3, 2))
        axes.imshow(Image.open(io.BytesIO(base64.b64decode(sample["images"][0].partition(",")[2]))))
        axes.axis("off")
        below.axis("off")
        said = {answer["name"]: answer["text"].strip() for answer in sample["answers"]}
        lines = [("", sample["question"]), *((f"{name}:  ", said[name]) for name in ("before", "after"))]
        height = 1.0
        for (name, text), colour in zip(lines, (figures.INK, figures.ORANGE, figures.BLUE), strict=True):
            wrapped = fill(f"{name}{text}", 42, max_lines=3, placeholder=" ...")
            below.text(0, height, wrapped, va="top", color=colour)
            height -= 0.16 * wrapped.count("\n") + 0.24
    return figure


def draw(result: dict[str, Any]) -> Image.Image:
    """A sample and three figures of the page in columns, each in the middle of its column."""
    drawn = {name: plot.figure for name, plot in figures.plots(result).items() if plot is not None}
    drawn["sample"] = sample_figure(result["sample"])
    columns = []
    for names in COLUMNS:
        parts = []
        for name in names:
            file = io.BytesIO()
            drawn[name].savefig(file, format="png", dpi=200, facecolor="white")
            parts.append(Image.open(file).convert("RGB"))
        column = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
        for i, part in enumerate(parts):
            column.paste(part, (0, sum(above.height for above in parts[:i])))
        columns.append(column)
    size = sum(column.width for column in columns), max(column.height for column in columns)
    picture, left = Image.new("RGB", size, "white"), 0
    for column in columns:
        picture.paste(column, (left, (size[1] - column.height) // 2))
        left += column.width
    picture.thumbnail((1600, 1600))
    return picture.quantize(256, Image.Quantize.MAXCOVERAGE)  # an average of colours would lose the rare ones


def main(run: Path | None) -> None:
    if run is None:
        result = json.loads(SOURCE.read_text(encoding="utf-8"))["result"]
    else:
        whole = json.loads((run / "result.json").read_text(encoding="utf-8"))
        result = {name: whole[name] for name in SECTIONS}
        rounds = [{key: r[key] for key in ("step", "importances")} for r in whole["search"]["rounds"]]
        result["sample"] = typical_sample(run, whole)
        result["search"] = {key: whole["search"][key] for key in ("skip_set", "importances")} | {"rounds": rounds}
    draw(result).save(PICTURE, optimize=True)
    record = {"picture": file_hash(PICTURE), "drawing_code": drawing_code(), "result": result}
    SOURCE.write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{PICTURE}: {PICTURE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
