"""What the launcher knows of a run: a fold over the events of its peers; pure, nothing here draws or waits."""

from dataclasses import dataclass, replace
from typing import Final, assert_never

from barnraise.ids import short
from barnraise.observe.vocabulary import (
    AnyEvent,
    Error,
    FaultInjected,
    PeerCatchingUp,
    PeerExited,
    PeerFetched,
    PeerJoined,
    PeerLeft,
    PeerLost,
    PeerRefused,
    PeerStarted,
    PeerWaiting,
    RoundCommitted,
    RoundPlanned,
    RoundProgress,
    RoundVoid,
    RunFinished,
    RunLeft,
    RunStarted,
    TrainerRestarted,
    TrainerStarted,
)

LAUNCHER: Final = -1
"""The source of events that no peer emitted."""
PHASES: Final = ("train", "wait", "exchange", "agree", "apply")
"""Where a round's time goes, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerRow:
    """One peer, as its own events tell."""

    index: int
    peer: str = ""
    pid: int = 0
    address: str = ""
    trainer_pid: int = 0
    device: str = ""
    state: str = "starting"
    """In plain words."""
    waiting_since: float | None = None
    """Unix seconds of the event that said so; None: it is not waiting."""
    round: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    exit_code: int | None = None
    """None while the process lives."""
    error: Error | None = None
    finished: RunFinished | None = None
    left: RunLeft | None = None

    @property
    def is_done(self) -> bool:
        """Whether it wants nothing more: the run is over for it, or it has left."""
        return self.finished is not None or self.left is not None

    @property
    def alive(self) -> bool:
        """Whether the peer's process runs."""
        return self.exit_code is None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRow:
    """One agreed round: what all peers say alike, and each one's own times."""

    event: RoundCommitted
    """The first report of it."""
    reports: int = 1
    seconds: tuple[float, ...] = ()
    """Mean of the reports for each of `PHASES`."""
    took_s: float = 0.0
    bytes_sent: float = 0.0
    """Mean of the reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A whole run."""

    peers: tuple[PeerRow, ...]
    run: str = ""
    directory: str = ""
    rounds_planned: int = 0
    rounds: tuple[RoundRow, ...] = ()
    began: float | None = None
    """Unix seconds at which the first round began anywhere; set-up is before it."""
    ended: float | None = None
    """Unix seconds of the last commit anywhere."""
    tokens: int = 0
    members: tuple[str, ...] = ()
    """As the newest round has them."""

    @property
    def up(self) -> int:
        """Peers whose process runs and has started."""
        return sum(row.alive and bool(row.peer) for row in self.peers)

    @property
    def done(self) -> int:
        """Rounds that are agreed."""
        return self.rounds[-1].event.round + 1 if self.rounds else 0

    @property
    def over(self) -> bool:
        """Whether nothing more will happen: every peer that lives has finished, or none lives."""
        return all(row.is_done for row in self.peers if row.alive)

    @property
    def wall_s(self) -> float:
        """Seconds from the first round's beginning to the last commit."""
        return 0.0 if self.began is None or self.ended is None else self.ended - self.began

    @property
    def waiting_since(self) -> float | None:
        """Unix seconds since when every living peer waits; None while one of them works."""
        since = [row.waiting_since for row in self.peers if row.alive and not row.is_done]
        moments = [moment for moment in since if moment is not None]
        return max(moments) if moments and len(moments) == len(since) else None


def empty(num_peers: int) -> View:
    """Return the view of a swarm whose processes have not said anything."""
    return View(peers=tuple(PeerRow(index=index) for index in range(num_peers)))


def apply(view: View, source: int, event: AnyEvent) -> View:
    """Return the view after one event of peer number ``source``, or of the launcher (`LAUNCHER`)."""
    match event:
        case RunStarted():
            return replace(view, run=event.run, directory=event.directory, rounds_planned=event.rounds)
        case FaultInjected():
            return view
        case RoundCommitted():
            view = _committed(view, event)
        case RoundPlanned():
            began = event.time if view.began is None else min(view.began, event.time)
            view = replace(view, began=began, members=event.members)
        case _:
            pass
    if source == LAUNCHER:
        return view
    peers = list(view.peers)
    peers[source] = _row(peers[source], event)
    return replace(view, peers=tuple(peers))


