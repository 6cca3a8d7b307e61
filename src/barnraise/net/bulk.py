"""The bulk plane: pushes byte buffers to peers over pooled, sealed TCP connections, in worker threads.

Who sends, dials; a connection carries payloads one way and answers the other, is kept for the next round, and is
dialled again when it is gone. trio holds the lifetimes: each blocking call has a task, and a task that is cancelled
interrupts its connection and waits for the thread to end, so no thread outlives `open_bulk`.
"""

import contextlib
import errno
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar, TypeVarTuple

import structlog
import trio

from barnraise.errors import ConfigError, LocalError, PeerError, Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net.channel import Channel, Meter, shake_hands
from barnraise.net.frames import preferred_suite
from barnraise.net.handshake import Credentials, Dialer, Handshake, Listener
from barnraise.net.seam import MAX_HEADER_BYTES, Arrived, Sink
from barnraise.net.transfer import ID_BYTES, MAX_STRIPES, Announcement, Inbox, Refused, send_stripe, serve

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")

DIAL_PAUSES_S: Final = (0.1, 0.4)
"""Between attempts to connect; the other side may learn of us a moment later than we of it."""
EVERY_INTERFACE: Final = ("", "0.0.0.0", "::")  # noqa: S104  # to refuse them
ACCEPT_PAUSE_S: Final = 0.1
"""After the system ran out of descriptors."""

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkLimits:
    """How much the bulk plane takes on, and how long it waits."""

    connections: int = 2
    """To each peer; a link with a long round trip fills with 4 to 8."""
    stripe_bytes: int = 1024 * 1024
    """A payload is striped over connections once each gets this much."""
    idle_timeout_s: float = 30.0
    """A peer that moves no byte for this long within a transfer is given up; the kernel's send buffer may hide a
    stopped one for three times as long (measured 6.3 s at 2 s)."""
    handshake_timeout_s: float = 10.0
    max_handshakes: int = 32
    """Connections from peers not yet authenticated; more are closed at once."""
    max_accepted: int = 128
    """Connections from admitted peers; each holds a thread and 1 MiB."""
    max_accepted_per_peer: int = 16
    max_transfers: int = 32
    """Incoming, at the same time; more wait, which stalls their senders."""
    max_sending: int = 64
    """Stripes under way to peers, at the same time."""


class _Interruptible(Protocol):
    def interrupt(self) -> None: ...


@dataclass(eq=False, slots=True)
class _Peer:
    """What is known of a peer, and the channels between it and us."""

    id: PeerId
    host: str
    port: int
    permits: trio.Semaphore
    idle: list[Channel] = field(default_factory=list)
    busy: set[Channel] = field(default_factory=set)
    accepted: set[Channel] = field(default_factory=set)
    is_known: bool = True


@dataclass(eq=False, slots=True)
class _Connecting:
    """A socket in its handshake."""

    sock: socket.socket

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


@contextlib.asynccontextmanager
async def open_bulk(
    identity: Identity,
    cluster_key: ClusterKey,
    *,
    sink: Sink,
    arrived: Arrived,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: BulkLimits | None = None,
) -> AsyncIterator["SealedBulk"]:
    """Run the bulk plane for as long as the block lasts; afterwards no thread of it is left.

    Args:
        identity: this peer's keys; others check that its certificate names it.
        cluster_key: what a peer must know to be talked to.
        sink: says where an incoming payload goes; called in a worker thread, and no other transfer begins meanwhile.
        arrived: told of each whole payload; called in a worker thread. What these two raise ends the block.
        host: address to listen on; loopback unless given.
        port: 0 picks a free one.
        limits: how much to take on, how long to wait.

    Raises:
        ConfigError: the address cannot be listened on.

    Example:
        >>> async with open_bulk(identity, key, sink=sink, arrived=arrived) as bulk:
        ...     bulk.learn(peer, "192.0.2.7", 4002)
        ...     await bulk.send(peer, b"round 7, shard 2", [memoryview(update)])
    """
    with _listen(host, port) as listener:
        bulk = SealedBulk(identity, cluster_key, listener, sink, arrived, limits or BulkLimits())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk._run)
            try:
                yield bulk
            finally:
                nursery.cancel_scope.cancel()


