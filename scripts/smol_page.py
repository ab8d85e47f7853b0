"""Fills the tables of docs/smol.md from benchmarks/smol_scores.json: `python scripts/smol_page.py`."""

from search_page import ROOT, Rows, fill, measured

PAGES = [ROOT / "docs" / "smol.md"]
NAMES = {
    "name": "`name`, the four names listed",
    "name, not listed": "`name`, not listed",
    "category": "`category`, 82 kinds",
    "odd": "`odd`",
    "same": "`same`",
}


def scores() -> Rows:
    """Of every task, the share of right answers in % by what picture was shown."""
    found, shown = measured("smol_scores")["scores"], ("the picture", "another picture", "no picture")
    rows = [["`openmoji:`", "questions", *shown, "guessing"]]
    for task, name in NAMES.items():
        one = found[task]
        cells = [f"{one[what]:.1f}" if what in one else "" for what in shown]
        rows.append([name, str(one["questions"]), *cells, f"{100 / one['choices']:.1f}"])
    return rows


def texts() -> Rows:
    """ScienceQA's texts, with what eas ships and without it."""
    found = measured("smol_scores")["texts"]
    rows = [["", f"right of {found['questions']} questions, %", "loss of the right choice", "loss of prose"]]
    for name in ("smol", "SmolLM2-135M-Instruct"):
        one = found[name]
        rows.append([name, f"{one['score']:.1f}", f"{one['loss']:.2f}", f"{one['prose']:.2f}"])
    return rows


def filled(page: str) -> str:
    """The page with its tables rewritten."""
    return fill(page, {"scores": scores, "texts": texts})


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
