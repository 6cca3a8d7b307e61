"""Processes that stand for machines, each told what to do by a line of JSON and answering with one; see `measure.rank`.

They are told and asked through pipes, not over the links that are measured, so nothing here warms a connection or
takes a link's time. What they measure begins at one instant, which all read from the machine's one clock.
"""

import contextlib
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from measure.namespaces import BENCH, Host

from barnraise.errors import LocalError

LEAD_S: Final = 0.05
"""Between the order and the instant at which it is to be carried out; ten processes on two cores wake up in it."""
ANSWER_S: Final = 300.0
"""Longer than anything that is measured here takes."""
RAISE_S: Final = 120.0
READ_BYTES: Final = 1 << 16

Answer = dict[str, Any]


class Silent(LocalError):
    """A rank is dead, or did not answer in time."""


class Refused(LocalError):
    """A rank says that what it was told cannot be."""


class TurnFailed(LocalError):
    """A collective came to nothing; the group may be of no use any more."""

    def __init__(self, schedule: str, why: str) -> None:
        super().__init__(f"{schedule}: {why}")
        self.schedule = schedule


class Rank:
    """One process, from its parent's side."""

    def __init__(self, index: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.index = index
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(list(command), env=dict(environment), start_new_session=True, **pipes)
        self._heard = bytearray()

    @property
    def pid(self) -> int:
        """The process; also that of its group."""
        return self._process.pid

    def tell(self, order: str, **what: Any) -> None:
        """Send an order."""
        with contextlib.suppress(BrokenPipeError):  # `answer` says that it is dead
            self._process.stdin.write(msgspec.json.encode({"order": order, **what}) + b"\n")
            self._process.stdin.flush()

    def answer(self, timeout_s: float = ANSWER_S) -> Answer:
        """Return what it says next.

        Raises:
            Silent: nothing came.
            Refused: what it was told cannot be.
            LocalError: it could not do what it was told.
        """
        return self.checked(self.reply(timeout_s))

    def checked(self, found: Answer) -> Answer:
        """Return an answer unless it says that the rank could not; raises like `answer`."""
        if "failed" in found:
            kind = Refused if found.get("is_refused") else LocalError
            raise kind(f"rank {self.index}: {found['failed']}")
        return found

    def reply(self, timeout_s: float = ANSWER_S) -> Answer:
        """Return what it says next, be it that it could not. Raises `Silent`."""
        deadline = time.monotonic() + timeout_s
        output = self._process.stdout
        while b"\n" not in self._heard:
            ready, _, _ = select.select([output], (), (), max(0.0, deadline - time.monotonic()))
            piece = os.read(output.fileno(), READ_BYTES) if ready else b""
            if not piece:
                how = "ended; its own words are above" if ready else f"has not answered for {timeout_s:g} s"
                raise Silent(f"the process of rank {self.index} {how}")
            self._heard += piece
        line, _, rest = bytes(self._heard).partition(b"\n")
        self._heard = bytearray(rest)
        found: Answer = msgspec.json.decode(line)
        return found

    def send_signal(self, number: signal.Signals) -> None:
        """Stop, continue or kill it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def end(self) -> None:
        """Kill it and wait."""
        self.send_signal(signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one collective took."""

    wall_s: float
    """From the common instant until the last rank had its result."""
    cpu_s: float
    """Of all ranks' processes, until the last had its result."""
    digests: tuple[str, ...]
    """Of each rank's result."""
    error: float
    """The largest relative error of any rank, where there is something to compare with; else 0."""


class Ranks:
    """All of them. `raised` makes one and ends it."""

    def __init__(self, hosts: Sequence[Host], program: Sequence[str]) -> None:
        environment = os.environ | {
            "PYTHONPATH": f"{BENCH}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        self.hosts = list(hosts)
        self._all = [Rank(index, (*host.prefix, *program), environment) for index, host in enumerate(self.hosts)]

    def __iter__(self) -> Iterator[Rank]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, index: int) -> Rank:
        return self._all[index]

    def ask(self, order: str, timeout_s: float = ANSWER_S, **what: Any) -> list[Answer]:
        """Tell all the same; return what each says, by rank."""
        for rank in self._all:
            rank.tell(order, **what)
        said = [rank.reply(timeout_s) for rank in self._all]  # nothing is left for the next order
        return [rank.checked(answer) for rank, answer in zip(self._all, said, strict=True)]

    def reduce(self, side: str, **how: Any) -> Turn:
        """Let all carry out one collective at one instant.

        Raises:
            Refused: our side says that it cannot be; nothing was begun.
            TurnFailed: it was begun and came to nothing.
        """
        began_s = time.monotonic() + LEAD_S
        try:
            ended = self.ask("reduce", side=side, at=began_s, how=how)
        except (Refused, Silent):
            raise
        except LocalError as error:
            raise TurnFailed(how.get("schedule", side), str(error)) from error
        used = self.ask("used")
        return Turn(
            wall_s=max(answer["ended"] for answer in ended) - began_s,
            cpu_s=sum(answer["cpu_s"] for answer in used),
            digests=tuple(answer["digest"] for answer in used),
            error=max(answer["error"] for answer in used),
        )


@contextlib.contextmanager
def raised(hosts: Sequence[Host], module: str = "measure.rank", python: str = sys.executable) -> Iterator[Ranks]:
    """Start a process on each host that runs a module; end them all at the end."""
    ranks = Ranks(hosts, (python, "-P", "-m", module))
    try:
        for rank in ranks:
            rank.answer(RAISE_S)
        yield ranks
    finally:
        for rank in ranks:
            rank.end()


def now_s() -> float:
    """Return the time on the clock that all ranks read."""
    return time.monotonic()


def loopback(count: int) -> list[Host]:
    """Return hosts that are this machine."""
    return [Host(prefix=(), address="127.0.0.1")] * count


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of turns that followed one another."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
