"""A group of ranked peers over a control and a bulk plane: who is there, and what they tell each other; no collectives.

Statements go over the control plane: who is in the group, and what `Survival` has to say when a collective went wrong.
Vectors go over streams of the bulk plane, which `Collectives` opens and is given here, and the control plane takes no
part in a collective that nothing befalls.

Membership is state rather than events: a peer whose connection broke is told all that holds when it is back.
"""

import contextlib
from collections.abc import Callable
from typing import Final

import msgspec
import structlog
import trio

from barnraise.api.collectives import Collectives
from barnraise.api.roster import Formed, Roster, Want
from barnraise.api.statements import (
    MAX_REASON_CHARS,
    GaveUp,
    Left,
    OfLinks,
    Refused,
    Statement,
    Word,
    decode_statement,
    encode,
)
from barnraise.api.streams import Streams
from barnraise.collective import adoption, survival_messages
from barnraise.errors import BarnraiseError, ConfigError, PeerError, Unavailable
from barnraise.ids import PeerId, short
from barnraise.net.seam import Bulk, LinkSpeed, Network, PeerDown, PeerUp, Received, Stream
from barnraise.peer.keyring import read_hello
from barnraise.peer.links import LinkSurvey

GRACE_S: Final = 2.0
"""A peer whose connection broke may be back this soon; then it counts as gone."""
SHORT_GRACE_S: Final = 0.3
"""The same, while a collective has failed: then it is most likely dead."""
LOOK_S: Final = 0.1
MAX_WAITING: Final = 256
"""Statements that wait for one peer."""
WATCH_S: Final = 0.2
"""Between two looks at whether a collective moves."""
SILENT_S: Final = 4.0
"""A connected peer that answered no heartbeat for so long, two of them, counts as gone until it does: it hangs."""
OPEN_PAUSES_S: Final = (0.1, 0.4, 1.0)
"""Between attempts to open a stream: the other side may have heard of us a moment later than we of it."""


