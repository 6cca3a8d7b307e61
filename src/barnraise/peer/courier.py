"""Moves shards and states over the bulk plane: decides what may come in, and keeps trying to get out what must.

What arrives is asked for first: a shard only from a member, of the round at hand, of the size that the plan gives it,
and only once; a state only from the donor that was asked. Everything else is refused before it is allocated.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec
import numpy as np
import trio

from barnraise.codec.grid import Float32
from barnraise.collective import exchange, shards
from barnraise.consensus.voting import Decision
from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.identity import PublicIdentity
from barnraise.ids import PeerId
from barnraise.net.seam import Bulk
from barnraise.swarm.effects import Effect, Transfer
from barnraise.swarm.member import Member
from barnraise.swarm.workspace import Workspace, as_bytes

RETRY_S: Final = 0.05
"""A receiver that has not reached our round yet refuses; it is asked again this soon."""
MAX_LOG_BYTES: Final = 64 * 1024 * 1024
"""Largest log that a donor may send: some ten thousand rounds of eight members' votes."""

Post = Callable[[Callable[[float], list[Effect]]], None]
"""Hands an event to the member's machine, from any thread: ``post(lambda now: member.tick(now))``."""


class Header(msgspec.Struct, frozen=True, array_like=True, kw_only=True, forbid_unknown_fields=True):
    """What a bulk transfer is."""

    kind: Literal["update", "aggregate", "state"]
    round: int
    attempt: int
    shard: int
    """Of a state: the bytes of its log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """A shard on its way out."""

    to: PeerId
    round: int
    attempt: int
    header: bytes
    payload: memoryview


class StateLog(msgspec.Struct, frozen=True, array_like=True):
    """The log of a state transfer: decisions from a height on, and who voted for them."""

    height: int
    decisions: tuple[tuple[int, bytes, tuple[tuple[str, bytes], ...]], ...]
    voters: tuple[bytes, ...]
    """Public identities, encoded: also of members that have left since."""


_header: msgspec.msgpack.Decoder[Header] = msgspec.msgpack.Decoder(Header)
_state_log: msgspec.msgpack.Decoder[StateLog] = msgspec.msgpack.Decoder(StateLog)
_encode = msgspec.msgpack.Encoder().encode


def _refuse(error: PeerError, now: float) -> list[Effect]:
    """Be the event of a peer's misbehaviour."""
    raise error


class FetchedState:
    """A donor's answer, checked for form and not yet for truth."""

    def __init__(self, donor: PeerId, log: bytes, theta: Float32, momentum: Float32) -> None:
        try:
            found = _state_log.decode(log)
            self.voters = tuple(PublicIdentity.decode(voter) for voter in found.voters)
        except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
            raise PeerError(donor, f"sent a malformed state: {error}", log) from error
        self.donor = donor
        self.height = found.height
        self.decisions = [Decision(view=view, value=value, votes=votes) for view, value, votes in found.decisions]
        self.theta, self.momentum = theta, momentum


