"""Every command of the documentation runs, page by page in the page's order, on tiny stand-ins and for few steps."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import small_world
import torch
import yaml
from families import quick
from pages import PAGES, ROOT, blocks, commands, name
from typer.testing import CliRunner

from eas import cli
from eas.measure import rates, shapes
from eas.pipeline import RunConfig

torch.set_num_threads(1)
NOT_RUN = {
    "make": "it runs everything; CI runs it",
    "pip install": "it installs packages",
    "python -m venv": "it makes an environment for packages",
    "vllm-env/bin/pip": "it installs packages",
    "vllm-env/bin/serve": "it needs Ray Serve and vLLM, and serves until it is stopped",
    "torchrun": "it needs eight processes; test_distributed.py starts two",
    "srun": "it needs a cluster",
    "scontrol": "it needs a cluster",
    "head": "it reads what the cluster says",
    "vllm serve": "it needs vLLM and serves until it is stopped; test_serve_vllm.py",
    "llama-server": "it needs llama.cpp and serves until it is stopped; test_engines.py",
    "lmms-eval": "it needs lmms-eval; test_lmms_eval.py",
    "eas serve": "it serves until it is stopped; test_serve.py and test_serve_vllm.py",
    "python scripts/train_smol.py": "it trains for an hour and a half, on packages",
}
"""How a command begins that is not run here -> why."""
OTHER_WORDS = {"cuda": "cpu", "smollm2-135m": "words", "visual_tokens=144": "visual_tokens=4"}
FEW_OPTIONS = [word for key, value in small_world.FEW.items() for word in ("-o", f"{key}={value}")]
MORE_WORDS = {
    "eas run": FEW_OPTIONS,
    "eas search": FEW_OPTIONS,
    "eas reproduce --train": FEW_OPTIONS,
    "eas reproduce --measure": ["--repeats", "1", "--new-tokens", "2", "--prompt-tokens", "16"],
    "eas bench": ["--repeats", "1", "--new-tokens", "4", "--prompt", "12", "--decode", "eager"],
    "eas convert meter": ["--image-size", "16", "--tokenizer", "roberta-base/"],
    "eas predict": ["--max-new-tokens", "2"],
    "eas generate": ["--max-new-tokens", "2"],
}
"""What a command is -> what makes it short; of an option that is given twice the last counts."""
REFUSED = {
    "eas data check --dataset slake --data-dir Slake -o data_options.language=all": "test would contain training images"
}
"""Commands that the page shows because they find a fault -> what they print."""
READ_TOO = {"eas reproduce --train": ("llava-hf/llava-1.5-7b-hf", "data/Slake", "data/AID", "data/ScienceQA")}
"""What a command is -> what it reads without naming it."""
READS_TEXT = {"docs/serve.md"}
"""Pages whose own model is a language model."""
IN_PYTHON = {"docs/meter.md", "docs/count.md"}
"""Pages whose Python names nothing that the page does not make."""
WRITTEN = ("--output", "--output-dir", "--json")
QUICK = ("docs/does-it-work.md", "docs/smol.md", "plugins/eas-vllm/README.md")


def is_about(words: list[str], key: str) -> bool:
    """Whether the command begins with the words of the key; options may stand elsewhere."""
    options = [word for word in key.split() if word.startswith("--")]
    first = [word for word in key.split() if word not in options]
    return words[: len(first)] == first and set(options) <= set(words)


class Place:
    """A folder in which a page's commands run, and where they find what they name."""

    def __init__(self, kept: Path, seeing: bool) -> None:
        self.stand_ins = small_world.stand_ins(kept, seeing)
        self.placed: set[str] = set()
        Path("src").symlink_to(ROOT / "src")
        for folder in ("scripts", "docs", "benchmarks"):
            shutil.copytree(ROOT / folder, folder)

    def make_ready(self, words: list[str]) -> None:
        """Puts what the command reads in its place, where no earlier command left it."""
        given = ["", *words]
        written = [word for before, word in zip(given, words, strict=False) if before in WRITTEN]
        if words[:2] == ["eas", "search"]:
            written.append(words[2])
        for word in written:
            if word in self.placed:  # the page's own run takes the place of ours
                shutil.rmtree(word)
        read = [part for word in words if word not in written for part in (word, word.rpartition(":")[2])]
        for word in words:
            if word.endswith(".yaml"):
                self.place(word)
                if "run" in words:
                    config = RunConfig.from_file(word)
                    read += [config.model, config.data.rpartition(":")[2]]
        for word in (*read, *(word for key, more in READ_TOO.items() if is_about(words, key) for word in more)):
            self.place(word)

    def place(self, word: str) -> None:
        for key, make in self.stand_ins.items():
            path = Path(key)
            if f"{word}/".startswith(f"{path}/") and not path.exists():
                (path if key.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
                make(path)
                self.placed.add(str(path))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


def small_shapes(patch: pytest.MonkeyPatch) -> None:
    tower = {"image_size": 28, "patch_size": 14, "projection_dim": 32}
    for shape, layers in (("llava-0.5b", 12), ("llava-7b", 18)):
        config = shapes._llava(
            shapes._llama(64, 96, layers, 4, vocab_size=1024), shapes._sizes(32, 64, 2, 4, **tower), 1023
        )
        patch.setitem(shapes.SHAPES, shape, lambda config=config: config)
    patch.setitem(rates.SIZES, "cpu", (64, 2**16))


def short(words: list[str]) -> list[str]:
    """The command on a tiny model, with few steps."""
    more = [word for key, added in MORE_WORDS.items() if is_about(words, key) for word in added]
    return [OTHER_WORDS.get(word, word) for word in words] + more


def run(words: list[str], patch: pytest.MonkeyPatch) -> None:
    """One command, in this process."""
    if words[0] == "python":
        patch.setattr("sys.argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
        return
    assert words[0] == "eas", words
    if "bench" in words or "--measure" in words:
        small_shapes(patch)
    shown = CliRunner().invoke(cli.app, words[1:])
    fault = REFUSED.get(shlex.join(words), "")
    assert shown.exit_code == (1 if fault else 0), (words, shown.output[-3000:], shown.exception)
    assert fault in shown.output


def short_comparison(text: str) -> str:
    """The comparison of a page, with its entries and few steps."""
    values = yaml.safe_load(text)
    values |= {
        "seeds": [0],
        "jobs": 1,
        "trial_steps": 1,
        "benchmark": {"repeats": 1, "new_tokens": 2, "hidden_size": 128},
    }
    for key, value in small_world.FEW.items():
        section, _, key = key.rpartition(".")
        (values["run"].setdefault(section, {}) if section else values["run"])[key] = value
    return yaml.safe_dump(values)


@pytest.mark.parametrize("page", quick([name(page) for page in PAGES if blocks(page, "bash")], QUICK))
def test_the_page_runs_as_it_stands(page, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = Place(kept, page not in READS_TEXT)
    for _, block in blocks(ROOT / page, "yaml"):
        if "entries:" in block:
            Path("compare.yaml").write_text(short_comparison(block))
    names: dict[str, Any] = {}
    for language, block in blocks(ROOT / page, "bash|python"):
        if language == "python" and page in IN_PYTHON:
            place.make_ready(re.findall('"(.*?)"', block))
            exec(compile(block, page, "exec"), names)
        for words in commands(block) if language == "bash" else ():
            if any(is_about(words, key) for key in NOT_RUN):
                continue
            place.make_ready(words := short(words))
            with monkeypatch.context() as patch:
                run(words, patch)


def test_commands_have_these_options_and_the_tables_no_others():
    shown = [words for page in PAGES for _, block in blocks(page, "bash") for words in commands(block)]
    assert len(shown) > 80
    for words in shown:
        ours = words[0] == "eas" or (words[0] == "python" and (ROOT / words[1]).is_file())
        assert ours or any(is_about(words, key) for key in NOT_RUN), f"{words} is neither run nor named in NOT_RUN"
    assert {shlex.join(words) for words in shown} >= set(REFUSED)
    for key in (*NOT_RUN, *MORE_WORDS, *READ_TOO):
        assert any(is_about(words, key) for words in shown), key
    assert {word for words in shown for word in words} >= set(OTHER_WORDS)
    programs = [words for words in shown if "eas" in words and words[0] != "lmms-eval"]  # its model is called eas
    for words in (words[words.index("eas") :] for words in programs):  # under torchrun too
        ours = words[: words.index("--")] if "--" in words else words  # what follows is another program's
        helped = help_of(*ours[1:3]) if ours[1] in ("data", "convert") else help_of(ours[1])  # `eas data check`
        options = [word for word in ours if word.startswith("--")]
        assert all(re.search(rf"{word}(?![\w-])", helped) for word in options), words


@cache
def help_of(*verb: str) -> str:
    shown = CliRunner().invoke(cli.app, [*verb, "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, verb
    return shown.output
