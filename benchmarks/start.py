"""How long commands take to start: CPU seconds of `eas --help` and others, and which large packages each imports.

python benchmarks/start.py   # writes benchmarks/start.json
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from eas.attachment.save import library_versions
from eas.measure.latency import git_revision, hardware

COMMANDS = (["--help"], ["run", "--help"])
REPEATS = 3
HEAVY = ("torch", "transformers", "peft", "torchao", "bitsandbytes", "datasets", "matplotlib", "numpy")
CODE = f"""
import sys
from eas.cli import main
try:
    main()
except SystemExit:
    pass
print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def cpu_seconds(command: list[str]) -> tuple[float, list[str]]:
    """User and system time of one process, and what it said on stderr: the packages that it imported, nothing else."""
    before = os.times()
    said = subprocess.run([sys.executable, "-c", CODE, *command], capture_output=True, text=True, check=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4]), said.stderr.splitlines()


def measured(command: list[str]) -> dict[str, Any]:
    cpu_seconds(command)  # writes and reads what is cached
    times, said = zip(*(cpu_seconds(command) for _ in range(REPEATS)), strict=True)
    assert all(len(lines) == 1 for lines in said), said
    return {
        "command": " ".join(["eas", *command]),
        "cpu_seconds": {"median": statistics.median(times), "low": min(times), "high": max(times)},
        "imports": said[0][0].split(),
    }


def main() -> None:
    rows = [measured(command) for command in COMMANDS]
    result = {"repeats": REPEATS, "rows": rows, "versions": library_versions(), "hardware": hardware()}
    text = json.dumps({**result, "git_revision": git_revision()}, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
