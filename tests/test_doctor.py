"""`eas doctor` finds what is wrong and says what to do; the command line starts without torch and says nothing odd."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from typer.testing import CliRunner

import eas
from eas import cli, doctor
from eas.hf.versions import TransformersChangedError
from eas.models.anatomy import FAMILIES


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """No twin is computed, nothing optional imported: both have tests of their own."""
    monkeypatch.setattr("eas.attachment.twin.deviation", lambda family: 1e-7)
    monkeypatch.setattr(doctor, "OPTIONAL", {})


def rows() -> dict[str, doctor.Finding]:
    return {row.name: row for row in doctor.findings()}


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Other versions are installed; None is for none."""
    real = metadata.version

    def version(name: str) -> str:
        found = versions[name] if name in versions else real(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


def test_an_installation_that_is_right() -> None:
    result = CliRunner().invoke(cli.app, ["doctor"])
    said = json.loads(result.output.splitlines()[-1])
    assert (result.exit_code, said["ok"]) == (0, True), result.output
    names = [row["name"] for row in said["findings"]]
    direct = {Requirement(line).name for line in metadata.requires("eas") or [] if "extra ==" not in line}
    assert {"Python", "eas", "torch's build", "GPU", "C++ compiler", *direct} <= set(names)
    assert sum(name.startswith("decoding, ") for name in names) == len(FAMILIES)


@pytest.mark.parametrize(
    ("package", "version", "found", "remedy"),
    [
        ("transformers", "5.22.2", "5.22.2, outside of <5.25,>=5.23", "pip install 'transformers<5.25,>=5.23'"),
        ("transformers", "5.25.0", "5.25.0, outside of <5.25,>=5.23", "pip install 'transformers<5.25,>=5.23'"),
        ("peft", "0.1.0", "0.1.0, outside of >=", "pip install 'peft>="),
        ("safetensors", None, "not installed", "pip install 'safetensors>="),
    ],
)
def test_versions(monkeypatch: pytest.MonkeyPatch, package: str, version: str | None, found: str, remedy: str) -> None:
    pretend(monkeypatch, **{package: version})
    row = rows()[package]
    assert (row.state, row.found[: len(found)], row.remedy[: len(remedy)]) == ("wrong", found, remedy)
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert (result.exit_code, json.loads(result.output.splitlines()[-1])["ok"]) == (1, False)


def refusing(family: str) -> float:
    raise TransformersChangedError("the cache was lost")


def dying(family: str) -> float:
    raise RuntimeError("The size of tensor a (0) must match\nand more")


@pytest.mark.parametrize(
    ("twin", "found"),
    [
        (lambda family: 0.2, "off by 2.0e-01 with the cache"),
        (lambda family: float("nan"), "off by nan with the cache"),
        (refusing, "TransformersChangedError: the cache was lost"),
        (dying, "fails: RuntimeError: The size of tensor a (0) must match"),
    ],
)
def test_decoding_that_is_wrong(monkeypatch: pytest.MonkeyPatch, twin: Any, found: str) -> None:
    monkeypatch.setattr("eas.attachment.twin.deviation", twin)
    row = rows()["decoding, Llava"]
    assert (row.state, row.found[: len(found)]) == ("wrong", found)
    assert "pip install 'transformers" in row.remedy


def test_a_torchvision_of_another_build_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    broken = {"transformers": "torchvision"}  # what transformers imports first
    monkeypatch.setattr(doctor, "import_module", lambda name: importlib.import_module(broken.get(name, name)))
    row = rows()["transformers"]
    assert row.found == "torchvision does not load: RuntimeError: operator torchvision::nms does not exist"
    assert row.remedy.startswith("pip uninstall torchvision, or install it of torch's kind")


def test_what_is_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken_eas_extra.py").write_text("print('chatter')\nraise OSError('libgone.so: no such file')")
    (tmp_path / "working_eas_extra.py").write_text("print('chatter')\nuse = 1")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("absent", "broken", "working")
    extras = {f"{name}-eas-extra": (f"{name}_eas_extra", "use", "jokes") for name in names}
    monkeypatch.setattr(doctor, "OPTIONAL", extras)
    pretend(monkeypatch, **{"absent-eas-extra": None, "broken-eas-extra": "1.0", "working-eas-extra": "1.0"})
    absent, broken, working = (rows()[name] for name in extras)
    assert (absent.state, absent.remedy) == ("absent", "for jokes: pip install 'absent-eas-extra'")
    assert (broken.state, broken.found) == ("wrong", "does not load: OSError: libgone.so: no such file")
    assert working == doctor.Finding("working-eas-extra", "1.0")
    assert "".join(capfd.readouterr()) == ""


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "nvidia-smi" else None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for cuda, words in (("12.6", "torch for CUDA 12.6 finds none"), (None, "torch is a CPU build")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert (rows()["GPU"].state, words in rows()["GPU"].found) == ("wrong", True)
    assert rows()["C++ compiler"].state == "absent"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: SimpleNamespace(name="H100", total_memory=80 * 2**30)
    )
    assert rows()["GPU"].found == "H100 (80 GiB)"


def fresh(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "peft", "torchao", "bitsandbytes", "datasets", "matplotlib", "numpy"}
    code = f"""if True:
        import sys, eas.cli
        try:
            eas.cli.main()
        except SystemExit:
            print("loaded:", sorted({heavy!r} & set(sys.modules)))
    """
    said = fresh(code, "--help")
    assert "Usage" in said.stdout
    assert said.stdout.splitlines()[-1] == "loaded: []"
    assert said.stderr == ""


@pytest.mark.slow
def test_commands_say_nothing_of_other_packages() -> None:
    said = fresh("from eas.cli import main; main()", "config")
    assert said.stderr == ""
    assert said.stdout.lstrip().startswith("Keys of a run's YAML file")


def test_names_come_when_they_are_used() -> None:
    code = """if True:
        import sys, eas
        assert "torch" not in sys.modules and "attach" in dir(eas)
        assert eas.attach is sys.modules["eas.attachment.attach"].attach
        from transformers import AutoConfig
        print(AutoConfig.for_model("eas_llava").model_type)
    """
    assert fresh(code).stdout == "eas_llava\n"
    assert set(eas._HOME) == set(eas.__all__)
    assert all(hasattr(eas, name) for name in eas.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = eas.nothing  # type: ignore[attr-defined]
