"""The public names: what each does beside the verbs that have tests of their own."""

from __future__ import annotations

import pkgutil

import pytest
import torch
from families import build
from trainers import CONFIG, arguments, lively, rows
from transformers import default_data_collator

import eas
from eas.methods import METHODS

torch.set_num_threads(1)
LLAMA = "LlamaForCausalLM"
SETTINGS = eas.SearchConfig(train=True, warmup_steps=2, interval=2, batch_size=4)
TRAINING = {"max_steps": 12, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True}


def model():
    torch.manual_seed(0)  # of the PIAs
    return eas.attach(lively(LLAMA), eas.EASConfig(2, **CONFIG))


def test_search_is_the_search_phase_of_a_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = model()
    result = eas.search(found, rows(40), rows(10, seed=1), default_data_collator, SETTINGS, **TRAINING)
    assert list(tmp_path.iterdir()) == []
    trainer = eas.EASTrainer(
        model(),
        arguments(tmp_path / "own", seed=0, lr_scheduler_type="cosine"),
        phase="search",
        search=SETTINGS,
        held_out=rows(10, seed=1),
        train_dataset=rows(40),
        data_collator=default_data_collator,
    )
    trainer.train()
    assert result.rounds == trainer.search_result().rounds
    assert len(result.rounds) == 6
    assert eas.skip_set(found) == result.skip_set == trainer.search_result().skip_set


def test_search_says_what_it_cannot_do():
    def search(attached, train, held_out, config=SETTINGS, **more):
        return eas.search(attached, train, held_out, default_data_collator, config, **(TRAINING | more))

    with pytest.raises(eas.ConfigError, match="the training split is empty"):
        search(model(), [], rows(8))
    with pytest.raises(eas.ConfigError, match="needs held-out examples"):
        search(model(), rows(8), [])
    with pytest.raises(ValueError, match="not attached"):
        search(build(LLAMA), rows(8), rows(8))
    with pytest.raises(eas.ConfigError, match=r"LoRAConfig\.num_skip = 0: there is nothing to search"):
        search(eas.attach(build(LLAMA), eas.LoRAConfig(rank=2)), rows(8), rows(8))
    for train in (True, False):  # the first round would follow step 20
        with pytest.raises(eas.ConfigError, match="a search of 12 steps has no round; search for 20 or more"):
            search(model(), rows(8), rows(8), eas.SearchConfig(warmup_steps=20, train=train))
    with pytest.raises(eas.ConfigError, match="rule = 'similarity' needs no search"):
        search(model(), rows(8), rows(8), eas.SearchConfig(rule="similarity"))
    with pytest.raises(eas.ConfigError, match="num_train_epochs has no meaning in a search; give max_steps"):
        search(model(), rows(8), rows(8), num_train_epochs=2)
    for name, value in (("output_dir", "x"), ("resume_from_checkpoint", True), ("push_to_hub", True)):
        with pytest.raises(eas.ConfigError, match=f"{name} has no meaning in a search; nothing is kept"):
            search(model(), rows(8), rows(8), **{name: value})


def test_a_search_that_trains_nothing_needs_no_training_examples_and_its_seed_counts():
    config = eas.SearchConfig(warmup_steps=0, interval=2, batch_size=4, train=False)
    drawn = [
        eas.search(model(), [], rows(10, seed=1), default_data_collator, config, **TRAINING, seed=seed).rounds[0]
        for seed in (1, 2, 1)
    ]
    assert drawn[0].skip_sets == drawn[2].skip_sets != drawn[1].skip_sets


def test_a_search_without_training_changes_no_weight():
    searched = model()
    before = {name: tensor.clone() for name, tensor in searched.state_dict().items()}
    config = eas.SearchConfig(warmup_steps=0, interval=2, batch_size=4, train=False)
    result = eas.search(searched, rows(40), rows(10, seed=1), default_data_collator, config, **TRAINING)
    assert len(result.rounds) == 6
    assert all(torch.equal(tensor, before[name]) for name, tensor in searched.state_dict().items())


def test_trainable_parameters_are_counted_and_printed(capsys):
    attached = eas.attach(build(LLAMA), eas.LoRAConfig(rank=2, targets=["q_proj"]))
    trained = 4 * 2 * (32 + 32)  # layers, rank, in and out
    total = sum(p.numel() for p in build(LLAMA).parameters()) + trained
    assert eas.parameter_counts(attached) == (trained, total)
    eas.print_trainable_parameters(attached)
    said = f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}\n"
    assert capsys.readouterr().out == said


def test_every_method_s_configuration_is_exported():
    for name, method in METHODS.items():
        assert method.config.__name__ in eas.__all__
        assert getattr(eas, method.config.__name__) is method.config, name


def test_a_former_name_works_and_says_the_new_one():
    with pytest.warns(DeprecationWarning, match=r"eas\.merge_and_save is called eas\.save_standalone; .* in 0\.3"):
        assert eas.merge_and_save is eas.save_standalone
    with pytest.raises(AttributeError, match="has no attribute 'merge'"):
        _ = eas.merge


def test_no_module_hides_a_public_name():
    """Importing a module sets its name on the package."""
    assert not {module.name for module in pkgutil.iter_modules(eas.__path__)} & {*eas.__all__}
