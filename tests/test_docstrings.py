"""Every public name has an example, and the examples run."""

from __future__ import annotations

import doctest
import inspect

import pytest
import torch

import eas
from eas.attachment.standalone import STANDALONE
from eas.models.anatomy import FAMILIES, OWN

torch.set_num_threads(1)
RESULTS = {"Counts", "Latency", "QuantisedFold", "SearchResult", "UnsupportedModelError"}
"""What functions return or raise; the functions' examples show it."""
NAMES = [name for name in eas.__all__ if name not in RESULTS | {"METHODS"}]


@pytest.fixture(autouse=True)
def tables():
    """The family that an example registers is gone after it."""
    yield
    for table in (FAMILIES, OWN, STANDALONE):
        table.pop("MyForCausalLM", None)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = getattr(eas, name)
    finder = doctest.DocTestFinder(recurse=False)
    (found,) = finder.find(thing, name, globs=dict(vars(inspect.getmodule(thing))))
    assert found.examples, f"eas.{name} has no example"
    said: list[str] = []
    done = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found, out=said.append)
    assert done.failed == 0, "".join(said)
