"""The samples of a page: how many, what they carry, how they are filtered and browsed."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from results import whole_result, write

from eas.example import Example
from eas.pipeline.samples import SIDE, samples, spread_evenly, turns
from eas.reports.page import FEW, write_page, write_report


def follow_up(number: int, picture: Image.Image) -> Example:
    said: tuple[Any, ...] = (
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is <this> ?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
        {"role": "user", "content": [{"type": "text", "text": f"how many, {number} ?"}]},
    )
    return Example(f"e{number}", said, "two", (picture,), metadata={"answer_type": ("open", "closed")[number % 2]})


def run_of(folder: Path, examples: list[Example]) -> Any:
    return SimpleNamespace(folder=folder, data=lambda split: examples)


def test_samples_are_spread_over_the_split_with_their_turns_scores_and_categories(tmp_path: Path) -> None:
    examples = [follow_up(i, Image.new("RGB", (800, 600))) for i in range(100)]
    answers = {name: {e.id: name for e in examples} for name in ("zero_shot", "tuned", "folded")}
    scores = {"zero_shot": {e.id: 0.0 for e in examples}, "folded": {e.id: 1.0 for e in examples}}
    meant = {"meant": {e.id: "two" for e in examples}}
    made = samples(run_of(tmp_path, examples), {"answers": answers, "scores": scores, "zero_shot": meant}, tmp_path)
    assert [made[0]["id"], made[-1]["id"], len(made)] == ["e0", "e99", 60]
    assert made[0]["turns"] == [
        {"role": "user", "text": "[image] what is <this> ?"},
        {"role": "assistant", "text": "a cat"},
    ]
    assert (made[0]["question"], made[0]["base_read_as"], made[0]["tuned"]) == ("how many, 0 ?", "two", "folded")
    assert (made[0]["base_score"], made[0]["tuned_score"], made[0]["categories"]) == (0.0, 1.0, {"answer_type": "open"})
    with Image.open(tmp_path / made[0]["images"][0]) as written:
        assert (written.format, max(written.size)) == ("JPEG", SIDE)
    assert samples(run_of(tmp_path, examples), {}, tmp_path) == []


@pytest.mark.parametrize(("total", "most", "wanted"), [(3, 6, [0, 1, 2]), (6, 6, [*range(6)]), (11, 3, [0, 5, 10])])
def test_an_even_spread(total: int, most: int, wanted: list[int]) -> None:
    assert list(spread_evenly(total, most)) == wanted


def test_a_question_without_turns_before_it() -> None:
    assert turns(Example.ask("a", "q", "t")) == []


def with_samples(number: int) -> dict[str, Any]:
    result = whole_result()
    first, rest = result["samples"][0], []
    for i in range(number):
        rest.append(first | {"base_score": float(i % 2), "tuned_score": float(i % 3 == 0)})
        rest[-1]["categories"] = {"answer_type": ("yes/no", 'a "b" & c')[i % 2], "subject": "one"}
        rest[-1]["turns"] = [{"role": "user", "text": "look at <it>"}, {"role": "assistant", "text": "yes"}]
        rest[-1]["base_read_as"] = "striped" if i == 0 else None
    return result | {"samples": rest}


def test_the_page_filters_and_pages_and_shows_the_turns_before(tmp_path: Path) -> None:
    top, page = write_report(write(tmp_path, with_samples(30))).read_text().split("Answers before and after")
    assert top.count('<div class="first sample"') == 1
    assert page.count('<div class="sample"') == 30
    filters = re.findall(r'<select data-filter="(\w+)">(.*?)</select>', page)
    values = {name: [unescape(v) for v in re.findall(r"<option>(.*?)</option>", options)] for name, options in filters}
    assert values == {
        "answers": ["became right", "became wrong", "stayed right", "stayed wrong"],
        "answer_type": ['a "b" & c', "yes/no"],
    }
    assert page.count("user: look at &lt;it&gt;") == 30
    assert page.index("user: look at") < page.index("which texture is the large square")
    assert page.count("(read as striped)") == 1
    assert page.count("✓") == 15 + 10
    assert not re.findall(r"<script[^>]", page)


def test_of_several_runs_each_has_a_few(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, with_samples(30))
    page = write_page([tmp_path / "a", tmp_path / "b"], tmp_path / "page").path.read_text()
    assert page.count('<div class="sample"') == 2 * FEW
