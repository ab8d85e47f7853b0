"""Fills the tables of docs/search.md from the JSON files in benchmarks/: `python scripts/search_page.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is one of `TABLES`.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "search.md"]
Rows = list[list[str]]


def measured(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())


def planted() -> Rows:
    """Precision after 100 and 300 rounds."""
    scenarios = {name: s for name, s in measured("search")["scenarios"].items() if name != "uniform, noise 0.4"}
    rules = next(iter(scenarios.values()))

    def cell(rows: dict[str, Any], rule: str) -> str:
        return " ".join(f"{rows[rule]['precision'][t]['mean']:.2f}" for t in ("100", "300")) if rule in rows else ""

    return [["rule", *scenarios]] + [[f"`{rule}`", *(cell(s, rule) for s in scenarios.values())] for rule in rules]


def regret() -> Rows:
    """Mean rank and regret of the chosen set, by task."""
    tasks = measured("regret")["tasks"]
    numbers = next(iter(next(iter(tasks.values())).values()))["evaluations"]
    head = ["rule"] + [f"{task}, {n}" for task in tasks for n in numbers]
    rules = next(iter(tasks.values()))

    def cells(rule: str) -> list[str]:
        found = [(t[rule]["rank"][i], t[rule]["regret"][i]) for t in tasks.values() for i in range(len(numbers))]
        return [f"{rank:.1f} ({regret:.3f})" for rank, regret in found]

    return [head] + [[f"`{rule}`", *cells(rule)] for rule in rules]


def proxy() -> Rows:
    """Spearman's correlation of every proxy with accuracy and loss after tuning: mean, and each seed's."""
    tasks = {name: task["correlation"]["6"] for name, task in measured("proxy")["tasks"].items()}
    rows = [["proxy"] + [f"{task}, {what}" for task in tasks for what in ("accuracy", "loss")]]

    def cell(found: dict[str, Any] | None) -> str:
        if found is None:
            return ""
        return f"{found['mean']:.2f} ({', '.join(f'{value:.2f}' for value in found['values'])})"

    for name in next(iter(tasks.values())):
        rows.append([name] + [cell(t[name].get(what)) for t in tasks.values() for what in ("accuracy", "loss")])
    return rows


def searched() -> Rows:
    """Accuracy after tuning of searched and of random sets."""
    rows = [["task", "k", "chosen by", "chosen set", "random sets, mean", "their deviation"]]
    for task, result in measured("proxy")["tasks"].items():
        for row in result["searched"]:
            values = [row[key] for key in ("accuracy", "random accuracy", "random accuracy, sd")]
            chosen, random, deviation = (", ".join(f"{100 * v:.1f}" for v in value["values"]) for value in values)
            rows.append([task, str(row["k"]), row["rule"], chosen, random, deviation])
    return rows


def finals() -> Rows:
    """Accuracy with finalists, without, and of random sets."""
    rows = [["task", "k", "run", "test accuracy, mean", "each seed's", "seconds of search and tuning"]]
    for name in ("finals_short_codes", "finals_codes", "finals_colour"):
        result = measured(name)
        task = result["config"]["run"]["data"].removeprefix("scenes:")
        for row in result["rows"]:
            values = [f"{100 * v:.1f}" for v in (row["test"]["mean"], *row["test"]["values"])]
            spent = row["seconds"]["search"] + row["seconds"]["tune"]
            rows.append([task, str(row["k"]), row["label"], values[0], ", ".join(values[1:]), f"{spent:.0f}"])
    return rows


def finalists() -> Rows:
    """Accuracy of the finalists, all tuned alike."""
    keys = ("of the rule's set", "of the winner", "mean of all", "best of all")
    rows = [["task", "the rule's set", "the winner", "mean of the six", "best of the six", "Spearman, first turn"]]
    for task in ("codes", "colour"):
        seeds = measured(f"finalists_{task}")["seeds"]
        cells = [", ".join(f"{100 * seed[key]:.1f}" for seed in seeds) for key in keys]
        rows.append([task, *cells, ", ".join(f"{seed['spearman of the first rung']:.2f}" for seed in seeds)])
    return rows


TABLES = {
    "planted": planted,
    "regret": regret,
    "proxy": proxy,
    "searched": searched,
    "finals": finals,
    "finalists": finalists,
}


def fill(page: str, tables: dict[str, Callable[[], Rows]]) -> str:
    """A page with every table rewritten."""

    def table(match: re.Match[str]) -> str:
        head, *rows = tables[match[1]]()
        lines = [head, ["---"] * len(head), *rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"<!-- table: {match[1]} -->\n\n{body}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- end -->", table, page, flags=re.DOTALL)


def filled(page: str) -> str:
    """This page with every table rewritten."""
    return fill(page, TABLES)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
