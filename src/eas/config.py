"""Configurations: validated dataclasses with a help text for every field, stored in JSON or YAML files."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_type_hints

import yaml

from eas.files import write_text
from eas.records import kind_name, misfit


class ConfigError(ValueError):
    """An unknown key or an impossible value; the message names the field and what is allowed.

    Example:
        >>> import eas
        >>> try:
        ...     eas.LoRAConfig(rank=0)
        ... except eas.ConfigError as error:
        ...     print(error)
        LoRAConfig.rank = 0: must be at least 1
    """


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and the help text that documentation and the command line show."""
    return field(default=default, metadata={"help": help})


def section(build: Callable[[Mapping[str, Any]], Config], help: str, **defaults: Any) -> Any:
    """A dataclass field that holds another configuration; keys that are not given keep the section's ``defaults``."""

    def filled(values: Mapping[str, Any]) -> Config:
        return build({**defaults, **values})

    return field(default_factory=partial(filled, {}), metadata={"help": help, "build": filled})


LONGEST, DEEPEST, MOST_VALUES = 1_000_000, 50, 100_000
"""Characters of a configuration, levels of its nesting, and values in it where its aliases are written out."""
MOST = 10**7
"""Of steps, repeats, examples and the like: more is a slip of the finger."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: ``1e-4`` is a number, as in JSON; ``010``, ``12:30`` and ``2024-01-01`` are text;
    ``<<`` merges nothing (there is ``extends``), and no key occurs twice."""

    def fetch_flow_collection_start(self, kind: type[yaml.Token]) -> None:
        if self.flow_level >= DEEPEST:  # found here, in no time
            raise _too_deep()
        super().fetch_flow_collection_start(kind)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(problem="a key occurs twice", problem_mark=node.start_mark)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Puts quotes around the texts that ``_Loader`` would take for numbers."""


_NUMBERS = {
    "int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$",
    "float": r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$",
}
_TRAPS = {f"tag:yaml.org,2002:{name}" for name in ("int", "timestamp", "merge")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _TRAPS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    for _either in (_Loader, _Dumper):
        _either.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list("-+.0123456789"))


def read_yaml(text: str) -> Any:
    """The value that a YAML text holds.

    Raises:
        ConfigError: the text is no YAML, too long or nested too deep; the message continues the text's name.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"is longer than {LONGEST} characters; a configuration is short")
    try:
        value = yaml.load(text, _Loader)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark
        where = f" at line {at.line + 1}, column {at.column + 1}" if at is not None else ""
        raise ConfigError(f"is not YAML: {error.problem}{where}") from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:  # the last three: what a !!tag cannot read
        raise ConfigError(f"is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise _too_deep() from error
    _count_values(value, 0, {})
    return value


def read_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """The values of ``key=value`` texts; a value is YAML, and the last of a key counts.

    Raises:
        ConfigError: a text without "=", or a value that is no YAML.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"-o {assignment[:200]}: write key=value, as in -o train.learning_rate=0.001")
        try:
            values[key] = read_yaml(text)
        except ConfigError as error:
            raise ConfigError(f"-o {key}: the value {error}; {shortened(text)} was given") from error
    return values


def _read_json(text: str) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in found]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"is not valid JSON: the key {twice[0]!r} occurs twice")
        return dict(found)

    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except ConfigError:
        raise
    except ValueError as error:  # broken, or a number of too many digits
        raise ConfigError(f"is not JSON: {error}") from error
    except RecursionError as error:
        raise _too_deep() from error
    _count_values(value, 0, {})
    return value


def _count_values(value: Any, depth: int, known: dict[int, int]) -> int:
    """Refuses a value that is huge or endless although its text is short."""
    if depth > DEEPEST:
        raise _too_deep()
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_values(part, depth + 1, known) for part in parts)
    if known[id(value)] > MOST_VALUES:
        raise ConfigError(f"holds more than {MOST_VALUES} values, its aliases written out; a configuration is short")
    return known[id(value)]


def _too_deep() -> ConfigError:
    return ConfigError(f"is nested deeper than {DEEPEST} levels, or holds itself; write it flat")


def shortened(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:160]}... ({len(text)} characters)"


@dataclass
class Config:
    """Base of all configurations: strict keys, values of the annotated types, JSON and YAML files."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            self._require(name, not isinstance(value, float) or math.isfinite(value), "must be finite")
            self._require(name, not isinstance(value, int) or abs(value) < 2**63, "must be below 2**63")
            text = isinstance(value, bool | int | float) and str in (hint, *get_args(hint))
            quotes = "; put quotes around it" if text else ""
            self._require(name, misfit(value, hint, name) is None, f"must be {kind_name(hint)}{quotes}")

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
                raise ConfigError(f"{cls.__name__} has no key {shortened(key)}; {hint}")
        values = dict(values)
        for f in dataclasses.fields(cls):
            if f.name in values and "build" in f.metadata:
                if not isinstance(values[f.name], Mapping):
                    raise ConfigError(
                        f"{cls.__name__}.{f.name} = {shortened(values[f.name])}: must be a mapping of keys to values"
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
        as_yaml = "" if as_json else yaml.dump(values, Dumper=_Dumper, sort_keys=False)
        write_text(path, json.dumps(values, indent=2) + "\n" if as_json else as_yaml)

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
            raise ConfigError(f"{type(self).__name__}.{name} = {shortened(getattr(self, name))}: {allowed}")

    def _require_counts(self, *names: str) -> None:
        for name in names:
            count = getattr(self, name)
            self._require(name, count >= 1, "must be at least 1")
            self._require(name, count <= MOST, f"must be at most {MOST}")


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)  # whatever it is: a device has no end
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from error
    try:
        values = _read_json(text) if path.suffix == ".json" and len(text) <= LONGEST else read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path} {error}") from error
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


