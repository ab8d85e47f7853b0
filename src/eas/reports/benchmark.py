"""The numbers of an official metric, for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from eas.metrics.report import Report
from eas.reports.certainty import between


def report_table(title: str, report: Report, examples: int) -> Table:
    """One row per number, in percent, with its 95 % interval, and its examples where the metric counts them."""
    table = Table(title=Text(title), caption=Text("percent" if report.counts else f"percent of {examples:,} examples"))
    table.add_column("", overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("95 %", justify="right")
    if report.counts:
        table.add_column("of", justify="right")
    for name, number in report.numbers.items():
        of = report.counts.get(name, examples)
        counted = [f"{of:,}"] if report.counts else []
        sure = between(number / 100, of) if report.scores and 0 <= number <= 100 else ""
        table.add_row(Text(name), f"{number:.2f}", sure, *counted)
    return table
