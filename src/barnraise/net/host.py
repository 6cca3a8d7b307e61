"""The control plane over libp2p: finds the peers of a run, admits them, keeps one link to each; reads no message.

How peers meet. Each keeps dialling its bootstrap addresses; two that took each other tell whom they know; each then
dials those. So a full mesh forms from one address, and forms again after a loss.
Which of two connections to the same peer stays is decided in `claims`.
"""

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
from barnraise.net.addresses import PeerAddress, decode_peers, encode_peers, parse_address
from barnraise.net.admission import (
    ADMISSION_DEADLINE_S,
    INSTANCE_BYTES,
    MAX_ADMISSION_BYTES,
    MAX_HELLO_BYTES,
    MAX_RUN_BYTES,
    NONCE_BYTES,
    Admission,
    NotAdmitted,
)
from barnraise.net.claims import DUPLICATE, Claim, Claims
from barnraise.net.hardened import ControlStream, HardenedHost, open_host
from barnraise.net.links import Link, frame, open_events, receive_frame
from barnraise.net.seam import NetworkEvent, PeerDown, PeerUp

MAX_KNOWN_PEERS: Final = 512
"""Whoever is told beyond that is not dialled."""
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 5.0
YIELD_S: Final = 0.3
"""The peer with the larger id gives the other this long to dial first, since most pairs hear of each other at once."""
LEAVE_DEADLINE_S: Final = 1.0
"""How long leaving peers wait for what they sent last to be taken."""
FAREWELL_DEADLINE_S: Final = 1.0
"""How long a refused peer may take to read why."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Libp2pNetwork:
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
    ) -> None:
        if len(hello) > MAX_HELLO_BYTES or len(run) > MAX_RUN_BYTES:
            raise LocalError(
                f"hello and run have {len(hello)} and {len(run)} bytes; the limits are {MAX_HELLO_BYTES} and "
                f"{MAX_RUN_BYTES}"
            )
        self.peer_id = identity.peer_id
        self._cluster_key = cluster_key
        self._run, self._hello = run, hello
        self._authorise = authorise
        self._rng = rng
        self._instance = secrets.token_bytes(INSTANCE_BYTES)
        self._host: HardenedHost | None = None
        self._nursery: trio.Nursery | None = None
        self._events_in, self._events = open_events()
        self._leaving = False
        self._claims = Claims(self.peer_id)
        self._links: dict[PeerId, Link] = {}
        self._refusals: dict[PeerId, str] = {}
        self._bootstrap: dict[PeerId, tuple[PeerAddress, ...]] = {}
        """Dialled first, for ever, and never passed on: they may hold names that only this machine can resolve."""
        for address in bootstrap:
            self._bootstrap[address.peer] = (*self._bootstrap.get(address.peer, ()), address)
        self._known: dict[PeerId, tuple[PeerAddress, ...]] = {}
        """What peers told."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddresses under which others reach this peer, each ending in ``/p2p/<peer id>``."""
        return self._host.addresses if self._host else ()

    @property
    def events(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        """Everything that happens, in order. The node must keep draining it."""
        return self._events

    @property
    def refusals(self) -> Mapping[PeerId, str]:
        """Why peers that are not linked were not admitted, or did not admit us, in plain words."""
        return self._refusals

    async def send(self, to: PeerId, message: bytes) -> None:
        """Queue one message of at most ``MAX_MESSAGE_BYTES``.

        Raises:
            Unavailable: the peer is not connected, or its queue stayed full for the send deadline.
            LocalError: the message is too long.
        """
        link = self._links.get(to)
        if link is None:
            raise Unavailable(f"peer {to} is not connected: {self._refusals.get(to, 'waiting for it')}")
        await link.send(message)

    # -- finding each other --

    def _start(self, host: HardenedHost, nursery: trio.Nursery) -> None:
        self._host, self._nursery = host, nursery
        for peer in self._bootstrap:
            nursery.start_soon(self._keep_linked, peer, 0.0)

    async def _keep_linked(self, peer: PeerId, first_delay_s: float) -> None:
        """Dial a peer for ever, whenever it is wanted and not linked."""
        backoff_s = FIRST_BACKOFF_S
        await trio.sleep(first_delay_s)
        while True:
            lasted_s = 0.0
            if link := self._links.get(peer):
                began = trio.current_time()
                await link.finished.wait()
                lasted_s = trio.current_time() - began
            elif self._authorise(peer) and not self._leaving:
                lasted_s = await self._dial(peer)
            if lasted_s > MAX_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            # Jitter, so that peers that lost each other together do not meet again and again half way.
            await trio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _dial(self, peer: PeerId) -> float:
        """Try a peer's addresses until somebody answers; return for how many seconds that gave a link."""
        assert self._host is not None
        for address in dict.fromkeys((*self._bootstrap.get(peer, ()), *self._known.get(peer, ()))):
            try:
                stream = await self._host.dial(address)
            except Unavailable as error:
                log.debug("peer.unreachable", peer=peer, reason=str(error))
                continue
            try:
                return await self._converse(stream, initiator=True)
            finally:
                await stream.aclose()
        return 0.0

    def _learn(self, sender: PeerId, payload: bytes) -> None:
        """Take in whom a peer knows; what a peer says of itself outweighs what others said of it."""
        assert self._nursery is not None
        for peer, addresses in decode_peers(sender, payload).items():
            if peer == self.peer_id or not addresses:
                continue
            is_new = peer not in self._known
            is_news = peer == sender and self._known.get(peer) != addresses
            if is_new and len(self._known) >= MAX_KNOWN_PEERS:
                continue
            if is_new or is_news:
                self._known[peer] = addresses
            if is_new and peer not in self._bootstrap:
                self._nursery.start_soon(self._keep_linked, peer, YIELD_S if peer < self.peer_id else 0.0)
            if is_news:
                self._nursery.start_soon(self._introduce, peer)

    async def _introduce(self, newcomer: PeerId) -> None:
        """Tell everybody linked of a peer that has just told us where it listens."""
        payload = encode_peers({newcomer: texts_of(self._known[newcomer])})
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
            if not reason and self._claims.is_arbiter(stream.peer):
                claim = self._claims.take(stream.peer, instance, trio.current_time())
            return reason

        try:
            admission = self._admission(stream, initiator, decide)
            if not await self._admit(stream, admission):
                return 0.0
            began = trio.current_time()
            claim = claim or self._claims.take(stream.peer, admission.remote_instance, began)
            link = Link(stream.peer, admission.remote_hello, stream, lambda data: self._learn(stream.peer, data))
            await self._carry(claim, link)
            return trio.current_time() - began
        finally:
            self._claims.release(claim)

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
                await self._exchange(stream, admission)
        except trio.TooSlowError:
            self._note_refusal(stream.peer, f"it did not prove itself within {ADMISSION_DEADLINE_S:g} s")
        except NotAdmitted as refusal:
            await self._say_farewell(stream, refusal.farewell)
            self._note_refusal(stream.peer, refusal.reason)
        except (PeerError, EOFError, ValueError, trio.BrokenResourceError) as error:
            self._note_refusal(stream.peer, f"admission failed: {error}")
        else:
            stream.keep()
            self._refusals.pop(stream.peer, None)
            return True
        return False

    async def _exchange(self, stream: ControlStream, admission: Admission) -> None:
        if admission.initiator:
            await stream.send_all(frame(admission.start()))
        while not admission.done:
            reply = admission.receive(await receive_frame(stream, MAX_ADMISSION_BYTES))
            if reply:
                await stream.send_all(frame(reply))

    async def _say_farewell(self, stream: ControlStream, farewell: bytes) -> None:
        """Tell a peer why not, if it did not say so itself."""
        if not farewell:
            return
        with trio.move_on_after(FAREWELL_DEADLINE_S), suppress(trio.BrokenResourceError):
            await stream.send_all(frame(farewell))
            # Closing at once would throw the words away at the other side, which closes when it has them.
            await stream.receive_some(1)

    def _objection(self, peer: PeerId, instance: bytes) -> str:
        """Return why a peer that has proved itself is not wanted; empty if it is."""
        if peer == self.peer_id:
            return "this is the peer itself"
        if self._leaving:
            return f"peer {self.peer_id} is leaving"
        if not self._authorise(peer):
            return f"peer {self.peer_id} does not authorise peer {peer}: have the run's operator admit it"
        return self._claims.objection(peer, instance, trio.current_time())

    async def _carry(self, claim: Claim, link: Link) -> None:
        while predecessor := self._links.get(link.peer):
            await predecessor.finished.wait()
        if not self._claims.holds(claim):
            return
        claim.link = self._links[link.peer] = link
        log.info("peer.up", peer=link.peer)
        try:
            await self._events_in.send(PeerUp(peer=link.peer, hello=link.hello))
            known = {peer: texts_of(addresses) for peer, addresses in self._known.items()}
            await self._tell(link, encode_peers({self.peer_id: self.addresses, **known}))
            reason = await link.run(self._events_in)
            log.info("peer.down", peer=link.peer, reason=reason)
            await self._events_in.send(PeerDown(peer=link.peer, reason=reason))
        except trio.BrokenResourceError:
            log.warning("network.unread", peer=link.peer, reason="the node closed its end of the events")
        finally:
            # Not before PeerDown is out: a successor waits for this, and its PeerUp has to come after.
            del self._links[link.peer]
            link.finished.set()

    def _note_refusal(self, peer: PeerId, reason: str) -> None:
        if reason.endswith(DUPLICATE) or peer in self._links:
            return
        if peer not in self._refusals and len(self._refusals) >= MAX_KNOWN_PEERS:
            return
        if self._refusals.get(peer) != reason:
            log.warning("peer.not_admitted", peer=peer, reason=reason)
        self._refusals[peer] = reason

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


def texts_of(addresses: Iterable[PeerAddress]) -> tuple[str, ...]:
    """Return addresses as they are written down."""
    return tuple(address.text for address in addresses)


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

    Raises:
        ConfigError: ``listen`` or a bootstrap address cannot be used.
        LocalError: ``hello`` or ``run`` is too long.

    Example:
        >>> async with open_network(identity, key, run=run_id, bootstrap=[line]) as network:
        ...     async for event in network.events:
        ...         print(event)
    """
    try:
        known = [parse_address(text, names=True) for text in bootstrap]
    except ValueError as error:
        raise ConfigError(f"bootstrap address: {error}") from error
    network = Libp2pNetwork(
        identity,
        cluster_key,
        run=run,
        hello=hello,
        bootstrap=[address for address in known if address.peer != identity.peer_id],
        authorise=authorise,
        rng=rng or random.SystemRandom(),
    )
    try:
        async with open_host(identity.ed25519_seed, listen, network._accept) as host, trio.open_nursery() as nursery:
            network._start(host, nursery)
            try:
                yield network
            finally:
                await network._leave()
                nursery.cancel_scope.cancel()
    finally:
        network._end_events()
