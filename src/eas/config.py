"""Configurations: plain dataclasses whose fields carry their help text, validated, kept in JSON or YAML files."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, get_type_hints

import yaml

from eas.files import write_text
from eas.records import kind_name, misfit


class ConfigError(ValueError):
    """An unknown key or an impossible value; the message names the field and what is allowed."""


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and the help text that documentation and the command line show."""
    return field(default=default, metadata={"help": help})


def section(build: Callable[[Mapping[str, Any]], Config], help: str, **defaults: Any) -> Any:
    """A dataclass field that holds another configuration; keys that are not given keep the section's ``defaults``."""

    def filled(values: Mapping[str, Any]) -> Config:
        return build({**defaults, **values})

    return field(default_factory=partial(filled, {}), metadata={"help": help, "build": filled})


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but ``1e-4`` is a number, as in YAML 1.2 and JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """The value that a YAML text holds."""
    return yaml.load(text, _Loader)


@dataclass
class Config:
    """Base of all configurations: strict keys, values of the annotated types, JSON and YAML files."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            self._require(name, not isinstance(value, float) or math.isfinite(value), "must be finite")
            self._require(name, misfit(value, hint, name) is None, f"must be {kind_name(hint)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds the configuration.

        Raises:
            ConfigError: a key is not a field, and the closest is suggested; or a value is refused.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                close = difflib.get_close_matches(str(key), names, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the keys are {', '.join(names)}"
                raise ConfigError(f"{cls.__name__} has no key {key!r}; {hint}")
        values = dict(values)
        for f in dataclasses.fields(cls):
            if f.name in values and "build" in f.metadata:
                if not isinstance(values[f.name], Mapping):
                    raise ConfigError(
                        f"{cls.__name__}.{f.name} = {values[f.name]!r}: must be a mapping of keys to values"
                    )
                values[f.name] = f.metadata["build"](values[f.name])
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Reads a ``.json`` file, or YAML with any other suffix.

        A key ``extends`` names another file, relative to this one, whose keys this one's replace, section by section.

        Raises:
            ConfigError: the file cannot be read or is no mapping, or a key or value is refused; the file is named.
        """
        values = _read_mapping(Path(path))
        if (parent := values.pop("extends", None)) is not None:
            shared = _read_mapping(Path(path).parent / str(parent))
            if "extends" in shared:
                raise ConfigError(f"{path} extends {parent}, which extends another file; one level is allowed")
            values = _merged(shared, values)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return dataclasses.asdict(self)

    def to_file(self, path: str | Path) -> None:
        """Writes a ``.json`` file, or YAML for any other suffix."""
        path, values = Path(path), self.to_dict()
        as_json = path.suffix == ".json"
        write_text(path, json.dumps(values, indent=2) + "\n" if as_json else yaml.safe_dump(values, sort_keys=False))

    def describe(self, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
        """Every key with its value here and its help text; the keys of sections are dotted."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Config):
                yield from value.describe(f"{prefix}{f.name}.")
            else:
                yield prefix + f.name, value, f.metadata["help"]

    def _require(self, name: str, ok: bool, allowed: str) -> None:
        if not ok:
            value = getattr(self, name)
            raise ConfigError(f"{type(self).__name__}.{name} = {value!r}: {allowed}")


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else read_yaml(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"{path} is not {kind}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold one mapping of keys to values, not {type(values).__name__}")
    return values


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The second's keys over the first's; where both hold sections, key by key."""
    merged = dict(values)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def method_name(name: str) -> Any:
    """The ``name`` field of a method's configuration."""
    return field(default=name, kw_only=True, metadata={"help": "the tuning method"})


@dataclass
class MethodConfig(Config):
    """What every tuning method's configuration has: its name, and whether the projector is tuned along.

    A subclass has ``name: str = method_name("...")``, under which the method stands in ``eas.methods.METHODS``.
    """

    name: str = method_name("")
    train_projector: bool = field(
        default=False, kw_only=True, metadata={"help": "tune the vision-language projector along, as the authors do"}
    )

    train_head: bool = field(
        default=False, kw_only=True, metadata={"help": "METER: tune the task's head, poolers and token types along"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in vars(self).items():  # float32 overflows not far beyond, and nobody has such a machine
            if isinstance(value, float):
                self._require(name, abs(value) <= 1e6, "must be at most 1e6")
            elif isinstance(value, int):
                self._require(name, value <= 2**20, "must be at most 2^20")
        own = type(self).name  # the default
        self._require("name", self.name == own, f"must be {own!r}; other methods have configurations of their own")


CANDIDATES = ("mha", "ffn", "either", "layer")


@dataclass
class SkipConfig(MethodConfig):
    """A method that skips k of its candidates."""

    num_skip: int = option(0, "k: how many candidates are skipped")
    candidates: str = field(default="mha", kw_only=True, metadata={"help": f"what may be skipped: {CANDIDATES}"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_skip", self.num_skip >= 0, "must be at least 0")
        self._require("candidates", self.candidates in CANDIDATES, f"must be one of {', '.join(CANDIDATES)}")