class SealedBulk:
    """The real bulk plane (`seam.Bulk`); made by `open_bulk`."""

    def __init__(
        self,
        identity: Identity,
        cluster_key: ClusterKey,
        listener: socket.socket,
        sink: Sink,
        arrived: Arrived,
        limits: BulkLimits,
    ) -> None:
        """Take over a listening, non-blocking socket."""
        self._limits = limits
        self._credentials = Credentials(identity, cluster_key, preferred_suite(), lambda: datetime.now(UTC))
        self._listener = listener
        self._inbox = Inbox(sink, arrived, limits.max_transfers, limits.idle_timeout_s / 2)
        self._meter = Meter()
        self._peers: dict[PeerId, _Peer] = {}
        self._handshaking = trio.CapacityLimiter(limits.max_handshakes)
        self._receiving = trio.CapacityLimiter(limits.max_accepted)
        self._sending = trio.CapacityLimiter(limits.max_sending)

    @property
    def address(self) -> tuple[str, int]:
        """Return the host and port that are listened on."""
        host, port = self._listener.getsockname()[:2]
        return host, port

    @property
    def bytes_sent(self) -> int:
        """Return the bytes put on the wire so far, framing and handshakes included."""
        return self._meter.sent_bytes

    @property
    def bytes_received(self) -> int:
        """Return the bytes taken from the wire so far."""
        return self._meter.received_bytes

    def learn(self, peer: PeerId, host: str, port: int) -> None:
        """Remember where a peer's bulk plane listens; from now on it may connect as well."""
        known = self._peers.get(peer)
        if known is None:
            self._peers[peer] = _Peer(peer, host, port, trio.Semaphore(self._limits.connections))
        elif (known.host, known.port) != (host, port):
            known.host, known.port = host, port
            _close_all(known.idle)

    def forget(self, peer: PeerId) -> None:
        """Close a peer's channels, both ways; sends to it raise `Unavailable`."""
        known = self._peers.pop(peer, None)
        if known is not None:
            known.is_known = False
            _close_all(known.idle)
            for channel in known.busy | known.accepted:
                channel.interrupt()

    async def send(self, to: PeerId, header: bytes, parts: Sequence[memoryview]) -> None:
        """Send one payload, the concatenation of ``parts``; return when the other side has taken it whole.

        Raises:
            Unavailable: the peer is unknown, unreachable, refused the transfer, or went away.
            LocalError: the header is longer than `MAX_HEADER_BYTES`.
        """
        if len(header) > MAX_HEADER_BYTES:
            raise LocalError(f"a bulk header of {len(header)} bytes; it has at most {MAX_HEADER_BYTES}")
        peer = self._peers.get(to)
        if peer is None:
            raise Unavailable(f"peer {to}: no bulk address is known; is it connected?")
        flat = [part.cast("B") for part in parts if part.nbytes]
        size_bytes = sum(len(part) for part in flat)
        wanted = max(1, min(self._limits.connections, MAX_STRIPES, size_bytes // self._limits.stripe_bytes))
        async with self._borrow(peer, wanted) as channels:
            transfer = secrets.token_bytes(ID_BYTES)
            stripes = [Announcement(transfer, size_bytes, len(channels), i, header) for i in range(len(channels))]
            failures: list[Unavailable] = []
            async with trio.open_nursery() as nursery:
                for channel, stripe in zip(channels, stripes, strict=True):
                    nursery.start_soon(self._send_stripe, channel, stripe, flat, failures, nursery.cancel_scope)
            if failures:
                raise failures[0]

    async def _send_stripe(
        self,
        channel: Channel,
        stripe: Announcement,
        parts: Sequence[memoryview],
        failures: list[Unavailable],
        transfer: trio.CancelScope,
    ) -> None:
        try:
            await _in_thread(self._sending, channel, send_stripe, channel, stripe, parts)
        except Unavailable as error:
            failures.append(error)
            transfer.cancel()
        except PeerError as error:
            failures.append(Unavailable(f"{error}; the channel is closed"))
            transfer.cancel()

    @contextlib.asynccontextmanager
    async def _borrow(self, peer: _Peer, wanted: int) -> AsyncIterator[list[Channel]]:
        """Yield at least one channel, up to ``wanted``; keep them afterwards unless the transfer failed on them."""
        num_permits = await _acquire(peer.permits, wanted)
        channels: list[Channel] = []
        is_clean = False
        try:
            channels.append(await self._channel(peer))
            with contextlib.suppress(Unavailable):
                while len(channels) < num_permits:
                    channels.append(await self._channel(peer))
            yield channels
            is_clean = True
        except Refused:
            is_clean = len(channels) == 1
            raise
        finally:
            for channel in channels:
                peer.busy.discard(channel)
                if is_clean and peer.is_known:
                    peer.idle.append(channel)
                else:
                    channel.close()
            for _ in range(num_permits):
                peer.permits.release()

    async def _channel(self, peer: _Peer) -> Channel:
        while peer.idle:
            channel = peer.idle.pop()
            if channel.is_alive():
                peer.busy.add(channel)
                return channel
            channel.close()
        channel = await self._dial_patiently(peer)
        if not peer.is_known:
            channel.close()
            raise Unavailable(f"peer {peer.id}: was forgotten while it was dialled")
        peer.busy.add(channel)
        return channel

    async def _dial_patiently(self, peer: _Peer) -> Channel:
        for pause_s in DIAL_PAUSES_S:
            with contextlib.suppress(Unavailable):
                return await self._dial(peer)
            await trio.sleep(pause_s)
        return await self._dial(peer)

    async def _dial(self, peer: _Peer) -> Channel:
        where = f"{peer.host}:{peer.port}"
        try:
            with trio.fail_after(self._limits.handshake_timeout_s):
                stream = await trio.open_tcp_stream(peer.host, peer.port)
        except (OSError, UnicodeError, trio.TooSlowError) as error:
            raise Unavailable(f"peer {peer.id}: cannot be reached at {where} ({error or 'too slow'})") from error
        sock = socket.socket(fileno=stream.socket.detach())
        try:
            return await self._open_channel(sock, Dialer(self._credentials, peer.id), self._sending)
        except PeerError as error:
            raise Unavailable(f"{error} (at {where})") from error

    async def _open_channel(self, sock: socket.socket, handshake: Handshake, limiter: trio.CapacityLimiter) -> Channel:
        """Run the handshake in a thread and return the channel; on any failure the socket is closed."""
        try:
            deadline_s = self._limits.handshake_timeout_s
            agreed = await _in_thread(limiter, _Connecting(sock), shake_hands, sock, handshake, self._meter, deadline_s)
            return Channel(sock, agreed, self._meter, self._limits.idle_timeout_s)
        except BaseException:
            sock.close()
            raise

    async def _run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._close_inbox_at_the_end)
                while True:
                    nursery.start_soon(self._receive, await _accept(self._listener))
        finally:
            for peer in list(self._peers):
                self.forget(peer)

    async def _receive(self, sock: socket.socket) -> None:
        """Serve one accepted connection to its end; a peer's fault ends this connection and no other."""
        if not self._handshaking.available_tokens or not self._receiving.available_tokens:
            sock.close()
            return
        listener = Listener(self._credentials, self._peers.__contains__)
        try:
            channel = await self._open_channel(sock, listener, self._handshaking)
            await self._serve(channel)
        except (PeerError, Unavailable) as error:
            _log.warning("bulk.receive_failed", peer=listener.peer, reason=str(error))

    async def _serve(self, channel: Channel) -> None:
        peer = self._peers.get(channel.peer)
        try:
            if peer is None:
                raise Unavailable(f"peer {channel.peer}: was forgotten during its handshake")
            if len(peer.accepted) >= self._limits.max_accepted_per_peer:
                raise PeerError(channel.peer, f"over {self._limits.max_accepted_per_peer} connections")
            peer.accepted.add(channel)
            await _in_thread(self._receiving, channel, serve, channel, self._inbox)
        finally:
            if peer is not None:
                peer.accepted.discard(channel)
            channel.close()

    async def _close_inbox_at_the_end(self) -> None:
        """Wake the threads that wait for their transfer's turn: no socket's end would."""
        try:
            await trio.sleep_forever()
        finally:
            self._inbox.close()


def _listen(host: str, port: int) -> socket.socket:
    if host in EVERY_INTERFACE:
        raise ConfigError(f"bulk_listen on {host} would be told to others as it is. Name one address of this machine.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error.strerror}). Change bulk_listen.") from error
    listener.setblocking(False)
    return listener


async def _in_thread(
    limiter: trio.CapacityLimiter,
    channel: _Interruptible,
    work: Callable[[*Arguments], T],
    *arguments: *Arguments,
) -> T:
    """Run ``work`` in a worker thread and return when the thread is done with it, come what may.

    Cancellation interrupts the channel that the thread blocks on. Other errors than these two are our defects and
    reach the caller in an exception group.

    Raises:
        PeerError, Unavailable: what ``work`` raised.
    """
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_interrupt_when_cancelled, channel, done)
        try:
            return await trio.to_thread.run_sync(work, *arguments, limiter=limiter)
        except (PeerError, Unavailable) as error:
            failure = error
        finally:
            done.set()
    raise failure


async def _interrupt_when_cancelled(channel: _Interruptible, done: trio.Event) -> None:
    try:
        await done.wait()
    finally:
        if not done.is_set():
            channel.interrupt()


async def _acquire(permits: trio.Semaphore, wanted: int) -> int:
    """Wait for one permit, take up to ``wanted`` that are free, return how many."""
    await permits.acquire()
    taken = 1
    with contextlib.suppress(trio.WouldBlock):
        while taken < wanted:
            permits.acquire_nowait()
            taken += 1
    return taken


async def _accept(listener: socket.socket) -> socket.socket:
    while True:
        await trio.lowlevel.wait_readable(listener.fileno())
        try:
            return listener.accept()[0]
        except (BlockingIOError, ConnectionError):
            continue
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                raise
            _log.warning("bulk.accept_failed", reason=error.strerror)
            await trio.sleep(ACCEPT_PAUSE_S)


def _close_all(channels: list[Channel]) -> None:
    while channels:
        channels.pop().close()
