"""Shows a run while it goes: the live table on a terminal, plain lines elsewhere, JSON for programs."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol, TextIO

import msgspec

from barnraise.observe import plain
from barnraise.observe.view import View
from barnraise.observe.vocabulary import AnyEvent, RoundCommitted, RunStarted

REDRAW_S: Final = 0.5
"""The table is drawn at most this often: it must not take the cores that train."""


class Display(Protocol):
    """What the launcher tells a run's events to."""

    def event(self, before: View, after: View, source: int, record: Mapping[str, Any], event: AnyEvent) -> None:
        """Show one event, which led from one view to the next."""
        ...

    def tick(self, view: View) -> None:
        """Show the view as it is now; called about once a second."""
        ...

    def note(self, text: str) -> None:
        """Show a line of the launcher's own."""
        ...

    def invite(self, word: str, file: str) -> None:
        """Show how others join: by an invitation, which is a secret, or on this machine by the file that holds it.

        Both may be followed by options that whoever joins needs as well.
        """
        ...


class JsonDisplay:
    """One JSON object a line, as the peers wrote it, with ``source`` beside it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def event(self, before: View, after: View, source: int, record: Mapping[str, Any], event: AnyEvent) -> None:
        print(msgspec.json.encode(record).decode(), file=self._stream, flush=True)

    def tick(self, view: View) -> None:
        pass

    def note(self, text: str) -> None:
        print(f"barnraise: {text}", file=sys.stderr, flush=True)

    def invite(self, word: str, file: str) -> None:
        self.note(f"join: barnraise join {file}")  # a program's output is kept; the secret stays in its file


class PlainDisplay:
    """One line for each round and whatever else a person wants to know."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def event(self, before: View, after: View, source: int, record: Mapping[str, Any], event: AnyEvent) -> None:
        text = plain.line(before, after, source, event)
        if text is not None:
            print(text, file=self._stream, flush=True)

    def tick(self, view: View) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def invite(self, word: str, file: str) -> None:
        self.note(_invitation(word))


class TableDisplay:
    """The live table; faults and failures scroll by above it."""

    def __init__(self, say: Callable[[str], None], draw: Callable[[View], None]) -> None:
        self._say = say
        self._draw = draw
        self._drawn = 0.0

    def event(self, before: View, after: View, source: int, record: Mapping[str, Any], event: AnyEvent) -> None:
        text = None if isinstance(event, RoundCommitted | RunStarted) else plain.line(before, after, source, event)
        if text is not None:
            self._say(text)
        if time.monotonic() - self._drawn >= REDRAW_S:
            self.tick(after)

    def tick(self, view: View) -> None:
        self._drawn = time.monotonic()
        self._draw(view)

    def note(self, text: str) -> None:
        self._say(text)

    def invite(self, word: str, file: str) -> None:
        self._say(_invitation(word))


def _invitation(word: str) -> str:
    return f"join from another terminal, or from a machine that reaches this one (the line is a secret):\nbarnraise join {word}"


@contextmanager
def display(*, json: bool) -> Iterator[Display]:
    """Choose how to show a run on stdout."""
    if json:
        yield JsonDisplay(sys.stdout)
    elif not wants_table(sys.stdout, os.environ):
        yield PlainDisplay(sys.stdout)
    else:
        with _live_table() as table:
            yield table


def wants_table(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return whether a stream is a terminal that may be drawn on (https://no-color.org)."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


@contextmanager
def _live_table() -> Iterator[TableDisplay]:
    from rich.live import Live

    from barnraise.observe.table import render

    with Live(auto_refresh=False, vertical_overflow="crop") as live:
        yield TableDisplay(
            lambda text: live.console.print(text, style="dim", markup=False, highlight=False),
            lambda view: live.update(render(view), refresh=True),
        )
