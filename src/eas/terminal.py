"""Output for terminals as plain text: data and names may hold control sequences, or markup of rich."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.measure import Measurement
from rich.segment import Segment

# controls but tab and line feed; marks that turn the direction of writing; line separators; halves of a pair
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with every character that a terminal would obey written as ``\\u001b``, which JSON reads back."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """What tables and messages are printed with: 120 columns where the output is no terminal, and no markup: texts may
    hold brackets and colons."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 120
    made = Console(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False)
    made.push_render_hook(_Printable())
    return made


class _Printable(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_AsText(renderable) for renderable in renderables]


class _AsText:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self.inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.inner, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.inner)