_log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Mesh:
    """One peer's end of the group, from `begin` on.

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
        """The hello of each peer's process that counts."""
        self._others: set[PeerId] = set()
        """Members of which another process is connected than the one that began with us: what it says counts for nothing."""
        self._up: set[PeerId] = set()
        self._gone: dict[PeerId, str] = {}
        self._silent: set[PeerId] = set()
        self._hung: set[PeerId] = set()
        """Members that are connected, and count as gone as they answer nothing."""
        self._failure: BarnraiseError | None = None
        self._is_refused = False
        """Another member goes on without us: we are going, and nobody else need end."""
        self._outboxes: dict[PeerId, trio.MemorySendChannel[Statement]] = {}
        self.streams = Streams(self._open_from_thread)
        """Its `take` is the bulk plane's."""
        self._collectives: Collectives | None = None

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

    @property
    def collectives(self) -> Collectives:
        """What carries out the group's collectives. Raises like `group`."""
        if self._collectives is None:
            _ = self.group
            raise Unavailable("the group is being formed. Call wait_for_peers first.")
        return self._collectives

    def begin(self, network: Network, bulk: Bulk, nursery: trio.Nursery) -> None:
        """Take in what happens on the network until the nursery is cancelled."""
        self._network, self._bulk, self._nursery = network, bulk, nursery
        self._token = trio.lowlevel.current_trio_token()
        self._found_collectives()
        nursery.start_soon(self._run)

    def _found_collectives(self) -> None:
        """Make what carries out collectives, once the group is known."""
        if self._collectives is not None or self._roster.group is None:
            return
        group = self._roster.group
        if self._me not in group:
            return
        for peer in group:
            if peer != self._me:
                self._outboxes[peer], waiting = trio.open_memory_channel[Statement](MAX_WAITING)
                self._nursery.start_soon(self._empty, peer, waiting)
        survey = LinkSurvey(self._me, self._network, self._bulk)
        self._collectives = Collectives(
            rank=self.rank,
            group=group,
            streams=self.streams,
            tell=self._tell_rank,
            speed=self.speed,
            survey=lambda: survey.row(group),
            mistaken=lambda error: self._token.run_sync_soon(self._nursery.start_soon, self._fail, error),
        )
        self._nursery.start_soon(self._watch, self._collectives)

    async def _watch(self, collectives: Collectives) -> None:
        while True:
            await trio.sleep(WATCH_S)
            collectives.watch()
            self._look_for_silent(collectives)

    def _look_for_silent(self, collectives: Collectives) -> None:
        """Note whom a connection alone does not prove to be alive, and who is back."""
        silent = {peer for peer in self._up & set(self.group) if self._network.silent_s(peer) > SILENT_S}
        # Seen twice: where it was this process that hung, the answers are read between two looks.
        for peer in (silent & self._silent) - self._hung:
            collectives.peer_down(self.group.index(peer), f"it answered no heartbeat for {SILENT_S:g} s")
            self._hung.add(peer)
        for peer in self._hung - silent:
            self._hung.discard(peer)
            if peer in self._up:
                collectives.peer_up(self.group.index(peer))
        self._silent = silent

    async def _run(self) -> None:
        async for event in self._network.events:
            try:
                match event:
                    case PeerUp():
                        await self._peer_up(event)
                    case PeerDown():
                        self._peer_down(event)
                    case Received() if event.peer not in self._others:
                        await self._hear(event.peer, event.message)
                    case Received():
                        pass
            except PeerError as error:
                self._accuse(event.peer, error)
            except (ConfigError, Unavailable) as error:
                if event.peer in (self._roster.group or (event.peer,)):
                    await self._fail(error, also=event.peer)
                else:
                    _log.warning("context.stranger", peer=event.peer, reason=str(error))
            self._notify()

    def _accuse(self, peer: PeerId, error: PeerError) -> None:
        """Let the group judge who sends nonsense."""
        rank = self._rank_of(peer)
        if self._collectives is None or rank is None:
            _log.warning("context.nonsense", peer=peer, reason=str(error))
        else:
            self._collectives.accuse(rank, _printable(str(error)))

    async def wait_for_peers(self, count: int | None, timeout_s: float) -> None:
        """Return once ``count`` members are connected; see `Backend.wait_for_peers`."""
        needed = self._roster.want(count)
        with trio.move_on_after(timeout_s) as scope:
            await self._settle()
            await self._say(self._roster.statement)
            await self._until(lambda: self._num_here() >= needed)
        if scope.cancelled_caught and self._num_here() < needed:
            found = ", ".join(short(peer) for peer in sorted(self._up)) or "nobody"
            raise Unavailable(
                f"{self._num_here()} of {needed} peers, this one included, are here after {timeout_s:g} s (found: "
                f"{found}). Start the others, with the same cluster key, name and number of peers."
            )

    async def leave(self) -> None:
        """Tell the others that this peer will not be back, once it is not needed for a decision."""
        collectives = self._collectives
        if collectives is None:
            return
        with trio.move_on_after(GRACE_S):
            while not collectives.is_settled:  # noqa: ASYNC110 - a thread settles it
                await trio.sleep(LOOK_S)
        await self._say(Left(collectives.done))

    async def close(self) -> None:
        """Free the threads and streams of collectives; calls under way raise `Unavailable`."""
        with trio.CancelScope(shield=True):
            if self._collectives is not None:
                await trio.to_thread.run_sync(self._collectives.close)
            else:
                self.streams.close(lambda: None, is_busy=False)

    def _num_here(self) -> int:
        group = self._roster.group
        return 0 if group is None else 1 + sum(peer in self._up for peer in group)

    async def _peer_up(self, event: PeerUp) -> None:
        peer, hello = event.peer, event.hello
        _, host, port = read_hello(peer, hello)
        began_with = self._met.get(peer, hello)
        if (
            began_with != hello
            and self._rank_of(peer) is not None
            and not (self._collectives and self._collectives.is_new)
        ):
            self._others.add(peer)
            _, first_host, first_port = read_hello(peer, began_with)
            why = (
                f"two processes claim rank {self._rank_of(peer)}: the group began with one at {first_host}:{first_port}, "
                f"this one is at {host}:{port}. Give each machine its own rank; what was started again can't come back."
            )
            await self._tell(peer, Refused(why))
            return
        self._met[peer] = hello
        self._others.discard(peer)
        self._bulk.learn(peer, host, port)
        self._up.add(peer)
        self._gone.pop(peer, None)
        for statement in (self._roster.statement, self._farewell):
            if statement is not None:
                await self._tell(peer, statement)
        rank = self._rank_of(peer)
        if self._collectives is not None and rank is not None:
            self._collectives.peer_up(rank)

    def _peer_down(self, event: PeerDown) -> None:
        self._up.discard(event.peer)
        self._roster.lost(event.peer)
        self._nursery.start_soon(self._miss, event.peer, event.reason)

    async def _miss(self, peer: PeerId, reason: str) -> None:
        """Wait whether a peer comes back."""
        began_s = trio.current_time()
        while peer not in self._up:
            gone_s = trio.current_time() - began_s
            is_calm = self._collectives is None or self._collectives.is_settled
            if gone_s >= (GRACE_S if is_calm else SHORT_GRACE_S):
                self._lose(peer, reason)
                return
            await trio.sleep(LOOK_S)

    def _lose(self, peer: PeerId, reason: str) -> None:
        self._gone.setdefault(peer, reason)
        self._bulk.forget(peer)
        rank = self._rank_of(peer)
        if self._collectives is not None and rank is not None:
            self._collectives.peer_down(rank, reason)
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
            case Word() if (rank := self._rank_of(peer)) is not None and self._collectives is not None:
                try:
                    self._collectives.heard(rank, survival_messages.decode(statement.message, len(self.group)))
                except msgspec.DecodeError as error:
                    raise PeerError(peer, f"sent a malformed statement: {error}", message) from error
            case OfLinks() if (rank := self._rank_of(peer)) is not None and self._collectives is not None:
                about = adoption.decode(statement.message, peer, len(self.group))
                self._collectives.heard_of_links(rank, about)
            case Left() if (rank := self._rank_of(peer)) is not None and self._collectives is not None:
                self._gone.setdefault(peer, "it closed its context")
                self._collectives.left(rank, statement.done)
            case Word() | Left() | OfLinks():
                pass
            case Refused(reason) if peer in (self._roster.group or ()):
                self._is_refused = True
                raise ConfigError(f"{self._name(peer)} goes on without this process: {_printable(reason)}")
            case GaveUp() if peer in (self._roster.group or ()):
                kind = ConfigError if statement.is_users_mistake else Unavailable
                raise kind(f"{self._name(peer)} gave up: {_printable(statement.reason)}")
            case GaveUp() | Refused():
                pass

    async def _settle(self) -> None:
        before = self._roster.statement
        self._roster.settle(self._up)
        self._found_collectives()
        if self._roster.statement != before:
            await self._say(self._roster.statement)

    # ---- for the collectives, from their threads ----------------------------------------------------------------

    def _tell_rank(self, rank: int, message: survival_messages.Message | adoption.Message) -> None:
        word: Statement
        if isinstance(message, adoption.Message):
            word = OfLinks(adoption.encode(message))
        else:
            word = Word(survival_messages.encode(message))
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._post, self.group[rank], word)

    def _post(self, peer: PeerId, statement: Statement) -> None:
        # What is left out is said again as long as it matters; a peer that takes nothing must not fill our memory.
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.WouldBlock):
            self._outboxes[peer].send_nowait(statement)

    async def _empty(self, peer: PeerId, waiting: trio.MemoryReceiveChannel[Statement]) -> None:
        """Send a peer what it is to hear, in order."""
        async for statement in waiting:
            await self._tell(peer, statement)

    def speed(self, peer: PeerId) -> LinkSpeed | None:
        """Return what was measured of the way to a peer; None before anything was. In any thread."""
        return self._bulk.speed(peer)

    def _open_from_thread(
        self, wanted: dict[PeerId, bytes], is_stopped: Callable[[], bool]
    ) -> dict[PeerId, Stream | Unavailable]:
        try:
            return trio.from_thread.run(self._open_all, wanted, is_stopped, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            return {peer: Unavailable("this context was closed") for peer in wanted}

    async def _open_all(
        self, wanted: dict[PeerId, bytes], is_stopped: Callable[[], bool]
    ) -> dict[PeerId, Stream | Unavailable]:
        """Open streams to several peers at once; those that cannot be opened have a reason instead."""
        opened: dict[PeerId, Stream | Unavailable] = {
            peer: Unavailable(f"{self._name(peer)}: no stream was opened before the attempt was given up")
            for peer in wanted
        }
        async with trio.open_nursery() as nursery:
            for peer, header in wanted.items():
                nursery.start_soon(self._open_one, peer, header, opened)
            while not is_stopped() and len(nursery.child_tasks) > 0:
                with trio.move_on_after(LOOK_S):
                    await self._changed.wait()
            nursery.cancel_scope.cancel()
        return opened

    async def _open_one(self, peer: PeerId, header: bytes, opened: dict[PeerId, Stream | Unavailable]) -> None:
        try:
            for pause_s in OPEN_PAUSES_S:
                while peer not in self._up and peer not in self._gone:
                    await self._changed.wait()
                try:
                    opened[peer] = await self._bulk.open_stream(peer, header)
                    return
                except Unavailable as error:
                    opened[peer] = error
                    if peer in self._gone:
                        return
                await trio.sleep(pause_s)
        finally:
            self._notify()

    # ---- saying and waiting -----------------------------------------------------------------------------------

    async def _fail(self, failure: BarnraiseError, also: PeerId | None = None) -> None:
        """End the group, and tell those who are here, and one who may not be counted among them."""
        if self._failure:
            return
        self._failure = failure
        if self._collectives is not None:
            self._collectives.end(failure)
        self._notify()
        with trio.move_on_after(GRACE_S):
            for peer in sorted({*self._up, also or self._me} - {self._me}):
                await self._tell(peer, self._farewell)

    @property
    def _farewell(self) -> GaveUp | Left | None:
        failure = self._failure
        if self._is_refused:
            return Left(0 if self._collectives is None else self._collectives.done)
        return GaveUp(isinstance(failure, ConfigError), str(failure)[:MAX_REASON_CHARS]) if failure else None

    async def _say(self, statement: Statement | None) -> None:
        for peer in sorted(self._up) if statement is not None else ():
            await self._tell(peer, statement)

    async def _tell(self, peer: PeerId, statement: Statement | None) -> None:
        with contextlib.suppress(Unavailable):  # a peer that is back is told everything again
            await self._network.send(peer, encode(statement))

    async def _until(self, is_done: Callable[[], bool]) -> None:
        """Wait until something holds. Raises what ended the group."""
        while not is_done():
            if self._failure:
                raise self._failure
            await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _rank_of(self, peer: PeerId) -> int | None:
        group = self._roster.group or ()
        return group.index(peer) if peer in group else None

    def _name(self, peer: PeerId) -> str:
        return f"rank {self._rank_of(peer)} (peer {short(peer)})"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
