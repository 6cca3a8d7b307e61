"""Draws a `View` as the live table; pure, the caller owns the terminal."""

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from barnraise.ids import short
from barnraise.observe.figures import count, measured, size
from barnraise.observe.view import PHASES, PeerRow, RoundRow, View

ROUNDS_SHOWN: Final = 6
BAR_CELLS: Final = 24
COLOURS: Final = ("green", "yellow", "cyan", "magenta", "blue")
"""One for each of PHASES."""


def render(view: View) -> RenderableType:
    """Return the run's line, a row for each peer, and where the last rounds' time went."""
    parts: list[RenderableType] = [_headline(view), _peers(view)]
    if view.rounds:
        parts.append(_rounds(view.rounds[-ROUNDS_SHOWN:]))
    return Group(*parts)


def bar(seconds: tuple[float, ...]) -> Text:
    """Return a bar of ``BAR_CELLS`` cells, shared among the phases by largest remainder."""
    total = sum(seconds)
    if total <= 0:
        return Text(" " * BAR_CELLS)
    exact = [BAR_CELLS * part / total for part in seconds]
    cells = [int(part) for part in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: cells[i] - exact[i])
    for i in by_remainder[: BAR_CELLS - sum(cells)]:
        cells[i] += 1
    return Text.assemble(*(("█" * n, colour) for n, colour in zip(cells, COLOURS, strict=True)))


def _headline(view: View) -> Text:
    last = view.rounds[-1] if view.rounds else None
    parts = [
        f"{view.up}/{len(view.peers)} peers",
        f"{view.done}/{view.rounds_planned} rounds",
        f"{count(tokens_per_s(view))} tokens/s",
        f"loss {measured(last.event.train_loss if last else None)}",
        f"{measured(validation(view))} bits/byte",
        f"{size(sum(row.bytes_sent for row in view.peers) / len(view.peers))} sent per peer",
    ]
    return Text.assemble(("barnraise ", "bold"), (view.run[:12], "dim"), "  ", "   ".join(parts))


def tokens_per_s(view: View) -> float:
    """Return the last round's tokens over the seconds it took."""
    if not view.rounds or view.rounds[-1].took_s <= 0:
        return 0.0
    return view.rounds[-1].event.tokens / view.rounds[-1].took_s


def validation(view: View) -> float | None:
    """Return the last validation figure that any round measured, bits per byte."""
    figures = (row.event.val_bits_per_byte for row in reversed(view.rounds))
    return next((figure for figure in figures if figure is not None), None)


def _peers(view: View) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("peer", "id", "state"):
        table.add_column(title, no_wrap=True)
    for title in ("round", "step", "loss", "sent", "received"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in view.peers:
        table.add_row(*_cells(row), style=None if row.alive else "red" if row.finished is None else "dim")
    return table


def _cells(row: PeerRow) -> tuple[str, ...]:
    step = f"{row.step}/{row.steps}" if row.steps else "-"
    ident = short(row.peer) if row.peer else "-"
    sent, received = size(row.bytes_sent), size(row.bytes_received)
    return str(row.index), ident, row.state, str(row.round), step, measured(row.loss), sent, received


def _rounds(rounds: tuple[RoundRow, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("round", "peers", "loss", "bits/byte", "took", *PHASES):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("where the time went", no_wrap=True)
    for row in rounds:
        event = row.event
        table.add_row(
            str(event.round),
            str(len(event.contributors)),
            measured(event.train_loss),
            measured(event.val_bits_per_byte),
            f"{row.took_s:.1f} s",
            *(Text(f"{part:.2f}", colour) for part, colour in zip(row.seconds, COLOURS, strict=True)),
            bar(row.seconds),
        )
    return table
