"""Configurations: every wrong key and value is named, and what is written reads back the same."""

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from typing import Literal, get_args, get_type_hints

import pytest
from families import build
from hypothesis import given, settings
from hypothesis import strategies as st

import eas
from eas import ConfigError, DASConfig, EASConfig
from eas.config import Config, option, rank_at, section
from eas.methods import METHODS, das
from eas.methods.eas import PAPER_WIDTHS, PRESETS
from eas.models.folder import TINY_DIR
from eas.pipeline import RunConfig
from eas.records import misfit

RANKS = {"skip_rank": 4, "adapt_rank": 2}


@dataclass
class Outer(Config):
    """A configuration with a section."""

    name: str = option("x", "a name")
    limit: int | None = option(None, "a limit")
    eas: EASConfig = section(EASConfig.from_dict, "a section", preset="lavin", train_projector=True)


def test_unknown_keys_suggest_the_closest():
    with pytest.raises(ConfigError, match="EASConfig has no key 'skip_ranks'; did you mean 'skip_rank'"):
        EASConfig.from_dict({"skip_ranks": 4})
    with pytest.raises(ConfigError, match="has no key 'zzz'; the keys are name, train_projector, num_skip"):
        EASConfig.from_dict({"zzz": 4})
    with pytest.raises(ConfigError, match="Outer has no key 1; the keys are name"):
        Outer.from_dict({1: 2})
    with pytest.raises(ConfigError, match="EASConfig has no key 'droput'; did you mean 'dropout'"):
        Outer.from_dict({"eas": {"droput": 0.1}})
    with pytest.raises(ConfigError, match=r"Outer.eas = 'llava': must be a mapping"):
        Outer.from_dict({"eas": "llava"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"adapt_rank": 0}, "adapt_rank = 0: must be at least 1"),
        ({"skip_rank": 2.0}, "skip_rank = 2.0: must be int or None"),
        ({"num_skip": -1}, "num_skip = -1: must be at least 0"),
        ({"num_skip": True}, "num_skip = True: must be int"),
        ({"num_skip": "3"}, "num_skip = '3': must be int"),
        ({"temperature": 0}, "temperature = 0: must be above 0"),
        ({"temperature": "10"}, "temperature = '10': must be float"),
        ({"temperature": math.inf}, "temperature = inf: must be finite"),
        ({"temperature": math.nan}, "temperature = nan: must be finite"),
        ({"hidden_scale": -0.5}, "hidden_scale = -0.5: must be above 0"),
        ({"hidden_scale": 1e308}, r"hidden_scale = 1e\+308: must be at most 1e6"),
        ({"hidden_scale": 1e4}, "hidden_scale = 10000.0: must be above 0 and at most 1000"),
        ({"temperature": 1e-300}, "temperature = 1e-300: must be above 0, at least 1e-6"),
        ({"skip_rank": 10**9}, r"skip_rank = 1000000000: must be at most 2\^20"),
        ({"dropout": 1.0}, r"dropout = 1.0: must be in \[0, 1\)"),
        ({"dropout": False}, "dropout = False: must be float"),
        ({"up_groups": 0}, "up_groups = 0: must be at least 1"),
        ({"up_groups": 4}, "adapt_rank = 2: must be a multiple of up_groups = 4"),
        ({"adapt_router_bias": "no"}, "adapt_router_bias = 'no': must be bool"),
        ({"form": "plain"}, "form = 'plain': must be 'residual' or 'paper'"),
        ({"train_projector": 1}, "train_projector = 1: must be bool"),
        ({"router": "gate"}, "router = 'gate': must be 'input' or 'constant'"),
        ({"pooling": "max"}, "pooling = 'max': must be 'prompt', 'causal' or 'none'"),
        ({"candidates": "layer"}, "candidates = 'layer': must be 'mha', 'ffn' or 'either'"),
        ({"candidates": "norm"}, "candidates = 'norm': must be 'mha', 'ffn', 'either' or 'layer'"),
        ({"name": "lora"}, "name = 'lora': must be 'eas'"),
        ({"preset": "paper"}, "preset = 'paper': must be one of llava, lavin, meter, released"),
        ({"preset": ["llava"]}, r"preset = \['llava'\]: must be one of"),
    ],
)
def test_impossible_values_name_the_field(values, words):
    with pytest.raises(ConfigError, match=f"^EASConfig.{words}"):
        EASConfig(**RANKS | values)


