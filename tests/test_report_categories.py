"""Accuracy by category on the page: subjects, modality and grades of ScienceQA, answer types of Slake and VQA v2.0."""

from __future__ import annotations

import os
import re
import warnings
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from families import quick
from results import whole_result, write

from eas.data import BENCHMARKS, data_options, load_data
from eas.reports.page import write_report

NUMBERS = {"NAT": 50.0, "SOC": 25.0, "average": 40.0}


def table(page: str) -> dict[str, list[str]]:
    """The lines of "Every number of the metric"."""
    part = page[page.index("Every number of the metric") :]
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", part[: part.index("</table>")])
    return {unescape(name): re.findall(r"<td>(.*?)</td>", cells) for name, cells in rows}


def page_of(folder: Path, categories: dict[str, Any]) -> str:
    result = whole_result()
    result["categories"] = categories
    write(folder, result)
    return write_report(folder).read_text()


def test_every_number_with_its_examples(tmp_path: Path) -> None:
    numbers = {**NUMBERS, "loss": 2.5}
    halved = {name: value / 2 for name, value in numbers.items()}
    page = page_of(
        tmp_path, {"zero_shot": halved, "tuned": numbers, "folded": numbers, "examples": {"NAT": 8, "SOC": 4}}
    )
    assert table(page) == {
        "NAT": ["8", "25.00 (7.1–59.1)", "50.00 (21.5–78.5)", "50.00 (21.5–78.5)"],
        "SOC": ["4", "12.50 (1.3–60.4)", "25.00 (4.6–69.9)", "25.00 (4.6–69.9)"],
        "average": ["", "20.00", "40.00", "40.00"],
        "loss": ["", "1.25", "2.50", "2.50"],
    }
    assert "loss from" not in page  # the figure has shares only
    assert "NAT from 25.0 to 50.0 %; SOC from 12.5 to 25.0 %" in page


def test_an_older_result_has_no_examples(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"zero_shot": NUMBERS, "tuned": NUMBERS})
    assert table(page)["NAT"] == ["", "50.00", "50.00", ""]


REAL = {
    "scienceqa": (
        "test",
        "the letter",
        {"NAT": 2252, "SOC": 889, "LAN": 1100, "TXT": 2046, "IMG": 2017, "NO": 1435, "G1-6": None, "G7-12": None},
    ),
    "slake": ("test", "no", {"open": 645, "closed": 416}),
    "vqa2": ("train2014_sub2962", "yes", {"yes/no": None, "number": None, "other": None}),
}


@pytest.mark.skipif("EAS_REAL_DATA" not in os.environ, reason="EAS_REAL_DATA does not name the folder of data")
@pytest.mark.parametrize("name", quick(REAL, ["slake"]))
def test_real_benchmarks(name: str, tmp_path: Path) -> None:
    """Every category before (one answer to all) and after (the right one), against a count of the examples."""
    split, guess, wanted = REAL[name]
    spec, benchmark = f"{name}:{Path(os.environ['EAS_REAL_DATA']) / name}", BENCHMARKS[name]
    options = data_options(spec, {"language": "en"} if name == "slake" else {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        examples = load_data(spec, split, options=options.to_dict(), images=False)
    after = benchmark.score(examples, {e.id: e.target for e in examples}, options)
    before = benchmark.score(examples, {e.id: guess for e in examples}, options)
    assert wanted.keys() <= after.counts.keys()
    page = page_of(
        tmp_path,
        {"zero_shot": before.numbers, "tuned": after.numbers, "folded": after.numbers, "examples": after.counts},
    )
    rows = table(page)
    assert rows.keys() == after.numbers.keys()
    for category, number in wanted.items():
        assert number is None or rows[category][0] == str(number), category
        shown = [cell.partition(" ")[0] for cell in rows[category][1:]]
        assert shown == [f"{r.numbers[category]:.2f}" for r in (before, after, after)]
        assert f"{category} from {before.numbers[category]:.1f} to {after.numbers[category]:.1f} %" in unescape(page)
    if name == "vqa2":
        assert sum(int(rows[category][0]) for category in wanted) == len(examples)