def _row(row: PeerRow, event: AnyEvent) -> PeerRow:
    """Return a peer's row after an event of its own."""
    match event:
        case PeerStarted():
            return replace(row, peer=event.peer, pid=event.pid, address=event.address, state="looking for the others")
        case TrainerStarted():
            return replace(row, trainer_pid=event.pid, device=event.device)
        case TrainerRestarted():
            return replace(row, trainer_pid=event.pid, state="trainer restarted")
        case RoundPlanned():
            return _busy(row, "training", round=event.round, step=0)
        case RoundProgress():
            state = "training" if event.step < event.steps else "trained; with the others"
            return _busy(row, state, round=event.round, step=event.step, steps=event.steps, loss=event.loss)
        case RoundCommitted():
            sent, received = row.bytes_sent + event.bytes_sent, row.bytes_received + event.bytes_received
            return _busy(row, "round applied", round=event.round, bytes_sent=sent, bytes_received=received)
        case RoundVoid():
            return _busy(row, f"round tried again without {len(event.without)}", round=event.round)
        case PeerCatchingUp():
            return _busy(row, f"catching up from {short(event.donor)}", round=event.round)
        case PeerWaiting():
            return replace(row, state=f"waiting: {event.reason}", waiting_since=row.waiting_since or event.time)
        case Error():
            return replace(row, state=f"failed: {event.message}", error=event)
        case RunFinished():
            row = replace(row, bytes_sent=event.bytes_sent, bytes_received=event.bytes_received)
            return _busy(row, "finished", finished=event)
        case RunLeft():
            row = replace(row, bytes_sent=event.bytes_sent, bytes_received=event.bytes_received)
            return _busy(row, event.reason, left=event)
        case PeerExited():
            return replace(row, exit_code=event.code, state=_farewell(row, event.code))
        case PeerJoined() | PeerLost() | PeerLeft() | PeerFetched() | PeerRefused() | RunStarted() | FaultInjected():
            return row
        case _:
            assert_never(event)


def _busy(row: PeerRow, state: str, **changes: object) -> PeerRow:
    return replace(row, state=state, waiting_since=None, **changes)  # type: ignore[arg-type]  # keywords of replace


def _farewell(row: PeerRow, code: int) -> str:
    if row.finished is not None:
        return "finished"
    if row.left is not None:
        return row.left.reason
    if code < 0:
        return f"killed by signal {-code} in round {row.round}"
    return row.state if row.error is not None else f"left with exit code {code}"


def _committed(view: View, event: RoundCommitted) -> View:
    ended = event.time if view.ended is None else max(view.ended, event.time)
    known = {row.event.round: row for row in view.rounds}
    fresh = event.round not in known
    known[event.round] = _reported(known.get(event.round), event)
    return replace(
        view,
        ended=ended,
        rounds=tuple(known[number] for number in sorted(known)),
        tokens=view.tokens + (event.tokens if fresh else 0),
    )


def _reported(row: RoundRow | None, event: RoundCommitted) -> RoundRow:
    """Return a round's row with one peer's report averaged in."""
    seconds = (event.train_s, event.wait_s, event.exchange_s, event.agree_s, event.apply_s)
    if row is None:
        return RoundRow(event=event, seconds=seconds, took_s=event.took_s, bytes_sent=float(event.bytes_sent))
    n = row.reports + 1
    return replace(
        row,
        reports=n,
        seconds=tuple(old + (new - old) / n for old, new in zip(row.seconds, seconds, strict=True)),
        took_s=row.took_s + (event.took_s - row.took_s) / n,
        bytes_sent=row.bytes_sent + (event.bytes_sent - row.bytes_sent) / n,
    )
