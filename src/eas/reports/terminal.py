"""The summary for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from eas.reports.findings import at
from eas.reports.summary import BOUND, INTERVAL, about_stand_in, headline, remarks, summary_rows


def summary_table(result: Mapping[str, Any]) -> Table:
    """The rows of a run's ``result.json``, at most 100 columns wide; steps that were not run say "not measured"."""
    examples, prompt = at(result, "task", "examples"), at(result, "latency", "prompt_tokens")
    notes = [
        f"{examples} {at(result, 'task', 'split')} examples of {at(result, 'task', 'data')}" if examples else "",
        f"prompt of {prompt} tokens; times: median (10th–90th percentile)" if prompt else "",
    ]
    notes += [about_stand_in(result), BOUND if at(result, "latency", "bounds") else ""]
    if examples and at(result, "accuracy"):
        notes.append(INTERVAL)
    # Text, because names may hold the brackets of rich's markup
    table = Table(title=Text(at(result, "model", "id") or "run"), caption=Text("; ".join(filter(None, notes))))
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_column("change", overflow="fold")
    for row in summary_rows(result):
        table.add_row(*map(Text, row))
    return table


def summary_view(result: Mapping[str, Any]) -> Group:
    """The headline, the table, and measurements that are no gain."""
    said = [Text(f"{remark}") for remark in remarks(result)]
    return Group(Text(headline(result)), summary_table(result), *said)
