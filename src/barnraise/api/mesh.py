"""A group of ranked peers and its collectives over a control and a bulk plane; knows no threads' user and no tensors.

Statements go over the control plane: who is in the group, and which collective a rank has entered. They are state
rather than events: a peer whose connection broke is told all that holds when it is back. Vectors go over the bulk
plane, and only to a rank that has entered the same collective, so that its room is there.

A collective that fails on one rank may have been finished by another. So a failure ends the group: it is told to all,
and every later collective raises.
"""

import contextlib
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Literal

import blake3
import msgspec
import structlog
import trio

from barnraise.api.backend import Operation, Vector
from barnraise.api.reduction import Kind, Reduction
from barnraise.api.roster import Formed, Roster, Want
from barnraise.api.statements import (
    MAX_REASON_CHARS,
    Enter,
    GaveUp,
    Header,
    Left,
    Statement,
    decode_header,
    decode_statement,
    encode,
)
from barnraise.errors import BarnraiseError, ConfigError, PeerError, Unavailable
from barnraise.ids import Digest, PeerId, short
from barnraise.net.seam import Bulk, Network, PeerDown, PeerUp, Received
from barnraise.peer.keyring import read_hello

GRACE_S: Final = 2.0
"""A peer whose connection broke may be back this soon; then it counts as gone."""
RETRY_S: Final = 0.05
INLINE_BYTES: Final = 1 << 20
"""Less than this is added up at once: a thread takes longer to begin."""


