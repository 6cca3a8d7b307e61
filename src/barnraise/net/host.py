"""The control plane over libp2p: finds the peers of a run, admits them, keeps one link to each; reads no message.

How peers meet. Each keeps dialling its bootstrap addresses; two that took each other tell whom they know; each then
dials those. So a full mesh forms from one address, and forms again after a loss. Addresses seen on the local network
(`meet`) are dialled as well, but not passed on: only a peer's own word about itself is.
Which of two connections to the same peer stays is decided in `claims`; why somebody is not there is kept in `refusals`.
"""

import math
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
import trio

from barnraise.errors import ConfigError, LocalError, PeerError, Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net.addresses import PeerAddress, decode_peers, parse_address
from barnraise.net.admission import (
    ADMISSION_DEADLINE_S,
    INSTANCE_BYTES,
    MAX_HELLO_BYTES,
    MAX_RUN_BYTES,
    NONCE_BYTES,
    Admission,
    NotAdmitted,
)
from barnraise.net.claims import DIAL_DEADLINE_S, DUPLICATE, Claim, Claims, same_key
from barnraise.net.greeting import exchange, say_farewell
from barnraise.net.hardened import ControlStream, HardenedHost, open_host
from barnraise.net.linked import LinkedNetwork
from barnraise.net.links import Link
from barnraise.net.places import Places
from barnraise.net.refusals import Refusals
from barnraise.net.seam import PeerDown, PeerUp, Refused

