"""Fills the tables of docs/smollm2.md from benchmarks/smollm2*.json: `python scripts/smollm2_page.py`."""

from functools import partial

from search_page import ROOT, Rows, fill, measured

PAGE = ROOT / "docs" / "smollm2.md"


def tuned() -> Rows:
    """Loss on validation questions by step, and the test split: the mean over seeds, and every seed's value."""
    runs = measured("smollm2")
    points = list(runs[0]["curve"])
    rows = [["method", "seeds", *(f"step {point}" for point in points), "test loss", "test accuracy", "trained"]]
    for name in dict.fromkeys(run["name"] for run in runs):
        own = [run for run in runs if run["name"] == name]

        def cell(values: list[float], digits: int = 3) -> str:
            each = ", ".join(f"{value:.{digits}f}" for value in values)
            return each if len(values) == 1 else f"{sum(values) / len(values):.{digits}f} ({each})"

        rows.append(
            [
                name,
                str(len(own)),
                *(cell([run["curve"][point] for run in own], 2) for point in points),
                cell([run["test"]["loss"] for run in own]),
                cell([100 * run["test"]["accuracy"] for run in own], 1),
                f"{own[0]['trained']:,}",
            ]
        )
    return rows


def sets(file: str) -> Rows:
    """The loss of sets of ten before training, beside the base's and the distribution of random sets."""
    found = measured(file)
    rows = [["set", "loss", "skipped"], ["none (the base)", f"{found['base']:.3f}", ""]]
    rows += [[f"random, {share}", f"{loss:.3f}", ""] for share, loss in found["random"].items()]
    for named in (found["named"], found["searched"]):
        rows += [[name, f"{s['loss']:.3f}", " ".join(map(str, s["skip_set"]))] for name, s in named.items()]
    return rows


def predicted(file: str) -> Rows:
    """How well losses of sets are predicted."""
    words = {
        "sum": "a term per attention, fitted to 200 sets",
        "pairs": "the same and a term per pair of neighbours",
        "singles": "the sum of the losses of skipping each alone",
    }
    found = measured(file)["spearman"]
    return [["prediction", "Spearman, 100 other sets"]] + [[words[name], f"{found[name]:.2f}"] for name in words]


TABLES = {
    "tuned": tuned,
    "sets": partial(sets, "smollm2_sets"),
    "predicted": partial(predicted, "smollm2_sets"),
    "smol_sets": partial(sets, "smol_sets"),
    "smol_predicted": partial(predicted, "smol_sets"),
}


def filled(page: str) -> str:
    """The page with every table rewritten."""
    return fill(page, TABLES)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
