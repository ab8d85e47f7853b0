"""A result in words and numbers: headline, remarks and rows; terminal, page and card show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eas.reports.certainty import percent, share, spread_text
from eas.reports.findings import (
    Finding,
    accuracy_finding,
    at,
    blind_answers,
    final,
    not_above_blind,
    saves_nothing,
    speed_finding,
)

NOT_MEASURED = "not measured"
KINDS = {"mha": "attentions", "ffn": "FFNs", "either": "attentions and FFNs", "layer": "layers"}


class Row(NamedTuple):
    """One line of the summary: a quantity of the base, of the tuned model, and the change."""

    name: str
    base: str
    tuned: str
    change: str


def headline(result: Mapping[str, Any]) -> str:
    """One sentence on gains and losses, without anything that was not measured or may be chance."""
    skipped, (total, kind) = at(result, "model", "skip_set"), _candidates(result)
    parts, (data, after) = [], (at(result, "task", "data"), final(at(result, "accuracy")))
    if after is not None:
        found, score = accuracy_finding(result), share(after, at(result, "task", "examples"))
        if found is not None and not found.why_not:
            went = "went" if found.change > 0 else "fell"
            parts.append(f"{went} from {percent(result['accuracy']['zero_shot'])} to {score}")
        else:
            parts.append(f"reaches {score}")
        parts[0] += "" if data is None else f" on {data}"
        blind = not_above_blind(result, after)
        parts[0] += f", where {blind}" if blind else ""
    parts += [f"{verb} {f.said}" for verb, f in _speeds(result) if not f.why_not and f.said != "as fast"]
    start = f"Without {len(skipped)} of its {total} {kind}, " if skipped and total else ""
    who = at(result, "model", "id") or "the model"
    if not parts:
        return f"{start}{who}: {NOT_MEASURED} yet."
    said = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{start}{who} {said}."


def remarks(result: Mapping[str, Any]) -> list[str]:
    """What was measured and is no gain, and why; what a reader of the headline must know besides."""
    said = []
    if layers := at(result, "model", "candidate_layers"):
        said.append(numbers_told(_candidates(result)[1], layers))
    found = accuracy_finding(result)
    changes = [("accuracy", found)] if found is not None else []
    for verb, change in [*changes, *_speeds(result)]:
        if change.why_not:
            said.append(f"{verb[0].upper()}{verb[1:]} {change.told}.")
    if more := saves_nothing(at(result, "latency", "bounds")):
        said.append(f"This configuration saves nothing: {more}. Lower the ranks, or skip more.")
    return said


def _speeds(result: Mapping[str, Any]) -> list[tuple[str, Finding]]:
    """What was timed, as a verb and its finding."""
    verbs = {"prefill_ms": "reads a prompt" if decodes(result) else "runs a pass", "decode_ms": "decodes a token"}
    found = {verb: speed_finding(at(result, "latency"), key) for key, verb in verbs.items()}
    return [(verb, finding) for verb, finding in found.items() if finding is not None]


BOUND = "bound: what fewer MACs (prefill) and fewer bytes read (decode) allow; more than that is no gain of the method"
INTERVAL = "in brackets behind an accuracy: its 95 % interval"


def summary_rows(result: Mapping[str, Any]) -> list[Row]:
    """The table: accuracies of model and blind answers, skipped and trained parts, operations, bytes, times."""
    model, (layers, kind) = at(result, "model"), _candidates(result)
    skip_set = at(model, "skip_set")
    k = at(model, "k") if skip_set is None else len(skip_set)
    trained, total = at(result, "counts", "tuned", "params_trained"), at(result, "counts", "base", "params_total")
    stand_in = at(result, "latency", "larger")
    beside = ", without the images" if at(result, "task", "images_left_out") else ""
    return [
        *_accuracies(result),
        *(
            Row(name[:1].upper() + name[1:], percent(score), percent(score), "of the same split, without looking")
            for name, score in blind_answers(at(result, "task") or {}).items()
        ),
        Row(
            kind[:1].upper() + kind[1:],
            _or(str, layers),
            NOT_MEASURED if layers is None or k is None else str(layers - k),
            "" if not skip_set else f"k = {k}, skipped {' '.join(map(str, skip_set))}{_in_layers(model, skip_set)}",
        ),
        Row("Trained parameters", "", _or(number, trained), _share(trained, total)),
        _count(result, f"MACs of a {'prefill' if decodes(result) else 'pass'}{beside}", "macs", number),
        *([_count(result, "KV cache per token", "kv_bytes_per_token", size)] if decodes(result) else []),
        _count(result, f"Weights read per {'token' if decodes(result) else 'pass'}", "weight_bytes", size),
        *(_times(stand_in, f" ({STAND_IN})") if stand_in else []),
        *_times(at(result, "latency"), ""),
    ]


STAND_IN = "random stand-in"
"""How tables and figures name the wide model with random weights that is timed beside the tiny one."""


def about_stand_in(result: Mapping[str, Any]) -> str:
    """What it is; empty where a run has none."""
    name = at(result, "latency", "larger", "name")
    return f"{STAND_IN}: not this model but a {name}, timed with the same skip set" if name else ""


def _accuracies(result: Mapping[str, Any]) -> list[Row]:
    accuracy, examples = at(result, "accuracy"), at(result, "task", "examples")
    zero, tuned, folded = (at(accuracy, key) for key in ("zero_shot", "tuned", "folded"))
    metric, found = at(result, "task", "metric"), accuracy_finding(result)
    before = NOT_MEASURED if zero is None else share(zero, examples)
    form = at(result, "task", "zero_shot") or {}
    change = "" if found is None or tuned is None else found.told
    if form.get("comparable") is False:
        before = f"{before}, not comparable"
    elif (written := form.get("as_written")) is not None and written != zero:
        change += f"; before: {percent(written)} in the very words, {percent(zero)} by the answer meant"
    to_folded = "" if tuned is None or folded is None else f"{100 * (folded - tuned):+.1f} points from tuned"
    name = "Accuracy" if metric in (None, "exact") else f"Accuracy ({metric})"
    return [
        Row(f"{name}, tuned", before, NOT_MEASURED if tuned is None else share(tuned, examples), change),
        Row(f"{name}, folded", before, NOT_MEASURED if folded is None else share(folded, examples), to_folded),
    ]


def decodes(result: Mapping[str, Any]) -> bool:
    """Whether the model generates; where nothing was counted, it is taken for one that does."""
    return bool(at(result, "counts", "base", "kv_bytes_per_token") != 0)


def _candidates(result: Mapping[str, Any]) -> tuple[int | None, str]:
    """Of how many some are skipped, and what they are."""
    total, kind = at(result, "model", "candidates"), at(result, "config", "method", "candidates")
    return at(result, "model", "layers") if total is None else total, KINDS.get(kind, KINDS["mha"])


def numbers_told(kind: str, layers: Sequence[int]) -> str:
    """Of a hybrid, which layers the candidates are in.

    Example:
        >>> numbers_told("attentions", [3, 7])
        "Attentions 0 1 are those of the model's layers 3 7; its other layers have none that may be skipped."
    """
    numbers = " ".join(map(str, range(len(layers))))
    told = f"{kind[0].upper()}{kind[1:]} {numbers} are those of the model's layers {' '.join(map(str, layers))}"
    return f"{told}; its other layers have none that may be skipped."


def importance_words(result: Mapping[str, Any]) -> tuple[str, str]:
    """What the importances of a search are of ("attentions"), and what their numbers count: layers, where there is one
    to each layer; else themselves."""
    found, (_, kind) = len(at(result, "search", "importances")), _candidates(result)
    layers = at(result, "model", "layers")
    if kind == KINDS["either"]:
        return kind, "attentions, then FFNs"
    return kind, "layer" if layers in (None, found) else f"{kind[:-1]}, one of {found} in {layers} layers"


def number(value: float) -> str:
    """Three digits and a decimal prefix: 1.23 G."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P"))


