"""What the reading verbs print: plain columns into a pipe, a drawn table on a terminal."""

import io
import sys

import pytest

from barnraise.cli import page
from barnraise.swarm.records import Metrics

TITLES = ("name", "size")
ROWS = [("a", "1"), ("longer", ""), ("b [x]", "100")]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_columns_are_aligned_and_never_empty() -> None:
    assert page.plain_table(TITLES, ROWS, numbers=("size",)) == [
        "name    size",
        "a          1",
        "longer     -",
        "b [x]    100",
    ]
    assert page.plain_table(TITLES, []) == ["name  size"]


def test_a_pipe_gets_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    page.print_table(TITLES, ROWS)
    assert capsys.readouterr().out.splitlines() == page.plain_table(TITLES, ROWS)


def test_a_terminal_gets_a_drawn_table_unless_colours_are_unwanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", drawn := Terminal())
    page.print_table(TITLES, ROWS)
    assert "\x1b[" in drawn.getvalue()
    assert "b [x]" in drawn.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", plain := Terminal())
    page.print_table(TITLES, ROWS)
    assert plain.getvalue().splitlines() == page.plain_table(TITLES, ROWS)


def test_a_record_is_readable_all_the_way_down() -> None:
    metrics = {"train_loss": 1, "validation_loss": -1, "tokens": 3}
    assert page.readable((b"\x00\xff", [Metrics(1, -1, 3)], "x", None)) == ["00ff", [metrics], "x", None]
