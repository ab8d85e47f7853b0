"""Numbers that mislead: what is no gain is no headline, and digits are those that were measured."""

from __future__ import annotations

import copy
import io
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from results import comparison, run_result, times, whole_result, write
from rich.console import Console

import eas
from eas.metrics.report import Report
from eas.reports.benchmark import report_table
from eas.reports.card import card
from eas.reports.certainty import decimals, interval, spread_text
from eas.reports.comparison import cells, notes
from eas.reports.figures import latency, spread_apart
from eas.reports.findings import compared, saves_nothing
from eas.reports.front import points_of
from eas.reports.page import in_columns, write_report
from eas.reports.places import without_places
from eas.reports.reproduce import markdown as reproduced
from eas.reports.summary import headline, milliseconds, remarks, summary_rows
from eas.reports.terminal import summary_view
from eas.reports.tradeoff import CROWDED, reach, tradeoff


def said_everywhere(result: dict[str, Any], folder: Path) -> list[str]:
    """The first thing that page, terminal and card say, and all that they say."""
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(summary_view(result))
    page = write_report(write(folder, copy.deepcopy(result))).read_text()
    return [page, console.export_text(), str(card(result, {}))]


def at_first(result: dict[str, Any], **task: Any) -> dict[str, Any]:
    """The first run on a real model: 44 % of 200 where one answer to all gives 44 %."""
    result["task"] |= {"examples": 200, "chance": None, "majority": 0.44, "majority_answer": "yes"} | task
    result["accuracy"] = {"zero_shot": 0.0, "tuned": 0.44, "folded": 0.44}
    return result


@pytest.mark.usefixtures("undrawn")
def test_one_repeat_is_no_headline(tmp_path: Path) -> None:
    result = whole_result()
    once = {"median": 603.0, "low": 603.0, "high": 603.0}, {"median": 100.0, "low": 100.0, "high": 100.0}
    timed = {name: {"prefill_ms": t, "decode_ms": t} for name, t in zip(("base", "folded"), once, strict=True)}
    result["latency"] |= {"repeats": 1, "variants": timed, "bounds": {"prefill_ms": 1.01, "decode_ms": 1.01}}
    assert "faster" not in headline(result)
    assert remarks(result)[0] == ("Reads a prompt 6.0x faster, not taken as a gain: timed once, which tells no spread.")
    for text in said_everywhere(result, tmp_path):
        assert headline(result).replace(" %", "\u00a0%") in text or headline(result) in text
        assert "6.0x faster, not taken as a gain: timed once, which tells no spread" in text


@pytest.mark.usefixtures("undrawn")
def test_a_speed_up_above_its_bound_is_no_headline(tmp_path: Path) -> None:
    result = whole_result()
    result["latency"] = times(20.0, 10.0, bounds={"prefill_ms": 1.08, "decode_ms": 2.5})
    assert headline(result).endswith("on scenes:textures and decodes a token 2.0x faster.")
    why = "not taken as a gain: fewer MACs and bytes allow 1.08x; more is overhead, or the base was slow"
    assert remarks(result) == [f"Reads a prompt 2.0x faster, {why}."]
    assert all(why in text for text in said_everywhere(result, tmp_path))


