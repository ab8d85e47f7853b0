"""What `eas demo` shows: a run of each of two models."""

from pathlib import Path

DEMOS = {name: Path(__file__).with_name(f"{name}.yaml") for name in ("smol", "tiny")}
