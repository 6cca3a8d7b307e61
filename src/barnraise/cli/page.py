"""What verbs that only look at something print: a table for a person, JSON for a program."""

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from barnraise.cli.display import wants_table

Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False)]
Directory = Annotated[Path | None, Parameter(name="--dir", show_default=False)]


def print_json(value: object) -> None:
    """Print one line of JSON."""
    print(msgspec.json.encode(value).decode(), flush=True)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> None:
    """Print rows below their titles: drawn on a terminal, plain columns two spaces apart elsewhere.

    Args:
        titles: one a column.
        rows: each as long as ``titles``.
        numbers: titles of the columns that are set flush right.
    """
    if wants_table(sys.stdout, os.environ):
        _draw(titles, rows, numbers)
    else:
        for line in plain_table(titles, rows, numbers):
            print(line)


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str] = ()) -> list[str]:
    """Return the lines of a table in plain columns; an empty cell is a dash, so that a line can be split at spaces."""
    cells = [[cell or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if title in numbers else cell.ljust(width)
            for title, cell, width in zip(titles, row, widths, strict=True)
        ).rstrip()
        for row in [list(titles), *cells]
    ]


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print names and values, a line each."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:{width}}  {value or '-'}")


def readable(value: Any) -> Any:
    """Return a record as JSON can hold it: bytes become hex digits."""
    match value:
        case bytes():
            return value.hex()
        case tuple() | list():
            return [readable(item) for item in value]
        case msgspec.Struct():
            return {name: readable(getattr(value, name)) for name in value.__struct_fields__}
        case _:
            return value


def _draw(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title, justify="right" if title in numbers else "left", no_wrap=title in numbers)
    for row in rows:
        table.add_row(*(Text(cell or "-") for cell in row))
    Console().print(table)