@pytest.mark.parametrize(
    ("base", "tuned", "bound", "repeats", "said", "why"),
    [
        ((20, 19, 21), (10, 9, 11), 3.0, 20, "2.0x faster", ""),
        ((20, 19, 21), (10, 9, 11), None, 20, "2.0x faster", ""),
        ((20, 19, 21), (10, 9, 11), 3.0, 2, "2.0x faster", "timed twice"),
        ((20, 19, 21), (10, 9, 11), 0.9, 20, "2.0x faster", "allow 0.90x"),
        ((10, 9, 11), (20, 19, 21), 1.2, 20, "2.0x slower", ""),
        ((10, 9, 11), (9.5, 9, 11), 1.2, 20, "1.1x faster", "the spreads overlap"),
        ((10, 9, 11), (10, 9, 11), 1.2, 20, "as fast", ""),
        ((2330, 2290, 12391), (12.9, 12.4, 13.9), None, 20, "180x faster", ""),
        ((1000, 999, 1001), (800, 799, 801), 1.25, 20, "1.25x faster", ""),
        ((1000, 999, 1001), (800, 799, 801), 1.24, 20, "1.25x faster", "allow 1.24x"),
    ],
)
def test_what_two_times_tell(base: Any, tuned: Any, bound: Any, repeats: int, said: str, why: str) -> None:
    spreads = [dict(zip(("median", "low", "high"), map(float, each), strict=True)) for each in (base, tuned)]
    found = compared(*spreads, bound, repeats)
    assert found.said == said
    assert why in found.why_not
    assert bool(why) == bool(found.why_not)


@pytest.mark.parametrize(
    ("score", "examples", "low", "high"),
    [(0.44, 200, 0.3729, 0.5093), (0.0, 200, 0.0, 0.0188), (1.0, 10, 0.7225, 1.0), (0.5, 1, 0.0546, 0.9454)],
)
def test_wilson_s_interval(score: float, examples: int, low: float, high: float) -> None:
    assert interval(score, examples) == pytest.approx((low, high), abs=1e-4)
    z = 1.959963984540054
    for end in interval(score, examples):  # where the score test is just passed
        if 0 < end < 1:
            assert abs(score - end) == pytest.approx(z * math.sqrt(end * (1 - end) / examples))


@pytest.mark.usefixtures("undrawn")
def test_learning_the_form_only_is_no_gain(tmp_path: Path) -> None:
    result = at_first(whole_result())
    blind = "always answering “yes” gives 44.0 %"
    assert headline(result) == (
        f"Without 4 of its 12 attentions, tiny reaches 44.0 % (37.3–50.9) on scenes:textures, where {blind}."
    )
    assert remarks(result)[0] == f"Accuracy +44.0 points, not taken as a gain: {blind}."
    for text in said_everywhere(result, tmp_path):
        assert "went from" not in text
        assert blind in text
        assert "0.0 % (0.0–1.9)" in text


def test_gains_and_losses() -> None:
    result = at_first(whole_result(), majority=0.2)
    assert "tiny went from 0.0 % to 44.0 % (37.3–50.9) on" in headline(result)
    assert "guessing gives 43.0 %" in headline(at_first(whole_result(), chance=0.43, majority=0.2))
    result["accuracy"]["zero_shot"] = 0.41
    assert "reaches 44.0 %" in headline(result)
    assert remarks(result)[0] == "Accuracy +3.0 points, not taken as a gain: the 95 % intervals overlap."
    result["accuracy"]["zero_shot"] = 0.7
    assert "fell from 70.0 % to 44.0 %" in headline(result)
    del result["task"]["examples"]
    assert "reaches 44.0 % on" in headline(result)


@pytest.mark.usefixtures("undrawn")
def test_zero_shot_in_other_words(tmp_path: Path) -> None:
    result = at_first(whole_result(), majority=0.2, zero_shot={"as_written": 0.0, "comparable": False})
    why = "not comparable: the zero-shot model answers in other words"
    assert "reaches 44.0 %" in headline(result)
    assert all(why in text for text in said_everywhere(result, tmp_path))
    result["task"]["zero_shot"] = {"as_written": 0.0, "comparable": True}
    result["accuracy"]["zero_shot"] = 0.25
    assert "0.0 % in the very words, 25.0 % by the answer meant" in summary_rows(result)[0].change


def test_a_configuration_that_saves_nothing_is_said_so() -> None:
    result = whole_result()
    result["latency"]["bounds"] = {"prefill_ms": 1 / 1.145, "decode_ms": 1 / 1.166}
    assert remarks(result)[-1] == (
        "This configuration saves nothing: +14.5 % MACs, +16.6 % bytes read. Lower the ranks, or skip more."
    )
    assert saves_nothing({"prefill_ms": 1 / 1.145, "decode_ms": 1.02}) == ""
    assert saves_nothing({}) == saves_nothing(None) == ""