MET_ATTEMPTS: Final = 6
"""After so many in vain a peer seen on the local network is forgotten, until it is seen again."""
MAX_PEERS: Final = 100
MAX_CONNECTION_TIMEOUT_S: Final = 60.0
HANDSHAKES_BESIDE: Final = 56
"""Connections of strangers beside two of each peer."""
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 5.0
YIELD_S: Final = 0.3
"""The peer with the larger id gives the other this long to dial first, since most pairs hear of each other at once."""
LEAVE_DEADLINE_S: Final = 1.0
"""How long leaving peers wait for what they sent last to be taken."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Libp2pNetwork(LinkedNetwork):
    """The `Network` over libp2p. Made by `open_network`."""

    def __init__(
        self,
        identity: Identity,
        cluster_key: ClusterKey,
        *,
        run: bytes,
        hello: bytes,
        bootstrap: Sequence[PeerAddress],
        authorise: Callable[[PeerId], bool],
        rng: random.Random,
        max_peers: int = MAX_PEERS,
        connection_timeout_s: float = DIAL_DEADLINE_S,
    ) -> None:
        if len(hello) > MAX_HELLO_BYTES or len(run) > MAX_RUN_BYTES:
            raise LocalError(
                f"hello and run have {len(hello)} and {len(run)} bytes; the limits are {MAX_HELLO_BYTES} and "
                f"{MAX_RUN_BYTES}"
            )
        super().__init__(identity.peer_id)
        self._cluster_key = cluster_key
        self._run, self._hello = run, hello
        self._authorise = authorise
        self._rng = rng
        self._instance = secrets.token_bytes(INSTANCE_BYTES)
        self._host: HardenedHost | None = None
        self._nursery: trio.Nursery | None = None
        self._leaving = False
        self._max_peers = max_peers
        self._connection_timeout_s = connection_timeout_s
        self._claims = Claims(self.peer_id, max(DIAL_DEADLINE_S, connection_timeout_s) + ADMISSION_DEADLINE_S)
        self._seats: dict[ControlStream, PeerId] = {}
        """Who was told yes, linked or about to be; at most `max_peers` different ones."""
        self._refusals = Refusals({address.peer for address in bootstrap})
        self._changed = trio.Event()
        """Set, and made anew, when a peer was linked or an attempt failed."""
        self._courted: set[PeerId] = set()
        """Who has a task that dials it."""
        self._places = Places(self.peer_id, bootstrap)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses under which others reach this peer, each ending in ``/p2p/<peer id>``."""
        return self._host.addresses if self._host else ()

    @property
    def refusals(self) -> Mapping[PeerId, str]:
        """Why peers that are not linked were not admitted, or did not admit us, in plain words."""
        return self._refusals.reasons

    def _why_unlinked(self, peer: PeerId) -> str:
        return self.refusals.get(peer) or super()._why_unlinked(peer)

    def meet(self, addresses: Iterable[PeerAddress]) -> None:
        """Dial peers that were seen on the local network; who does not answer is forgotten until it is seen again."""
        for address in addresses:
            if not self._leaving and self._places.see(address):
                self._announce_change()
                self._court(address.peer, YIELD_S if address.peer < self.peer_id else 0.0)

    async def find_anybody(self, max_attempts: int) -> None:
        """Return once a peer is linked; the node must be draining `events` meanwhile, or have room there.

        Args:
            max_attempts: to each peer of which an address is known, for one connection timeout at least unless all of
                them refuse; where no address is known, so many connection timeouts.

        Raises:
            Unavailable: nobody is there; the message says why, for each address, and what to do.
        """
        began = trio.current_time()
        while not self._links:
            gives_up_at = began + self._patience_s(max_attempts)
            if trio.current_time() >= gives_up_at:
                raise Unavailable(self.why_nobody())
            with trio.move_on_at(gives_up_at):
                await self._changed.wait()

    def _patience_s(self, max_attempts: int) -> float:
        """Return how long to look for somebody, by what is known now: peers that start together need a moment."""
        sought = self._places.sought()
        if not sought:
            return max_attempts * self._connection_timeout_s
        if any(self._refusals.attempts(peer) < max_attempts for peer in sought):
            return math.inf
        return 0.0 if all(self._refusals.has_answered(peer) for peer in sought) else self._connection_timeout_s

    def why_nobody(self) -> str:
        """Return in plain words why no peer is linked, address by address, and what to do."""
        if self._places.names_itself and not self._places.sought():
            return (
                f"the only address given is this peer's own ({self.peer_id}): its data directory was copied from the "
                "peer that it should find. Give it a directory of its own, where it makes its own key."
            )
        return self._refusals.why_nobody(self._places.sought())

    def _announce_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- finding each other --

    def _start(self, host: HardenedHost, nursery: trio.Nursery) -> None:
        self._host, self._nursery = host, nursery
        for peer in self._places.named:
            self._court(peer, 0.0)

    def _court(self, peer: PeerId, delay_s: float) -> None:
        """Have a peer dialled from now on, if it is not yet."""
        assert self._nursery is not None
        if peer not in self._courted:
            self._courted.add(peer)
            self._nursery.start_soon(self._keep_linked, peer, delay_s)

    async def _keep_linked(self, peer: PeerId, first_delay_s: float) -> None:
        """Dial a peer whenever it is wanted and not linked: for ever, unless it was only seen on the local network."""
        backoff_s = FIRST_BACKOFF_S
        await trio.sleep(first_delay_s)
        while not self._is_given_up(peer):
            lasted_s = 0.0
            if link := self._links.get(peer):
                began = trio.current_time()
                await link.finished.wait()
                lasted_s = trio.current_time() - began
            elif self._authorise(peer) and not self._leaving and not self._is_full(peer):
                lasted_s = await self._dial(peer)
            if lasted_s > MAX_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            # Jitter, so that peers that lost each other together do not meet again and again half way.
            await trio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        self._courted.discard(peer)
        self._places.seen.pop(peer, None)
        self._refusals.clear(peer)

    def _is_given_up(self, peer: PeerId) -> bool:
        return self._places.is_only_seen(peer) and self._refusals.attempts(peer) >= MET_ATTEMPTS

    async def _dial(self, peer: PeerId) -> float:
        """Try a peer's addresses until somebody answers; return for how many seconds that gave a link."""
        assert self._host is not None
        unreachable = ""
        for address in self._places.of(peer):
            try:
                stream = await self._host.dial(address, self._connection_timeout_s)
            except Unavailable as error:
                unreachable = str(error)
                log.debug("peer.unreachable", peer=peer, address=address.text, reason=unreachable)
                continue
            unreachable = ""
            try:
                if lasted_s := await self._converse(stream, initiator=True):
                    return lasted_s
                break
            finally:
                await stream.aclose()
        if peer not in self._links:
            self._refusals.missed(peer, unreachable)
            self._announce_change()
        return 0.0

    def _learn(self, sender: PeerId, payload: bytes) -> None:
        """Take in whom a peer knows; what a peer says of itself outweighs what others said of it."""
        assert self._nursery is not None
        for peer, addresses in decode_peers(sender, payload).items():
            is_new, is_news = self._places.hear(sender, peer, addresses)
            if is_new:
                self._court(peer, YIELD_S if peer < self.peer_id else 0.0)
            if is_news:
                self._nursery.start_soon(self._introduce, peer)

    async def _introduce(self, newcomer: PeerId) -> None:
        """Tell everybody linked of a peer that has just told us where it listens."""
        payload = self._places.news_of(newcomer)
        for peer, link in list(self._links.items()):
            if peer != newcomer:
                await self._tell(link, payload)

    async def _tell(self, link: Link, payload: bytes) -> None:
        try:
            await link.tell_peers(payload)
        except Unavailable:
            # A link that takes nothing is on its way down, which its reader or writer reports.
            log.debug("peer.not_told", peer=link.peer)

    # -- admitting and carrying --

    async def _accept(self, stream: ControlStream) -> None:
        await self._converse(stream, initiator=False)

    async def _converse(self, stream: ControlStream, *, initiator: bool) -> float:
        """Admit the peer at the other end, then carry its link until that is over; return how long it lasted."""
        claim: Claim | None = None

        def decide(instance: bytes) -> str:
            nonlocal claim
            reason = self._objection(stream.peer, instance)
            if not reason:
                self._seats[stream] = stream.peer
            if not reason and self._claims.is_arbiter(stream.peer):
                claim = self._claims.take(stream.peer, instance, trio.current_time())
            return reason

        try:
            admission = self._admission(stream, initiator, decide)
            if not await self._admit(stream, admission):
                return 0.0
            began = trio.current_time()
            claim = claim or self._claims.take(stream.peer, admission.remote_instance, began)
            link = Link(
                stream.peer,
                admission.remote_hello,
                stream,
                lambda data: self._learn(stream.peer, data),
                lambda words: self._hear_warning(stream, words),
                lambda: stream.round_trip_s,
            )
            await self._carry(claim, link)
            return trio.current_time() - began
        finally:
            self._claims.release(claim)
            self._seats.pop(stream, None)

    def _admission(self, stream: ControlStream, initiator: bool, decide: Callable[[bytes], str]) -> Admission:
        return Admission(
            initiator=initiator,
            local=self.peer_id,
            remote=stream.peer,
            run=self._run,
            cluster_key=self._cluster_key,
            hello=self._hello,
            binding=stream.binding,
            nonce=secrets.token_bytes(NONCE_BYTES),
            instance=self._instance,
            decide=decide,
        )

    async def _admit(self, stream: ControlStream, admission: Admission) -> bool:
        """Return whether the two took each other; if not, why not is noted."""
        try:
            with trio.fail_after(ADMISSION_DEADLINE_S):
                await exchange(stream, admission)
        except trio.TooSlowError:
            self._note_refusal(stream, f"it did not prove itself within {ADMISSION_DEADLINE_S:g} s")
        except NotAdmitted as refusal:
            await say_farewell(stream, refusal.farewell)
            self._note_refusal(stream, refusal.reason)
            await self._warn_of_second(stream.peer, refusal.reason)
        except (PeerError, EOFError, ValueError, trio.BrokenResourceError) as error:
            self._note_refusal(stream, f"admission failed: {error}")
        else:
            stream.keep()
            self._refusals.clear(stream.peer)
            return True
        return False

    def _objection(self, peer: PeerId, instance: bytes) -> str:
        """Return why a peer that has proved itself is not wanted; empty if it is."""
        if peer == self.peer_id:
            return "this is the peer itself"
        if self._leaving:
            return f"peer {self.peer_id} is leaving"
        if not self._authorise(peer):
            return f"peer {self.peer_id} does not authorise peer {peer}: have the run's operator admit it"
        if self._is_full(peer):
            return f"peer {self.peer_id} has all the {self._max_peers} peers that it takes (max_peers): raise it there"
        return self._claims.objection(peer, instance, trio.current_time())

    def _is_full(self, peer: PeerId) -> bool:
        """Return whether there is no room for one more peer than there are."""
        return len(set(self._seats.values()) - {peer}) >= self._max_peers

    async def _carry(self, claim: Claim, link: Link) -> None:
        # A claim that is lost while it waits must not wait for its own successor:
        # 1. Two claims wait for the same predecessor, the second has taken the slot from the first.
        # 2. The predecessor ends, the second wakes up first and becomes the link.
        # 3. The first wakes up and finds a link again: the other side would believe itself linked for ever.
        while self._claims.holds(claim) and (predecessor := self._links.get(link.peer)):
            await predecessor.finished.wait()
        if not self._claims.holds(claim):
            return
        claim.link = self._links[link.peer] = link
        self._announce_change()
        log.info("peer.up", peer=link.peer)
        try:
            await self._events_in.send(PeerUp(peer=link.peer, hello=link.hello))
            await self._tell(link, self._places.message(self.addresses))
            reason = await link.run(self._events_in)
            log.info("peer.down", peer=link.peer, reason=reason)
            await self._events_in.send(PeerDown(peer=link.peer, reason=reason))
        except trio.BrokenResourceError:
            log.warning("network.unread", peer=link.peer, reason="the node closed its end of the events")
        finally:
            # Not before PeerDown is out: a successor waits for this, and its PeerUp has to come after.
            del self._links[link.peer]
            link.finished.set()

    def _note_refusal(self, stream: ControlStream, reason: str) -> None:
        peer = stream.peer
        if reason.endswith(DUPLICATE) or (peer in self._links and same_key(peer) not in reason):
            return
        if self._refusals.note(peer, reason, trio.current_time()):
            log.warning("peer.not_admitted", peer=peer, reason=reason)
            self._tell_node(Refused(peer=peer, reason=reason, address=stream.remote))

    async def _warn_of_second(self, peer: PeerId, reason: str) -> None:
        """Tell the process that stays that another one with its key was refused."""
        if reason == same_key(peer) and (link := self._claims.to_warn(peer)):
            with suppress(Unavailable):
                await link.warn(reason)

    def _hear_warning(self, stream: ControlStream, words: str) -> None:
        if self._refusals.may_tell(trio.current_time()):
            log.warning("peer.warns", peer=stream.peer, reason=words)
            self._tell_node(Refused(peer=stream.peer, reason=f"the other side said: {words}", address=stream.remote))

    def _tell_node(self, event: Refused) -> None:
        """Tell what strangers decide the pace of; a busy node is spared it."""
        with suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._events_in.send_nowait(event)

    async def _leave(self) -> None:
        """Let what is queued go out, for a moment."""
        self._leaving = True
        with trio.move_on_after(LEAVE_DEADLINE_S) as scope:
            scope.shield = True
            for link in list(self._links.values()):
                link.leave()
            for link in list(self._links.values()):
                await link.finished.wait()

    def _end_events(self) -> None:
        self._events_in.close()


