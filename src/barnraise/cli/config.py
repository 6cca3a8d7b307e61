"""``barnraise config``: writes a configuration file with every key, its default and its meaning, to start from."""

import dataclasses
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from barnraise import formats
from barnraise.cli.fields import Key, Table, tables
from barnraise.codec.level import DEFAULT, spec_of
from barnraise.config import COMPRESSION_LEVELS, PEER_PRESETS, PEER_TABLE, PRESETS, PeerConfig, RoundConfig, RunConfig
from barnraise.errors import ConfigError
from barnraise.runs import places

Preset = Literal["local", "small", "medium", "large", "distributed", "cloud", "edge"]

_HEAD: Final = """\
A barnraise configuration. Every key is here with its default and can be left out. Train on this machine:
barnraise train --config FILE. Be one long-lived peer: barnraise start -c FILE. The first keys, up to the table
"peer", are the run's: alike on every machine, and its identity. The table "peer" is this machine's alone."""
_WIDTH: Final = 100


def config(
    *,
    preset: Preset = "local",
    output: Annotated[Path | None, Parameter(name=("--output", "-o"), show_default=False)] = None,
) -> int:
    """Write a configuration file in which every key is explained, for `start -c FILE` and `train --config FILE`.

    Args:
        preset: What to begin with: a model's size, or a kind of peer: distributed, which machines of the network can
            reach, cloud, or edge, which compress more.
            barnraise presets lists them.
        output: The file, which must not be there yet: TOML, or YAML if its name ends in .yaml or .yml. Default: print
            TOML.
    """
    text = template(preset, is_yaml=output is not None and formats.is_yaml(output))
    if output is None:
        print(text, end="")
        return 0
    _write(output, text)
    print(f"{output}: written. Change what you like, then: barnraise start -c {output}")
    return 0


def template(preset: Preset, *, is_yaml: bool) -> str:
    """Return the text of a commented configuration file."""
    codec = spec_of(COMPRESSION_LEVELS.get(preset, DEFAULT))
    run = RunConfig(model=PRESETS.get(preset, PRESETS["local"]), round=RoundConfig(codec=codec))
    shown = tables(RunConfig)
    for table in tables(PeerConfig):
        shown.append(dataclasses.replace(table, name=PEER_TABLE))
    values = {"": run, **{item.name: getattr(run, item.name) for item in dataclasses.fields(run)}}
    peer: Mapping[str, Any] = PEER_PRESETS.get(preset, PEER_PRESETS["local"])
    lines = [*_comment(_HEAD, "")]
    for table in shown:
        lines += ["", *_table(table, is_yaml=is_yaml)]
        for key in table.keys:
            value = (
                peer.get(key.name, key.default) if table.name == PEER_TABLE else getattr(values[table.name], key.name)
            )
            lines += _entry(key, value, "  " if is_yaml and table.name else "", is_yaml=is_yaml)
    return "\n".join(lines) + "\n"


def _table(table: Table, *, is_yaml: bool) -> Iterator[str]:
    if table.name:
        yield from _comment(table.says, "")
        yield f"{table.name}:" if is_yaml else f"[{table.name}]"


def _entry(key: Key, value: Any, indent: str, *, is_yaml: bool) -> Iterator[str]:
    """Return the lines of a key: what it means, and its value; one that must be chosen is commented out."""
    choices = f" One of: {key.values}." if ", " in key.values else ""
    if key.says or choices:
        yield from _comment(f"{key.says}{choices}".strip().replace("``", "`"), indent)
    if value is dataclasses.MISSING:
        value, indent = _place(key.name), f"{indent}# "
    text = formats.yaml_value(value) if is_yaml else formats.toml_value(value)
    yield f"{indent}{key.name}: {text}" if is_yaml else f"{indent}{key.name} = {text}"


def _place(name: str) -> Path:
    """Return where a long-lived peer keeps what a key names, unless told otherwise."""
    return {"data_dir": places.peers_directory() / "default", "cluster_key_file": places.cluster_key_file()}[name]


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(" ".join(text.split()), _WIDTH)]


def _write(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already and is not overwritten. Name another file: -o FILE.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}). Name another file: -o FILE.") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
