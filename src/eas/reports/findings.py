"""The gains of a run, and its measurements that are no gains. Only gains may stand in a headline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from eas.reports.certainty import apart, decimals, interval, percent, rounded

FEWEST = 3
"""Repeats below which a time has no spread to speak of."""
TIMES = ("prefill_ms", "decode_ms")


class Finding(NamedTuple):
    """One change from base to tuned model.

    Args:
        said: the measurement, in words.
        change: above 0 it is for the better, below for the worse.
        why_not: why it may not be taken as a change; empty where it may.
    """

    said: str
    change: float
    why_not: str

    @property
    def told(self) -> str:
        """For a table, with the reason why it is no gain."""
        kind = "gain" if self.change > 0 else "loss"
        return self.said if not self.why_not else f"{self.said}, not taken as a {kind}: {self.why_not}"


def at(values: Any, *keys: str) -> Any:
    """The entry under nested keys, None where one of them is absent or null."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def final(values: Any, *keys: str) -> Any:
    """Of the folded model, or of the tuned one where it does not fold."""
    folded = at(values, "folded", *keys)
    return at(values, "tuned", *keys) if folded is None else folded


def accuracy_finding(result: Mapping[str, Any]) -> Finding | None:
    """How the accuracy changed; None where base or tuned model was not scored."""
    before, after = at(result, "accuracy", "zero_shot"), final(at(result, "accuracy"))
    if before is None or after is None:
        return None
    examples, said = at(result, "task", "examples"), f"{100 * (after - before):+.1f} points"
    why = ""
    if at(result, "task", "zero_shot", "comparable") is False:
        why = "not comparable: the zero-shot model answers in other words"
    elif not examples:
        why = "it is not recorded of how many examples it is"
    elif not apart(interval(before, examples), interval(after, examples)):
        why = "the 95 % intervals overlap"
    elif after > before and (blind := not_above_blind(result, after)):
        why = blind
    return Finding(said, after - before, why)


def blind_answers(task: Mapping[str, Any]) -> dict[str, float]:
    """What is right without looking: the accuracy of guessing, and of always giving the same answer."""
    found = {"guessing": at(task, "chance")}
    if (answer := at(task, "majority_answer")) is not None:
        found[f"always answering “{answer}”"] = at(task, "majority")
    return {name: score for name, score in found.items() if score}


def not_above_blind(result: Mapping[str, Any], score: float) -> str:
    """The blind answers that a score is not surely above; empty if it is above all."""
    examples, blind = at(result, "task", "examples"), blind_answers(at(result, "task") or {})
    if not blind:
        return ""
    name, best = max(blind.items(), key=lambda item: item[1])
    sure = interval(score, examples)[0] > best if examples else score > best
    return "" if sure else f"{name} gives {percent(best)}"


def speed_finding(latency: Mapping[str, Any] | None, key: str) -> Finding | None:
    """How the tuned model's median time compares with the base's; None where one of them was not timed.

    Args:
        latency: a result's section, or its ``larger``.
        key: one of ``TIMES``.
    """
    variants = at(latency, "variants")
    base, tuned = at(variants, "base", key), final(variants, key)
    if base is None or tuned is None:
        return None
    found, width = compared(base, tuned, at(latency, "bounds", key), at(latency, "repeats")), at(latency, "width")
    if width and "slower" in found.said:  # the embedded model says its width: calls take the time there, not matrices
        return found._replace(said=f"{found.said} (width {width} is overhead)")
    return found


def compared(
    base: Mapping[str, float], tuned: Mapping[str, float], bound: float | None, repeats: int | None
) -> Finding:
    """Two times: how much faster the second is, and whether that may be said."""
    ratio = base["median"] / tuned["median"]
    low, high = base["low"] / tuned["high"], base["high"] / tuned["low"]
    times, width = (ratio, high - low) if ratio >= 1 else (1 / ratio, 1 / low - 1 / high)
    digits = max(1 - math.floor(math.log10(times)), min(2, decimals(times, width)))  # two of them at least
    text = f"{rounded(times, digits)}x {'faster' if ratio >= 1 else 'slower'}"
    text = "as fast" if float(text.partition("x")[0]) == 1 else text
    why = ""
    if repeats is not None and repeats < FEWEST:
        why = f"timed {'once' if repeats == 1 else 'twice'}, which tells no spread"
    elif apart((base["low"], base["high"]), (tuned["low"], tuned["high"])):
        if bound is not None and round(ratio, 2) > round(max(bound, 1.0), 2):
            why = f"fewer MACs and bytes allow {bound:.2f}x; more is overhead, or the base was slow"
    elif text != "as fast":
        why = "the spreads overlap"
    return Finding(text, ratio - 1, why)


def saves_nothing(bounds: Mapping[str, float] | None) -> str:
    """What more a tuned model takes than its base, where it saves neither MACs nor bytes; else empty.

    Args:
        bounds: what fewer MACs and bytes allow, as a run's ``latency`` has them.
    """
    names = {"prefill_ms": "MACs", "decode_ms": "bytes read"}
    changes = {name: 1 / bounds[key] - 1 for key, name in names.items() if bounds and key in bounds}
    if not changes or min(changes.values()) < 0:
        return ""
    return ", ".join(f"{100 * change:+.1f} % {name}" for name, change in changes.items())
