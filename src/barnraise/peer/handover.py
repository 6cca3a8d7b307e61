"""Handing a run over to a peer that is behind: the log in pieces, then the tensors; nothing is believed unchecked.

The log comes from one donor, which sends what it was asked for and no more; the taker follows it piece by piece, every
vote checked. It names the tensors at its end, and they come from everybody who is connected and that far (`dag.depot`):
once the log is here, a donor that dies or lies costs nothing but the chunks that it owed. Only with all of it does the
taker make the log its own.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from barnraise.codec.grid import Float32
from barnraise.consensus.agreement import Decision
from barnraise.dag.depot import Depot
from barnraise.dag.download import Wanted
from barnraise.dag.shelf import Shelf
from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import Digest, PeerId
from barnraise.net.seam import Bulk
from barnraise.observe.events import EventLog
from barnraise.peer.archive import Archive
from barnraise.peer.courier import Courier, FetchedState
from barnraise.peer.keyring import Keyring
from barnraise.swarm.adopt import adopt
from barnraise.swarm.effects import CatchUp, Effect, SendState
from barnraise.swarm.member import Member
from barnraise.swarm.records import Cut, Vertex
from barnraise.swarm.state import State
from barnraise.swarm.workspace import Workspace

PIECE_ENTRIES: Final = 512
"""Log entries sent at once: with eight members' votes some 14 MB."""
ANSWER_S: Final = 5.0
"""A donor that has not begun to send by then has nothing to send, or is gone."""
SETTLING_S: Final = 0.02
"""Between two looks at whether what was agreed last is on disk."""
PIECE_DEADLINE_S: Final = 60.0
"""For one piece, sent and checked; and between two chunks of the tensors."""
MAX_GIVEN_AT_ONCE: Final = 2
"""Peers that the state is sent to at the same time; others wait, and ask somebody else meanwhile."""
MAX_PIECE_BYTES: Final = 16 * 1024 * 1024
"""A piece is cut short here, well below what a receiver takes: hundreds of members' votes are long."""


class Giver:
    """Serves peers that are behind, each once at a time."""

    def __init__(
        self, member: Member, workspace: Workspace, archive: Archive, keys: Keyring, courier: Courier, shelf: Shelf
    ) -> None:
        self._member, self._workspace, self._archive = member, workspace, archive
        self._keys, self._courier, self._shelf = keys, courier, shelf
        self._serving: set[PeerId] = set()
        self._places = trio.CapacityLimiter(MAX_GIVEN_AT_ONCE)

    async def give(self, bulk: Bulk, asked: SendState) -> None:
        """Send what was asked for, as far as it is on disk now."""
        if asked.to in self._serving:
            return
        self._serving.add(asked.to)
        try:
            async with self._places:
                with contextlib.suppress(Unavailable):
                    await self._give(bulk, asked)
        finally:
            self._serving.discard(asked.to)

    async def _give(self, bulk: Bulk, asked: SendState) -> None:
        found = await self._settled(asked)
        if found is None:
            return
        first, end = asked.height, found
        while True:
            count = min(PIECE_ENTRIES, end - first)
            log = await self._archive.on_log(self._archive.store.log, first, count)
            if len(log) < count:
                return  # the newest entries never came to disk; it asks again
            log = _cut_short(log)
            is_last = first + len(log) == end
            with trio.move_on_after(PIECE_DEADLINE_S) as patience:
                await self._courier.push_state(bulk, asked.to, first, log, self._voters(log), is_last=is_last)
            if is_last or patience.cancelled_caught:
                return
            first += len(log)

    async def _settled(self, asked: SendState) -> int | None:
        """Return the height of our state, once all of it is on disk and its tensors lent; None: there is nothing to give.

        With rounds of under a second we are between two states half of the time; whoever asks would wait for seconds.
        """
        with trio.move_on_after(ANSWER_S / 2):
            while not self._member.is_hollow:
                # Read in one breath: the tensors must be those that the log ends with.
                state, space = self._member.state, self._workspace
                is_due = asked.height < state.height or (asked.height == state.height and asked.is_hollow)
                if not is_due:
                    return None
                if self._courier.round == state.round:
                    tensors = (state.theta_root, space.theta), (state.momentum_root, space.momentum)
                    if await self._archive.on_log(self._archive.store.height) >= state.height:
                        for name, tensor in tensors:
                            self._shelf.lend(Digest(name), tensor)
                        return state.height
                await trio.sleep(SETTLING_S)
        return None

    def _voters(self, log: Sequence[Decision]) -> list[bytes]:
        names = {PeerId(voter) for decision in log for voter, _ in decision.votes}
        return [self._keys.known[name].encode() for name in sorted(names) if name in self._keys.known]