def test_presets_fill_what_is_not_given():
    plain = EASConfig(**RANKS)
    assert (plain.form, plain.hidden_scale, plain.dropout, plain.up_groups) == ("residual", 1.0, 0.0, 1)
    assert plain.adapt_router_bias
    for name, values in PRESETS.items():
        config = EASConfig(preset=name)
        assert config.at_width(PAPER_WIDTHS[name]).to_dict().items() >= values.items()
        assert EASConfig.from_dict(config.to_dict()) == config
    released = EASConfig(preset="released", dropout=0.0, form="residual", skip_rank=8)  # as in the plain form
    assert (released.dropout, released.form, released.skip_rank, released.up_groups) == (0.0, "residual", 8, 2)
    assert not released.adapt_router_bias
    assert EASConfig.from_dict(released.to_dict()) == released
    with pytest.raises(ConfigError, match=r"preset = 'lavin': the other fields hold the values of preset 'released'"):
        replace(EASConfig(preset="released"), preset="lavin")
    assert replace(EASConfig(preset="lavin"), preset="llava", num_skip=3) == EASConfig(preset="llava", num_skip=3)


@pytest.mark.parametrize(
    ("preset", "width", "more", "ranks"),
    [
        ("llava", 128, {}, (8, 4)),
        ("llava", 5120, {}, (320, 160)),
        ("llava", 896, {"skip_rank": 256}, (256, 28)),  # what is given stays
        ("lavin", 128, {}, (4, 4)),
        ("lavin", 4096, {}, (32, 8)),
        ("lavin", 2048, {"up_groups": 8}, (16, 8)),
        ("meter", 384, {}, (72, 48)),
        ("released", 1024, {}, (64, 32)),
        (None, 576, {}, (36, 16)),
        (None, 576, {"skip_rank": 6}, (6, 16)),
        (None, 128, {"up_groups": 8}, (8, 8)),
        (None, 4096, {"adapt": "lora"}, (256, 16)),
        (None, 4096, {"adapt": "lora", "adapt_rank": 4}, (256, 4)),
    ],
)
def test_a_preset_s_ranks_go_with_the_width(preset, width, more, ranks):
    config = EASConfig(preset=preset, **more).at_width(width)
    assert (config.skip_rank, config.adapt_rank) == ranks
    assert config.at_width(width) == config


@pytest.mark.parametrize(
    ("preset", "width", "ranks"),
    [(None, 4096, (256, 128)), (None, 128, (8, 4)), ("lavin", 4096, (32, 8)), ("meter", 768, (288, 96))],
)
def test_the_ranks_of_das_go_with_the_width_too(preset, width, ranks):
    config = DASConfig(preset=preset)
    assert (config.skip_rank, config.adapt_rank) == (None, None)
    assert (config.at_width(width).skip_rank, config.at_width(width).adapt_rank) == ranks
    assert DASConfig(preset=preset, skip_rank=6).at_width(width).skip_rank == 6  # what is given stays


def test_das_saves_on_the_small_model_by_its_defaults():
    base, skipped = eas.count(TINY_DIR, 26, 1), eas.count(TINY_DIR, 26, 1, method={"name": "das"}, skip_set=(10, 11))
    assert skipped.macs < base.macs
    assert skipped.weight_bytes < base.weight_bytes


def test_a_preset_of_das_is_an_option():
    method = RunConfig().with_values({"method.name": "das", "method.preset": "lavin"}).method
    assert (method.preset, method.routed, method.skip_rank) == ("lavin", True, None)
    assert not RunConfig().with_values({"method.name": "das"}).with_values({"method.preset": "meter"}).method.routed


def test_attaching_fills_the_ranks_in():
    model = eas.attach(build("LlamaForCausalLM"), EASConfig(num_skip=1, preset="llava"))
    width = model.config.hidden_size
    assert model.eas.config == EASConfig(num_skip=1, preset="llava").at_width(width)
    assert model.model.layers[0].skip_pia.down1.weight.shape == (model.eas.config.skip_rank, width)


def test_sections_keep_their_defaults():
    assert Outer().eas == EASConfig(preset="lavin", train_projector=True)
    partly = Outer.from_dict({"eas": {"num_skip": 3, "skip_rank": 16}}).eas
    assert partly == EASConfig(3, 16, preset="lavin", train_projector=True)
    assert Outer().eas is not Outer().eas


