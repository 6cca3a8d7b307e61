"""What a member's state machine asks of whoever drives it: the node with sockets, the simulator with a heap."""

from dataclasses import dataclass

from barnraise.collective import exchange
from barnraise.consensus.agreement import Decision, Record
from barnraise.errors import PeerError
from barnraise.ids import PeerId
from barnraise.swarm.messages import Message
from barnraise.swarm.plan import RoundPlan
from barnraise.swarm.records import Amend, Cut, Merge, Recover, Regroup, Result, Vertex, Void
from barnraise.swarm.state import State


@dataclass(frozen=True, kw_only=True, slots=True)
class Broadcast:
    """Send to every connected peer."""

    message: Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Send:
    """Send to one peer; it may be lost with the connection."""

    to: PeerId
    message: Message


@dataclass(frozen=True, kw_only=True, slots=True)
class PersistBallot:
    """Have this on disk before performing any effect after it."""

    record: Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Give the trainer this round's work; then call `trained`. Supersedes older work."""

    plan: RoundPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """Move or aggregate a shard; the driver reports with the same round and attempt."""

    round: int
    attempt: int
    step: exchange.SendUpdate | exchange.SendAggregate | exchange.Aggregate


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Apply the aggregate to a copy of the agreed parameters; then call `stepped`."""

    round: int
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Append:
    """Put any other entry than a result into the log; what moves for the older attempt stops."""

    height: int
    event: Cut | Void | Regroup | Amend | Recover | Merge
    decision: Decision
    vertex: Vertex | None = None
    """The checkpoint that it certifies, if any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """Put a result and its vertex into the log and make the copy the parameters: all of it or nothing."""

    height: int
    event: Result
    decision: Decision
    state: State
    vertex: Vertex
    contributed: bool
    """Our update was in: keep the new error-feedback residual; otherwise take the old one back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatchUp:
    """Fetch the log from ``height`` on and the newest tensors from ``donor``; then call `caught_up`."""

    donor: PeerId
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SendState:
    """A peer asked for the log from ``height`` on and the newest tensors."""

    to: PeerId
    height: int
    is_hollow: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """The run is over, or we leave it; stay for those who are behind, then go."""

    is_over: bool
    """False: others go on, or we do another day."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Tell the user: an event's name and fields."""

    event: str
    fields: dict[str, object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Complain:
    """A peer said what no honest one can say, and what it says with it is dropped; what else happened stands."""

    error: PeerError


Effect = (
    Broadcast
    | Send
    | PersistBallot
    | Train
    | Transfer
    | Step
    | Append
    | Commit
    | CatchUp
    | SendState
    | Finish
    | Report
    | Complain
)
