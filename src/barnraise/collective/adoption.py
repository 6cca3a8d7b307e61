"""Which link graph all ranks plan by, and from which collective on; no I/O, no clock, no plans.

Theory of operation. Ranks that plan by different graphs send each other chunks that nobody waits for. So a graph holds
from a collective on that no rank can have begun. The lowest rank that is in leads; one graph is agreed on at a time:

    Told(row)                member -> leader: my links, when they changed by more than a fifth, and every `TELL_S`
    Proposed(v, rows)        leader -> all: graph v, when a row changed
    Promised(v, limit)       all -> leader: until I hear of v's end, I begin nothing after collective ``limit``
    Settled(v, adopted, k)   leader -> all: v holds from k on, which is one more than the greatest limit; or, if not all
                             promised within `PROMISE_TIMEOUT_S`, v is dropped: the newest that was adopted still holds

A limit is one more than the rank's user has called, so a rank waits only where it is about to begin the second collective
after its promise and has not heard yet: for a round trip of the control plane, every `PROPOSE_S` at the most.

The race that this prevents: (a) rank 0 says that v holds from 7 on; (b) rank 1 hears it, begins 7 by v; (c) rank 2 has
completed 6, hears rank 0 later, and has begun 7 by the old graph. With promises rank 2 has said that its limit is 6, and
waits for rank 0; or that it is 7, and v holds from 8 on.

A graph is of one epoch (`survival`). With a decision every rank forgets graphs and promises, and goes by what needs no
graph until the leader of the new epoch has one settled. So nobody has to agree on what a dead leader told to whom: (a) rank 0
tells rank 1 that v holds from 7 on, and dies; (b) rank 2 has promised and would wait for ever; (c) the decision without
rank 0 frees rank 2, and rank 1 redoes 7 without v as well.

What is lost with a connection is repeated: proposals and promises every `REPEAT_S`, until they are answered. Each of the
leader's messages says what is settled, so it does not matter which of them came.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import blake3
import msgspec

from barnraise.collective.links import MAX_ROW_MEMBERS, Row, has_changed
from barnraise.errors import PeerError
from barnraise.ids import PeerId

MAX_GRAPH_MEMBERS: Final = 64
"""64 x 64 pairs of 10 bytes fit into one message; a larger group goes by what needs no graph."""
MAX_BYTES: Final = 60 * 1024
TELL_S: Final = 10.0
"""A row that hardly changed is told this often: the leader may be new."""
PROPOSE_S: Final = 10.0
"""Between two graphs."""
LEARN_S: Final = 2.0
"""The same, where a figure was not known at all before."""
GATHER_S: Final = 2.0
"""An epoch's first graph waits so long for the rows of all."""
PROMISE_TIMEOUT_S: Final = 1.0
REPEAT_S: Final = 0.4
MAX_AHEAD: Final = 4
"""Calls that another rank's promise may be ahead of the leader's: one that it made, one that it promised, and news."""
MAX_HELD: Final = 16
"""Graphs that are kept. Honest leaders come to three."""

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Rank = Annotated[int, msgspec.Meta(ge=0, lt=MAX_ROW_MEMBERS)]


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    epoch: Count


class Told(_Message, frozen=True):
    """What I know of my links, in the order of the group."""

    row: Row


class Proposed(_Message, frozen=True):
    """A graph; not a word about whether it will ever hold."""

    version: Count
    rows: Annotated[dict[Rank, Row], msgspec.Meta(max_length=MAX_GRAPH_MEMBERS)]
    adopted: Count
    """As in `Settled`, for the versions before this one."""
    first: Count


class Promised(_Message, frozen=True):
    """I begin no collective after this one before I hear what became of the version."""

    version: Count
    limit: Count


class Settled(_Message, frozen=True):
    """All versions up to this one are settled: the newest that holds, and from which collective on; 0: none does."""

    version: Count
    adopted: Count
    first: Count


Message = Told | Proposed | Promised | Settled

encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def decode(data: bytes, sender: PeerId, world_size: int) -> Message:
    """Return the message in ``data``.

    Raises:
        PeerError: it is too long, malformed, or has rows of another group.
    """
    if len(data) > MAX_BYTES:
        raise PeerError(sender, f"told {len(data)} bytes about links; at most {MAX_BYTES}", data[:64])
    try:
        message = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(sender, f"sent a malformed statement about links: {error}", data[:64]) from error
    rows = [message.row] if isinstance(message, Told) else []
    if isinstance(message, Proposed):
        rows = list(message.rows.values())
        if any(rank >= world_size for rank in message.rows):
            raise PeerError(sender, f"proposed links of rank {max(message.rows)} in a group of {world_size}", data[:64])
    for row in rows:
        if not len(row.latencies_us) == len(row.bandwidths_kb_s) == world_size:
            counts = f"{len(row.latencies_us)} latencies and {len(row.bandwidths_kb_s)} bandwidths"
            raise PeerError(sender, f"told of {counts} in a group of {world_size}", data[:64])
    return message