@pytest.mark.parametrize(
    ("median", "low", "high", "said"),
    [
        (2330.3, 2290.1, 2391.0, "2330 (2290–2390)"),
        (8.123, 7.904, 8.411, "8.1 (7.9–8.4)"),
        (8.123, 8.101, 8.151, "8.12 (8.10–8.15)"),
        (446.09, 441.26, 470.43, "450 (440–470)"),
        (2330.3, 2330.3, 2330.3, "2300 (once)"),
        (0.01234, 0.01234, 0.01234, "0.012 (once)"),
        (6105.1, 4829.5, 7456.8, "6000 (5000–7000)"),
        (1.00001, 1.0, 1.00002, "1.000 (1.000–1.000)"),
        (68.9, 66.2, 4079.0, "70 (70–4080)"),  # one turn was starved
        (36.1, 35.9, 1904.0, "40 (40–1900)"),
    ],
)
def test_digits_that_the_spread_supports(median: float, low: float, high: float, said: str) -> None:
    spread = {"median": median, "low": low, "high": high}
    assert spread_text(spread) == said
    assert milliseconds(spread) == said.replace(" ", " ms ", 1)
    assert decimals(0.0, 0.0) == 0


def test_a_comparison_has_intervals_and_names_what_is_no_speed_up() -> None:
    result = comparison()
    result["task"] |= {"examples": 200, "chance": 0.25, "majority": 0.3, "majority_answer": "red"}
    result["rows"][0] |= {"counts": {"macs": 100}, "test": {"values": [0.1], "mean": 0.1, "sd": None}}
    result["rows"][0]["comparable"] = False
    result["rows"][2]["counts"]["macs"] = 99
    spread = {name: {"median": ms, "low": ms - 1, "high": ms + 1} for name, ms in (("base", 603.0), ("EAS_2", 100.0))}
    result["latency"] = {
        "prompt_tokens": 9,
        "variants": {n: {"prefill_ms": s, "decode_ms": s} for n, s in spread.items()},
    }
    result["latency"]["settings"] = {"repeats": 20}
    table = {row[0]: row for row in cells(result, spread_text)}
    assert table["EAS_2"][2] == "72.0 ± 1.4 (65.4–77.8)"
    assert table["base"][2] == "10.0 (6.6–14.9)"
    assert table["base"][-1] == "not comparable: it answers in other words"
    assert table["EAS_2"][table[""].index("prefill")] == "100 (99–101)"
    said = notes(result)
    assert "95 % interval on 200 examples; guessing gives 25.0 %; always answering “red” gives 30.0 %" in said
    assert "EAS_2 prefill 6.03x faster, not taken as a gain: fewer MACs and bytes allow 1.01x" in said
    assert "prompt of 9 tokens; times" in said
    result["rows"][0]["counts"] = result["rows"][2]["counts"] = {"weight_bytes": 10, "kv_bytes_per_token": 10}
    assert "EAS_2 decode 6.03x faster, not taken as a gain: fewer MACs and bytes allow 1.00x" in notes(result)
    result["latency"]["own_prompt_tokens"] = {"EAS_2": 1}
    assert "EAS_2 decode 6.03x faster, not taken as a gain: fewer MACs and bytes allow 5.00x" in notes(result)
    assert "prompt of 9 tokens (EAS_2: 1); times" in notes(result)
    result["latency"]["settings"] = {"repeats": 1}
    assert "timed once, which tells no spread: no speed-up follows" in notes(result)


