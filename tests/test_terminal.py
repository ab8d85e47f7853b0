"""What reaches a terminal is text, whatever data and names hold."""

from __future__ import annotations

import io
import json
import sys
import warnings

import pytest
from rich.table import Table
from rich.text import Text

from eas import cli
from eas.terminal import console, printable

NASTY = "\x1b[2J\x1b]0;title\x07\r\x9b31m\u202eabc\u2066\x00\u2028\ud800 [red]b[/] :smile:"


def test_what_a_terminal_obeys_is_written_out():
    shown = printable(NASTY)
    assert shown == (
        "\\u001b[2J\\u001b]0;title\\u0007\\u000d\\u009b31m\\u202eabc\\u2066\\u0000\\u2028\\ud800 [red]b[/] :smile:"
    )
    assert printable("a\tb\nü 日本 😀") == "a\tb\nü 日本 😀"
    assert json.loads(printable(json.dumps({"a": NASTY}, ensure_ascii=False))) == {"a": NASTY}


@pytest.mark.parametrize("kind", ["text", "table", "rule"])
def test_the_console_prints_text_as_text(kind, monkeypatch):
    monkeypatch.setattr("sys.stdout", file := io.StringIO())
    out = console()
    if kind == "text":
        out.print(NASTY, soft_wrap=True)
    elif kind == "rule":
        out.rule(NASTY)
    else:
        table = Table("[low, high]", title=NASTY)
        table.add_row(Text(NASTY))
        out.print(table)
    said = file.getvalue()
    assert not {"\x1b", "\x9b", "\x07", "\r", "\u202e", "\x00"} & set(said)
    assert "\\u001b]0;title" in said
    assert kind == "rule" or "[red]b[/] :smile:" in said  # whose title is cut
    assert kind != "table" or "[low, high]" in said


def test_errors_and_warnings_are_text(monkeypatch, capsys):
    def refuse() -> None:
        warnings.warn(f"a warning {NASTY}", stacklevel=1)
        raise ValueError(f"an error {NASTY}")

    monkeypatch.setattr(cli, "app", refuse)
    monkeypatch.setattr("sys.argv", ["eas", "run"])
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert "an error \\u001b[2J" in said
    assert "a warning \\u001b[2J" in said


def test_a_traceback_is_text(monkeypatch, capsys):
    def fail() -> None:
        raise RuntimeError(NASTY.encode(errors="ignore").decode())  # of a KeyError Python shows the repr

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "\x1b" not in said


def test_a_terminal_without_a_letter_shows_the_rest(monkeypatch):
    bare = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(cli, "app", lambda: print("é"))
    monkeypatch.setattr("warnings.showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "stdout", bare)
    cli.main()
    bare.flush()
    assert bare.buffer.getvalue() == b"\\xe9\n"