@dataclass(frozen=True, slots=True)
class Tell:
    """Effect: send this over the control plane, in order."""

    to: int
    message: Message


@dataclass(frozen=True, eq=False, slots=True)
class Graph:
    """Rows that hold."""

    version: int
    rows: Mapping[int, Row]

    @property
    def digest(self) -> bytes:
        """Return what tells two graphs apart."""
        return blake3.blake3(msgspec.msgpack.encode(sorted(self.rows.items()))).digest()


@dataclass(slots=True)
class _Proposal:
    """What the leader has not settled yet."""

    graph: Graph
    since: float
    said_at: float
    limits: dict[int, int]


class Adoption:
    """One rank's part in it.

    Args:
        rank: this one.
        members: who is in, in epoch 0.

    Times are seconds on any clock that does not go backwards; ``called`` is the last collective that the user of this
    rank has called.
    """

    def __init__(self, rank: int, members: tuple[int, ...], now: float = 0.0) -> None:
        self.rank = rank
        self._own: Row | None = None
        self._told: Row | None = None
        self._told_at = now
        self._begin(0, members, now)

    def _begin(self, epoch: int, members: tuple[int, ...], now: float) -> None:
        self.epoch = epoch
        self._members = members
        self._began_at = now
        self._told = None
        self._holds: list[tuple[int, Graph]] = []
        """Graphs and the first collective of each, ascending."""
        self._promised: tuple[Graph, int] | None = None
        """What this rank waits to hear of, and its limit."""
        self._promised_at = self._repeated_at = now
        self._newest = Settled(epoch, 0, 0, 0)
        self._rows: dict[int, Row] = {}
        self._proposal: _Proposal | None = None
        self._proposed_at: float | None = None

    @property
    def leader(self) -> int:
        """Return who leads."""
        return min(self._members)

    # ---- what may be begun ------------------------------------------------------------------------------------

    def at(self, epoch: int, sequence: int) -> Graph | None:
        """Return the graph to plan a collective by; None: none, on all ranks."""
        held = [graph for first, graph in self._holds if first <= sequence]
        return held[-1] if held and epoch == self.epoch else None

    def must_wait(self, sequence: int) -> bool:
        """Tell whether this rank has promised not to begin a collective yet."""
        return self._promised is not None and sequence > self._promised[1]

    @property
    def promised_at(self) -> float | None:
        """Return since when a promise binds; None: none does."""
        return self._promised_at if self._promised is not None else None

    @property
    def newest(self) -> Graph | None:
        """Return the newest graph that was adopted."""
        return self._holds[-1][1] if self._holds else None

    # ---- events -----------------------------------------------------------------------------------------------

    def decided(self, now: float, epoch: int, members: tuple[int, ...], called: int) -> list[Tell]:
        """Begin an epoch: forget what was agreed on, and tell its leader our row."""
        self._begin(epoch, members, now)
        return [] if self._own is None else self.measured(now, self._own, called)

    def measured(self, now: float, row: Row, called: int) -> list[Tell]:
        """Note our own row as it is now."""
        self._own = row
        if not any(row.latencies_us):
            return []
        is_known = self._told is not None and not has_changed(self._told, row)
        if (is_known and now < self._told_at + TELL_S) or not 1 < len(self._members) <= MAX_GRAPH_MEMBERS:
            return []
        self._told, self._told_at = row, now
        return self._say(now, self.leader, Told(self.epoch, row), called)

    def tick(self, now: float, called: int) -> list[Tell]:
        """Let time pass; to be called several times a second."""
        self._forget_superseded(called)
        if self._proposal is not None:
            return self._press(now, self._proposal)
        if self.rank == self.leader:
            return self._propose(now, called) if self._is_time(now) else []
        if self._promised is not None and now >= self._repeated_at + REPEAT_S:
            self._repeated_at = now
            graph, limit = self._promised
            return [Tell(self.leader, Promised(self.epoch, graph.version, limit))]
        return []

    def heard(self, now: float, sender: int, message: Message, called: int) -> list[Tell]:
        """Note what a rank said; of another epoch, or of who does not lead, it is nothing: it will be said again."""
        if message.epoch != self.epoch or sender not in self._members:
            return []
        match message:
            case Told():
                self._rows[sender] = message.row
                return []
            case Promised() if self.rank == self.leader:
                return self._heard_promise(sender, message, called)
            case Proposed() if sender == self.leader:
                return self._heard_proposal(now, message, called)
            case Settled() if sender == self.leader:
                self._settle(message)
        return []

    def _say(self, now: float, to: int, message: Message, called: int) -> list[Tell]:
        return self.heard(now, to, message, called) if to == self.rank else [Tell(to, message)]

    # ---- following --------------------------------------------------------------------------------------------

    def _heard_proposal(self, now: float, message: Proposed, called: int) -> list[Tell]:
        if message.version <= self._newest.version:
            return []
        self._settle(Settled(message.epoch, message.version - 1, message.adopted, message.first))
        if self._promised is None:
            # Who has not begun at all holds back its first call rather than make it without a graph.
            limit = called + 1 if called else 0
            self._promised = Graph(message.version, message.rows), limit
            self._promised_at = self._repeated_at = now
        graph, limit = self._promised
        return self._say(now, self.leader, Promised(self.epoch, graph.version, limit), called)

    def _settle(self, settled: Settled) -> None:
        """Take over what became of a version that this rank has promised."""
        if self._promised is not None and self._promised[0].version <= settled.version:
            graph, _ = self._promised
            if graph.version == settled.adopted and len(self._holds) < MAX_HELD:
                self._holds.append((settled.first, graph))
            self._promised = None
        if settled.version > self._newest.version:
            self._newest = settled

    def _forget_superseded(self, called: int) -> None:
        """Drop graphs that no call can go by any more: not those that only later calls do without.

        A user may be idle while graph after graph is adopted, all from its next call but one on; its next call still
        goes by the graph of its last one.
        """
        later = [*(first for first, _ in self._holds), None][1:]
        self._holds = [
            (first, graph)
            for (first, graph), following in zip(self._holds, later, strict=True)
            if following is None or following > max(called, first)
        ]

    # ---- leading ----------------------------------------------------------------------------------------------

    def _is_time(self, now: float) -> bool:
        """Tell whether there is a graph worth agreeing on."""
        if not 1 < len(self._members) <= MAX_GRAPH_MEMBERS or not self._rows:
            return False
        if self._proposed_at is None:
            return now >= self._began_at + GATHER_S or self._rows.keys() >= set(self._members)
        known = {} if self.newest is None else self.newest.rows
        news = [rank for rank, row in self._rows.items() if rank not in known or has_changed(known[rank], row)]
        is_learnt = any(rank not in known or _is_learnt(known[rank], self._rows[rank]) for rank in news)
        return bool(news) and now >= self._proposed_at + (LEARN_S if is_learnt else PROPOSE_S)

    def _propose(self, now: float, called: int) -> list[Tell]:
        self._proposed_at = now
        graph = Graph(self._newest.version + 1, dict(self._rows))
        self._proposal = _Proposal(graph, now, now, {})
        message = self._message_of(graph)
        effects = [Tell(rank, message) for rank in self._members if rank != self.rank]
        return effects + self._heard_proposal(now, message, called)

    def _message_of(self, graph: Graph) -> Proposed:
        return Proposed(self.epoch, graph.version, dict(graph.rows), self._newest.adopted, self._newest.first)

    def _heard_promise(self, sender: int, message: Promised, called: int) -> list[Tell]:
        proposal = self._proposal
        if proposal is None or message.version != proposal.graph.version:
            return [Tell(sender, self._newest)] if message.version <= self._newest.version else []
        if message.limit > called + MAX_AHEAD:
            return []  # nobody is more than one call ahead: it would bar all graphs for good, or overflow
        proposal.limits[sender] = message.limit
        if proposal.limits.keys() < set(self._members):
            return []
        return self._end(proposal.graph.version, 1 + max(proposal.limits.values()))

    def _press(self, now: float, proposal: _Proposal) -> list[Tell]:
        """Ask again those that have not promised, or drop it: the others must not wait for one that is not there."""
        if now >= proposal.since + PROMISE_TIMEOUT_S:
            return self._end(self._newest.adopted, self._newest.first)
        if now < proposal.said_at + REPEAT_S:
            return []
        proposal.said_at = now
        message = self._message_of(proposal.graph)
        return [Tell(rank, message) for rank in self._members if rank not in proposal.limits]

    def _end(self, adopted: int, first: int) -> list[Tell]:
        assert self._proposal is not None
        settled = Settled(self.epoch, self._proposal.graph.version, adopted, first)
        self._proposal = None
        self._settle(settled)
        return [Tell(rank, settled) for rank in self._members if rank != self.rank]


def _is_learnt(old: Row, new: Row) -> bool:
    """Tell whether something is known that was not."""
    return any(
        before == 0 < after
        for before, after in zip(
            (*old.latencies_us, *old.bandwidths_kb_s), (*new.latencies_us, *new.bandwidths_kb_s), strict=True
        )
    )