def test_error_bars_of_one_seed_are_its_examples_interval() -> None:
    one, several = {"mean": 0.44, "sd": None}, {"mean": 0.44, "sd": 0.02}
    assert reach(one, 200) == pytest.approx((6.71, 6.93), abs=0.01)
    assert reach(several, 200) == (2.0, 2.0)
    assert reach(one, None) == (0.0, 0.0)
    result = comparison()
    result["task"]["examples"] = 200
    result["rows"][2]["test"]["sd"] = None
    assert [p.reach for p in points_of(result, "macs")] == [reach(row["test"], 200) for row in result["rows"][2:]]


@pytest.mark.parametrize("number", [CROWDED - 1, CROWDED])
def test_many_rows_of_a_comparison_are_numbered_and_have_a_key(number: int) -> None:
    result = comparison()
    one, time = result["rows"][2], {"prefill_ms": {"median": 7.0}, "decode_ms": {"median": 2.0}}
    names = [f"row {i}" for i in range(number)]
    rows = [{**one, "label": name, "row": name} for name in names]
    figure = tradeoff(rows, {"variants": dict.fromkeys(names, time)})
    assert figure is not None
    written = [text.get_text() for text in figure.axes[0].texts]
    keys = [text.get_text() for key in figure.legends for text in key.get_texts()]
    if number < CROWDED:
        assert (written, keys) == (names, [])
    else:
        assert written == [str(i + 1) for i in range(number)]
        assert keys == [f"{i}  {name}" for i, name in enumerate(names, 1)]


def test_a_prediction_file_s_numbers_have_intervals() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report_table("t", Report(0.44, {"accuracy": 44.0}, {"a": 1.0}), 200))
    assert "37.3–50.9" in console.export_text()


def test_ratios_of_the_paper_s_rows_have_the_digits_of_their_spread() -> None:
    spread = {"median": 2330.3, "low": 2290.1, "high": 2391.0}
    row = {"name": "r", "paper": {}, "ours": {}, "difference": {}, "verdict": {}, "unexplained": {}, "note": ""}
    row["latency"] = dict.fromkeys(("prefill_ms", "decode_ms", "base_prefill_ms", "base_decode_ms"), spread)
    timing = {"hardware": {"cpu": "c"}, "repeats": 1, "dtype": "float32", "prompt_tokens": 5}
    result = {"title": "t", "table": "table1", "accuracy": [], "notes": [], "rows": [row], "timing": timing}
    text = reproduced(result)
    assert "| r | 2330 | 2330 | 1.00 | 1.00 |" in text
    assert "1 repeat(s) tell no spread" in text


def test_the_number_of_the_longest_bar_is_whole() -> None:
    result = whole_result()
    slow = {"median": 6105.1, "low": 6095.2, "high": 74568.8}
    result["latency"]["larger"]["variants"]["base"]["prefill_ms"] = slow
    plot = latency(result)
    assert plot is not None
    plot.figure.draw_without_rendering()
    for axes in plot.figure.axes:
        right = axes.get_window_extent().x1
        assert axes.texts
        assert all(text.get_window_extent().x1 <= right + 1 for text in axes.texts)


@pytest.mark.usefixtures("undrawn")
def test_the_random_stand_in_is_not_called_my_model(tmp_path: Path) -> None:
    for text in said_everywhere(whole_result(), tmp_path):
        assert "larger model" not in text.lower()
        assert "random stand-in" in text
    page = (tmp_path / "report.html").read_text()
    assert "Random stand-in: not this model but a Llama shape, d = 1024" in page
    alone = whole_result()
    del alone["latency"]["larger"]
    assert all("stand-in" not in row.name for row in summary_rows(alone))


def test_dollars_and_backslashes_in_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    result, odd = whole_result(), "$x_1 \\frac{a}$"  # between two dollars, and no formula that could be drawn
    result["task"] |= {"majority": 0.3, "majority_answer": odd}
    result["latency"]["variants"][odd] = result["latency"]["variants"]["base"]
    numbers = {odd: 10.0, f"{odd}$": 20.0}
    result["categories"] = {"zero_shot": numbers, "folded": numbers, "examples": {odd: 9}}
    write_report(write(tmp_path, result))
    for name in ("accuracy", "latency", "categories"):
        assert "$x_1 \\frac" in (tmp_path / "figures" / f"{name}.svg").read_text(), name


