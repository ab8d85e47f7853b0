"""What is read back from disk is what was written, or is refused by file, field and remedy; nothing half is written."""

import json
import shutil

import pytest
import torch
from families import attached, blocks, build, quick
from safetensors.torch import load_file, save_file
from test_kill import files_of_at_most
from trainers import searcher
from typer.testing import CliRunner

import eas
from eas import CheckpointError, cli, prune, save, save_standalone
from eas.config import ConfigError
from eas.files import WriteError, write_text
from eas.pipeline import Run, RunConfig
from eas.pipeline.frontier import fit_rounds
from eas.pipeline.steps import tune
from eas.records import AdapterRecord, RecordError, misfit
from eas.training import last_checkpoint
from eas.weights import read_torch, require_state

LLAMA = "LlamaForCausalLM"


def test_fields_are_of_their_annotated_types():
    base = {"id": "", "revision": None, "class": "A", "hidden_size": 4, "num_hidden_layers": 2}
    record = {"config": {}, "skip_set": [1], "pruned": False, "base": base, "versions": {"eas": "1"}, "more": 1}
    assert misfit(record, AdapterRecord, "") is None
    for change, words in (
        ({"skip_set": [True]}, "skip_set[0] = True must be int"),
        ({"pruned": 0}, "pruned = 0 must be bool"),
        ({"base": {**base, "hidden_size": 4.0}}, "base.hidden_size = 4.0 must be int"),
        ({"base": {**base, "revision": []}}, "base.revision = [] must be str"),
        ({"base": {}}, "base has no 'id'"),
        ({"versions": {"eas": None}}, "versions['eas'] = None must be str"),
    ):
        assert misfit(record | change, AdapterRecord, "") == words
    assert misfit(1, float, "x") is None
    assert misfit(float("nan"), float, "x") == "x = nan must be finite"
    assert misfit(-(10**400), float, "x").endswith("must be below 1e308")
    assert misfit(True, float, "x") == "x = True must be float"
    assert misfit([1, "a"], list[int | None], "x") == "x[1] = 'a' must be int"


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    model = attached(LLAMA)
    blocks(model)[1].adapt_pia.up1.weight.data[0, 0] = float("nan")
    key = r"layers\.1\.adapt_pia\.up1\.weight"
    with pytest.raises(ValueError, match=rf"{tmp_path}/adapter is not written: 1 of \d+ tensors .*\({key}\); lower"):
        save(model, tmp_path / "adapter")
    prune(model)
    blocks(model)[1].mlp.gate_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"is not written: 2 of \d+ tensors .*layers\.1\.mlp\.gate_proj"):
        save_standalone(model, tmp_path / "merged")
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_leaves_no_half_written_adapter(tmp_path):
    model = attached(LLAMA)
    with files_of_at_most(5_000), pytest.raises(WriteError, match=f"{tmp_path}/new"):
        save(model, tmp_path / "new")
    assert not [*tmp_path.iterdir()]
    save(model, tmp_path / "old")
    before = sorted(path.name for path in (tmp_path / "old").iterdir())
    with files_of_at_most(5_000), pytest.raises(WriteError):
        save(model, tmp_path / "old")
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == before


@pytest.mark.parametrize("shards", [False, True])
def test_a_full_disk_leaves_no_half_written_standalone_model(shards, tmp_path):
    model, folder = attached(LLAMA), tmp_path / "old"
    prune(model)
    with files_of_at_most(5_000), pytest.raises(WriteError, match=f"{tmp_path}/new"):
        save_standalone(model, tmp_path / "new")
    assert not [*tmp_path.iterdir()]
    save_standalone(model, folder)
    (folder / "mine.txt").write_text("stays")
    if shards:  # of another model, which was larger
        eas.load(folder).save_pretrained(folder, max_shard_size="20KB")
        assert len([*folder.glob("*.safetensors")]) > 1
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with files_of_at_most(5_000), pytest.raises(WriteError):
        save_standalone(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    save_standalone(model, folder)
    (weights,) = folder.glob("*.safetensors*")
    assert weights.name == "model.eas.safetensors"
    assert (folder / "mine.txt").read_text() == "stays"
    assert eas.skip_set(eas.load(folder)) == eas.skip_set(model)


def test_a_full_disk_leaves_no_half_written_text(tmp_path):
    path = tmp_path / "result.json"
    with files_of_at_most(5_000), pytest.raises(WriteError, match="make room"):
        write_text(path, "x" * 50_000)
    assert not [*tmp_path.iterdir()]
    path.write_text("old")
    with files_of_at_most(5_000), pytest.raises(WriteError):
        write_text(path, "x" * 50_000)
    assert [one.name for one in tmp_path.iterdir()] == ["result.json"]
    assert path.read_text() == "old"


def test_sizes_are_compared_before_anything_is_allocated_and_the_base_stays_as_it_was(tmp_path, monkeypatch):
    save(attached(LLAMA), tmp_path)
    path, devices = tmp_path / "adapter.safetensors", []
    record = json.loads((tmp_path / "eas_config.json").read_text())
    record["config"]["skip_rank"] = 2**20
    tensors = load_file(path)
    save_file(tensors, path, metadata={"eas": json.dumps(record)})
    (tmp_path / "eas_config.json").write_text(json.dumps(record))

    def attach(model, config, do=eas.attach):
        devices.append(model.device.type)
        return do(model, config)

    monkeypatch.setattr("eas.attachment.load.attach", attach)
    base = build(LLAMA)
    with pytest.raises(CheckpointError, match=r"has shape \(4, 32\), not \(1048576, 32\); copy or save it again"):
        eas.load(base, tmp_path)
    assert devices == ["meta"]
    assert not eas.attached(base)
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_a_base_is_checked_as_well(tmp_path):
    save(attached(LLAMA), tmp_path / "adapter")
    build(LLAMA).save_pretrained(tmp_path / "base")
    weights, config = tmp_path / "base" / "model.safetensors", tmp_path / "base" / "config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    with pytest.raises(CheckpointError, match=rf"{weights} is truncated or damaged"):
        eas.load(tmp_path / "base", tmp_path / "adapter")
    weights.write_bytes(whole)
    config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 1000000'))
    for use in (lambda: eas.load(tmp_path / "base", tmp_path / "adapter"), lambda: eas.count(tmp_path / "base", 8)):
        with pytest.raises(ValueError, match=rf"{config}: num_hidden_layers = 1000000 must be a whole number up to"):
            use()
    weights.unlink()
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"no weights")
    config.write_text(config.read_text().replace("1000000", "4"))
    with pytest.raises(CheckpointError, match="its weights are damaged") as refused:
        eas.load(tmp_path / "base", tmp_path / "adapter")
    assert "weights_only" not in str(refused.value)


