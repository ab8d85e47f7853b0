"""Keys of configurations as the user types them, in messages that name them by their class."""

from __future__ import annotations

import re

SECTIONS = {
    "RunConfig": "",
    "CompareConfig": "",
    "Entry": "",
    "SearchConfig": "search",
    "TrainConfig": "train",
    "BenchmarkConfig": "benchmark",
}
"""Where the keys of a configuration's class stand in a file and in ``-o``; those of other classes are a method's."""
FLAGS = {
    "run": {"method.num_skip": "--skip", "method.name": "--method", "model": "--model", "data": "--data"},
    "count": {"num_skip": "--skip", "name": "--method"},
    "bench": {"model": "MODEL", "prompt_tokens": "--prompt", "num_skip": "--skip"},
}
FLAGS["search"] = FLAGS["run"]
_KEY = re.compile(r"\b(Entry|\w+Config|\w*Options)\.(\w+(?:\.\w+)*)(?= = |: )")
_UNKNOWN = re.compile(r"\b(Entry|\w+Config|\w*Options) has no key\b")


def as_typed(message: str, verb: str) -> str:
    """The message with ``method.num_skip (--skip)`` for ``EASConfig.num_skip``.

    Args:
        message: of an error.
        verb: of the command line; some have flags for keys, or take a method's keys without a section.
    """

    def section(name: str) -> str:
        if name.endswith("Options"):
            return "data_options"
        return SECTIONS.get(name, "" if verb in ("count", "bench") else "method")

    def key(found: re.Match[str]) -> str:
        typed = ".".join(filter(None, (section(found[1]), found[2])))
        if found[1] == "BenchConfig":
            return FLAGS["bench"].get(typed, f"--{typed.replace('_', '-')}")
        flag = FLAGS.get(verb, {}).get(typed)
        return typed if flag is None else flag if verb == "count" else f"{typed} ({flag})"

    def unknown(found: re.Match[str]) -> str:
        return f"{section(found[1])} has no key" if section(found[1]) else "there is no key"

    return _UNKNOWN.sub(unknown, _KEY.sub(key, message))
