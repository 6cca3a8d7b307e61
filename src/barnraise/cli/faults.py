"""Faults on demand: ``peer:2@round:3`` reads as "kill peer 2 when it begins round 3"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from barnraise.errors import ConfigError

_SYNTAX: Final = re.compile(r"(?P<kind>peer|trainer):(?P<index>\d{1,6})@round:(?P<round>\d{1,9})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Kill a peer or its trainer, with SIGKILL, when that peer begins a round."""

    kind: Literal["peer", "trainer"]
    index: int
    """Number of the peer, from 0, the most senior."""
    round: int
    """Rounds count from 0."""

    @property
    def target(self) -> str:
        """Return what is killed, as the user wrote it."""
        return f"{self.kind}:{self.index}"

    def __str__(self) -> str:
        return f"{self.target}@round:{self.round}"


def parse(texts: Sequence[str], *, num_peers: int, rounds: int) -> tuple[Fault, ...]:
    """Read what the user gave as ``--kill``.

    Raises:
        ConfigError: the syntax, the peer's number or the round is wrong, or nobody would be left.
    """
    faults = tuple(_parse(text, num_peers, rounds) for text in texts)
    killed = {fault.index for fault in faults if fault.kind == "peer"}
    if len(killed) == num_peers:
        raise ConfigError(f"--kill names all of the {num_peers} peers: nobody would be left. Spare one.")
    return faults


def _parse(text: str, num_peers: int, rounds: int) -> Fault:
    found = _SYNTAX.fullmatch(text)
    if found is None:
        raise ConfigError(f"--kill {text!r} is not understood. Write peer:2@round:3 or trainer:1@round:2.")
    index, number = int(found["index"]), int(found["round"])
    if index >= num_peers:
        raise ConfigError(f"--kill {text}: there is no peer {index}, the peers are 0 .. {num_peers - 1}. Name one.")
    if number >= rounds:
        raise ConfigError(f"--kill {text}: there is no round {number}, the rounds are 0 .. {rounds - 1}. Name one.")
    return Fault(kind="peer" if found["kind"] == "peer" else "trainer", index=index, round=number)