@asynccontextmanager
async def open_network(
    identity: Identity,
    cluster_key: ClusterKey,
    *,
    run: bytes,
    hello: bytes = b"",
    listen: str = "/ip4/127.0.0.1/tcp/0",
    bootstrap: Sequence[str] = (),
    authorise: Callable[[PeerId], bool] = lambda peer: True,
    rng: random.Random | None = None,
    max_peers: int = MAX_PEERS,
    connection_timeout_s: float = DIAL_DEADLINE_S,
) -> AsyncIterator[Libp2pNetwork]:
    """Run the control plane for as long as the block lasts.

    Args:
        identity: this peer's keys; libp2p's peer id is made of the same.
        cluster_key: what a peer must know to be admitted.
        run: id of the run; peers of others are refused.
        hello: what to tell each admitted peer of ourselves, at most ``MAX_HELLO_BYTES``.
        listen: multiaddress to listen on; loopback unless given.
        bootstrap: multiaddresses, each ending in a peer id, to find the others through.
        authorise: says whether a peer with the right key is wanted as well.
        rng: source of the jitter between dials.
        max_peers: most peers to be linked to at once; more are refused.
        connection_timeout_s: how long one attempt to reach a peer may take.

    Raises:
        ConfigError: ``listen``, a bootstrap address or a limit cannot be used.
        LocalError: ``hello`` or ``run`` is too long.

    Example:
        >>> async with open_network(identity, key, run=run_id, bootstrap=[line]) as network:
        ...     async for event in network.events:
        ...         print(event)
    """
    if max_peers < 1:
        raise ConfigError(f"max_peers = {max_peers}: at least 1 is needed to have anybody to train with.")
    if not 0 < connection_timeout_s <= MAX_CONNECTION_TIMEOUT_S:
        raise ConfigError(
            f"connection_timeout_s = {connection_timeout_s:g} is not over 0 and at most {MAX_CONNECTION_TIMEOUT_S:g}."
        )
    try:
        known = [parse_address(text, names=True) for text in bootstrap]
    except ValueError as error:
        raise ConfigError(f"bootstrap address: {error}") from error
    network = Libp2pNetwork(
        identity,
        cluster_key,
        run=run,
        hello=hello,
        bootstrap=known,
        authorise=authorise,
        rng=rng or random.SystemRandom(),
        max_peers=max_peers,
        connection_timeout_s=connection_timeout_s,
    )
    max_connections = 2 * max_peers + HANDSHAKES_BESIDE
    opening = open_host(identity.ed25519_seed, listen, network._accept, max_connections)
    try:
        async with opening as host, trio.open_nursery() as nursery:
            network._start(host, nursery)
            try:
                yield network
            finally:
                await network._leave()
                nursery.cancel_scope.cancel()
    finally:
        network._end_events()
