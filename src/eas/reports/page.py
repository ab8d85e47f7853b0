"""The page of runs and comparisons: one self-contained HTML file, made from their result files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from jinja2 import Environment, FileSystemLoader, TemplateError
from markupsafe import Markup

from eas.reports.figures import INK, STYLE, Plot, svg
from eas.reports.findings import at
from eas.reports.places import without_places
from eas.reports.sections import Section, comparison_section, frontier_plots, run_section, together_section
from eas.reports.sources import (
    COMPARISON_FILE,
    DAMAGE,
    FRONTIER_FILE,
    RESULT_FILE,
    ReportError,
    read_comparison,
    read_frontier,
    read_result,
)
from eas.reports.summary import BOUND, INTERVAL, NOT_MEASURED, importance_words, number
from eas.reports.together import together

FEW = 6
"""Samples of every run on a page of several."""


class Page(NamedTuple):
    """The page's file, and messages on what it could not show; every message names a file."""

    path: Path
    left_out: list[str]


def write_report(folder: Path) -> Path:
    """Writes the page of one run, ``report.html``, beside its ``result.json``.

    Args:
        folder: the run's folder.

    Returns:
        The path of the page.

    Raises:
        ReportError: ``result.json`` is missing, is not JSON or has a section of the wrong kind.
    """
    return write_page([Path(folder)], Path(folder)).path


def write_page(sources: Sequence[Path], out: Path, left_out: Sequence[str] = ()) -> Page:
    """Writes ``report.html``, ``figures/*.png`` and ``figures/*.svg``.

    The page holds figures and sample images itself and fetches nothing; a few lines of script page through the samples.
    What is missing or damaged is named on it and left out.

    Args:
        sources: folders of runs (``result.json``) and of comparisons (``comparison.json``), or such a
            ``comparison.json`` of any name.
        out: the folder of the page.
        left_out: what could not even be read before, for the page to name.

    Raises:
        ReportError: nothing is left to show; the message names every file.
    """
    problems, several = list(left_out), len(sources) > 1
    results: dict[str, dict[str, Any]] = {}
    runs: list[Section] = []
    comparisons: list[Section] = []
    with matplotlib.rc_context(STYLE):
        for source in sources:
            path = source if source.is_file() else source / COMPARISON_FILE
            try:
                if path.is_file():
                    prefix = f"comparison{len(comparisons) + 1}-" if several else ""
                    section = comparison_section(read_comparison(path), path, out, prefix)
                    comparisons.append(section)
                else:
                    path = source / RESULT_FILE
                    result, prefix = read_result(source), f"run{len(runs) + 1}-" if several else ""
                    most = FEW if several else None
                    runs.append(run_section(result, _frontier(source, problems), source, prefix, most))
                    results[str(source)] = result
            except ReportError as error:
                problems.append(str(error))
            except DAMAGE as error:
                problems.append(f"{path} is damaged ({error!r})")
        groups: list[Section] = []
        try:
            for i, group in enumerate(together(results), 1):
                groups.append(together_section(group, results, f"task{i}-"))
        except DAMAGE as error:
            problems.append(f"the runs {', '.join(results)} cannot be set side by side ({error!r})")
        sections = _drawable([*groups, *comparisons, *runs], out, problems)
        if not sections:
            raise ReportError("; ".join(problems) or "there is nothing to report; name the folder of a run")
    headline = sections[0]["title"] if len(sections) == 1 else _headline(sections)
    path = out / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = [_told(problem, sources) for problem in problems]
    path.write_text(_render(sections, headline, told), encoding="utf-8")
    return Page(path, problems)


def _told(problem: str, sources: Sequence[Path]) -> str:
    """A problem in words that name a file within its folder, and not where the folder is."""
    for source in sorted(map(str, sources), key=len, reverse=True):
        problem = problem.replace(source, Path(source).name or source)
    return str(without_places(problem))


def in_columns(plots: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The figures in two columns as equal in height as can be, each in the order of the page."""

    def height(column: Sequence[Mapping[str, Any]]) -> float:
        return sum(float(plot["height"]) for plot in column)

    if len(plots) > 12:  # with so many, turn by turn is as good
        columns: list[list[Mapping[str, Any]]] = [[], []]
        for plot in plots:
            min(columns, key=height).append(plot)
        return columns
    splits = []
    for mask in range(2 ** max(0, len(plots) - 1)):  # the first stands on the left
        right = [plot for i, plot in enumerate(plots) if i and mask >> (i - 1) & 1]
        splits.append([[plot for plot in plots if plot not in right], right])
    return min(splits, key=lambda split: max(map(height, split)))


def _drawable(sections: Sequence[Section], out: Path, problems: list[str]) -> list[Section]:
    """The sections whose figures could be written, and which the template takes; the file of any other is named."""
    drawn = []
    for section in sections:
        problems += section.get("problems", ())
        try:
            section["plots"] = [_written(out, name, plot) for name, plot in section["plots"].items() if plot]
            _render([section], "", ())
        except (*DAMAGE, TemplateError) as error:
            problems.append(f"{section['file']} is damaged ({error!r})")
        else:
            drawn.append(section)
    return drawn


def _render(sections: Sequence[Section], headline: str, left_out: Sequence[str]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        headline=headline,
        sections=sections,
        left_out=left_out,
        at=at,
        bound=BOUND,
        interval=INTERVAL,
        importance_words=importance_words,
        in_columns=in_columns,
        number=number,
        not_measured=NOT_MEASURED,
    )


def _frontier(folder: Path, problems: list[str]) -> dict[str, Plot | None]:
    """The figures of a run's `eas frontier`, if it ran; if its file is broken, the page shows the run without them."""
    path = folder / FRONTIER_FILE
    try:
        return frontier_plots(read_frontier(path)) if path.is_file() else {}
    except ReportError as error:
        problems.append(str(error))
    except DAMAGE as error:
        problems.append(f"{path} is damaged ({error!r})")
    return {}


def _headline(sections: Sequence[Section]) -> str:
    counts = {name: sum(section["kind"] == name for section in sections) for name in ("run", "comparison")}
    parts = [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count]
    return f"{' and '.join(parts)}, side by side"


def _written(out: Path, name: str, plot: Plot) -> dict[str, Any]:
    """Writes a figure's files; returns what the template needs of it."""
    plot.figure.draw_without_rendering()  # lays out, once for both files
    plot.figure.set_layout_engine("none")
    drawing, folder = svg(plot.figure, name), out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    on_white = drawing.replace("<svg ", '<svg style="background: #fff" ', 1)
    (folder / f"{name}.svg").write_text(on_white, encoding="utf-8")
    plot.figure.savefig(folder / f"{name}.png", dpi=200, facecolor="white")
    height = plot.figure.get_size_inches()[1] + 0.7 + 0.2 * -(-len(plot.note) // 60)  # with title, frame and note
    return {"name": name, "title": plot.title, "note": plot.note, "svg": _inline(plot, drawing), "height": height}


def _inline(plot: Plot, drawing: str) -> Markup:
    """The figure as an SVG element in the page's own text colour."""
    drawing = drawing.replace(INK, "currentColor")
    _, _, rest = drawing[drawing.index("<svg") :].partition(" ")  # without the XML declaration
    return Markup(f'<svg role="img" aria-label="{escape(plot.alt)}" {rest}')
