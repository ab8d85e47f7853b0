"""Draw the README's picture, docs/demo.png, and leave what it was drawn from beside it, docs/demo.json.

python scripts/readme_picture.py runs/demo   # from a run of `eas demo`
python scripts/readme_picture.py             # again from docs/demo.json, when the figures' code has changed
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from eas.reports import figures, summary

ROOT = Path(__file__).parents[1]
PICTURE, SOURCE = ROOT / "docs" / "demo.png", ROOT / "docs" / "demo.json"
FIGURES = ("accuracy", "latency", "importance")
SECTIONS = ("git_revision", "versions", "hardware", "config", "seed", "model", "task", "accuracy", "latency", "search")


def drawing_code() -> str:
    """The code that decides what the picture looks like, as a hash."""
    text = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (figures, summary))
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw(result: dict[str, Any]) -> Image.Image:
    """Three figures of the page side by side."""
    plots, parts = figures.plots(result), []
    for name in FIGURES:
        file = io.BytesIO()
        plots[name].figure.savefig(file, format="png", dpi=200, facecolor="white")
        parts.append(Image.open(file).convert("RGB"))
    size = sum(part.width for part in parts), max(part.height for part in parts)
    picture, left = Image.new("RGB", size, "white"), 0
    for part in parts:
        picture.paste(part, (left, (size[1] - part.height) // 2))
        left += part.width
    picture.thumbnail((1600, 1600))
    return picture.quantize(256, Image.Quantize.MAXCOVERAGE)  # an average of colours would lose the rare ones


def main(run: Path | None) -> None:
    if run is None:
        result = json.loads(SOURCE.read_text(encoding="utf-8"))["result"]
    else:
        whole = json.loads((run / "result.json").read_text(encoding="utf-8"))
        result = {name: whole[name] for name in SECTIONS}
        rounds = [{key: r[key] for key in ("step", "importances")} for r in whole["search"]["rounds"]]
        result["search"] = {key: whole["search"][key] for key in ("skip_set", "importances")} | {"rounds": rounds}
    draw(result).save(PICTURE, optimize=True)
    record = {"picture": file_hash(PICTURE), "drawing_code": drawing_code(), "result": result}
    SOURCE.write_text(json.dumps(record, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{PICTURE}: {PICTURE.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
