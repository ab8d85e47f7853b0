"""Reports from a made-up result, a partial one, and broken ones."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from results import spread, times, whole_result, write
from rich.console import Console

from eas.reports.comparison import notes
from eas.reports.figures import importance
from eas.reports.findings import speed_finding
from eas.reports.page import ReportError, write_report
from eas.reports.summary import headline, number, remarks, size, summary_rows
from eas.reports.terminal import summary_table
from eas.reports.together import together

FIGURES = {"accuracy", "latency", "decode", "importance", "loss"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("run"), whole_result())
    write_report(folder)
    return folder


def test_the_page_holds_everything_itself(run_folder: Path) -> None:
    page = (run_folder / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert not re.findall(r"url\((?!#)|@import|<script[^>]|<link", page)
    assert page.count("data:image/png;base64,") == 7  # five, and the first of them at the top
    assert page.count("<svg role=") == len(FIGURES)
    for text in ("70.6 %", "8837ac11", "Example CPU 9000", "prefers-color-scheme: dark"):
        assert text in page


def test_what_models_and_files_say_is_escaped(run_folder: Path) -> None:
    page = (run_folder / "report.html").read_text()
    assert "red &amp; &lt;b&gt;round&lt;/b&gt;" in page
    assert "[random] &lt;weights&gt;" in page
    assert "<weights>" not in page


def test_ids_are_unique_and_references_find_them(run_folder: Path) -> None:
    page = (run_folder / "report.html").read_text()
    ids = re.findall(r'\sid="([^"]+)"', page)
    referred = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([^"]+)"', page))
    assert referred <= set(ids)
    assert all(ids.count(name) == 1 for name in referred)


def test_figures_are_files_and_the_same_every_time(run_folder: Path, tmp_path: Path) -> None:
    assert {f.stem for f in (run_folder / "figures").glob("*.png")} == FIGURES
    assert {f.stem for f in (run_folder / "figures").glob("*.svg")} == FIGURES
    for drawing in (run_folder / "figures").glob("*.svg"):
        ElementTree.parse(drawing)
    write_report(write(tmp_path, whole_result()))
    assert (tmp_path / "report.html").read_text() == (run_folder / "report.html").read_text()


NUMBERED = [
    ({"layers": 12}, "mha", "Importance of the attentions", "layer"),
    ({"layers": 12}, "ffn", "Importance of the FFNs", "layer"),
    ({"layers": 48, "candidates": 12}, "mha", "Importance of the attentions", "attention, one of 12 in 48 layers"),
    ({"layers": 6, "candidates": 12}, "either", "Importance of the attentions and FFNs", "attentions, then FFNs"),
]


@pytest.mark.parametrize(("model", "candidates", "title", "counted"), NUMBERED)
def test_numbers_of_candidates_are_not_taken_for_layers(
    model: dict[str, int], candidates: str, title: str, counted: str
) -> None:
    result = whole_result()
    result["model"] |= model
    result["config"]["method"] = {"candidates": candidates}
    plot = importance(result)
    assert (plot.title, plot.figure.axes[0].get_xlabel()) == (title, counted)


@pytest.mark.parametrize(
    ("train", "rounds", "label"),
    [(True, None, "training step"), (None, None, "training step"), (None, 40, "nothing"), (False, None, "nothing")],
)
def test_steps_of_a_search_that_trained_nothing_are_not_training_steps(
    train: bool | None, rounds: int | None, label: str
) -> None:
    result = whole_result()
    result["config"]["search"] = {"train": train}
    result["search"]["plan"] = {"rounds": rounds}
    plot = importance(result)
    assert plot.figure.axes[1].get_xlabel().endswith(label)


@pytest.mark.usefixtures("undrawn")
def test_in_hybrids_the_numbers_are_told_with_their_layers(tmp_path: Path) -> None:
    result = whole_result(layers=3, k=2)
    skip_set = result["model"]["skip_set"]
    result["model"] |= {"layers": 12, "candidates": 3, "candidate_layers": [3, 7, 11]}
    page = write_report(write(tmp_path, result)).read_text()
    told = "Attentions 0 1 2 are those of the model's layers 3 7 11; its other layers have none that may be skipped."
    assert told in html.unescape(page)
    row = next(row for row in summary_rows(result) if row.name == "Attentions")
    numbers, layers = " ".join(map(str, skip_set)), " ".join(str((3, 7, 11)[i]) for i in skip_set)
    assert (row.base, row.tuned, row.change) == ("3", "1", f"k = 2, skipped {numbers} (layers {layers})")
    [group] = together({"a": result, "b": {**result, "seed": 1}})
    assert notes(group).count("Candidates 0 1 2 are those of the model's layers 3 7 11; ") == 1
    result["model"] |= {"candidate_layers": None}
    assert "the model's layers" not in html.unescape(write_report(write(tmp_path, result)).read_text())


@pytest.mark.usefixtures("undrawn")
def test_answers_are_marked_by_the_metric(run_folder: Path, tmp_path: Path) -> None:
    page = (run_folder / "report.html").read_text()
    assert page.count("✓") == 5 + 1  # a typical one stands at the top, too
    assert page.count("✗") == 7 + 1
    result = whole_result()
    result["task"]["metric"] = "contains"
    unmarked = write_report(write(tmp_path, result)).read_text()
    assert "✓" not in unmarked
    assert "✗" not in unmarked


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("missing", ["accuracy", "counts", "latency", "search", "training", "task", "everything"])
def test_steps_that_were_not_run(missing: str, tmp_path: Path) -> None:
    result = {} if missing == "everything" else whole_result()
    result.pop(missing, None)
    page = write_report(write(tmp_path, result)).read_text()
    Console(file=io.StringIO()).print(summary_table(result))
    if missing in ("accuracy", "counts", "latency", "everything"):
        assert "not measured" in page


def test_null_is_as_good_as_absent(tmp_path: Path) -> None:
    nothing = write_report(write(tmp_path, dict.fromkeys(whole_result()))).read_text()
    assert nothing == write_report(write(tmp_path, {})).read_text()
    Console(file=io.StringIO()).print(summary_table(dict.fromkeys(whole_result())))


def test_single_numbers_that_are_missing(tmp_path: Path) -> None:
    result = whole_result()
    result["accuracy"] = {"zero_shot": 0.1, "tuned": None}
    result["latency"]["larger"] = None
    del result["latency"]["variants"]["folded"]
    result["counts"]["tuned"] = None
    result["search"]["rounds"] = []
    result["task"]["chance"] = None
    result["samples"][0] |= {"base": None, "images": ["samples/gone.png"]}
    page = write_report(write(tmp_path, result)).read_text()
    assert "image missing" in page
    assert "not measured" in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "missing"),
        ("{", "damaged"),
        ("[]", "mapping"),
        ('{"accuracy": 3}', r"accuracy = 3 must be dict\[str, float or None\]"),
        ('{"samples": {}}', r"samples = \{\} must be list\[mapping\]"),
    ],
)
def test_a_broken_result_is_named(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(ReportError, match=said) as error:
        write_report(tmp_path)
    assert str(tmp_path / "result.json") in str(error.value)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "result.json"])
def test_only_images_of_the_folder_are_shown(name: str, tmp_path: Path) -> None:
    result = whole_result()
    result["samples"][0]["images"] = [name]
    with pytest.raises(ReportError, match="not an image inside the folder"):
        write_report(write(tmp_path, result))


def test_the_headline_says_what_was_measured() -> None:
    result = whole_result()
    assert headline(result) == (
        "Without 4 of its 12 attentions, tiny went from 7.4 % to 70.6 % (66.5–74.4) on scenes:textures."
    )
    assert remarks(result) == [
        "Reads a prompt 1.1x faster, not taken as a gain: the spreads overlap.",
        "Decodes a token 1.1x faster, not taken as a gain: the spreads overlap.",
    ]
    result["latency"] = times(20.0, 16.0)
    assert headline(result) == (
        "Without 4 of its 12 attentions, tiny went from 7.4 % to 70.6 % (66.5–74.4) on scenes:textures, "
        "reads a prompt 1.2x faster and decodes a token 1.2x faster."
    )
    assert remarks(result) == []
    assert headline({"model": {"id": "tiny"}}) == "tiny: not measured yet."


def test_the_table_fits_a_hundred_columns() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(summary_table(whole_result(32, 12)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    for said in ("70.6 %", "skipped", "152 k", "12.0 KiB", "8.00 KiB", "1.1x faster", "[random] <weights>"):
        assert said in text


def test_numbers() -> None:
    assert [number(v) for v in (0, 999, 1000, 84_512_768, 6.5e12)] == ["0", "999", "1.00 k", "84.5 M", "6.50 T"]
    assert [size(v) for v in (400, 8192, 12_800_000)] == ["400 B", "8.00 KiB", "12.2 MiB"]
    slower = {"variants": {"base": {"prefill_ms": spread(1.0)}, "folded": {"prefill_ms": spread(2.0)}}}
    assert speed_finding(slower, "prefill_ms") == ("2.0x slower", -0.5, "")
    assert speed_finding(slower, "decode_ms") is None
    assert [row.name for row in summary_rows({})][-1] == "Decode, per token"


def test_the_larger_model_comes_first_and_the_embedded_one_says_why_it_is_slower() -> None:
    result = whole_result()
    result["latency"]["variants"]["folded"]["decode_ms"] = spread(99.0)
    result["latency"]["width"] = 128
    rows = {row.name: row.change for row in summary_rows(result)}
    stand_in = ["Prefill (random stand-in)", "Decode, per token (random stand-in)"]
    names = [*stand_in, "Prefill", "Decode, per token"]
    assert list(rows)[-4:] == names
    assert ["overhead" in rows[name] for name in names] == [False, False, False, True]
    assert "x slower (width 128 is overhead)" in rows["Decode, per token"]
    assert "x slower (width 128 is overhead)." in headline(result)