PAPER_WIDTH = 4096
"""The hidden size of the paper's LLaVA and LaVIN."""
RANKS = ("skip_rank", "adapt_rank", "rank")
"""The fields of methods that grow with the width."""


def rank_at(rank: int, width: int, of: int = PAPER_WIDTH, multiple: int = 4) -> int:
    """A rank in a model of another width than ``of``: the same share of the width, rounded to a multiple.

    Example:
        >>> rank_at(256, width=1024)
        64
    """
    return rank if width == of else max(multiple, multiple * round(rank * width / of / multiple))


def method_name(name: str) -> Any:
    """The ``name`` field of a method's configuration."""
    return field(default=name, kw_only=True, metadata={"help": "the tuning method"})


@dataclass
class MethodConfig(Config):
    """The keys of every tuning method: its name, and what is trained besides the method's own modules.

    A subclass has ``name: str = method_name("...")``, under which the method stands in ``eas.methods.METHODS``.
    """

    name: str = method_name("")
    train_projector: bool | None = field(
        default=False,
        kw_only=True,
        metadata={
            "help": "also tune the vision-language projector, as the authors do (METER: the task's head, poolers and "
            "token types); null: if the model has one"
        },
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

    def at_width(self, width: int) -> Self:
        """The configuration in a model of this hidden size: what a preset leaves open is filled in."""
        return self

    def rescaled(self, width: int, of: int = PAPER_WIDTH, multiple: int = 4) -> Self:
        """The configuration for another width than ``of``: the ranks that are given stay the same share of it."""
        given = {name: rank for name, rank in vars(self).items() if name in RANKS and rank is not None}
        multiple = math.lcm(multiple, vars(self).get("up_groups", 1))
        ranks: dict[str, Any] = {name: rank_at(rank, width, of, multiple) for name, rank in given.items()}
        return dataclasses.replace(self, **ranks)

    def _missing_ranks(self, preset: Mapping[str, Any], width: int, of: int, multiple: int) -> dict[str, Any]:
        """The ranks that are not given: those of a preset, which are for the width ``of``, at another width."""
        left = {name: rank for name, rank in preset.items() if name in RANKS and getattr(self, name) is None}
        return {name: rank_at(rank, width, of, multiple) for name, rank in left.items()}

    def _fill(self, preset: str | None, fills: Mapping[Any, Mapping[str, Any]]) -> None:
        """Fills the fields that are not given, from the values of a preset; the key None has those without a preset."""
        self._require("preset", preset in [*fills], f"must be one of {', '.join(filter(None, fills))}")
        for name, value in fills[preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)


Candidates = Literal["mha", "ffn", "either", "layer"]
CANDIDATES = get_args(Candidates)


@dataclass
class SkipConfig(MethodConfig):
    """A method that skips k of its candidates."""

    num_skip: int = option(0, "k: number of candidates that are skipped")
    candidates: Candidates = field(
        default="mha", kw_only=True, metadata={"help": f"modules that may be skipped: {CANDIDATES}"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("num_skip", self.num_skip >= 0, "must be at least 0")

    @property
    def search_trains(self) -> bool:
        """Whether a search trains by default; not where an untrained skip is the module left out, which says enough."""
        return True
