"""Kills or stops this very process at a named point of a round: for tests and drills, and off unless asked for.

``BARNRAISE_FAULT="kill@Commit.before:round=2:nth=1"`` reads as "SIGKILL right before the first Commit of round 2". The
point is an effect of `barnraise.swarm.effects`, of a Broadcast also its message (``Broadcast.Propose``), or ``Saved``:
a result's tensor files are on disk, its log entry is not. A peer that missed the round does it in a later one.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from typing import Final

from barnraise.errors import ConfigError

VARIABLE: Final = "BARNRAISE_FAULT"
_SYNTAX: Final = re.compile(
    r"(?P<action>kill|stop)@(?P<point>\w+(\.[A-Z]\w+)?)\.(?P<when>before|after):round=(?P<round>\d{1,9})"
    r"(:nth=(?P<nth>\d{1,9}))?"
)


class Drill:
    """At most one fault, which strikes once; `at` is called around every effect and costs a comparison."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read the fault.

        Raises:
            ConfigError: it is not understood.
        """
        text = environment.get(VARIABLE, "")
        found = _SYNTAX.fullmatch(text)
        if text and found is None:
            raise ConfigError(f"{VARIABLE}={text!r} is not understood. Write kill@Commit.before:round=2, or unset it.")
        self._point, self._when = (found["point"], found["when"]) if found else ("", "")
        self._signal = signal.SIGSTOP if found and found["action"] == "stop" else signal.SIGKILL
        self._round, self._left = (int(found["round"]), int(found["nth"] or 1)) if found else (0, 0)

    @contextlib.contextmanager
    def at(self, point: str, round_: int) -> Iterator[None]:
        """Be around a named point; strike before or after it, if this is the one."""
        here = self._left > 0 and point == self._point and round_ >= self._round
        if here:
            self._left -= 1
        strikes = here and not self._left
        if strikes and self._when == "before":
            os.kill(os.getpid(), self._signal)
        yield
        if strikes and self._when == "after":
            os.kill(os.getpid(), self._signal)
