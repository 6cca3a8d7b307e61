"""Moves shards and logs over the bulk plane: decides what may come in, and keeps trying to get out what must.

What arrives is asked for first: a shard only from a member, of the round at hand, no longer than its codec can make it,
and only once; a log only from the donor that was asked. Everything else is refused before it is allocated. A shard has
a room of its own until it is whole and was checked; then the workspace gets it, and nobody writes to it any more.
Checkpoints' tensors are blobs, and go their own way (`dag.depot`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import msgspec
import numpy as np
import trio

from barnraise.codec.codec import Malformed
from barnraise.codec.grid import Bytes
from barnraise.collective import exchange, shards
from barnraise.consensus.agreement import Decision
from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.identity import PublicIdentity
from barnraise.ids import PeerId
from barnraise.net.seam import Bulk
from barnraise.swarm.effects import Effect, Report, Transfer
from barnraise.swarm.member import Member
from barnraise.swarm.records import Count, Decoder
from barnraise.swarm.round import Work
from barnraise.swarm.workspace import Part, Workspace, as_bytes

RETRY_S: Final = 0.05
"""A receiver that has not reached our round yet refuses; it is asked again this soon, and then ever less often, ..."""
MAX_RETRY_S: Final = 1.0
"""... down to once in this long."""
MAX_LOG_BYTES: Final = 64 * 1024 * 1024
"""Largest piece of a log that a donor may send."""

STATE_ATTEMPTS: Final = 12
"""Some eight seconds in all: checking 512 entries of eight members takes one."""

Post = Callable[[Callable[[float], list[Effect]]], None]
"""Hands an event to the member's machine, from any thread: ``post(lambda now: member.tick(now))``."""


class Receiver(Protocol):
    """Takes from the bulk plane what is neither a shard nor a log: a `dag.depot.Depot`."""

    def sink(self, sender: PeerId, data: bytes, size_bytes: int) -> memoryview | None:
        """Say where a payload goes; None refuses it."""
        ...

    def arrived(self, sender: PeerId, data: bytes) -> None:
        """Take a payload that is whole."""
        ...


