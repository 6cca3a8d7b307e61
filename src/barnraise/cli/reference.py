"""Writes the tables of docs/reference.md from the code that they describe: ``python -m barnraise.cli.reference FILE``.

The page's prose is its own. What stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` is made here, so
that it cannot say anything else than the program does.
"""

import argparse
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Final

import msgspec
from cyclopts import App
from docstring_parser import parse

from barnraise import config, errors, formats
from barnraise.cli import VERBS
from barnraise.cli.fields import Table, tables, words
from barnraise.config import PEER_TABLE, PeerConfig, RunConfig
from barnraise.model.shape import num_parameters
from barnraise.observe import status, vocabulary

_PART: Final = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def renewed(page: str) -> str:
    """Return a page with each of its generated parts made anew.

    Raises:
        KeyError: it has a part that nothing here makes.
    """
    return _PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]().strip()}\n\n{found[3]}", page)


def commands() -> str:
    """Return a section for each verb that is there: what it does, its options, their defaults."""
    return "\n\n".join(_command(verb) for verb in VERBS if importlib.util.find_spec(f"barnraise.cli.{verb}"))


def run_keys() -> str:
    """Return the keys of a run's configuration, a table for each of its tables."""
    return "\n\n".join(_keys(table) for table in tables(RunConfig))


def peer_keys() -> str:
    """Return the keys of one machine's settings."""
    (table,) = tables(PeerConfig)
    return _keys(Table(name=PEER_TABLE, says=table.says, keys=table.keys))


def names_elsewhere() -> str:
    """Return our names of keys that other programs call otherwise, with our defaults."""
    defaults = config.flatten(RunConfig())
    (table,) = tables(PeerConfig)
    defaults |= {f"{PEER_TABLE}.{key.name}": key.default for key in table.keys}
    defaults |= {f"{PEER_TABLE}.{key}": value for key, value in config.PEER_PRESETS["local"].items()}
    rows = [
        (f"`{theirs}`", f"`{ours}`", _value(defaults[ours]) if ours in defaults else "a table: `--preset`")
        for theirs, ours in config.ELSEWHERE.items()
    ]
    return _table(("name elsewhere", "name here", "default"), rows)


def preset_names() -> str:
    """Return the names of presets and what they stand for."""
    sizes = [
        (
            f"`{name}`",
            f"{model.num_layers} layers of width {model.hidden_size}, {model.num_heads} heads, context "
            f"{model.max_seq_len} bytes: {num_parameters(model) / 1e6:.1f}M parameters",
        )
        for name, model in config.PRESETS.items()
    ]
    kinds = [
        (f"`{name}`", "; ".join(f"`{PEER_TABLE}.{key} = {formats.toml_value(value)}`" for key, value in keys.items()))
        for name, keys in config.PEER_PRESETS.items()
    ]
    return _table(("preset", "stands for"), sizes + kinds)


def events() -> str:
    """Return every event with its fields and its meaning."""
    rows = []
    for kind in typing.get_args(vocabulary.AnyEvent):
        fields = ", ".join(f"`{field.name}`" for field in msgspec.structs.fields(kind) if field.name != "time")
        rows.append((f"`{kind.__struct_config__.tag}`", fields, inspect.getdoc(kind) or ""))
    return _table(("event", "fields", "meaning"), rows)


def status_fields() -> str:
    """Return the fields of what a peer says of itself."""
    said = words(status.Status)
    return _table(("field", "meaning"), [(f"`{name}`", said.get(name, "")) for name in status.Status.__struct_fields__])


def exit_codes() -> str:
    """Return the exit codes and what each means."""
    rows = [
        ("0", "done"),
        (str(errors.LocalError.exit_code), "failed, or stopped by Ctrl-C before it was done"),
        (str(errors.ConfigError.exit_code), "usage: a value, a file or a flag to change"),
        (str(errors.Unavailable.exit_code), "others are not there"),
        (str(errors.Aborted.exit_code), "the members that are left cannot agree to go on"),
    ]
    return _table(("code", "meaning"), rows)


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    part.__name__: part
    for part in (
        commands,
        run_keys,
        peer_keys,
        names_elsewhere,
        preset_names,
        events,
        status_fields,
        exit_codes,
    )
}


def _command(verb: str) -> str:
    module = importlib.import_module(f"barnraise.cli.{verb}")
    told = parse(inspect.getdoc(getattr(module, verb)) or "")
    app = App(name="barnraise")
    app.command(f"barnraise.cli.{verb}:{verb}", name=verb)
    arguments = [argument for argument in app[verb].assemble_argument_collection(parse_docstring=True) if argument.show]
    synopsis = " ".join([f"barnraise {verb}", *(_synopsis(argument) for argument in arguments if _is_needed(argument))])
    parts = [f"### barnraise {verb}", f"`{synopsis}`", told.short_description or "", told.long_description or ""]
    if arguments:
        rows = [(_names(argument), _help(argument), _default(argument)) for argument in arguments]
        parts.append(_table(("option", "meaning", "default"), rows))
    return "\n\n".join(part for part in parts if part)


def _is_needed(argument: Any) -> bool:
    return argument.index is not None or argument.required


def _synopsis(argument: Any) -> str:
    name = argument.names[0]
    word = name if argument.index is not None else f"{name} {name.lstrip('-').upper()}"
    return word if argument.required else f"[{word}]"


def _names(argument: Any) -> str:
    return ", ".join(f"`{name}`" for name in argument.names)


def _help(argument: Any) -> str:
    said, choices = argument.parameter.help or "", argument.get_choices() or ()
    unsaid = [choice for choice in choices if choice not in said]
    return f"{said} One of: {', '.join(choices)}." if unsaid else said


def _default(argument: Any) -> str:
    default = argument.field_info.default
    if default in (None, False, ()) or argument.required:
        return "required" if argument.required else ""
    return f"`{default}`"


def _keys(table: Table) -> str:
    ranges = config.RANGES
    rows = []
    for key in table.keys:
        dotted = f"{table.name}.{key.name}" if table.name else key.name
        low_high = " to ".join(f"{limit:,}" for limit in ranges.get(dotted, ()))
        values = f"{key.values}, {low_high}" if low_high else key.values
        rows.append((f"`{dotted}`", values, _value(key.default), key.says))
    return f"{table.says.split('Hashed;')[0].strip()}\n\n{_table(('key', 'value', 'default', 'meaning'), rows)}"


def _value(value: Any) -> str:
    return "required" if value is MISSING else f"`{formats.toml_value(value)}`"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


def main() -> int:
    """Renew the file that is named."""
    parser = argparse.ArgumentParser(prog="barnraise.cli.reference", description="Renew the tables of a page.")
    parser.add_argument("page", type=Path, help="docs/reference.md")
    page: Path = parser.parse_args().page
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
