"""Fills the tables of docs/bench.md from the files in benchmarks/: `python scripts/bench_page.py`.

A table of `eas bench` stands between `<!-- bench: FILE, batch N -->` and `<!-- end -->`, that of decode_parts.py
between `<!-- parts: FILE -->` and `<!-- end -->`.
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

    def parts(match: re.Match[str]) -> str:
        measured = json.loads((ROOT / "benchmarks" / match[1]).read_text())
        rates, cpu = measured["gb_per_second"], measured["hardware"]["cpu"]
        columns = [name for name in rates if name != "read"]
        lines = [[f"GB/s, one thread, {cpu}", *columns], ["---", *["---:"] * len(columns)]]
        lines.append(["reading memory", *[str(rates["read"])] * len(columns)])
        lines += [[part, *(str(rates[name][part]) for name in columns)] for part in rates[columns[0]]]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"<!-- parts: {match[1]} -->\n\n{body}\n\n<!-- end -->"

    page = re.sub(r"<!-- parts: (\S+) -->.*?<!-- end -->", parts, page, flags=re.DOTALL)
    return re.sub(r"<!-- bench: (\S+), batch (\d+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