def test_torchs_advice_to_load_unsafely_is_never_quoted(tmp_path):
    torch.save({"a": pytest.Item}, tmp_path / "x.pt")
    with pytest.raises(RecordError, match="holds more than weights and plain values; again") as refused:
        read_torch(tmp_path / "x.pt", "again")
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__  # nor by its traceback
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "y.pt")
    with pytest.raises(RecordError, match=r"y: a \(1000000, 1000000\) is larger than its stored data"):
        require_state(read_torch(tmp_path / "y.pt", ""), "y", "")


@pytest.mark.parametrize(
    "file", quick(["rng_state.pth", "optimizer.pt", "adapter.safetensors", "search_state.json"], ["optimizer.pt"])
)
def test_a_broken_last_checkpoint_falls_back_to_the_one_before_with_a_note(tmp_path, capsys, file):
    whole = searcher(tmp_path / "whole", max_steps=8, save_steps=4)
    whole.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    path = tmp_path / "broken" / "checkpoint-8" / file
    path.write_bytes(path.read_bytes()[:-40])
    found = last_checkpoint(tmp_path / "broken", searching=True)
    assert found == str(tmp_path / "broken" / "checkpoint-4")
    assert f"passing over {path.parent}: {path}" in capsys.readouterr().out
    again = searcher(tmp_path / "broken", max_steps=8, save_steps=4)
    with pytest.raises(CheckpointError, match=f"{path}.*(resume from the checkpoint before it|save it again)"):
        again.train(resume_from_checkpoint=str(path.parent))
    again.train(resume_from_checkpoint=True)
    assert again.search_result().rounds == whole.search_result().rounds
    shutil.rmtree(tmp_path / "broken")
    with pytest.raises(CheckpointError, match="broken holds no whole checkpoint; start over"):
        again.train(resume_from_checkpoint=True)


def test_a_step_names_the_record_that_it_cannot_use(tmp_path):
    run = Run.create(
        RunConfig().with_overrides([f"output_dir={tmp_path}", "data=scenes:relation", "method.num_skip=2"])
    )
    for skip_set, words in (
        ([0, 99], "skip set names .99.*; run `eas search"),
        ([0, 0], "twice"),
        ("02", "must be list"),
    ):
        (tmp_path / "search.json").write_text(json.dumps({"skip_set": skip_set, "searched": False}))
        with pytest.raises(ConfigError, match=rf"{tmp_path}/search\.json: .*{words}"):
            tune(run)
    rounds = [{"step": 1, "skip_sets": [[0], [7]], "losses": [1.0, 2.0], "importances": []}]
    with pytest.raises(ConfigError, match=r"search\.json: rounds hold the skip set \[7\]; the candidates are 0 to 3"):
        fit_rounds(rounds, 4, 1)


def test_the_converters_name_the_file_on_the_command_line(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"garbage")
    for command in (
        ["meter", str(tmp_path / "x.ckpt"), "out"],
        ["lavin", "out", "--adapter", str(tmp_path / "x.ckpt")],
    ):
        with pytest.raises(ValueError, match=rf"{tmp_path}/x\.ckpt is truncated, or was not written by torch\.save"):
            CliRunner().invoke(cli.app, ["convert", *command], catch_exceptions=False)
