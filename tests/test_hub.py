"""Adapters on the Hub, which is a folder here: nothing reaches for the network."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import attached, build, logits, prompts
from huggingface_hub.errors import RepositoryNotFoundError

import eas
from eas.attachment.save import CheckpointError
from eas.card import MARK

torch.set_num_threads(1)
LLAMA = "LlamaForCausalLM"
FILES = ["adapter.safetensors", "eas_config.json"]


class Hub:
    """What of ``HfApi`` is used, on a folder for each repository and branch."""

    def __init__(self, root: Path) -> None:
        self.root, self.private = root, {}

    def folder(self, repo_id, revision=None):
        return self.root / repo_id / (revision or "main")

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        self.private[repo_id] = private
        self.folder(repo_id).mkdir(parents=True, exist_ok=True)

    def create_branch(self, repo_id, *, branch, exist_ok):
        assert exist_ok
        self.folder(repo_id, branch).mkdir(exist_ok=True)

    def file_exists(self, repo_id, name, *, revision):
        return (self.folder(repo_id, revision) / name).is_file()

    def hf_hub_download(self, repo_id, name, *, revision):
        return str(self.folder(repo_id, revision) / name)

    def upload_folder(self, *, repo_id, folder_path, revision, allow_patterns, commit_message):
        for name in allow_patterns:
            shutil.copy(Path(folder_path) / name, self.folder(repo_id, revision))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(self, repo_id, *, revision, allow_patterns):
        assert allow_patterns == FILES
        if not (folder := self.folder(repo_id, revision)).is_dir():
            raise RepositoryNotFoundError(
                "404 Client Error.\n\nRepository Not Found", response=SimpleNamespace(headers={})
            )
        return str(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("eas.attachment.hub.HfApi", lambda: hub)
    monkeypatch.setattr("eas.models.folder.snapshot_download", hub.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return hub


def test_an_adapter_goes_to_the_hub_and_comes_back(hub, tmp_path):
    model = attached(LLAMA)
    model.config.name_or_path = str(tmp_path / "my-llama")
    assert eas.push_to_hub(model, "user/adapter", private=True) == "https://hub/user/adapter/commit/1"
    assert hub.private == {"user/adapter": True}
    assert sorted(path.name for path in hub.folder("user/adapter").iterdir()) == ["README.md", *FILES]
    written = "".join((hub.folder("user/adapter") / name).read_text(errors="replace") for name in ("README.md", *FILES))
    assert '"my-llama"' in written
    assert str(tmp_path) not in written
    assert model.config.name_or_path == str(tmp_path / "my-llama")
    opened = eas.load(build(LLAMA), "user/adapter")
    assert torch.equal(logits(opened, prompts(LLAMA)), logits(model, prompts(LLAMA)))
    build(LLAMA).save_pretrained(tmp_path / "base")
    again = eas.load(str(tmp_path / "base"), "user/adapter")
    assert torch.equal(logits(again, prompts(LLAMA)), logits(model, prompts(LLAMA)))


def test_a_revision_is_the_adapter_s(hub):
    for skip, revision in (((0, 2), None), ((1, 3), "other")):
        eas.push_to_hub(attached(LLAMA, skip), "user/adapter", revision=revision)
    assert eas.skip_set(eas.load(build(LLAMA), "user/adapter")) == (0, 2)
    assert eas.skip_set(eas.load(build(LLAMA), "user/adapter", revision="other")) == (1, 3)


def test_base_revision_is_the_base_s(hub, monkeypatch):
    eas.push_to_hub(attached(LLAMA), "user/adapter")
    asked = []

    def load_base(name, **given):
        asked.append((name, given))
        return build(LLAMA)

    monkeypatch.setattr("eas.attachment.load.load_base", load_base)
    monkeypatch.setattr("eas.attachment.load.model_config", lambda *_, **__: None)
    eas.load("user/base", "user/adapter", base_revision="v1", dtype="float32")
    eas.load("user/base", "user/adapter", revision=None)
    assert asked == [("user/base", {"revision": "v1", "dtype": "float32"}), ("user/base", {"revision": None})]
    with pytest.raises(CheckpointError, match="base_revision = 'v1': user/standalone has no base; use revision"):
        eas.load("user/standalone", base_revision="v1")


def test_a_folder_comes_before_the_hub_and_has_no_revision(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("eas.models.folder.snapshot_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    eas.save(attached(LLAMA), "user/adapter")
    assert eas.attached(eas.load(build(LLAMA), "user/adapter"))
    with pytest.raises(CheckpointError, match=r"user/adapter is a folder and has no revision 'v1'; base_revision is"):
        eas.load(build(LLAMA), "user/adapter", revision="v1")
    with pytest.raises(CheckpointError, match=r"has no adapter\.safetensors; name a folder"):
        eas.load(build(LLAMA), Path("user/other"))


def test_what_is_missing_is_named(hub):
    with pytest.raises(
        CheckpointError, match=r"user/none is no folder here, and user/none \(revision v2\) cannot be .*"
    ):
        eas.load(build(LLAMA), "user/none", revision="v2")
    eas.push_to_hub(attached(LLAMA), "user/adapter")
    (hub.folder("user/adapter") / FILES[1]).unlink()
    with pytest.raises(CheckpointError, match=r"user/adapter \(revision main\) on the Hub has no eas_config\.json;"):
        eas.load(build(LLAMA), "user/adapter")
    (hub.folder("user/adapter") / FILES[0]).unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter\.safetensors and no eas_config\.json"):
        eas.load(build(LLAMA), "user/adapter")


def test_a_card_of_somebody_else_stays(hub):
    eas.push_to_hub(attached(LLAMA), "user/adapter")
    card = hub.folder("user/adapter") / "README.md"
    first = card.read_text()
    assert MARK in first
    eas.push_to_hub(attached(LLAMA, (1, 3)), "user/adapter")
    assert "[1, 3]" in card.read_text()
    card.write_text("mine")
    eas.push_to_hub(attached(LLAMA), "user/adapter")
    assert card.read_text() == "mine"
    assert eas.skip_set(eas.load(build(LLAMA), "user/adapter")) == (0, 2)
