"""Kills or stops this very process at a named point of a round: for tests and drills, and off unless asked for.

``BARNRAISE_FAULT="kill@before.Commit:round=2:nth=1"`` reads as "SIGKILL right before the first Commit of round 2"; a
peer that missed that round does it in a later one. A point is an effect of `barnraise.swarm.effects`, of a Broadcast
with its message (``Broadcast.raft.Append``, ``Broadcast.pbft.Prepare``), or ``Saved``: a result's tensors are on disk and
its log entry is not; or one of the disk, `barnraise.dag.disk.POINTS` (``before.fsync.theta``, ``after.commit.entries``).
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from barnraise.errors import ConfigError
from barnraise.swarm import effects
from barnraise.swarm.effects import Effect

VARIABLE: Final = "BARNRAISE_FAULT"
_SYNTAX: Final = re.compile(
    r"(?P<action>kill|stop)@(?P<point>[\w.]+):round=(?P<round>\d{1,9})(:nth=(?P<nth>[1-9]\d{0,8}))?"
)


class Drill:
    """At most one fault, which strikes once. Without one, a call costs a comparison."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read the fault.

        Raises:
            ConfigError: it is not understood.
        """
        text = environment.get(VARIABLE, "")
        found = _SYNTAX.fullmatch(text)
        if text and found is None:
            raise ConfigError(f"{VARIABLE}={text!r} is not understood. Write kill@before.Commit:round=2, or unset it.")
        self._point = found["point"] if found else ""
        self._signal = signal.SIGSTOP if found and found["action"] == "stop" else signal.SIGKILL
        self._round, self._left = (int(found["round"]), int(found["nth"] or 1)) if found else (0, 0)

    @contextlib.contextmanager
    def around(self, effect: Effect, round_: int) -> Iterator[None]:
        """Be around the performance of an effect, in a round."""
        if self._left > 0:
            self.at(f"before.{_name_of(effect)}", _round_of(effect, round_))
        yield
        if self._left > 0:
            self.at(f"after.{_name_of(effect)}", _round_of(effect, round_))

    def at_start(self, point: str, path: Path) -> None:
        """Strike at a point of the disk before there is a round; a `barnraise.dag.disk.Watch`."""
        self.at(point, 0)

    def at(self, point: str, round_: int) -> None:
        """Strike here, if this is the point."""
        if self._left > 0 and point == self._point and round_ >= self._round:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), self._signal)


def _name_of(effect: Effect) -> str:
    message = f".{effect.message.__struct_config__.tag}" if isinstance(effect, effects.Broadcast) else ""
    return type(effect).__name__ + message


def _round_of(effect: Effect, current: int) -> int:
    """Return the round that an effect belongs to; the machine has gone on when a Commit is performed."""
    return effect.event.round if isinstance(effect, effects.Append | effects.Commit) else current
