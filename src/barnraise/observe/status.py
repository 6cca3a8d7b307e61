"""What a peer says of itself in its data directory while it works, for `barnraise status`; no log, only the present.

The file is replaced as a whole, so that a reader never sees half of one. It stays when the peer ends: whether the
peer lives is for the lock of its directory to say.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from barnraise.errors import ConfigError
from barnraise.observe.counters import Meter

STATUS_FILE: Final = "status.json"
MAX_STATUS_BYTES: Final = 4 * 1024 * 1024
"""A thousand members take some 200 kB, the links between a hundred as much."""
EVERY_S: Final = 1.0
IDLE_EVERY_S: Final = 5.0
"""A peer about which nothing changes but who was heard when is told this often."""


class MemberStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A peer of the agreed set."""

    peer: str
    counts_from: int
    """First round in which its update has a weight."""
    missed: int = 0
    """Rounds in a row that went on without its update."""


class Connected(msgspec.Struct, frozen=True, kw_only=True):
    """A peer that this one has a connection to."""

    peer: str
    silent_s: float
    """Seconds since it was last heard, at the status' time."""
    latency_s: float | None = None
    """One way; None: not measured yet."""
    bandwidth_bytes_s: float | None = None
    """From this peer to it; None: too little has been sent there."""
    num_refused: int = 0
    """Messages from it that had to be dropped."""


class LinkRow(msgspec.Struct, frozen=True, kw_only=True):
    """What one member says of its own links, in the order of the status' ``members``; 0 is unknown."""

    peer: str
    uplink_kb_s: int = 0
    """The most that it sent in all, as a lower bound of what it can."""
    downlink_kb_s: int = 0
    latencies_us: tuple[int, ...]
    """One way, from it to each member."""
    bandwidths_kb_s: tuple[int, ...]
    """From it to each member; 1 is 1000 bytes a second."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One peer at one moment."""

    time: float
    """Unix seconds."""
    pid: int
    run: str
    """Hex."""
    peer: str
    address: str = ""
    device: str = ""
    round: int
    """The round at hand, from 0; equal to ``rounds`` when the run is over."""
    rounds: int
    phase: str
    """In plain words."""
    waiting: str = ""
    """Why nothing can be agreed now; "": it can."""
    waiting_for: tuple[str, ...] = ()
    """Peers whose word or data the phase waits for."""
    members: tuple[MemberStatus, ...] = ()
    """By seniority."""
    connected: tuple[Connected, ...] = ()
    links: tuple[LinkRow, ...] = ()
    """The link graph: this peer's own row, and those that connected members told."""
    parameters: int = 0
    """Of the model, which is what a round exchanges."""
    vertex: str = ""
    """Hex id of the newest checkpoint."""
    train_loss: float | None = None
    """Nats per token, of the last agreed round."""
    val_bits_per_byte: float | None = None
    tokens: int = 0
    """Of all contributors, since the run began."""
    bytes_sent: int = 0
    """By this process."""
    bytes_received: int = 0
    exchange: Meter = Meter()
    """The exchanges of rounds: how long, how many bytes, how many failed, as histograms."""


class StatusFile:
    """Where a peer says how it is.

    A status that cannot be written is told on stderr once, and the peer goes on.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds and does not go backwards."""
        self._path = path
        self._clock = clock
        self._written: Status | None = None
        self._written_at = -IDLE_EVERY_S
        self._warned = False

    def write(self, status: Status, *, is_last: bool = False) -> None:
        """Write a status, unless the last one is so young or says so much the same that nobody would miss it.

        Args:
            status: what to say.
            is_last: it is written in any case, since nothing will come after it.
        """
        age = self._clock() - self._written_at
        if not is_last and (age < EVERY_S or (age < IDLE_EVERY_S and _same(status, self._written))):
            return
        self._written, self._written_at = status, self._clock()
        partial = self._path.with_suffix(".partial")
        try:
            partial.write_bytes(msgspec.json.encode(status))
            partial.replace(self._path)
        except OSError as error:
            self._give_up(partial, error)

    def _give_up(self, partial: Path, error: OSError) -> None:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if not self._warned:
            self._warned = True
            print(f"barnraise: {self._path}: cannot be written ({error.strerror}). The run goes on.", file=sys.stderr)


def read(path: Path) -> Status | None:
    """Return what a peer said last; None where it has said nothing yet.

    Raises:
        ConfigError: the file cannot be read, or is something else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_STATUS_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Name a directory of your own.") from error
    try:
        if len(data) > MAX_STATUS_BYTES:
            raise ValueError(f"it is over {MAX_STATUS_BYTES} bytes")
        return msgspec.json.decode(data, type=Status)
    except ValueError as error:  # msgspec's errors are such
        raise ConfigError(f"{path}: is no peer's status ({error}). Delete it; the peer writes a new one.") from error


def _same(one: Status, other: Status | None) -> bool:
    """Tell whether two statuses differ in nothing but the time, who was heard when and what links measured."""
    if other is None:
        return False
    heard_alike = {entry.peer for entry in one.connected} == {entry.peer for entry in other.connected}
    return heard_alike and _lasting(one) == _lasting(other)


def _lasting(status: Status) -> Status:
    return msgspec.structs.replace(status, time=0.0, connected=(), links=())
