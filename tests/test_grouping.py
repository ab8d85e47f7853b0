"""Batches of about one length: a whole epoch, little padding, the same after a stop, and only where they pay."""

import math
import random
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainers import CONFIG, arguments, lively, rows

import eas
from eas.attachment.save import adapter_state
from eas.data import load_data
from eas.example import Example
from eas.pipeline import Run, RunConfig
from eas.pipeline.phases import announce, attached_base, make_trainer
from eas.pipeline.plan import plan
from eas.training.grouping import GroupedByLength, grouped_lengths, padded


def batches(sampler, batch):
    order = list(sampler)
    return [order[at : at + batch] for at in range(0, len(order), batch)]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_has_every_example_once_in_sorted_groups(lengths, batch, epoch):
    sampler = GroupedByLength(lengths, batch, seed=3)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert len(sampler) == len(lengths)
    assert order == list(sampler)
    groups = math.ceil(len(lengths) / (batch * max(1, min(32, len(lengths) // batch // 2))))
    spread = [max(lengths[i] for i in each) - min(lengths[i] for i in each) for each in batches(sampler, batch)]
    assert sum(spread) <= groups * (max(lengths) - min(lengths))  # within a group they follow one another


def test_long_and_short_examples_come_in_random_order_and_every_epoch_has_another():
    lengths = random.Random(0).choices(range(10, 400), k=640)
    sampler = GroupedByLength(lengths, 16, seed=0)
    first = batches(sampler, 16)
    spread = [max(lengths[i] for i in each) - min(lengths[i] for i in each) for each in first]
    assert max(spread) < 100  # of 390
    longest = [max(lengths[i] for i in each) for each in first]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
    sampler.set_epoch(1)
    assert batches(sampler, 16) != first
    assert list(GroupedByLength(lengths, 16, seed=1)) != [i for each in first for i in each]


def test_a_small_set_has_other_batches_every_epoch():
    sampler = GroupedByLength(range(100), 8, seed=0)
    first = {frozenset(each) for each in batches(sampler, 8)}
    sampler.set_epoch(1)
    assert not first & {frozenset(each) for each in batches(sampler, 8)}


def trainer(folder, **changes):
    torch.manual_seed(0)
    model = eas.attach(lively("LlamaForCausalLM"), eas.EASConfig(2, **CONFIG))
    eas.select(model, (1, 2))
    settings = arguments(folder, save_steps=1, **changes)
    return eas.EASTrainer(model, settings, train_dataset=rows(18), lengths=[*range(18)])


def test_a_stopped_training_goes_on_with_the_same_batches(tmp_path):
    whole = trainer(tmp_path / "whole")  # 12 steps of 4: two and a half epochs of 5 batches
    whole.train()
    for step in (3, 5, 6):  # within the first epoch, at its end, and within the second
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / f"{step}" / f"checkpoint-{step}")
        resumed = trainer(tmp_path / f"{step}")
        resumed.train(resume_from_checkpoint=True)
        ours, theirs = adapter_state(resumed.model), adapter_state(whole.model)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_lengths_of_other_examples_are_refused(tmp_path):
    model = eas.attach(lively("LlamaForCausalLM"), eas.EASConfig(2, **CONFIG))
    for train_dataset in (rows(18), None):
        with pytest.raises(ValueError, match="lengths has 17 values; give one for each example of train_dataset"):
            eas.EASTrainer(model, arguments(tmp_path), train_dataset=train_dataset, lengths=[*range(17)])
    eas.EASTrainer(model, arguments(tmp_path), train_dataset=rows(18), lengths=torch.arange(18)).get_train_dataloader()


def asked(text, answer="yes"):
    return Example(text[:9], ({"role": "user", "content": [{"type": "text", "text": text}]},), answer)


def test_lengths_are_grouped_where_random_batches_would_be_padded():
    unequal = [asked("a" * length) for length in range(10, 410, 2)]
    assert padded([len(each.question) for each in unequal], 16) > 1.5
    assert grouped_lengths(unequal, 16, None) == [len(each.question) + 3 for each in unequal]
    assert grouped_lengths(unequal, 16, False) == []
    assert grouped_lengths([Example("1", (), "")] * 3, 16, None) == []
    scenes = load_data("scenes:colour", "train")
    assert grouped_lengths(scenes, 16, None) == []
    assert len(grouped_lengths([asked("a" * 9)], 16, True)) == 1


@pytest.mark.parametrize("wanted", [True, None])
def test_a_run_says_which_batches_it_has(tmp_path, wanted, capsys):
    values = {"output_dir": str(tmp_path), "data": "scenes:colour", "train_limit": 40, "method": {"num_skip": 2}}
    run = Run(RunConfig.from_dict({**values, "train": {"batch_size": 4, "group_by_length": wanted}}))
    made = make_trainer(run, attached_base(run), "tune", 2)
    assert isinstance(made.get_train_dataloader().batch_sampler.sampler, GroupedByLength) == bool(wanted)
    announce(run, made, plan(run, "tune"))
    assert ("batches of about one length" in capsys.readouterr().out) == bool(wanted)
