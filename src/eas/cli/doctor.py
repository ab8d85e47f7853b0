"""The verb that checks the installation."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from eas.cli.app import app
from eas.terminal import console

COLOURS = {"ok": "green", "absent": "yellow", "wrong": "red"}


@app.command()
def doctor() -> None:
    """Check versions, decoding in every family, torch and optional packages, and name a remedy for each fault.

    The last line is JSON; the exit status is 1 if something is wrong. A package that is absent is not wrong.
    """
    from rich.table import Table
    from rich.text import Text

    from eas.doctor import findings

    table = Table("", "found", "", "what to do", title="This installation")
    rows = []
    with console(stderr=True).status("looking") as status:
        for row in findings():
            rows.append(row)
            status.update(row.name)
            # Text, because versions and errors may hold the brackets of rich's markup
            table.add_row(Text(row.name), Text(row.found), Text(row.state, COLOURS[row.state]), Text(row.remedy))
    console().print(table)
    ok = all(row.state != "wrong" for row in rows)
    print(json.dumps({"ok": ok, "findings": [asdict(row) for row in rows]}))
    if not ok:
        raise typer.Exit(1)
