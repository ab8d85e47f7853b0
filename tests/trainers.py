"""Tiny trainers: examples, arguments, a lively model and a search."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import BaseContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from transformers import TrainingArguments

import eas
from eas.searching import SearchConfig
from eas.training import EASTrainer

CONFIG = {"skip_rank": 8, "adapt_rank": 4}


def forkserver(module: str) -> BaseContext:
    """A context whose processes are forks of one that has imported a test module and trained nothing.

    Imports take longer than most runs. A fork of this process could not train where torch is a build for GPUs: its
    first backward pass starts threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server of Python 3.11 knows no other
        ensure_running()
    return context


def rows(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Questions of six tokens whose answer is their third token."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(6, 64, (count, 8), generator=g)
    ids[:, 0], ids[:, 7] = 1, ids[:, 3]
    labels = torch.full_like(ids, -100)
    labels[:, 7] = ids[:, 7]
    mask = torch.ones_like(ids)
    return [{"input_ids": i, "labels": y, "attention_mask": m} for i, y, m in zip(ids, labels, mask, strict=True)]


def lively(family: str) -> Any:
    """A random model whose output depends on its input enough for a few steps to show."""
    model = build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def arguments(folder: Path, **changes) -> TrainingArguments:
    settings = {
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 4,
        "logging_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=str(folder), **{**settings, **changes})


def searcher(folder: Path, family: str = "LlamaForCausalLM", **changes) -> EASTrainer:
    torch.manual_seed(0)  # of the PIAs
    model = eas.attach(lively(family), eas.EASConfig(2, **CONFIG))
    return EASTrainer(
        model,
        arguments(folder, **changes),
        phase="search",
        search=SearchConfig(warmup_steps=2, interval=2, batch_size=4),
        held_out=rows(10, seed=1),
        train_dataset=rows(40),
    )