@dataclass(kw_only=True)
class _Taken:
    """What has come so far."""

    asked: CatchUp
    state: State
    log: list[Decision] = field(default_factory=list)
    vertices: list[Vertex] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    pieces: int = 0
    is_followed: bool = False
    """The log is here, all of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """A donor's log, checked to its end; the tensors that it names are still to come."""

    asked: CatchUp
    state: State
    log: list[Decision]
    vertices: list[Vertex]
    cuts: list[Cut]


@dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """A donor's log and the tensors at its end, all of it checked; not yet ours."""

    followed: Followed
    tensors: tuple[Float32, Float32]
    """Parameters and outer momentum."""


class Taker:
    """Fetches the log from one donor at a time, and then the tensors from all that have them."""

    def __init__(
        self,
        member: Member,
        workspace: Workspace,
        keys: Keyring,
        courier: Courier,
        events: EventLog,
        depot: Depot,
    ) -> None:
        self._member, self._workspace = member, workspace
        self._keys, self._courier, self._events, self._depot = keys, courier, events, depot
        self._taken: _Taken | None = None
        self._gathering: trio.CancelScope | None = None

    @property
    def donor(self) -> PeerId | None:
        """Return whom everything depends on: the donor of a log that is not here yet."""
        return self._taken.asked.donor if self._taken and not self._taken.is_followed else None

    def begin(self, asked: CatchUp) -> None:
        """Expect the state from a donor, who is asked for it next."""
        self._taken = _Taken(asked=asked, state=self._member.state)
        self._courier.expect_state(asked.donor)

    async def watch(self, asked: CatchUp) -> bool:
        """Wait while pieces keep coming; return whether the donor is to be given up."""
        await trio.sleep(ANSWER_S)
        has_begun = self._courier.is_receiving_state or self._pieces > 0
        while self._is_at(asked) and has_begun:
            seen = self._progress
            await trio.sleep(PIECE_DEADLINE_S)
            has_begun = self._progress > seen
        return self._is_at(asked)

    def give_up(self) -> list[Effect]:
        """Forget what came; chunks of tensors stay on disk."""
        self._taken = None
        if self._gathering is not None:
            self._gathering.cancel()
        self._courier.expect_state(None)
        return self._member.catch_up_failed(trio.current_time())

    def take(self, fetched: FetchedState) -> Followed | None:
        """Check a piece of the log; return what all of them make when it was the last. For a worker thread.

        Raises:
            LocalError, PeerError: something in it does not hold.
        """
        taken = self._taken
        if taken is None or taken.asked.donor != fetched.donor:
            return None
        opened = fetched.opened()
        for voter in opened.voters:
            self._keys.add(voter)
        if opened.height != taken.state.height:
            raise LocalError(f"it goes on at height {opened.height} and we are at {taken.state.height}")
        if not opened.decisions and not fetched.is_last:
            raise LocalError("it sent a piece of its log without an entry, which could go on for ever")
        adopted = adopt(taken.state, opened.decisions, self._keys.verify)
        taken.state = adopted.state
        taken.log += opened.decisions
        taken.vertices += adopted.vertices
        taken.cuts += adopted.cuts
        taken.pieces += 1
        if self._taken is not taken:  # it was given up meanwhile, and another donor may be expected by now
            return None
        self._courier.expect_state(None if fetched.is_last else fetched.donor)
        return self._followed(taken) if fetched.is_last else None

    def _followed(self, taken: _Taken) -> Followed:
        if not taken.vertices and not self._member.is_hollow:
            raise LocalError("its log leads to no checkpoint")  # only cuts and voids since: the round goes on
        taken.is_followed = True
        return Followed(asked=taken.asked, state=taken.state, log=taken.log, vertices=taken.vertices, cuts=taken.cuts)

    async def gather(self, bulk: Bulk, followed: Followed) -> Adoption | None:
        """Fetch the tensors at the end of a log; None: it was given up meanwhile.

        Raises:
            Unavailable: nobody who is there has them.
            LocalError: the disk lost what was written.
            OSError: the disk is full, say.
        """
        names = Digest(followed.state.theta_root), Digest(followed.state.momentum_root)
        if not self._is_at(followed.asked):
            return None
        with trio.CancelScope() as self._gathering, self._depot.blobs.hold(*names):
            return Adoption(followed=followed, tensors=await self._tensors(bulk, followed, names))
        return None

    def conclude(self, adoption: Adoption) -> Float32 | None:
        """Let a state become ours: return the residual that belongs to it, float32[d]. None: it was given up meanwhile.

        Raises:
            LocalError: we have gone on meanwhile.
        """
        followed = adoption.followed
        if not self._is_at(followed.asked):
            return None
        if self._member.state.height != followed.asked.height:
            raise LocalError("we have gone on meanwhile")
        self._taken = None
        return self._workspace.residual_behind(any(cut.has(self._member.me) for cut in followed.cuts))

    async def _tensors(self, bulk: Bulk, followed: Followed, names: tuple[Digest, Digest]) -> tuple[Float32, Float32]:
        blobs, size_bytes = self._depot.blobs, 4 * self._workspace.size
        missing = [
            Wanted(name=name, size_bytes=size_bytes)
            for name in dict.fromkeys(names)
            if await trio.to_thread.run_sync(blobs.find, name) is None
        ]
        if missing:
            began = trio.current_time()
            came = await self._depot.fetch(bulk, missing, lambda: self._donors(followed))
            self._events.emit(
                "peer.fetched",
                vertex=followed.state.vertex.hex(),
                bytes=sum(came.values()),
                donors=sorted(came),
                took_s=round(trio.current_time() - began, 3),
            )
        theta, momentum = [await trio.to_thread.run_sync(blobs.get, name) for name in names]
        return theta, momentum

    def _donors(self, followed: Followed) -> list[PeerId]:
        """Return who is connected and has said that it is as far as the log; its donor need not say so."""
        presence, height = self._member.presence, followed.state.height
        able = {peer for peer in presence.donors() if not presence.is_behind(peer, height)}
        if presence.is_up(followed.asked.donor):
            able.add(followed.asked.donor)
        return sorted(able)

    def refuse(self, donor: PeerId, error: LocalError | PeerError | Unavailable) -> list[Effect]:
        """Say what was wrong with a donor's state, and forget it."""
        self._events.emit("peer.refused", reason=f"the state of {donor}: {error}")
        return self.give_up()

    def _is_at(self, asked: CatchUp) -> bool:
        return self._taken is not None and self._taken.asked is asked

    @property
    def _pieces(self) -> int:
        return self._taken.pieces if self._taken else 0

    @property
    def _progress(self) -> int:
        return self._pieces + self._depot.num_arrived


def _cut_short(log: Sequence[Decision]) -> list[Decision]:
    """Return as many of the first entries as make up a piece, at least one."""
    size = 0
    piece: list[Decision] = []
    for decision in log:
        size += len(decision.value) + sum(len(voter) + len(signature) for voter, signature in decision.votes)
        if piece and size > MAX_PIECE_BYTES:
            break
        piece.append(decision)
    return piece