class Header(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """What a bulk transfer is."""

    kind: Literal["update", "aggregate", "log", "state"]
    """``log``: a piece of a state's log; ``state``: the last piece of it."""
    round: Count
    attempt: Count
    shard: Count
    """Of a log: its bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """Where a shard is being written."""

    data: Bytes
    """uint8[n]"""
    num_updates: int
    """So many updates an aggregate is of, by the cut of its attempt."""
    is_second: bool
    """A room for the same shard was given before, and its writer may be mistaken for this one's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """A shard on its way out."""

    to: PeerId
    round: int
    attempt: int
    is_update: bool
    header: bytes
    payload: memoryview


class StateLog(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The log of a state transfer: decisions from a height on, and who voted for them."""

    height: Count
    decisions: tuple[tuple[Count, bytes, tuple[tuple[str, bytes], ...]], ...]
    voters: tuple[bytes, ...]
    """Public identities, encoded: also of members that have left since."""


_header: Decoder[Header] = Decoder(msgspec.msgpack.Decoder(Header))
_state_log: Decoder[StateLog] = Decoder(msgspec.msgpack.Decoder(StateLog))
_encode = msgspec.msgpack.Encoder().encode


def _is_of(header: Header, work: Work) -> bool:
    """Tell whether a shard belongs to the round at hand. ``work`` is read once: the trio thread may replace it."""
    return header.round == work.plan.round and 0 <= header.shard < work.plan.num_shards


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedLog:
    """The log of a fetched state."""

    height: int
    decisions: list[Decision]
    voters: tuple[PublicIdentity, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchedState:
    """A piece of a donor's log, as it came."""

    donor: PeerId
    log: bytes
    is_last: bool

    def opened(self) -> OpenedLog:
        """Return its log, checked for form and not yet for truth.

        Raises:
            PeerError: it is malformed.
        """
        try:
            found = _state_log.decode(self.log)
            voters = tuple(PublicIdentity.decode(voter) for voter in found.voters)
        except (msgspec.DecodeError, ValueError) as error:
            raise PeerError(self.donor, f"sent a malformed state: {error}", self.log) from error
        decisions = [Decision(view=view, value=value, votes=votes) for view, value, votes in found.decisions]
        return OpenedLog(height=found.height, decisions=decisions, voters=voters)


class Courier:
    """`sink` and `arrived` are the bulk plane's; they run in its worker threads."""

    def __init__(
        self,
        member: Member,
        workspace: Workspace,
        post: Post,
        fetched: Callable[[FetchedState], None],
        blobs: Receiver,
    ) -> None:
        self._member = member
        self._workspace = workspace
        self._post = post
        self._fetched = fetched
        self._blobs = blobs
        self.round = member.state.round
        """The round that the workspace is in. The machine is in the next one while a result is being made durable; what
        came in meanwhile would be swept away with the old round."""
        self._rooms: dict[tuple[PeerId, Header], Room] = {}
        self._expected: PeerId | None = None
        self._incoming: tuple[PeerId, bytearray] | None = None

    def enter(self, round_: int) -> None:
        """Take what comes for this round, which the workspace is in now."""
        self.round = round_
        self._rooms.clear()

    # ---- coming in --------------------------------------------------------------------------------------------

    def expect_state(self, donor: PeerId | None) -> None:
        """Take a log from this donor only."""
        self._expected, self._incoming = donor, None

    @property
    def is_receiving_state(self) -> bool:
        """Tell whether the donor's log has begun to arrive."""
        return self._incoming is not None

    @property
    def state_bytes(self) -> int:
        """Return the size of the piece that is being received, or 0."""
        incoming = self._incoming
        return len(incoming[1]) if incoming else 0

    @property
    def shard_bytes(self) -> int:
        """Return the size of all shards that are being received."""
        return sum(len(room.data) for room in list(self._rooms.values()))

    def sink(self, sender: PeerId, data: bytes, size: int) -> memoryview | None:
        """Say where a payload goes; None refuses it."""
        header = self._read(data)
        if header is None:
            return self._blobs.sink(sender, data, size)
        if header.kind in ("log", "state"):
            return self._state_buffer(sender, header, size)
        member, work = self._member, self._member.work
        if (
            self.round != header.round
            or not _is_of(header, work)
            or sender not in work.plan.members
            or size not in self._lengths_of(header, work)
        ):
            return None
        if header.kind == "update":
            # A room is kept for each attempt until the round ends, so there are as many as there were attempts.
            if header.attempt > member.state.attempt or self._is_verified(sender, header.shard):
                return None
        elif header.attempt != member.state.attempt or (header.attempt, header.shard) in work.aggregates_arrived:
            return None
        is_second = (sender, header) in self._rooms
        room = Room(data=np.zeros(size, np.uint8), num_updates=self._num_updates, is_second=is_second)
        self._rooms[sender, header] = room
        return as_bytes(room.data)

    def arrived(self, sender: PeerId, data: bytes) -> None:
        """Report a payload that is whole."""
        header, work = self._read(data), self._member.work
        if header is None:
            self._blobs.arrived(sender, data)
            return
        if header.kind in ("log", "state"):
            self._state_arrived(sender, header)
            return
        room = self._rooms.pop((sender, header), None)
        if room is None or not _is_of(header, work):
            return  # its round ended while it was under way, and with the round its room
        # Two transfers of one shard at once, which no honest sender begins: the first to be whole gets the second's
        # room, which is still written to. A copy is not.
        shard = room.data.copy() if room.is_second else room.data
        leaf = shards.leaf(as_bytes(shard))
        part = Part(header.round, header.shard, work.plan.num_shards)
        try:
            if header.kind == "update":
                self._workspace.keep_update(sender, part, shard)
            else:
                self._workspace.keep_aggregate(part, header.attempt, room.num_updates, shard)
        except Malformed as error:  # it counts as not arrived
            reason = f"shard {header.shard} of round {header.round} ({header.kind}): {error}"
            self._post(lambda now: [Report(event="peer.refused", fields={"peer": sender, "reason": reason})])
            return
        if header.kind == "update":
            self._post(lambda now: self._member.update_arrived(now, header.round, sender, header.shard, leaf))
        else:
            self._post(lambda now: self._member.aggregate_arrived(now, header.round, header.attempt, header.shard))

    def _is_verified(self, sender: PeerId, shard: int) -> bool:
        """Tell whether this very shard is here already: it may be in use, and is not overwritten."""
        work = self._member.work
        promise, leaf = work.promises.get(sender), work.updates_arrived.get((sender, shard))
        if leaf is None or promise is None:
            return leaf is not None
        leaves = promise.message.leaves
        return shard < len(leaves) and leaves[shard] == leaf

    def _lengths_of(self, header: Header, work: Work) -> range:
        """Return how long a shard may be; an empty one, of a vector with fewer borders than members, may be nothing."""
        part = Part(header.round, header.shard, work.plan.num_shards)
        least = 1 if self._workspace.count(part) else 0
        if header.kind == "update":
            return range(least, self._workspace.update_bound_bytes(part) + 1)
        num_updates = self._num_updates
        return range(least, self._workspace.aggregate_bound_bytes(part, num_updates) + 1) if num_updates else range(0)

    @property
    def _num_updates(self) -> int:
        """Return how many updates the aggregate is of; 0 before the cut says so."""
        cut = self._member.state.cut
        return len(cut.contributions) if cut else 0

    def _state_buffer(self, sender: PeerId, header: Header, size: int) -> memoryview | None:
        if sender != self._expected or size != header.shard or not 0 < size <= MAX_LOG_BYTES:
            return None
        if self._incoming is not None and self._incoming[0] == sender:
            return None  # one is coming already
        buffer = bytearray(size)
        self._incoming = sender, buffer
        return memoryview(buffer)

    def _state_arrived(self, sender: PeerId, header: Header) -> None:
        incoming = self._incoming  # once: the event loop may give the donor up at any moment
        if incoming is None or incoming[0] != sender or sender != self._expected:
            return
        self._fetched(FetchedState(donor=sender, log=bytes(incoming[1]), is_last=header.kind == "state"))

    def _read(self, data: bytes) -> Header | None:
        try:
            return _header.decode(data)
        except msgspec.DecodeError:
            return (
                None  # a blob's, or nothing that is expected: then it is refused, and the bulk plane names the sender
            )

    # ---- going out --------------------------------------------------------------------------------------------

    def pack(self, effect: Transfer) -> Parcel:
        """Take the bytes of a shard as they are now; they stay the same whatever the workspace does next."""
        step = effect.step
        if isinstance(step, exchange.Aggregate):
            raise LocalError("an aggregation is not a transfer")
        part = Part(effect.round, step.shard, self._member.work.plan.num_shards)
        if isinstance(step, exchange.SendUpdate):
            kind: Literal["update", "aggregate"] = "update"
            payload = self._workspace.outgoing(part)
        else:
            kind = "aggregate"
            payload = self._workspace.aggregated(part, effect.attempt)
        header = _encode(Header(kind=kind, round=effect.round, attempt=effect.attempt, shard=step.shard))
        return Parcel(
            to=step.to,
            round=effect.round,
            attempt=effect.attempt,
            is_update=kind == "update",
            header=header,
            payload=payload,
        )

    async def push(self, bulk: Bulk, parcel: Parcel, deadline_s: float) -> None:
        """Send a shard until it is taken, the round is over or the deadline has passed.

        Giving up is no error: the machine sees what is missing, not what was sent.
        """
        with trio.move_on_after(deadline_s):
            pause_s = RETRY_S
            while True:
                try:
                    await bulk.send(parcel.to, parcel.header, [parcel.payload])
                    return
                except Unavailable:
                    if not self._is_wanted(parcel):
                        return
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, MAX_RETRY_S)

    def _is_wanted(self, parcel: Parcel) -> bool:
        """Tell whether a shard is still of use to its receiver.

        We may be a round further by now: a finished shard that a slower member lacks is then its only way to come
        along without fetching everything.
        """
        state = self._member.state
        if (state.round, state.attempt) == (parcel.round, parcel.attempt):
            return True
        is_over = state.round > parcel.round and not parcel.is_update
        return is_over and self._member.presence.is_behind(parcel.to, state.height)

    async def push_state(
        self,
        bulk: Bulk,
        to: PeerId,
        height: int,
        log: Sequence[Decision],
        voters: Sequence[bytes],
        *,
        is_last: bool,
    ) -> None:
        """Send a piece of the log, from ``height`` on.

        A receiver that is still checking the piece before refuses; it is asked again, a few times.

        Raises:
            Unavailable: the other side is gone or did not ask for it.
        """
        entries = tuple((decision.view, decision.value, decision.votes) for decision in log)
        body = _encode(StateLog(height, entries, tuple(voters)))
        header = _encode(Header(kind="state" if is_last else "log", round=0, attempt=0, shard=len(body)))
        pause_s = RETRY_S
        for _ in range(STATE_ATTEMPTS):
            try:
                await bulk.send(to, header, [memoryview(body)])
            except Unavailable as error:
                refusal = error
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_RETRY_S)
            else:
                return
        raise refusal
