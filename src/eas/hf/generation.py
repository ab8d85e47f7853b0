"""Private switches of ``generate``."""

from __future__ import annotations

from typing import Any

from transformers import CompileConfig


def compile_config(**options: Any) -> CompileConfig:
    """How ``generate`` compiles its decode steps, on CPUs as well."""
    config = CompileConfig(**options)
    config._compile_all_devices = True  # without it generate compiles on accelerators only
    return config
