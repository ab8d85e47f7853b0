"""The pages of the documentation: their fenced blocks, and the commands that these would run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "plugins/eas-vllm/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
RECORD = """PATH=/none
command_not_found_handle() { printf -v line "%q " "$@"; printf "%s\\n" "$line" >&3; }  # at once: pipes run side by side
"""
"""With no program in reach, bash hands each command here: its loops are run, its variables and quotes resolved."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, languages: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page in one of the languages (a regular expression), each with its language."""
    return re.findall(rf"```({languages})\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The commands of a block of bash in their order, as words; none of them is run."""
    # a program that is named by its path never comes to the handle by itself
    caught = re.sub(r"^(?=[\w.-]*/)", "command_not_found_handle ", block, flags=re.MULTILINE)
    done = subprocess.run(["bash", "-c", f"exec 3>&1\n{RECORD}{caught}"], capture_output=True, text=True, check=False)
    assert done.stderr == "", (block, done.stderr)
    return [shlex.split(line) for line in done.stdout.splitlines()]
