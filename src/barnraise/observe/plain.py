"""Says what happens one line at a time, for a pipe, a log or a terminal without colours; pure."""

from barnraise.ids import short
from barnraise.observe.figures import count, measured, size
from barnraise.observe.table import tokens_per_s, validation
from barnraise.observe.view import PHASES, View
from barnraise.observe.vocabulary import (
    AnyEvent,
    Error,
    FaultInjected,
    PeerCatchingUp,
    PeerExited,
    PeerFetched,
    PeerLeft,
    PeerStarted,
    PeerWaiting,
    RoundCommitted,
    RoundVoid,
    RunLeft,
    RunStarted,
    TrainerRestarted,
    TrainerStarted,
)


def line(before: View, after: View, source: int, event: AnyEvent) -> str | None:
    """Return what to print for an event that led from one view to the next; None: nothing worth a line.

    A round is told once, when the first peer has committed it.
    """
    who = f"peer {source}"
    match event:
        case RunStarted():
            return f"run {event.run[:12]}: {event.peers} peers, {event.rounds} rounds of {event.steps} steps"
        case PeerStarted():
            return f"{who} is {short(event.peer)}, pid {event.pid}"
        case RoundCommitted() if after.done > before.done:
            return _round(after)
        case FaultInjected():
            return f"killed {event.target} (pid {event.pid}) in round {event.round}, as asked"
        case TrainerRestarted():
            return f"{who} restarted its trainer (pid {event.pid})"
        case RoundVoid():
            return f"{who}: round {event.round} is tried again without {len(event.without)} of the members"
        case PeerWaiting() if before.peers[source].waiting_since is None:
            return f"{who} waits: {event.reason}"
        case PeerCatchingUp():
            return f"{who} catches up on round {event.round} from {short(event.donor)}"
        case PeerFetched():
            return f"{who} fetched {size(event.bytes)} from {len(event.donors)} peers in {event.took_s:.1f} s"
        case PeerLeft():
            return f"{who}: {short(event.other)} is no member any more ({event.reason})"
        case Error():
            return f"{who} failed: {event.message} {event.next}".rstrip()
        case TrainerStarted() if not any(row.device for row in before.peers):
            return f"{who} trains on {event.device} in {event.dtype or 'float32'} ({event.reason})"
        case RunLeft():
            return f"{who}: {event.reason}"
        case PeerExited() if not after.peers[source].is_done:
            return f"{who} {after.peers[source].state}"
        case _:
            return None


def _round(view: View) -> str:
    row = view.rounds[-1]
    times = " ".join(f"{name} {part:.2f}" for name, part in zip(PHASES, row.seconds, strict=True))
    return (
        f"round {row.event.round}  {view.done}/{view.rounds_planned} done  {len(row.event.contributors)} peers  "
        f"loss {measured(row.event.train_loss)}  {measured(validation(view))} bits/byte  "
        f"{count(tokens_per_s(view))} tokens/s  {size(row.bytes_sent)} sent  {row.took_s:.1f} s ({times})"
    )
