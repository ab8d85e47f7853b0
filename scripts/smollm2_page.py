"""Fills the tables of docs/smollm2.md from benchmarks/smollm2*.json: `python scripts/smollm2_page.py`."""

from functools import partial

from search_page import ROOT, Rows, fill, measured

PAGES = [ROOT / "docs" / "smollm2.md"]


BEST = "EAS residual, LoRA, searched set, small scale"
GUIDED = "EAS residual, LoRA, guided set, small scale"
# table -> the runs of benchmarks/smollm2.py in it; those that have not been made yet are left out
TUNED = {
    "forms": ["EAS paper", "EAS residual", "EAS paper, rate 0.001", "EAS residual, rate 0.001"],
    "methods": [
        "LoRA",
        "full",
        "Adapter",
        "DAS",
        "drop + LoRA, searched set",
        "drop + LoRA, guided set",
        "EAS residual, searched set",
        "EAS residual, searched set, rate 0.001",
        "EAS residual, LoRA, searched set",
        BEST,
        GUIDED,
    ],
    "rates": [
        f"{name}{rate}"
        for name in ("LoRA", "drop + LoRA, guided set", GUIDED)
        for rate in (", rate 0.001", "", ", rate 0.004")
    ]
    + ["DAS, rate 0.0005", "DAS", "DAS, rate 0.002", "Adapter", "Adapter, rate 0.002", "full, rate 3e-05", "full"],
    "sets": [
        GUIDED,
        BEST,
        "EAS residual, LoRA, greedy set, small scale",
        "EAS residual, LoRA, similarity set, small scale",
        "EAS residual, LoRA, small scale",
        "EAS residual, LoRA, last set, small scale",
        *(f"EAS residual, LoRA, random set {i}, small scale" for i in range(5)),
        "EAS residual, searched set, rate 0.001",
        "EAS residual, rate 0.001",
        "EAS residual, LoRA, searched set",
        "EAS residual, LoRA",
    ],
    "numbers": [
        *(f"{GUIDED}, 5 skipped", GUIDED, f"{GUIDED}, 15 skipped", f"{GUIDED}, 20 skipped"),
        *("drop + LoRA, guided set", "drop + LoRA, guided set, 15 skipped"),
    ],
    "parts": [
        *(BEST, f"{BEST}, constant, causal", f"{BEST}, plain weights"),
        *("EAS residual, LoRA, small scale", "EAS residual, LoRA, small scale, FFNs"),
        *(GUIDED, f"{GUIDED}, FFNs", f"{GUIDED}, either"),
    ],
}
STEPS = ["0", "50", "100", "200"]
MENDED = ("6087f31", "497e3e2", "0a5e6e2")
"""Revisions whose score tells choices apart that differ in upper and lower case alone."""


def tuned(names: list[str]) -> Rows:
    """Loss on validation questions by step, and the test split: the mean over seeds, and every seed's value.

    Runs say their dtype if it is not that of the first ones, bfloat16; a dagger marks the mended score.
    """
    runs = measured("smollm2")
    rows = [["method", "rate", *(f"step {step}" for step in STEPS), "test loss", "test accuracy", "trained"]]
    for name in names:
        own = sorted((run for run in runs if run["name"] == name), key=lambda run: run["seed"])
        if not own:
            continue

        def cell(values: list[float], digits: int = 3) -> str:
            each = ", ".join(f"{value:.{digits}f}" for value in values)
            return each if len(values) == 1 else f"{sum(values) / len(values):.{digits}f} ({each})"

        wide = [run["seed"] for run in own if run.get("dtype") == "float32"]
        seeds = "" if len(wide) == len(own) else ", seed " + ", ".join(map(str, wide))
        rows.append(
            [
                (f"{name} (float32{seeds})" if wide else name) + " †" * own[0]["git_revision"].startswith(MENDED),
                f"{own[0]['learning_rate']:g}",
                *(f"{sum(run['curve'][step] for run in own) / len(own):.2f}" for step in STEPS),
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


def searches(file: str) -> Rows:
    """The loss of what each rule would choose after so many evaluations: the mean over seeds, and every seed's."""
    found = measured(file)["searched"]
    numbers = [*next(iter(found.values()))["after"]]
    rows = [["rule", *(f"{number} evaluations" for number in numbers)]]
    for rule in dict.fromkeys(name.split(", ")[0] for name in found):
        after = [one["after"] for name, one in found.items() if name.startswith(f"{rule}, ")]
        each = [[one[number] for one in after] for number in numbers]
        cells = [f"{sum(v) / len(v):.2f} ({', '.join(f'{loss:.2f}' for loss in v)})" for v in each]
        rows.append([f"`{rule}`", *cells])
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
    **{f"tuned_{table}": partial(tuned, names) for table, names in TUNED.items()},
    "sets": partial(sets, "smollm2_sets"),
    "searches": partial(searches, "smollm2_sets"),
    "predicted": partial(predicted, "smollm2_sets"),
    "smol_sets": partial(sets, "smol_sets"),
    "smol_searches": partial(searches, "smol_sets"),
    "smol_predicted": partial(predicted, "smol_sets"),
    "codes_searches": partial(searches, "smol_sets_codes"),
}


def filled(page: str) -> str:
    """The page with every table rewritten."""
    return fill(page, TABLES)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
