"""Every event that a peer or the launcher emits, and its fields; nothing here writes or reads a file.

An event is one JSON object: ``time`` (Unix seconds), ``event`` (its name) and the fields below. Who writes events uses
`barnraise.observe.events`; who reads them gets the classes of this file, whose unknown fields are passed over so that
an older reader understands a newer writer. Peers are named by peer id, rounds count from 0, losses are nats per token.
"""

from typing import Any, Final

import msgspec

MAX_LINE_BYTES: Final = 64 * 1024
"""The longest event is a round.committed with the ids of some hundred members."""


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    time: float = 0.0
    """Unix seconds, by the clock of the process that wrote it."""


class PeerStarted(_Event, frozen=True, kw_only=True, tag="peer.started"):
    """A peer is up and listens."""

    peer: str
    address: str
    """A multiaddress that others may name as bootstrap."""
    run: str = ""
    pid: int = 0


class PeerJoined(_Event, frozen=True, kw_only=True, tag="peer.joined"):
    """Another peer proved its identity and is connected."""

    other: str


class PeerLost(_Event, frozen=True, kw_only=True, tag="peer.lost"):
    """The last connection to another peer is gone."""

    other: str
    reason: str = ""


class PeerLeft(_Event, frozen=True, kw_only=True, tag="peer.left"):
    """The members agreed that another peer is none any more."""

    other: str
    reason: str = ""


class PeerRefused(_Event, frozen=True, kw_only=True, tag="peer.refused"):
    """Somebody knocked and was not let in."""

    reason: str = ""


class PeerWaiting(_Event, frozen=True, kw_only=True, tag="peer.waiting"):
    """The peer cannot go on by itself and says what it lacks."""

    reason: str = ""


class PeerCatchingUp(_Event, frozen=True, kw_only=True, tag="peer.catching_up"):
    """The peer missed rounds and fetches what they came to."""

    round: int
    donor: str = ""
    reason: str = ""


class PeerFetched(_Event, frozen=True, kw_only=True, tag="peer.fetched"):
    """The peer has the tensors of a checkpoint, from everybody who gave some of them."""

    vertex: str
    bytes: int
    donors: tuple[str, ...]
    took_s: float


class TrainerStarted(_Event, frozen=True, kw_only=True, tag="trainer.started"):
    """The peer's trainer said hello."""

    pid: int
    device: str = ""
    dtype: str = ""
    """What forward and backward compute in."""
    reason: str = ""
    """Why that device."""


class TrainerRestarted(_Event, frozen=True, kw_only=True, tag="trainer.restarted"):
    """The peer's trainer died and a new one was started in its place."""

    pid: int
    exit: int | None = None
    """Exit status of the old one; negative: the signal that ended it."""


class RoundPlanned(_Event, frozen=True, kw_only=True, tag="round.planned"):
    """The peer knows its part of a round and begins it."""

    round: int
    members: tuple[str, ...] = ()
    first_sample: int = 0
    samples: int = 0


class RoundProgress(_Event, frozen=True, kw_only=True, tag="round.progress"):
    """Where the peer's trainer is."""

    round: int
    step: int
    steps: int
    loss: float | None = None


class RoundCommitted(_Event, frozen=True, kw_only=True, tag="round.committed"):
    """A round is agreed and applied. Times and bytes are this peer's own, of this round alone."""

    round: int
    vertex: str = ""
    theta: str = ""
    members: tuple[str, ...] = ()
    contributors: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    train_loss: float | None = None
    """Weighted mean of the contributors'."""
    val_bits_per_byte: float | None = None
    """Of the parameters that the round began with, on the windows that its members measured."""
    tokens: int = 0
    """Of all contributors."""
    failed_attempts: int = 0
    """Attempts at the round's exchange that came to nothing before this one."""
    train_s: float = 0.0
    wait_s: float = 0.0
    exchange_s: float = 0.0
    agree_s: float = 0.0
    apply_s: float = 0.0
    took_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0


class RoundVoid(_Event, frozen=True, kw_only=True, tag="round.void"):
    """An attempt at a round came to nothing: nobody stepped, and it is tried again."""

    round: int
    attempt: int = 0
    without: tuple[str, ...] = ()


class Error(_Event, frozen=True, kw_only=True, tag="error"):
    """Why the process is about to stop, and what to do about it."""

    message: str
    next: str = ""


class RunFinished(_Event, frozen=True, kw_only=True, tag="run.finished"):
    """The peer has applied the last round. Bytes and tokens are of the whole run."""

    vertex: str
    theta_path: str
    rounds: int = 0
    tokens: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class RunLeft(_Event, frozen=True, kw_only=True, tag="run.left"):
    """The peer has finished its part and leaves before the run is over; what it has is what was agreed until then."""

    reason: str
    vertex: str
    theta_path: str
    rounds: int = 0
    tokens: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class RunStarted(_Event, frozen=True, kw_only=True, tag="run.started"):
    """The launcher's: a swarm is being raised."""

    run: str
    directory: str
    peers: int
    rounds: int
    steps: int


class FaultInjected(_Event, frozen=True, kw_only=True, tag="fault.injected"):
    """The launcher's: it killed something on demand."""

    target: str
    """``peer:2`` or ``trainer:1``."""
    round: int
    pid: int


class PeerExited(_Event, frozen=True, kw_only=True, tag="peer.exited"):
    """The launcher's: a peer's process ended."""

    code: int
    """Exit status; negative: the signal that ended it."""


AnyEvent = (
    PeerStarted
    | PeerJoined
    | PeerLost
    | PeerLeft
    | PeerRefused
    | PeerWaiting
    | PeerCatchingUp
    | PeerFetched
    | TrainerStarted
    | TrainerRestarted
    | RoundPlanned
    | RoundProgress
    | RoundCommitted
    | RoundVoid
    | Error
    | RunFinished
    | RunLeft
    | RunStarted
    | FaultInjected
    | PeerExited
)

_record: Final[msgspec.json.Decoder[dict[str, Any]]] = msgspec.json.Decoder(dict[str, Any])
_event: Final[msgspec.json.Decoder[AnyEvent]] = msgspec.json.Decoder(AnyEvent)


def decode(line: bytes) -> tuple[dict[str, Any], AnyEvent]:
    """Read one line: the record as it was written, and the event that it is.

    Raises:
        ValueError: the line is too long, is no JSON object, or is no event of this vocabulary.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"a line of {len(line)} bytes is over the limit of {MAX_LINE_BYTES}")
    return _record.decode(line), _event.decode(line)