class Courier:
    """`sink` and `arrived` are the bulk plane's; they run in its worker threads."""

    def __init__(
        self, member: Member, workspace: Workspace, post: Post, fetched: Callable[[FetchedState], None]
    ) -> None:
        self._member = member
        self._workspace = workspace
        self._post = post
        self._fetched = fetched
        self._expected: PeerId | None = None
        self._incoming: tuple[PeerId, bytearray] | None = None

    # ---- coming in --------------------------------------------------------------------------------------------

    def expect_state(self, donor: PeerId | None) -> None:
        """Take a state from this donor only."""
        self._expected, self._incoming = donor, None

    def sink(self, sender: PeerId, data: bytes, size: int) -> memoryview | None:
        """Say where a payload goes; None refuses it."""
        header = self._read(data)
        if header is None:
            return None
        if header.kind == "state":
            return self._state_buffer(sender, header, size)
        member, work = self._member, self._member.work
        here = header.round == member.state.round and 0 <= header.shard < work.plan.num_shards
        if not here or sender not in member.state.peers:
            return None
        if header.kind == "update":
            if self._is_verified(sender, header.shard):
                return None
            buffer = self._workspace.incoming_update(sender, header.shard, work.plan.num_shards)
        else:
            if header.attempt != member.state.attempt or (header.attempt, header.shard) in work.aggregates_arrived:
                return None
            buffer = self._workspace.incoming_aggregate(header.attempt, header.shard, work.plan.num_shards)
        return buffer if buffer.nbytes == size else None

    def arrived(self, sender: PeerId, data: bytes) -> None:
        """Report a payload that is whole."""
        header = self._read(data)
        if header is None:
            return
        if header.kind == "state":
            try:
                self._state_arrived(sender, header)
            except PeerError as error:
                self._post(functools.partial(_refuse, error))
        elif header.kind == "update":
            num_shards = self._member.work.plan.num_shards
            leaf = shards.leaf(self._workspace.incoming_update(sender, header.shard, num_shards))
            self._post(lambda now: self._member.update_arrived(now, header.round, sender, header.shard, leaf))
        else:
            self._post(lambda now: self._member.aggregate_arrived(now, header.round, header.attempt, header.shard))

    def _is_verified(self, sender: PeerId, shard: int) -> bool:
        """Tell whether this very shard is here already: it may be in use, and is not overwritten."""
        work = self._member.work
        promise, leaf = work.promises.get(sender), work.updates_arrived.get((sender, shard))
        return leaf is not None and (promise is None or promise.message.leaves[shard] == leaf)

    def _state_buffer(self, sender: PeerId, header: Header, size: int) -> memoryview | None:
        tensors = 2 * 4 * self._workspace.size
        if sender != self._expected or size != header.shard + tensors or not 0 < header.shard <= MAX_LOG_BYTES:
            return None
        buffer = bytearray(size)
        self._incoming = sender, buffer
        return memoryview(buffer)

    def _state_arrived(self, sender: PeerId, header: Header) -> None:
        if self._incoming is None or self._incoming[0] != sender or sender != self._expected:
            return
        buffer = self._incoming[1]
        tensors = np.frombuffer(buffer, "<f4", offset=header.shard) if header.shard % 4 == 0 else None
        if tensors is None:
            return
        size = self._workspace.size
        self._fetched(FetchedState(sender, bytes(buffer[: header.shard]), tensors[:size].copy(), tensors[size:].copy()))

    def _read(self, data: bytes) -> Header | None:
        try:
            return _header.decode(data)
        except (msgspec.DecodeError, msgspec.ValidationError):
            return None  # refused like everything else that is not expected; the bulk plane names the sender

    # ---- going out --------------------------------------------------------------------------------------------

    def pack(self, effect: Transfer) -> Parcel:
        """Take the bytes of a shard as they are now; they stay the same whatever the workspace does next."""
        step = effect.step
        if isinstance(step, exchange.Aggregate):
            raise LocalError("an aggregation is not a transfer")
        num_shards = self._member.work.plan.num_shards
        if isinstance(step, exchange.SendUpdate):
            kind: Literal["update", "aggregate"] = "update"
            payload = self._workspace.outgoing(step.shard, num_shards)
        else:
            kind = "aggregate"
            payload = self._workspace.incoming_aggregate(effect.attempt, step.shard, num_shards)
        header = _encode(Header(kind=kind, round=effect.round, attempt=effect.attempt, shard=step.shard))
        return Parcel(to=step.to, round=effect.round, attempt=effect.attempt, header=header, payload=payload)

    async def push(self, bulk: Bulk, parcel: Parcel, deadline_s: float) -> None:
        """Send a shard until it is taken, the round is over or the deadline has passed.

        Giving up is no error: the machine sees what is missing, not what was sent.
        """
        with trio.move_on_after(deadline_s):
            while True:
                try:
                    await bulk.send(parcel.to, parcel.header, [parcel.payload])
                    return
                except Unavailable:
                    state = self._member.state
                    if (state.round, state.attempt) != (parcel.round, parcel.attempt):
                        return
                    await trio.sleep(RETRY_S)

    async def push_state(
        self, bulk: Bulk, to: PeerId, height: int, log: Sequence[Decision], voters: Sequence[PublicIdentity]
    ) -> None:
        """Send the log from ``height`` on, and the newest parameters and outer momentum.

        Raises:
            Unavailable: the other side is gone or did not ask for it.
        """
        theta, momentum = self._workspace.theta, self._workspace.momentum
        entries = tuple((decision.view, decision.value, decision.votes) for decision in log)
        body = _encode(StateLog(height, entries, tuple(voter.encode() for voter in voters)))
        body += bytes(-len(body) % 4)
        header = _encode(Header(kind="state", round=0, attempt=0, shard=len(body)))
        await bulk.send(to, header, [memoryview(body), as_bytes(theta), as_bytes(momentum)])
