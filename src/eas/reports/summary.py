"""What a result says in words and numbers: the headline and the rows that the terminal and the page both show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NOT_MEASURED = "not measured"
KINDS = {"mha": "attentions", "ffn": "FFNs", "either": "attentions and FFNs", "layer": "layers"}


class Row(NamedTuple):
    """One line of the summary: a quantity of the base, of the tuned model, and what changed."""

    name: str
    base: str
    tuned: str
    change: str


def at(values: Any, *keys: str) -> Any:
    """The entry under nested keys, None where one of them is absent or null."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def headline(result: Mapping[str, Any]) -> str:
    """One sentence with what was measured, and nothing that was not."""
    skipped, (total, kind) = at(result, "model", "skip_set"), _candidates(result)
    parts = []
    before, after = at(result, "accuracy", "zero_shot"), final_accuracy(result)
    if after is not None:
        came = "" if before is None else f"went from {percent(before)} to "
        parts.append(f"{came or 'reaches '}{percent(after)} {_task(result)}".strip())
    read = "reads a prompt" if decodes(result) else "runs a pass"
    for key, verb in (("prefill_ms", read), ("decode_ms", "decodes a token")):
        speed = speed_up(at(result, "latency", "variants"), key)
        if speed is not None:
            parts.append(f"{verb} {speed}{_why(at(result, 'latency'), speed)}")
    start = f"Without {len(skipped)} of its {total} {kind}, " if skipped and total else ""
    who = at(result, "model", "id") or "the model"
    if not parts:
        return f"{start}{who}: {NOT_MEASURED} yet."
    said = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{start}{who} {said}."


BOUND = "bound: what fewer MACs (prefill) and fewer bytes read (decode) allow; more than that is saved overhead"


def summary_rows(result: Mapping[str, Any]) -> list[Row]:
    """The table: accuracy, what is skipped, what was trained, operations, bytes, times."""
    accuracy, model = at(result, "accuracy"), at(result, "model")
    zero, tuned, folded = (at(accuracy, key) for key in ("zero_shot", "tuned", "folded"))
    skip_set, (layers, kind) = at(model, "skip_set"), _candidates(result)
    k = at(model, "k") if skip_set is None else len(skip_set)
    trained, total = at(result, "counts", "tuned", "params_trained"), at(result, "counts", "base", "params_total")
    return [
        Row("Accuracy, tuned", _or(percent, zero), _or(percent, tuned), _points(zero, tuned, "")),
        Row("Accuracy, folded", _or(percent, zero), _or(percent, folded), _points(tuned, folded, " from tuned")),
        Row(
            kind[:1].upper() + kind[1:],
            _or(str, layers),
            NOT_MEASURED if layers is None or k is None else str(layers - k),
            "" if not skip_set else f"k = {k}, skipped {' '.join(map(str, skip_set))}",
        ),
        Row("Trained parameters", "", _or(number, trained), _share(trained, total)),
        _count(result, f"MACs of a {'prefill' if decodes(result) else 'pass'}", "macs", number),
        *([_count(result, "KV cache per token", "kv_bytes_per_token", size)] if decodes(result) else []),
        _count(result, f"Weights read per {'token' if decodes(result) else 'pass'}", "weight_bytes", size),
        *(_times(at(result, "latency", "larger"), ", larger model") if at(result, "latency", "larger") else []),
        *_times(at(result, "latency"), ""),
    ]


def decodes(result: Mapping[str, Any]) -> bool:
    """Whether the model generates; where nothing was counted, it is taken for one that does."""
    return bool(at(result, "counts", "base", "kv_bytes_per_token") != 0)


def _candidates(result: Mapping[str, Any]) -> tuple[int | None, str]:
    """Of how many some are skipped, and what they are."""
    total, kind = at(result, "model", "candidates"), at(result, "config", "method", "candidates")
    return at(result, "model", "layers") if total is None else total, KINDS.get(kind, KINDS["mha"])


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def number(value: float) -> str:
    """Three digits and a decimal prefix: 1.23 G."""
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P"))


def size(value: float) -> str:
    """Bytes with a binary prefix: 1.23 MiB."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def milliseconds(spread: Mapping[str, float]) -> str:
    """Median and, in brackets, the spread: 8.12 ms (7.90-8.41)."""
    digits = 1 if spread["median"] >= 100 else 2
    return f"{spread['median']:.{digits}f} ms ({spread['low']:.{digits}f}–{spread['high']:.{digits}f})"


def speed_up(variants: Mapping[str, Any] | None, key: str) -> str | None:
    """How the folded (or unfoldable) model's median compares with the base's; says where the two spreads overlap."""
    base, folded = at(variants, "base", key), final_times(variants, key)
    if base is None or folded is None:
        return None
    ratio = base["median"] / folded["median"]
    text = f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"
    text = "as fast" if text.startswith("1.00x") else text
    overlap = base["low"] <= folded["high"] and folded["low"] <= base["high"]
    return f"{text} (spreads overlap)" if overlap else text


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while abs(value) >= base and power + 1 < len(units):
        value, power = value / base, power + 1
    digits = 0 if power == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {units[power]}".strip()


def _or(form: Any, value: Any) -> str:
    return NOT_MEASURED if value is None else str(form(value))


def _points(before: float | None, after: float | None, suffix: str) -> str:
    return "" if before is None or after is None else f"{100 * (after - before):+.1f} points{suffix}"


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
        variants = at(latency, "variants")
        base, folded = at(variants, "base", key), final_times(variants, key)
        if only and key == "decode_ms":
            continue
        change = speed_up(variants, key) or ""
        change += _why(latency, change)
        if bound := at(latency, "bounds", key):
            change += f"; bound {bound:.2f}x"
        rows.append(Row(f"{name}{suffix}", _or(milliseconds, base), _or(milliseconds, folded), change))
    return rows


def _why(latency: Mapping[str, Any] | None, speed: str) -> str:
    """The embedded model says its width: there the calls of its layers take the time, not their matrices."""
    width = at(latency, "width")
    return f" (width {width} is overhead)" if width and "slower" in speed else ""


def final_times(variants: Mapping[str, Any] | None, key: str) -> Any:
    """Of the folded model, or of the tuned one where it does not fold."""
    folded = at(variants, "folded", key)
    return at(variants, "tuned", key) if folded is None else folded


def final_accuracy(result: Mapping[str, Any]) -> float | None:
    """Of the folded model, or of the tuned one where it does not fold."""
    folded: float | None = at(result, "accuracy", "folded")
    tuned: float | None = at(result, "accuracy", "tuned")
    return tuned if folded is None else folded


def _task(result: Mapping[str, Any]) -> str:
    data, metric = at(result, "task", "data"), at(result, "task", "metric")
    return "" if data is None else f"on {data}" + (f" ({metric})" if metric else "")
