"""``barnraise status``: how a run is doing, from what its peers on this machine say of themselves."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from barnraise.cli.page import Directory, Json, print_json, print_table
from barnraise.errors import ConfigError
from barnraise.ids import short
from barnraise.observe.figures import count, measured, size
from barnraise.observe.status import Status
from barnraise.observe.vocabulary import RoundCommitted
from barnraise.runs import places, reading
from barnraise.runs.reading import PeerNow

ROUNDS_AVERAGED: Final = 5
STALE_S: Final = 15.0
"""A peer that lives and has said nothing for this long is paused, or its disk is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """A run as its peers on this machine see it, all of them together."""

    directory: Path
    newest: Status
    """Of the peer that is farthest; of a living one, if any lives."""
    peers: tuple[PeerNow, ...]
    round_s: float | None
    """How long a round takes; None: none is agreed yet."""

    @property
    def num_alive(self) -> int:
        """Peers of this machine whose process lives."""
        return sum(peer.is_alive for peer in self.peers)

    @property
    def is_over(self) -> bool:
        """Whether the last planned round is agreed."""
        return self.newest.round >= self.newest.rounds

    @property
    def remaining_s(self) -> float | None:
        """How long the rest of the run may take; None: not known, or nobody of this machine works on it."""
        if self.round_s is None or not self.num_alive:
            return None
        return self.round_s * (self.newest.rounds - self.newest.round)


def status(
    *,
    directory: Directory = None,
    node: Annotated[str | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> int:
    """Say how a run on this machine is doing: its round, its peers, who waits for whom, how long it will take.

    It reads what the peers wrote and disturbs none of them; peers on other machines appear as members only.

    Args:
        directory: Directory of the run, or of one peer. Default: the run of this user in which something happened last.
        node: Say it of one peer alone: its id or the end of it, or the name of its directory, such as peer-0.
        json: Print one object.
    """
    found = overview(reading.find(directory))
    chosen = found.peers if node is None else (_chosen(found, node),)
    now = time.time()
    if json:
        print_json(_record(found, chosen, now))
        return 0
    print(_paragraph(found))
    print()
    titles = ("peer", "id", "process", "doing", "round", "waits for", "said", "sent", "received")
    rows = [_row(peer, now) for peer in chosen]
    print_table(titles, rows, numbers=("round", "said", "sent", "received"))
    return 0


def overview(directory: Path) -> Overview:
    """Return the state of a run or of one peer.

    Raises:
        ConfigError: no peer there has said anything yet.
    """
    peers = reading.peers_now(directory)
    said = [peer for peer in peers if peer.status is not None]
    if not said:
        raise ConfigError(f"{directory}: its peers have said nothing yet. Wait some seconds, or look into stderr.log.")
    farthest = max(said, key=lambda peer: (peer.is_alive, peer.status.round if peer.status else 0))
    assert farthest.status is not None
    return Overview(
        directory=directory, newest=farthest.status, peers=tuple(peers), round_s=_round_s(farthest.directory)
    )


def is_named(peer: PeerNow, node: str) -> bool:
    """Tell whether ``node`` is a peer's directory, its id, or the end of its id."""
    ident = peer.status.peer if peer.status else ""
    return node in (peer.directory.name, ident) or (len(node) >= 4 and ident.endswith(node))


def _chosen(found: Overview, node: str) -> PeerNow:
    matching = [peer for peer in found.peers if is_named(peer, node)]
    if len(matching) != 1:
        known = ", ".join(f"{peer.directory.name} ({short(_ident(peer))})" for peer in found.peers)
        raise ConfigError(f"--node {node} names {len(matching)} of the peers here: {known}. Name one of them.")
    return matching[0]


def _round_s(peer_dir: Path) -> float | None:
    took = [event.took_s for event in reading.last_events(peer_dir) if isinstance(event, RoundCommitted)]
    newest = took[-ROUNDS_AVERAGED:]
    return sum(newest) / len(newest) if newest else None


def _paragraph(found: Overview) -> str:
    state = found.newest
    lines = [
        f"run {state.run[:12]}, {state.round} of {state.rounds} rounds agreed, {len(state.members)} members",
        f"in {found.directory}: {_processes(found)}",
    ]
    if state.waiting and found.num_alive and not found.is_over:
        lines.append(f"waiting: {state.waiting}")
    if found.round_s is not None:
        rest = f"; {_duration(found.remaining_s)} to go" if found.remaining_s else ""
        lines.append(f"a round takes {found.round_s:.1f} s{rest}")
    figures = f"loss {measured(state.train_loss)}, held-out {measured(state.val_bits_per_byte)} bits per byte"
    lines.append(f"{figures}, {count(state.tokens)} tokens; checkpoint {state.vertex[:12]}")
    return "\n".join(lines)


def _processes(found: Overview) -> str:
    if found.is_over:
        return "finished"
    if not found.num_alive:
        return f"nobody works on it here. Go on: {_resume_command(found)}"
    return f"{found.num_alive} of {len(found.peers)} peers of this machine are running"


def _resume_command(found: Overview) -> str:
    """Return what starts the peers of this machine again: the verb that they were started with."""
    if places.peers_directory() in found.directory.absolute().parents:
        return f"barnraise start --dir {found.directory}"
    founders: tuple[str, ...] = ()
    with contextlib.suppress(ConfigError):  # a peer that joined may not have been told the run's configuration yet
        founders = reading.run_config(found.peers[0].directory).founders
    if any(peer.status and peer.status.peer in founders for peer in found.peers):
        return f"barnraise train --resume --dir {found.directory}"
    return f"barnraise join {found.directory}"


def _row(peer: PeerNow, now: float) -> tuple[str, ...]:
    state = peer.status
    process = "running" if peer.is_alive else "not running"
    if state is None:
        return (peer.directory.name, "", process, "has said nothing yet", "", "", "", "", "")
    age = now - state.time
    if peer.is_alive and age > STALE_S:
        process = "silent"
    waits = state.waiting or ", ".join(map(short, state.waiting_for))
    said = f"{_duration(age)} ago"
    sent, received = size(state.bytes_sent), size(state.bytes_received)
    doing = state.phase if peer.is_alive else f"was {state.phase}"
    return peer.directory.name, short(state.peer), process, doing, str(state.round), waits, said, sent, received


def _duration(seconds: float | None) -> str:
    """Return a duration as a person reads it: ``42 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds or 0))
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next((place for place, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number or unit == "s")


def _record(found: Overview, chosen: Sequence[PeerNow], now: float) -> dict[str, object]:
    state = found.newest
    return {
        "time": round(now, 3),
        "run": state.run,
        "directory": str(found.directory),
        "round": state.round,
        "rounds": state.rounds,
        "is_over": found.is_over,
        "round_s": found.round_s,
        "remaining_s": found.remaining_s,
        "members": [member.peer for member in state.members],
        "vertex": state.vertex,
        "train_loss": state.train_loss,
        "val_bits_per_byte": state.val_bits_per_byte,
        "tokens": state.tokens,
        "peers": [
            {"directory": str(peer.directory), "is_alive": peer.is_alive, "status": peer.status} for peer in chosen
        ],
    }


def _ident(peer: PeerNow) -> str:
    return peer.status.peer if peer.status else "unknown"