_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Mesh:
    """One peer's end of the group, from `begin` on. `sink` and `arrived` are the bulk plane's.

    Args:
        me: this peer.
        roster: knows, or finds out, who is in the group.
    """

    def __init__(self, me: PeerId, roster: Roster) -> None:
        self._me = me
        self._roster = roster
        self._network: Network
        self._bulk: Bulk
        self._nursery: trio.Nursery
        self._token: trio.lowlevel.TrioToken
        self._changed = trio.Event()
        self._met: dict[PeerId, bytes] = {}
        """The hello of each peer's first connection."""
        self._up: set[PeerId] = set()
        self._gone: dict[PeerId, str] = {}
        self._entered: dict[PeerId, Enter] = {}
        self._sequence = 0
        self._work: tuple[int, Reduction] | None = None
        """The newest reduction and its number; kept when it is over, since a peer may not know that we have what it sends."""
        self._unsent: set[tuple[Kind, int]] = set()
        self._waits_for: Callable[[], Collection[PeerId]] = tuple
        self._failure: BarnraiseError | None = None

    # ---- membership -------------------------------------------------------------------------------------------

    @property
    def group(self) -> tuple[PeerId, ...]:
        """The members by rank. Raises `ConfigError` before they are known."""
        if self._roster.group is None:
            raise ConfigError("no group has been formed yet. Call wait_for_peers(n) first.")
        return self._roster.group

    @property
    def rank(self) -> int:
        """This peer's place in the group. Raises like `group`."""
        return self.group.index(self._me)

    def begin(self, network: Network, bulk: Bulk, nursery: trio.Nursery) -> None:
        """Take in what happens on the network until the nursery is cancelled."""
        self._network, self._bulk, self._nursery = network, bulk, nursery
        self._token = trio.lowlevel.current_trio_token()
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        async for event in self._network.events:
            try:
                match event:
                    case PeerUp():
                        await self._peer_up(event)
                    case PeerDown():
                        self._peer_down(event)
                    case Received():
                        await self._hear(event.peer, event.message)
            except (ConfigError, PeerError, Unavailable) as error:
                if event.peer in (self._roster.group or (event.peer,)):
                    await self._fail(error, also=event.peer)
                else:
                    _log.warning("context.stranger", peer=event.peer, reason=str(error))
            self._notify()

    async def wait_for_peers(self, count: int | None, timeout_s: float) -> None:
        """Return once ``count`` members are connected; see `Backend.wait_for_peers`."""
        needed = self._roster.want(count)
        with trio.move_on_after(timeout_s) as scope:
            await self._settle()
            await self._say(self._roster.statement)
            await self._until(lambda: self._num_here() >= needed, tuple)
        if scope.cancelled_caught and self._num_here() < needed:
            found = ", ".join(short(peer) for peer in sorted(self._up)) or "nobody"
            raise Unavailable(
                f"{self._num_here()} of {needed} peers, this one included, are here after {timeout_s:g} s (found: "
                f"{found}). Start the others, with the same cluster key, name and number of peers."
            )

    async def leave(self) -> None:
        """Tell the others that this peer will not be back."""
        await self._say(Left())

    def _num_here(self) -> int:
        group = self._roster.group
        return 0 if group is None else 1 + sum(peer in self._up for peer in group)

    async def _peer_up(self, event: PeerUp) -> None:
        peer, hello = event.peer, event.hello
        _, host, port = read_hello(peer, hello)
        first = self._met.setdefault(peer, hello)
        if first != hello and peer in (self._roster.group or ()):
            _, first_host, first_port = read_hello(peer, first)
            raise ConfigError(
                f"two processes claim rank {self.group.index(peer)}: one at {first_host}:{first_port}, one at {host}:"
                f"{port}. Give each machine its own rank; a process that was started again needs all started again."
            )
        self._bulk.learn(peer, host, port)
        self._up.add(peer)
        self._gone.pop(peer, None)
        for statement in (self._roster.statement, self._entered.get(self._me), self._farewell):
            if statement is not None:
                await self._tell(peer, statement)

    def _peer_down(self, event: PeerDown) -> None:
        self._up.discard(event.peer)
        self._roster.lost(event.peer)
        self._nursery.start_soon(self._miss, event.peer, event.reason)

    async def _miss(self, peer: PeerId, reason: str) -> None:
        await trio.sleep(GRACE_S)
        if peer not in self._up:
            self._lose(peer, reason)

    def _lose(self, peer: PeerId, reason: str) -> None:
        self._gone.setdefault(peer, reason)
        self._bulk.forget(peer)
        self._notify()

    async def _hear(self, peer: PeerId, message: bytes) -> None:
        try:
            statement = decode_statement.decode(message)
        except msgspec.DecodeError as error:
            raise PeerError(peer, f"sent a malformed statement: {error}", message) from error
        match statement:
            case Want() | Formed():
                self._roster.heard(peer, statement)
                await self._settle()
            case Enter():
                self._compare(peer, statement)
                self._entered[peer] = statement  # not if it was refused: a barrier would take it for an entry
            case Left():
                self._lose(peer, "it closed its context")
            case GaveUp() if peer in (self._roster.group or ()):
                kind = ConfigError if statement.is_users_mistake else Unavailable
                raise kind(f"{self._name(peer)} gave up: {_printable(statement.reason)}")
            case GaveUp():
                pass

    async def _settle(self) -> None:
        before = self._roster.statement
        self._roster.settle(self._up)
        if self._roster.statement != before:
            await self._say(self._roster.statement)

    # ---- collectives ------------------------------------------------------------------------------------------

    async def all_reduce(self, vector: Vector, operation: Operation, timeout_s: float) -> Vector:
        """Return the sum or mean over all ranks; see `Backend.all_reduce`."""
        work = Reduction(vector, operation, self.rank, len(self.group))
        dtype: Literal["float32", "float64"] = "float64" if vector.dtype.itemsize == 8 else "float32"

        async def carry_out() -> None:
            self._unsent.clear()
            self._work = self._sequence + 1, work
            await self._enter(operation, dtype, len(vector))
            self._push_all(work, "part")
            await self._until(lambda: not work.parts_owed, lambda: self._peers(work.parts_owed))
            if vector.nbytes < INLINE_BYTES:
                work.add_up()
            else:
                await trio.to_thread.run_sync(work.add_up)
            self._push_all(work, "total")
            await self._until(lambda: not work.totals_owed, lambda: self._peers(work.totals_owed))
            await self._until(lambda: not self._still_unsent(), lambda: self._peers(self._still_unsent()))

        await self._attempt(carry_out, timeout_s)
        return work.result

    async def barrier(self, timeout_s: float) -> None:
        """Return once every rank has entered; see `Backend.barrier`."""
        await self._attempt(lambda: self._enter("barrier", "float32", 0), timeout_s)

    async def _attempt(self, carry_out: Callable[[], Awaitable[None]], timeout_s: float) -> None:
        """Carry out one collective; what ends it early ends the group."""
        if self._failure:
            raise Unavailable(f"the group has ended: {self._failure} Close it and open another.") from self._failure
        try:
            with trio.fail_after(timeout_s):
                await carry_out()
        except trio.TooSlowError:
            late = ", ".join(self._name(peer) for peer in self._waits_for()) or "nobody"
            failure: BarnraiseError = Unavailable(
                f"collective {self._sequence} did not end within {timeout_s:g} s; it waited for {late}."
            )
        except BarnraiseError as error:
            failure = error
        else:
            return
        await self._fail(failure)
        raise failure

    async def _fail(self, failure: BarnraiseError, also: PeerId | None = None) -> None:
        """End the group, and tell those who are here, and one who may not be counted among them."""
        if self._failure:
            return
        self._failure = failure
        self._notify()
        with trio.move_on_after(GRACE_S):
            for peer in sorted({*self._up, also or self._me} - {self._me}):
                await self._tell(peer, self._farewell)

    @property
    def _farewell(self) -> GaveUp | None:
        failure = self._failure
        return GaveUp(isinstance(failure, ConfigError), str(failure)[:MAX_REASON_CHARS]) if failure else None

    async def _enter(
        self, operation: Literal["mean", "sum", "barrier"], dtype: Literal["float32", "float64"], size: int
    ) -> None:
        """Say that we are in the next collective, and wait until all are."""
        self._sequence += 1
        self._entered[self._me] = Enter(self._sequence, self._group_digest(), operation, dtype, size)
        await self._say(self._entered[self._me])
        for peer in self.group:
            self._compare(peer, self._entered.get(peer))
        await self._until(lambda: not self._not_entered(), self._not_entered)

    def _not_entered(self) -> list[PeerId]:
        entered = self._entered
        return [peer for peer in self.group if peer not in entered or entered[peer].sequence < self._sequence]

    def _compare(self, peer: PeerId, theirs: Enter | None) -> None:
        """Raise `ConfigError` where a rank calls something else than we do."""
        mine = self._entered.get(self._me)
        if mine is None or theirs is None or mine.sequence != theirs.sequence or peer not in self.group:
            return
        if mine.group != theirs.group:
            raise ConfigError(f"{self._name(peer)} is in another group of the same name. Close all and start again.")
        if mine != theirs:
            raise ConfigError(
                f"collective {mine.sequence} is {_words(mine)} here and {_words(theirs)} at {self._name(peer)}. All "
                "ranks must call the same collectives in the same order."
            )

    def _push_all(self, work: Reduction, kind: Kind) -> None:
        outgoing = work.outgoing(kind)
        self._unsent |= {(kind, rank) for rank in outgoing}
        for rank, payload in outgoing.items():
            self._nursery.start_soon(self._push, self._sequence, kind, rank, payload)

    async def _push(self, sequence: int, kind: Kind, rank: int, payload: memoryview) -> None:
        """Send until it is taken, or the collective is over one way or the other."""
        header, to = encode(Header(sequence, kind)), self.group[rank]
        while self._sequence == sequence and not self._failure and to not in self._gone:
            with contextlib.suppress(Unavailable):
                await self._bulk.send(to, header, [payload])
                if self._sequence == sequence:
                    self._unsent.discard((kind, rank))
                    self._notify()
                return
            await trio.sleep(RETRY_S)

    def _still_unsent(self) -> set[int]:
        """Return the ranks that lack something of ours; who is in a later collective does not, who is gone needs none."""
        ranks = {rank for _, rank in self._unsent}
        return {
            rank
            for rank in ranks
            if (peer := self.group[rank]) not in self._gone and self._entered[peer].sequence <= self._sequence
        }

    def sink(self, sender: PeerId, data: bytes, size_bytes: int) -> memoryview | None:
        """Say where a payload goes; None refuses it. Called in worker threads."""
        header, rank, current = self._read(data), self._rank_of(sender), self._work
        if header is None or rank is None or current is None or header.sequence != current[0]:
            return None
        return current[1].room(header.kind, rank, size_bytes)

    def arrived(self, sender: PeerId, data: bytes) -> None:
        """Note a payload that is whole. Called in worker threads."""
        header = self._read(data)
        if header is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._note_arrival, header, sender)

    def _note_arrival(self, header: Header, sender: PeerId) -> None:
        rank = self._rank_of(sender)
        if self._work is not None and rank is not None and header.sequence == self._work[0]:
            self._work[1].arrived(header.kind, rank)
            self._notify()

    def _read(self, data: bytes) -> Header | None:
        try:
            return decode_header.decode(data)
        except msgspec.DecodeError:
            return None

    # ---- saying and waiting -----------------------------------------------------------------------------------

    async def _say(self, statement: Statement | None) -> None:
        for peer in sorted(self._up) if statement is not None else ():
            await self._tell(peer, statement)

    async def _tell(self, peer: PeerId, statement: Statement | None) -> None:
        with contextlib.suppress(Unavailable):  # a peer that is back is told everything again
            await self._network.send(peer, encode(statement))

    async def _until(self, is_done: Callable[[], bool], waits_for: Callable[[], Collection[PeerId]]) -> None:
        """Wait until something holds. Raises what ended the group, or `Unavailable` if who is waited for is gone."""
        self._waits_for = waits_for
        while not is_done():
            if self._failure:
                raise self._failure
            for peer in waits_for():
                if peer in self._gone:
                    raise Unavailable(f"{self._name(peer)} went away: {self._gone[peer]}.")
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _peers(self, ranks: Collection[int]) -> list[PeerId]:
        return [self.group[rank] for rank in sorted(ranks)]

    def _rank_of(self, peer: PeerId) -> int | None:
        group = self._roster.group or ()
        return group.index(peer) if peer in group else None

    def _name(self, peer: PeerId) -> str:
        return f"rank {self._rank_of(peer)} (peer {short(peer)})"

    def _group_digest(self) -> Digest:
        members = "\n".join(self.group).encode()
        return Digest(blake3.blake3(members, derive_key_context="barnraise 1 context group").digest())


def _words(entered: Enter) -> str:
    if entered.operation == "barrier":
        return "barrier()"
    return f"all_reduce of {entered.size} {entered.dtype} elements, op={entered.operation!r}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
