"""Compression levels: each one is a codec, a higher one is smaller, and a slow link gets more of it."""

import itertools

import pytest

from barnraise.codec.chain import codec_of
from barnraise.codec.level import CLOUD, DEFAULT, EDGE, LEVELS, SPECS, level_named, level_over, spec_of
from barnraise.config import COMPRESSION_LEVELS, RunConfig
from barnraise.errors import ConfigError


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_every_level_is_a_codec_and_none_is_larger_than_the_one_below(dtype: str) -> None:
    codecs = [codec_of(spec, dtype) for spec in SPECS[dtype]]
    assert len(codecs) == LEVELS
    assert [codec.name for codec in codecs] == list(SPECS[dtype])
    sizes = [codec.bound_bytes(1 << 20) for codec in codecs]
    assert all(after <= before + 4 for before, after in itertools.pairwise(sizes))


def test_the_defaults() -> None:
    assert spec_of(DEFAULT) == "int8" == RunConfig().round.codec
    assert (DEFAULT, CLOUD, EDGE) == (3, 5, 9)
    assert dict(COMPRESSION_LEVELS) == {"cloud": CLOUD, "edge": EDGE}


@pytest.mark.parametrize(
    ("megabits", "level"),
    [(None, 3), (1, 5), (9.9, 5), (10, 4), (99, 4), (100, 3), (999, 3), (1e3, 2), (1e4, 1), (1e5, 1)],
)
def test_a_slow_link_gets_more_and_a_fast_one_less(megabits: float | None, level: int) -> None:
    assert level_over(3, megabits) == level
    assert spec_of(3, megabits) == spec_of(level)


def test_the_ends_are_ends() -> None:
    assert spec_of(9, 1) == spec_of(9)
    assert spec_of(1, 1e5) == spec_of(1) == "grid16"
    assert spec_of(1, dtype="float32") == "fp32"


@pytest.mark.parametrize(("level", "megabits"), [(0, None), (10, None), (3, 0.0), (3, -1.0), (3, float("nan"))])
def test_what_is_no_level_or_no_bandwidth_is_refused(level: int, megabits: float | None) -> None:
    with pytest.raises(ConfigError, match=r"compression level of|bandwidth of"):
        spec_of(level, megabits)


@pytest.mark.parametrize(
    ("codec", "level"),
    [("auto", DEFAULT), ("auto:1", 1), ("auto:9", 9), ("int8", None), ("automatic", None), ("", None)],
)
def test_a_level_may_stand_in_a_codecs_place(codec: str, level: int | None) -> None:
    assert level_named(codec) == level


@pytest.mark.parametrize("codec", ["auto:", "auto:0", "auto:10", "auto:-1", "auto:3:4", "auto:x", "auto:\u0663"])
def test_what_stands_there_and_is_no_level_is_refused(codec: str) -> None:
    with pytest.raises(ConfigError, match="'auto:1' to 'auto:9'"):
        level_named(codec)
