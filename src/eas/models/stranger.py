"""A stranger's ``config.json``: read with care before anything is built from it, and none of its code is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from eas.config import ConfigError, shortened

MOST_LAYERS, WIDEST = 1000, 10**7
_LAYERS = re.compile(r"num_(\w+_)?layers|n_layers?|depth")
_WIDTHS = re.compile(r"(hidden|intermediate|vocab|image|patch)_size|(embed|head|projection)_dim|num_(\w+_)?heads")
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation")


def read_config(id_or_folder: str, revision: str | None = None, own_attention: bool = True) -> Any:
    """A model's configuration.

    Args:
        id_or_folder: of the model.
        revision: commit, branch or tag of a Hub id.
        own_attention: whether the model would compute attention as its file says; a caller who names another way for it
            asks for that, and the file counts for nothing.

    Raises:
        ConfigError: there is no such folder or Hub id, its ``config.json`` is no JSON, or a value of the file is
            impossible or would run code of the Hub; file and key are named.
    """
    where = f"{Path(id_or_folder) / 'config.json'}" if Path(id_or_folder).is_dir() else f"config.json of {id_or_folder}"
    try:
        values, _ = PretrainedConfig.get_config_dict(id_or_folder, revision=revision)
        for key, value in _keys(values):
            _check(f"{where}: {key}", key.rpartition(".")[2], value, own_attention)
        if "model_type" not in values:
            raise ConfigError(f"{where} has no model_type; name the folder or Hub id of a transformers model")
        return AutoConfig.from_pretrained(id_or_folder, revision=revision, trust_remote_code=False)
    except ConfigError:
        raise
    except OSError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{where} is not there or cannot be read: {said}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deep; copy the file again from its source") from error
    except Exception as error:  # whatever a configuration's class says of a value
        said = " ".join(str(error).split())[:400]
        raise ConfigError(f"{where} cannot be read ({said}); copy the file again from its source") from error


def _keys(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items() if isinstance(values, dict) else ():
        yield f"{prefix}{key}", value
        yield from _keys(value, f"{prefix}{key}.")


def _check(what: str, key: str, value: Any, own_attention: bool) -> None:
    if _LAYERS.fullmatch(key) or _WIDTHS.fullmatch(key):
        most = MOST_LAYERS if _LAYERS.fullmatch(key) else WIDEST
        for number in value if isinstance(value, list) else () if value is None else (value,):
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
                raise ConfigError(
                    f"{what} = {shortened(value)}: must be a whole number of at most {most}; copy the file again from "
                    "its source"
                )
    if key in _KERNELS and own_attention and "/" in str(value):
        raise ConfigError(
            f"{what} = {shortened(value)} would run code of the Hub; take the key out of the file, or pass "
            f"attn_implementation to eas.load if you trust that code"
        )
