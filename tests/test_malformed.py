"""Every malformed input is refused at once by an error of ours that names file, row or field, or it is read rightly."""

import importlib
import pkgutil
import re
import signal
import sys
import warnings
from collections import Counter

import malformed
import pytest

from eas.attachment.save import CheckpointError
from eas.config import ConfigError
from eas.convert import lavin, meter
from eas.errors import DataError
from eas.files import WriteError
from eas.models.anatomy import UnsupportedModelError
from eas.reports.sources import ReportError

OURS = (CheckpointError, ConfigError, DataError, ReportError, UnsupportedModelError, WriteError)
OURS += (lavin.ConversionError, meter.ConversionError)
SECONDS = 5.0
WRONG = ("accepted", "traceback", "hang", "unnamed")
MODULES = sorted(module.name for module in pkgutil.iter_modules(malformed.__path__))


class Hang(BaseException):
    """No `Exception`: nothing that is tried may catch it."""


def ended(case, folder):
    """How a case ends, and the error."""

    def stop(number, frame):
        raise Hang

    folder.mkdir()
    call = case.make(folder)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except OURS as error:
        return ("refused" if case.names and re.search(case.names, str(error), re.DOTALL) else "unnamed"), error
    except Hang as error:
        return "hang", error
    except Exception as error:
        return "traceback", error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ("read" if case.names is None or case.may_read else "accepted"), None


@pytest.mark.parametrize(
    ("name", "step"),
    [*((name, 5) for name in MODULES), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in MODULES)],
)
def test_malformed(name, step, tmp_path):
    """Every fifth case in `make test`, and all of them in `make test-slow`."""
    cases = importlib.import_module(f"malformed.{name}").CASES
    assert len({case.name for case in cases}) == len(cases)
    found, wrong = Counter(), []
    for number, case in enumerate(cases[::step]):
        end, error = ended(case, tmp_path / str(number))
        found[end] += 1
        if end in WRONG:
            wrong.append(f"{case.name}: {end}: {type(error).__name__ if error else ''} {str(error)[:300]}")
    print(
        f"\n{name}: {found.total()} of {len(cases)} cases, "
        + ", ".join(f"{end} {found[end]}" for end in ("refused", "read", *WRONG))
    )
    assert not wrong, "\n".join(wrong)


def test_the_runner_tells_what_is_wrong(tmp_path, monkeypatch):
    """A runner that finds nothing would pass as well."""

    def refuse():
        raise DataError("file.jsonl:3: bad")

    def crash():
        raise KeyError("id")

    def wait():
        signal.pause()

    def made(name, call, names, may_read=False):
        return ended(malformed.Case(name, lambda folder: call, names, may_read), tmp_path / name)[0]

    assert made("a", refuse, "file.jsonl:3") == "refused"
    assert made("b", refuse, "file.jsonl:4") == "unnamed"
    assert made("c", refuse, None) == "unnamed"
    assert made("d", crash, "id") == "traceback"
    assert made("e", lambda: 1, "id") == "accepted"
    assert made("f", lambda: 1, "id", True) == made("g", lambda: 1, None) == "read"
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 0.05)
    assert made("h", wait, "id") == "hang"