def size(value: float) -> str:
    """Bytes with a binary prefix: 1.23 MiB."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def milliseconds(spread: Mapping[str, float]) -> str:
    """Median and, in brackets, the spread, with the digits that it supports: 8.1 ms (7.9–8.4)."""
    median, _, rest = spread_text(spread).partition(" ")
    return f"{median} ms {rest}"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while abs(value) >= base and power + 1 < len(units):
        value, power = value / base, power + 1
    digits = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {units[power]}".strip()


def _or(form: Any, value: Any) -> str:
    return NOT_MEASURED if value is None else str(form(value))


def _in_layers(model: Mapping[str, Any], skip_set: Sequence[int]) -> str:
    layers = at(model, "candidate_layers")
    return f" (layers {' '.join(str(layers[i]) for i in skip_set)})" if layers else ""


def _share(part: float | None, whole: float | None) -> str:
    return "" if part is None or not whole else f"{percent(part / whole)} of the model"


def _count(result: Mapping[str, Any], name: str, key: str, form: Any) -> Row:
    base, tuned = at(result, "counts", "base", key), at(result, "counts", "tuned", key)
    change = "" if not base or tuned is None else f"{100 * (tuned / base - 1):+.1f} %"
    return Row(name, _or(form, base), _or(form, tuned), change)


def _times(latency: Mapping[str, Any] | None, suffix: str) -> list[Row]:
    rows = []
    only = at(latency, "new_tokens") == 0  # a model that decodes nothing
    for name, key in (("Pass" if only else "Prefill", "prefill_ms"), ("Decode, per token", "decode_ms")):
        variants, found = at(latency, "variants"), speed_finding(latency, key)
        base, tuned = at(variants, "base", key), final(variants, key)
        if only and key == "decode_ms":
            continue
        change = found.told if found else ""
        if (bound := at(latency, "bounds", key)) and "allow" not in change:
            change += f"; bound {bound:.2f}x"
        rows.append(Row(f"{name}{suffix}", _or(milliseconds, base), _or(milliseconds, tuned), change))
    return rows


def final_accuracy(result: Mapping[str, Any]) -> float | None:
    """Of the folded model, or of the tuned one where it does not fold."""
    score: float | None = final(at(result, "accuracy"))
    return score