@pytest.mark.usefixtures("undrawn")
def test_slow_tables_say_that_they_scroll(tmp_path: Path) -> None:
    template = (Path(eas.__file__).parent / "reports" / "page.html").read_text()
    assert template.count('<div class="scroll') == template.count('<p class="soft hint">The table is wider') == 3
    result = run_result(0, 4)
    page = write_report(write(tmp_path, result)).read_text()
    assert (
        page.count('<div class="scroll') == page.count('<p class="soft hint">The table is wider than the screen') == 1
    )
    assert '.classList.toggle("wider", one.scrollWidth > one.clientWidth' in page
    assert ".wider + .hint { display: block; }" in page


@pytest.mark.parametrize(
    "values", [[0.0] * 5, [0.0, 0.01, 0.5, 0.51, 0.52, 0.53, 1.0], [1.0] * 12, [i / 40 for i in range(16)], [0.3]]
)
def test_numbers_at_the_ends_of_curves_do_not_touch(values: list[float]) -> None:
    places = spread_apart(values, 0.06, 0.0, 1.0)
    assert all(after - before >= 0.06 - 1e-9 for before, after in pairwise(places))
    assert places[0] >= 0.0
    assert places[-1] <= 1.0
    free = spread_apart([0.2, 0.5, 0.8], 0.06, 0.0, 1.0)
    assert free == [0.2, 0.5, 0.8]  # at their lines where there is room


def test_columns_are_of_like_height() -> None:
    plots = [{"name": str(i), "height": h} for i, h in enumerate((2.0, 4.0, 2.0, 4.8, 2.6, 2.0, 4.1))]
    left, right = in_columns(plots)
    assert sorted(plot["name"] for plot in (*left, *right)) == [str(i) for i in range(7)]
    assert abs(sum(p["height"] for p in left) - sum(p["height"] for p in right)) <= 0.5
    assert all([p["name"] for p in column] == sorted(p["name"] for p in column) for column in (left, right))
    many = in_columns([{"name": str(i), "height": 1.0} for i in range(30)])
    assert [len(column) for column in many] == [15, 15]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane doe/data", "…/data"),
        ("slake:/home/jane/Slake", "slake:…/Slake"),
        ("C:\\Users\\jane\\model", "…/model"),
        ("~/secret/model", "…/model"),
        ("eas run --output-dir /home/jane/runs/r", "eas run --output-dir …/r"),
        (
            "/home/jane/x.json is damaged (No such file: '/home/jane/x.json')",
            "…/x.json is damaged (No such file: '…/x.json')",
        ),
        ("runs/demo", "runs/demo"),
        ("../runs/demo", "../runs/demo"),
        ("slake:hub:A/B", "slake:hub:A/B"),
        ("see https://a.b/c/d, and/or 1/2", "see https://a.b/c/d, and/or 1/2"),
    ],
)
def test_places_of_the_machine_are_cut(text: str, shown: str) -> None:
    assert without_places({"a": [text, 1, None]}) == {"a": [shown, 1, None]}


def test_no_page_and_no_card_names_a_place_of_the_machine(tmp_path: Path) -> None:
    result = whole_result()
    result["config"] |= {"model": "/home/jane/models/llava", "output_dir": "/home/jane/runs/r", "data": "/home/jane/d"}
    result["command"] = "eas run --output-dir /home/jane/runs/r"
    result["model"]["id"], result["task"]["data"] = "/home/jane/models/llava", "/home/jane/d"
    for text in said_everywhere(result, tmp_path)[::2]:
        assert "jane" not in text
        assert str(tmp_path) not in text
        assert "llava went from" in text
