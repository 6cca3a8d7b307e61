"""Configuration files in two formats: the same values from both, and no surprise from either."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise import formats
from barnraise.errors import ConfigError

VALUES: dict[str, Any] = {
    "seed": 7,
    "flag": True,
    "names": ["a", 'quoted "b"', "no", "2026-01-01", "1e5"],
    "round": {"lr": 1e-05, "large": 1e300, "text": "line\nbreak: #\\", "empty": []},
}


@pytest.mark.parametrize("name", ["run.toml", "run.yaml", "run.YML", "run"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(formats.written(VALUES, path))
    assert formats.read(path) == VALUES


@given(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.integers(),
        st.booleans(),
    )
)
def test_a_value_on_one_line_is_read_back(value: object) -> None:
    assert "\n" not in formats.yaml_value(value) + formats.toml_value(value)
    for wanted, of in ((value, formats.yaml_value), ([value, value], formats.yaml_value)):
        assert formats._from_yaml(f"key: {of(wanted)}\n", Path("x.yaml")) == {"key": wanted}
    assert tomllib.loads(f"key = {formats.toml_value(value)}\n") == {"key": value}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.toml", "seed = ", "is not TOML"),
        ("a.toml", "a = 1\na = 2", "is not TOML"),
        ("a.toml", "a = " + "[" * 100_000, "nested too deeply"),
        ("a.yaml", "seed: [", "is not YAML"),
        ("a.yaml", "seed: 1\nseed: 2", "the key 'seed' is there twice"),
        ("a.yaml", "round:\n  steps: 1\n  steps: 2", "the key 'steps' is there twice"),
        ("a.yaml", "a: &x [1]\nb: *x", "aliases are not taken"),
        ("a.yaml", "a: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("a.yaml", "a: !unknown 1", "is not YAML"),
        ("a.yaml", "a: 2026-13-45", "is not YAML"),
        ("a.yaml", "--- 1\n--- 2", "is not YAML"),
        ("a.yaml", "- 1", "no keys with values"),
        ("a.yaml", "1: 2", "the key 1 is not a word"),
        ("a.yaml", "round:\n  yes: 2", "the key True is not a word"),
        ("a.yaml", "a: " + "[" * 100_000, "nested too deeply"),
        ("a.yaml", "".join(f"{' ' * n}k:\n" for n in range(30)), "nested too deeply"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        formats.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.toml", "a.yaml"])
def test_a_file_over_the_limit_is_not_parsed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("#" * (formats.MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigError, match="over 1048576 bytes"):
        formats.read(path)
    path.write_text("#" * formats.MAX_FILE_BYTES)
    assert formats.read(path) == {}
