"""Loss and search curves of several runs: small panels on the page of a comparison, and of runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results import comparison, run_result, write

from eas.reports.curves import MOST_PANELS, POINTS, curve, importances_plot, losses_plot
from eas.reports.figures import BLUE, GREY
from eas.reports.page import write_page

LOGS = {"search": [{"step": 10, "loss": 4.0}, {"step": 20, "loss": 2.0}], "tune": [{"step": 10, "loss": 0.5}]}
SEARCH = {"skip_set": [1], "rounds": [{"step": s, "importances": [0.1 * s, -0.1 * s, 0.0]} for s in (5, 10, 15)]}


def drawn(axes: Any) -> list[tuple[str, list[float], list[float]]]:
    return [(line.get_color(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def test_a_panel_per_row_and_a_line_per_seed() -> None:
    plot = losses_plot([curve(row, seed, SEARCH, LOGS) for row in ("EAS_2", "EAS_6") for seed in (0, 1)])
    assert plot is not None
    shown = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["EAS_2", "EAS_6"]
    assert len(shown[0].lines) == 2 * 2
    (_, steps, losses), (_, later, _) = drawn(shown[0])[:2]
    assert (steps, losses, later) == ([10, 20], [4.0, 2.0], [30])  # tuning goes on where the search ended
    assert "EAS_6: seed 0 ends at 0.500, seed 1 ends at 0.500" in plot.alt


def test_a_panel_per_search_with_the_skipped_in_blue() -> None:
    plot = importances_plot([curve("EAS_1", 3, SEARCH, LOGS), curve("LoRA", 3, {}, LOGS)])
    assert plot is not None
    (axes,) = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert axes.get_title(loc="left") == "EAS_1, s3"
    assert [colour for colour, *_ in drawn(axes)] == [GREY, GREY, BLUE]
    assert drawn(axes)[-1][1:] == ([5, 10, 15], [-0.5, -1.0, -1.5])
    assert importances_plot([curve("LoRA", 3, {}, LOGS)]) is None
    assert losses_plot([curve("base", 0, {}, {})]) is None


def test_many_rows_and_long_logs_stay_small() -> None:
    log = [{"step": i, "loss": 1 / i} for i in range(1, 1000)]
    plot = losses_plot([curve(f"row {i}", 0, {}, {"tune": log}) for i in range(MOST_PANELS + 3)])
    assert plot is not None
    assert plot.note == f"The first {MOST_PANELS} of {MOST_PANELS + 3} rows."
    (_, steps, _), *_ = drawn(plot.figure.axes[0])
    assert len(steps) == POINTS
    assert (steps[0], steps[-1]) == (1, 999)


def test_of_a_comparison_s_runs_what_is_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(json.dumps(comparison()))
    for name in ("EAS-k2-s0", "EAS-k2-s1", "EAS-k6-s0", "EAS-k6-s1"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text("{}")
        (folder / "search.json").write_text(json.dumps({**SEARCH, "log": LOGS["search"]}))
        (folder / "tune.json").write_text(json.dumps({"log": LOGS["tune"]}))
    (tmp_path / "runs" / "EAS-k2-s1" / "tune.json").write_text("{")
    (tmp_path / "runs" / "EAS-k6-s1" / "search.json").write_text(json.dumps({"rounds": [{"step": "x"}]}))
    page = write_page([tmp_path], tmp_path)
    broken = ("EAS-k2-s1/tune.json", "EAS-k6-s1: search.json")
    assert [name in message for name, message in zip(broken, page.left_out, strict=True)] == [True, True]
    text = page.path.read_text()
    assert "EAS_2: seed 0 ends at 0.500; EAS_6: seed 0 ends at 0.500." in text
    assert (tmp_path / "figures" / "importances.svg").is_file()


def test_of_runs_side_by_side(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        write(folder, run_result(seed, 4))
    page = write_page(folders, tmp_path / "page")
    assert not page.left_out
    text = page.path.read_text()
    assert 'id="task1-losses"' in text
    assert 'id="task1-importances"' in text
