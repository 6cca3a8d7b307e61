"""Handing a run over to a peer that is behind: the log in pieces, then the tensors; nothing is believed unchecked.

A donor sends what it was asked for and no more. The taker follows the log piece by piece, every vote checked, and
makes it its own only when the tensors at its end have the hashes that the log names.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from barnraise.codec.grid import Float32
from barnraise.consensus.agreement import Decision
from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId
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
from barnraise.swarm.workspace import Workspace, root_of

PIECE_ENTRIES: Final = 512
"""Log entries sent at once: with eight members' votes some 14 MB."""
ANSWER_S: Final = 5.0
"""A donor that has not begun to send by then has nothing to send, or is gone."""
SETTLING_S: Final = 0.02
"""Between two looks at whether what was agreed last is on disk."""
PIECE_DEADLINE_S: Final = 60.0
"""For one piece, sent and checked, ..."""
SLOWEST_BYTES_PER_S: Final = 1_000_000
"""... and for the tensors as long again as a link of 8 Mbit/s needs."""
MAX_GIVEN_AT_ONCE: Final = 2
"""Peers that the state is sent to at the same time; others wait, and ask somebody else meanwhile."""
MAX_PIECE_BYTES: Final = 16 * 1024 * 1024
"""A piece is cut short here, well below what a receiver takes: hundreds of members' votes are long."""


class Giver:
    """Serves peers that are behind, each once at a time."""

    def __init__(self, member: Member, workspace: Workspace, archive: Archive, keys: Keyring, courier: Courier) -> None:
        self._member, self._workspace, self._archive = member, workspace, archive
        self._keys, self._courier = keys, courier
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
        first, (end, tensors) = asked.height, found
        while True:
            count = min(PIECE_ENTRIES, end - first)
            log = await self._archive.on_log(self._archive.store.log, first, count)
            if len(log) < count:
                return  # the newest entries never came to disk; it asks again
            log = _cut_short(log)
            is_last = first + len(log) == end
            size = sum(tensor.nbytes for tensor in tensors) if is_last else 0
            with trio.move_on_after(PIECE_DEADLINE_S + size / SLOWEST_BYTES_PER_S) as patience:
                await self._courier.push_state(
                    bulk, asked.to, first, log, self._voters(log), tensors if is_last else None
                )
            if is_last or patience.cancelled_caught:
                return
            first += len(log)

    async def _settled(self, asked: SendState) -> tuple[int, tuple[Float32, Float32]] | None:
        """Return the height of our state and its tensors, once all of it is on disk; None: there is nothing to give.

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
                    tensors = space.theta, space.momentum
                    if await self._archive.on_log(self._archive.store.height) >= state.height:
                        return state.height, tensors
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Adoption:
    """A donor's state, checked; not yet ours."""

    height: int
    log: list[Decision]
    vertices: list[Vertex]
    state: State
    tensors: tuple[Float32, Float32]
    residual: Float32


class Taker:
    """Fetches the state from one donor at a time."""

    def __init__(self, member: Member, workspace: Workspace, keys: Keyring, courier: Courier, events: EventLog) -> None:
        self._member, self._workspace = member, workspace
        self._keys, self._courier, self._events = keys, courier, events
        self._taken: _Taken | None = None

    @property
    def donor(self) -> PeerId | None:
        """Return whom the state is being fetched from."""
        return self._taken.asked.donor if self._taken else None

    def begin(self, asked: CatchUp) -> None:
        """Expect the state from a donor, who is asked for it next."""
        self._taken = _Taken(asked=asked, state=self._member.state)
        self._courier.expect_state(asked.donor)

    async def watch(self, asked: CatchUp) -> bool:
        """Wait while pieces keep coming; return whether the donor is to be given up."""
        await trio.sleep(ANSWER_S)
        has_begun = self._courier.is_receiving_state or self._pieces > 0
        while self._is_at(asked) and has_begun:
            seen = self._pieces
            await trio.sleep(PIECE_DEADLINE_S + self._courier.state_bytes / SLOWEST_BYTES_PER_S)
            has_begun = self._pieces > seen
        return self._is_at(asked)

    def give_up(self) -> list[Effect]:
        """Forget what came."""
        self._taken = None
        self._courier.expect_state(None)
        return self._member.catch_up_failed(trio.current_time())

    def take(self, fetched: FetchedState) -> Adoption | None:
        """Check a piece; return what all of them make when it was the last. For a worker thread.

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
        if not opened.decisions and fetched.tensors is None:
            raise LocalError("it sent a piece of its log without an entry, which could go on for ever")
        adopted = adopt(taken.state, opened.decisions, self._keys.verify)
        taken.state = adopted.state
        taken.log += opened.decisions
        taken.vertices += adopted.vertices
        taken.cuts += adopted.cuts
        taken.pieces += 1
        if fetched.tensors is None:
            if self._taken is taken:  # else it was given up meanwhile, and another donor may be expected by now
                self._courier.expect_state(fetched.donor)
            return None
        return self._finish(taken, fetched.tensors)

    def _finish(self, taken: _Taken, tensors: tuple[Float32, Float32]) -> Adoption:
        if not taken.vertices and not self._member.is_hollow:
            raise LocalError("its log leads to no checkpoint")  # only cuts and voids since: the round goes on
        if tuple(root_of(tensor) for tensor in tensors) != (taken.state.theta_root, taken.state.momentum_root):
            raise LocalError("its tensors are not those of its log")
        if self._member.state.height != taken.asked.height:
            raise LocalError("we have gone on meanwhile")
        self._taken = None
        return Adoption(
            height=taken.asked.height,
            log=taken.log,
            vertices=taken.vertices,
            state=taken.state,
            tensors=tensors,
            residual=self._workspace.residual_behind(any(cut.has(self._member.me) for cut in taken.cuts)),
        )

    def refuse(self, fetched: FetchedState, error: LocalError | PeerError) -> list[Effect]:
        """Say what was wrong with a donor's state, and forget it."""
        self._events.emit("peer.refused", reason=f"the state of {fetched.donor}: {error}")
        return self.give_up()

    def _is_at(self, asked: CatchUp) -> bool:
        return self._taken is not None and self._taken.asked is asked

    @property
    def _pieces(self) -> int:
        return self._taken.pieces if self._taken else 0


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
