"""Configuration files as mappings, TOML or YAML by their suffix; what the keys mean is not known here."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from barnraise.errors import ConfigError

MAX_FILE_BYTES: Final = 1024 * 1024
"""A configuration of all keys, commented, has some 10 kB."""
YAML_SUFFIXES: Final = (".yaml", ".yml")
MAX_DEPTH: Final = 20
"""Ours have two levels; a parser that recurses must not be driven further."""


def is_yaml(path: Path) -> bool:
    """Tell whether a file is read and written as YAML; every other suffix means TOML."""
    return path.suffix.lower() in YAML_SUFFIXES


def read(path: Path) -> dict[str, Any]:
    """Return what a file holds; nothing, if it is empty.

    Raises:
        ConfigError: it cannot be read, is over `MAX_FILE_BYTES`, or is not of the format that its suffix says.
    """
    text = _text(path)
    try:
        values = _from_yaml(text, path) if is_yaml(path) else tomllib.loads(text)
        _check(values, str(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}. Mend that line.") from error
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply. A configuration has two levels.") from None
    return values


def written(values: Mapping[str, Any], path: Path) -> str:
    """Return nested mappings as text in the format of ``path``."""
    if not is_yaml(path):
        return to_toml(values)
    import yaml

    text: str = yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)
    return text


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Return nested mappings as TOML: plain keys first, then a table for each nested one."""
    plain = [f"{key} = {toml_value(value)}\n" for key, value in values.items() if not isinstance(value, Mapping)]
    tables = [
        f"\n[{prefix}{key}]\n{to_toml(value, f'{prefix}{key}.')}"
        for key, value in values.items()
        if isinstance(value, Mapping)
    ]
    return "".join(plain + tables)


def toml_value(value: object) -> str:
    """Return a value as TOML; what is no number, truth value or list is a string."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case tuple() | list():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
        case _:
            return msgspec.json.encode(str(value)).decode().replace("\x7f", "\\u007f")  # TOML wants DEL escaped


def yaml_value(value: object) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(yaml_value(item) for item in value) + "]"
    import yaml

    text: str = yaml.safe_dump(_plain(value), default_style='"' if isinstance(value, str | Path) else None, width=1e9)
    return text.splitlines()[0]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name a readable TOML or YAML file.") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: is over {MAX_FILE_BYTES} bytes, so it is no configuration. Name another file.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason}). Name a TOML or YAML file.") from error


def _from_yaml(text: str, path: Path) -> dict[str, Any]:
    """Parse YAML without its surprises: no tags, no aliases, no key twice."""
    import yaml

    # PyYAML's own loader keeps the last of two equal keys in silence, and an alias can stand for a gigabyte.
    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.composer.ComposerError(problem="aliases are not taken")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
            seen: set[str] = set()
            twice = next((key for key in keys if key in seen or seen.add(key)), None)  # type: ignore[func-returns-value]
            if twice is not None:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {twice!r} is there twice", node.start_mark
                )
            return super().construct_mapping(node, deep=deep)

    try:
        values = yaml.load(text, Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"{path}: is not YAML that is taken here: {told}. Mend that line.") from error
    except ValueError as error:  # a date that is none
        raise ConfigError(f"{path}: is not YAML: {error}. Mend that value.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no keys with values. Write `seed: 1` and the like.")
    return values


def _check(values: Mapping[Any, Any], where: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise RecursionError
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{where}: the key {key!r} is not a word. Put it in quotes, or mend it.")
        if isinstance(value, Mapping):
            _check(value, where, depth + 1)


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case tuple() | list():
            return [_plain(item) for item in value]
        case bool() | int() | float():
            return value
        case _:
            return str(value)
