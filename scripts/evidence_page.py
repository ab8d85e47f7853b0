"""Fills the tables of docs/evidence.md and evidence-smol.md: `python scripts/evidence_page.py`.

The tables come from the comparisons in benchmarks/. A table stands between `<!-- rows: NAME: A | B | ... -->` and
`<!-- end -->`; NAME is one of `RESULTS`.
"""

import json
import re
from pathlib import Path

from eas.reports.comparison import cells

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "evidence.md", ROOT / "docs" / "evidence-smol.md"]
RESULTS = {
    "methods": "methods.json",
    "more": "methods_more.json",
    "one": "methods_one_seed.json",
    "odd": "odd.json",
    "odd1": "odd_one_seed.json",
    "oddm": "odd_methods.json",
    "oddk": "odd_k.json",
    "sets": "odd_sets.json",
    "train": "search_train.json",
    "adapt": "adapt.json",
    "forms": "forms.json",
    "formscodes": "forms_codes.json",
    "smol": "smol.json",
    "codes": "smol_codes.json",
    "codesmethods": "smol_codes_methods.json",
    "codeschoice": "smol_codes_choice.json",
    "codeskinds": "smol_codes_kinds.json",
    "pictures": "smol_pictures.json",
    "kinds": "smol_kinds.json",
    "codessets": "smol_codes_sets.json",
    "codesdrop": "smol_codes_drop.json",
    "codestokens": "smol_codes_tokens.json",
    "scienceqa": "smol_scienceqa.json",
    "letters": "smol_scienceqa_letters.json",
}
DROPPED = ("k", "notes")


def filled(page: str) -> str:
    """The page with every table rewritten."""

    def table(match: re.Match[str]) -> str:
        result = json.loads((ROOT / "benchmarks" / RESULTS[match[1]]).read_text())
        head, *rows = cells(result, lambda spread: f"{spread['median']:.2f}")
        kept = [i for i, name in enumerate(head) if name not in DROPPED]
        by_name = {row[0]: [row[i] for i in kept] for row in rows}
        names = [name.strip() for name in match[2].split("|")]
        lines = [[head[i] for i in kept], ["---", *["---:"] * (len(kept) - 1)], *(by_name[name] for name in names)]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"<!-- rows: {match[1]}:{match[2]}-->\n\n{body}\n\n<!-- end -->"

    return re.sub(r"<!-- rows: (\w+):(.*?)-->.*?<!-- end -->", table, page, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
