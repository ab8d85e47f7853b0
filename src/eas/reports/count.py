"""The costs of a model, without and with a method, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from eas.reports.summary import number, size

ROWS = {
    "macs": ("MACs of a prefill", number),
    "vision_macs": ("  of which vision", number),
    "statistics_macs": ("  of which PIA statistics", number),
    "fold_macs": ("  of which the fold, per prompt", number),
    "params_total": ("Parameters", number),
    "params_trained": ("Parameters trained", number),
    "params_folded": ("Parameters after folding", number),
    "weight_bytes": ("Weights read per token", size),
    "kv_bytes_per_token": ("Keys and values per token", size),
    "prompt_state_bytes": ("Prompt state per sequence", size),
    "fold_bytes": ("Folded weights per request", size),
}


def count_table(base: Mapping[str, int], tuned: Mapping[str, int] | None, title: str) -> Table:
    """One column for the base (``Counts`` as a dict); where there is a method, one for its model, with the change."""
    table = Table(title=Text(title))
    table.add_column("")
    for name in ["base"] if tuned is None else ["base", "tuned", "change"]:
        table.add_column(name, justify="right")
    for key, (name, form) in ROWS.items():
        before = 0 if key == "params_trained" else base[key]  # of the base nothing is frozen yet
        if tuned is None:
            if before and key != "params_folded":
                table.add_row(name, form(before))
            continue
        after = tuned[key]
        if before or after:
            change = f"{100 * (after / before - 1):+.2f} %" if before and after != before else ""
            table.add_row(name, form(before) if before else "-", form(after), change)
    return table
