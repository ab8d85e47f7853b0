"""Tests run side by side, one thread each, and never reach for the network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from eas.demo import larger

torch.set_num_threads(1)
larger.WIDTH, larger.PROMPT_TOKENS = 128, 16  # runs of tests time a narrow model; what they report is not looked at