configs = st.builds(
    EASConfig,
    num_skip=st.integers(0, 99),
    skip_rank=st.sampled_from([2, 64]),
    adapt_rank=st.sampled_from([4, 6]),
    temperature=st.floats(1e-6, 1e6),
    hidden_scale=st.none() | st.floats(1e-6, 10),
    dropout=st.none() | st.floats(0, 1, exclude_max=True),
    up_groups=st.none() | st.sampled_from([1, 2]),
    form=st.sampled_from([None, "residual", "paper"]),
    adapt_router_bias=st.none() | st.booleans(),
    train_projector=st.booleans(),
    preset=st.sampled_from([None, *PRESETS]),
)


@settings(deadline=None)
@given(eas=configs, name=st.text(), limit=st.none() | st.integers(-(2**63) + 1, 2**63 - 1))
@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_files_read_back_the_same(tmp_path_factory, suffix, eas, name, limit):
    config, path = Outer(name, limit, eas), tmp_path_factory.mktemp("config") / f"config{suffix}"
    config.to_file(path)
    assert Outer.from_file(path) == config
    assert [key for key, _, _ in config.describe()][:3] == ["name", "limit", "eas.name"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{\n\t"skip_rank": 4,\n\t"adapt_rank": 2,\n\t"temperature": 1e-4,\n\t"dropout": 5E-1\n}'),
        ("c.yaml", "skip_rank: 4\nadapt_rank: 2\ntemperature: 1e-4\ndropout: .5e0\n"),
    ],
)
def test_files_written_by_hand(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert EASConfig.from_file(tmp_path / name) == EASConfig(**RANKS, temperature=1e-4, dropout=0.5)


def test_file_errors_name_the_file(tmp_path):
    cases = [
        ("a.json", b"{", r"a.json is not JSON: .*line 1 column 2"),
        ("a.yaml", b"{", r"(?s)a.yaml is not YAML: .*line 1, column 2"),
        ("b.yaml", b"\xff\x00", "b.yaml is not YAML: .*utf-8"),
        ("c.yaml", b"- 1", "c.yaml must hold one mapping of keys to values, not list"),
        ("empty.yml", b"", "empty.yml must hold one mapping of keys to values, not NoneType"),
        ("d.json", b'{"skip_rank": 0, "adapt_rank": 1}', "d.json: EASConfig.skip_rank = 0"),
        ("e.yaml", b"skiprank: 1", "e.yaml: EASConfig has no key 'skiprank'; did you mean 'skip_rank'"),
    ]
    for name, content, words in cases:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=f"{tmp_path}/{words}" if "(?s)" not in words else words):
            EASConfig.from_file(tmp_path / name)
    for missing, words in (("none.yaml", "No such file"), (".", "Is a directory")):
        with pytest.raises(ConfigError, match=f"{tmp_path}.* cannot be read: {words}"):
            EASConfig.from_file(tmp_path / missing)


def test_every_field_has_help():
    assert all(f.metadata["help"] for f in dataclasses.fields(EASConfig))
    assert json.loads(json.dumps(EASConfig(**RANKS).to_dict())) == EASConfig(**RANKS).to_dict()


def test_ranks_go_with_the_width():
    assert [rank_at(256, width) for width in (4096, 1024, 896, 128, 16)] == [256, 64, 56, 8, 4]
    assert EASConfig(skip_rank=250, adapt_rank=6, up_groups=2).rescaled(4096).skip_rank == 250
    assert EASConfig(skip_rank=250, adapt_rank=6, up_groups=2).rescaled(2048).skip_rank == 124
    assert EASConfig(preset="llava").rescaled(1024) == EASConfig(preset="llava")  # which attach fills
    assert METHODS["lora"].config(rank=16).rescaled(1024).rank == 4
    assert METHODS["adapter"].config(rank=8).rescaled(1024, of=128).rank == 64


def test_presets_are_those_that_the_types_name():
    for config, presets in ((EASConfig, PRESETS), (das.DASConfig, das.PRESETS)):
        literal, _ = get_args(get_type_hints(config)["preset"])
        assert get_args(literal) == tuple(presets)


@pytest.mark.parametrize(
    ("value", "kind", "wrong"),
    [
        ("a", Literal["a", "b"], None),
        (None, Literal["a"] | None, None),
        ("c", Literal["a", "b", "d"], "x = 'c' must be 'a', 'b' or 'd'"),
        (1, Literal["a"], "x = 1 must be 'a'"),
        (True, Literal[1], "x = True must be 1"),
        (["a"], Literal["a"], "x = ['a'] must be 'a'"),
    ],
)
def test_choices_are_types(value, kind, wrong):
    assert misfit(value, kind, "x") == wrong
