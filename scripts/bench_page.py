"""Fills the tables of docs/bench.md from `eas bench`'s files in benchmarks/: `python scripts/bench_page.py`.

A table stands between `<!-- bench: FILE, batch N -->` and `<!-- end -->`.
"""

import json
import re
from pathlib import Path

from eas.reports.bench import heading, markdown

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bench.md"


def filled(page: str) -> str:
    """The page with every table rewritten."""

    def table(match: re.Match[str]) -> str:
        path = ROOT / "benchmarks" / match[1]
        body = "Not measured yet.\n"
        if path.is_file():
            result = json.loads(path.read_text())
            body = f"{heading(result)}, batch {match[2]}:\n\n{markdown(result, int(match[2]))}"
        return f"<!-- bench: {match[1]}, batch {match[2]} -->\n\n{body}\n<!-- end -->"

    return re.sub(r"<!-- bench: (\S+), batch (\d+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
