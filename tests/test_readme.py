"""The README's snippets run, and pages are about what is there; test_commands.py runs every command."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from itertools import product

import contract
import pytest
import test_methods
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pages import PAGES, ROOT, blocks, commands, name

import eas
from eas.data import load_data
from eas.demo.tiny import load_tiny
from eas.hf.versions import BEYOND, OLDEST
from eas.methods import Method
from eas.tasks.collate import Collator


def test_python_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = blocks(ROOT / "README.md", "python")
    assert snippets
    for _, snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "adapter" / "eas_config.json").is_file()


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("folding", "eas.unfold"),
        ("folding", "eas.freeze_router"),
        ("bench", "eas.fast_decode"),
        ("howto", "eas.search"),
        ("howto", "eas.log_likelihood"),
    ],
)
def test_snippets_of_pages_run(page, told):
    (snippet,) = [code for _, code in blocks(ROOT / "docs" / f"{page}.md", "python") if told in code]
    model, processor = load_tiny()
    eas.attach(model, eas.EASConfig(num_skip=2, skip_rank=8, adapt_rank=4))
    if told != "eas.search":
        eas.select(model, [3, 5])
        eas.prune(model)
    examples = load_data("scenes:colour", "train", 16)
    asked, collator = Collator(processor, training=False), Collator(processor, training=True)
    given = {"eas": eas, "model": model.eval(), "train": examples, "held_out": examples, "collator": collator}
    given |= {"loader": [collator([*examples[:4]])], "inputs": dict(asked([*examples[:4]]))}
    given["inputs"].pop("prompt_mask")  # the prompt is all that `generate` reads
    if told == "eas.log_likelihood":
        given["labels"] = (inputs := collator([*examples[:4]])).pop("labels")
        given["inputs"] = inputs
    exec(compile(snippet.replace("max_steps=400", "max_steps=200, report_to='none'"), page, "exec"), given)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\(((?!http)[^)#]+)", page.read_text())
    assert all((page.parent / target).exists() for target in targets), targets


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    shown = [
        words for page in PAGES for _, block in blocks(page, "bash") for words in commands(block) if words[0] == "make"
    ]
    assert shown
    for _, target, *_ in shown:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_declared_range_of_transformers_is_the_tested_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = next(Requirement(line) for line in project["dependencies"] if line.startswith("transformers"))
    assert declared.specifier == SpecifierSet(f">={OLDEST},<{BEYOND}")
    lock = (ROOT / "requirements" / "lock.txt").read_text()
    locked = dict(re.findall(r"^([\w-]+)==([^\s;]+)", lock, flags=re.MULTILINE))
    assert declared.specifier.contains(locked["transformers"])


def test_the_example_of_a_method_keeps_the_contract(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (_, usage), (_, example) = blocks(ROOT / "docs" / "methods.md", "python")
    exec(usage, {})
    (tmp_path / "bitfit.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    bitfit = importlib.import_module("bitfit")
    monkeypatch.setitem(eas.METHODS, "bitfit", Method(bitfit.BitFitConfig, bitfit.attach))
    for configs in (contract.CONFIGS, contract.METER_CONFIGS):
        monkeypatch.setitem(configs, "bitfit", {"scale": 2.0})
    clauses = [clause for name, clause in vars(test_methods.TestContract).items() if name.startswith("test_")]
    assert len(clauses) > 8
    for family, clause in product(("LlavaForConditionalGeneration", contract.METER), clauses):
        given = {"tmp_path": tmp_path / family} if "tmp_path" in inspect.signature(clause).parameters else {}
        clause(test_methods.TestContract(), family, "bitfit", **given)


def test_the_table_of_methods_names_them_all():
    table = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", (ROOT / "docs" / "methods.md").read_text(), flags=re.MULTILINE)
    folds = {name: tuple(re.findall(r"`(\w+)`", fold)) for name, fold in table}
    assert folds == {name: method.fold_modes for name, method in eas.METHODS.items()}


@pytest.mark.parametrize("script", ["evidence_page", "search_page", "smol_page", "smollm2_page"])
def test_pages_show_what_was_measured(script, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    module = importlib.import_module(script)
    for page in module.PAGES:
        assert module.filled(page.read_text()) == page.read_text()


def test_the_api_page_has_every_public_name():
    shown = set(re.findall(r"^::: eas\.(\S+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE))
    assert shown - {"runtime"} == {*eas.__all__}
