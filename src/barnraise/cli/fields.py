"""What the configuration classes say of themselves in their source: keys, types, defaults, and the words below each."""

import ast
import dataclasses
import inspect
import sys
import typing
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """One key of a configuration."""

    name: str
    """Within its table."""
    values: str
    """What it may be, in words."""
    default: Any
    """`dataclasses.MISSING` where it must be given."""
    says: str
    """The words in the source, or ""."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of a configuration, or its top level."""

    name: str
    """"": the top level."""
    says: str
    keys: tuple[Key, ...]


def tables(kind: type[Any], name: str = "") -> list[Table]:
    """Return a configuration class as its own keys, then a table for each class inside it."""
    hints = typing.get_type_hints(kind)
    said = words(kind)
    keys: list[Key] = []
    inside: list[Table] = []
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            inside += tables(hint, item.name)
        else:
            default = item.default_factory() if item.default_factory is not MISSING else item.default
            keys.append(Key(name=item.name, values=_values(hint), default=default, says=said.get(item.name, "")))
    return [Table(name=name, says=inspect.getdoc(kind) or "", keys=tuple(keys)), *inside]


def words(kind: type[Any]) -> dict[str, str]:
    """Return the string below each field of a class."""
    source = inspect.getsource(sys.modules[kind.__module__])
    body = next(
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    found: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def _values(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    if origin is tuple:
        inner = typing.get_args(hint)
        return f"list of {_values(inner[0])}s" if inner[-1] is ... else f"list of {len(inner)} {_values(inner[0])}s"
    names: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
    return names[hint]
