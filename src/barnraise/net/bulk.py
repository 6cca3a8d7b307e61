"""The bulk plane: pushes byte buffers to peers over pooled, sealed TCP connections, and opens streams; the real one.

Who sends, dials; a connection carries payloads one way and answers the other, is kept for the next round, and is
dialled again when it is gone. A stream has connections of its own; its users call it in threads of theirs. trio holds
the lifetimes: each blocking call of the plane's has a task, and a task that is cancelled interrupts its connection and
waits for the thread to end, so no thread of the plane outlives `open_bulk`; streams are interrupted by then.
"""

import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import structlog
import trio

from barnraise.errors import ConfigError, LocalError, PeerError, Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net import congestion
from barnraise.net.blocking import Connecting, accept, in_thread, listen
from barnraise.net.channel import Channel, Meter, shake_hands
from barnraise.net.congestion import MAX_CONNECTIONS, connections_for
from barnraise.net.frames import preferred_suite
from barnraise.net.gathering import Gatherer, leaving
from barnraise.net.handshake import Credentials, Dialer, Handshake, Listener
from barnraise.net.seam import MAX_HEADER_BYTES, Arrived, LinkSpeed, Sink, StreamSink
from barnraise.net.speed import Gauge
from barnraise.net.streams import SealedStream
from barnraise.net.transfer import ID_BYTES, Announcement, Inbox, Refused, send_stripe, serve

DIAL_PAUSES_S: Final = (0.1, 0.4)
"""Between attempts to connect; the other side may learn of us a moment later than we of it."""
MIN_POOLED: Final = 2
"""Connections for pushes to each peer: while one waits for its reply, the other sends."""

_log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class BulkLimits:
    """How much the bulk plane takes on, and how long it waits."""

    connections: int = 0
    """To each peer, and of each stream to it, 1 to 8; 0: as many as the link wants (`connections_for`)."""
    congestion: str = congestion.AUTO
    """TCP congestion control, as the system calls it; auto: by the round trip (`congestion.control`)."""
    stripe_bytes: int = 1024 * 1024
    """A payload is striped over connections once each gets this much."""
    idle_timeout_s: float = 30.0
    """A peer that moves no byte for this long within a transfer is given up; a stream's `patience` at first."""
    handshake_timeout_s: float = 10.0
    """Also for opening a stream, whatever number of connections it has."""
    max_handshakes: int = 64
    """Connections from peers not yet authenticated; more are closed at once."""
    max_accepted: int = 128
    """Connections from admitted peers; each holds a thread and, once a payload came, half a MiB."""
    max_accepted_per_peer: int = 32
    """Those that already belong to a stream do not count."""
    max_streams_per_peer: int = 8
    """Open at a time, from it to us; each has up to 8 connections, and each of several holds up to 768 KiB."""
    max_transfers: int = 32
    """Incoming, at the same time; more wait, which stalls their senders."""
    max_sending: int = 64
    """Stripes under way to peers, at the same time."""


@dataclass(eq=False, slots=True)
class _Peer:
    """What is known of a peer, and the channels between it and us."""

    id: PeerId
    host: str
    port: int
    permits: trio.Semaphore
    width: int
    """So many permits there are."""
    gatherer: Gatherer
    gauge: Gauge = field(default_factory=Gauge)
    idle: list[Channel] = field(default_factory=list)
    busy: set[Channel] = field(default_factory=set)
    accepted: set[Channel] = field(default_factory=set)
    streams: set[SealedStream] = field(default_factory=set)
    is_known: bool = True
    wants: int = 1
    """So many connections the link wants, by the last one's round trip."""

    def widen(self, width: int) -> None:
        """Allow so many pooled connections; never fewer than before."""
        for _ in range(width - self.width):
            self.permits.release()
        self.width = max(width, self.width)


@contextlib.asynccontextmanager
async def open_bulk(
    identity: Identity,
    cluster_key: ClusterKey,
    *,
    sink: Sink,
    arrived: Arrived,
    streams: StreamSink | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: BulkLimits | None = None,
) -> AsyncIterator["SealedBulk"]:
    """Run the bulk plane for as long as the block lasts; afterwards no thread of it is left.

    Args:
        identity: this peer's keys; others check that its certificate names it.
        cluster_key: what a peer must know to be talked to.
        sink: says where an incoming payload goes; called in a worker thread, and no other transfer begins meanwhile.
        arrived: told of each whole payload; called in a worker thread.
        streams: takes over the streams that peers open to us; None refuses them. What these three raise, `Unavailable`
            of the last apart, ends the block.
        host: address to listen on; loopback unless given.
        port: 0 picks a free one.
        limits: how much to take on, how long to wait.

    Raises:
        ConfigError: the address cannot be listened on, or the congestion control cannot be had.

    Example:
        >>> async with open_bulk(identity, key, sink=sink, arrived=arrived) as bulk:
        ...     bulk.learn(peer, "192.0.2.7", 4002)
        ...     await bulk.send(peer, b"round 7, shard 2", [memoryview(update)])
    """
    limits = limits or BulkLimits()
    if not 0 <= limits.connections <= MAX_CONNECTIONS:
        raise ConfigError(f"bulk_connections is {limits.connections}. Say 1 to {MAX_CONNECTIONS}, or 0.")
    congestion.check(limits.congestion)
    with listen(host, port) as listener:
        bulk = SealedBulk(identity, cluster_key, listener, sink, arrived, streams, limits)
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
        streams: StreamSink | None,
        limits: BulkLimits,
    ) -> None:
        """Take over a listening, non-blocking socket."""
        self._limits = limits
        self._streams = streams
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
            limits, width = self._limits, self._limits.connections or MIN_POOLED
            gatherer = Gatherer(peer, self._streams, limits.max_streams_per_peer, limits.handshake_timeout_s)
            self._peers[peer] = _Peer(peer, host, port, trio.Semaphore(width), width, gatherer)
        elif (known.host, known.port) != (host, port):
            known.host, known.port = host, port
            _close_all(known.idle)

    def forget(self, peer: PeerId) -> None:
        """Close a peer's channels and interrupt its streams, both ways; sends to it raise `Unavailable`."""
        known = self._peers.pop(peer, None)
        if known is not None:
            known.is_known = False
            _close_all(known.idle)
            known.gatherer.interrupt()
            for used in known.busy | known.accepted | known.streams:
                used.interrupt()

    def speed(self, peer: PeerId) -> LinkSpeed | None:
        """Return what was measured of the way to a peer; None before anything was."""
        known = self._peers.get(peer)
        return known.gauge.read() if known else None

    async def send(self, to: PeerId, header: bytes, parts: Sequence[memoryview]) -> None:
        """Send one payload, the concatenation of ``parts``; return when the other side has taken it whole.

        Raises:
            Unavailable: the peer is unknown, unreachable, refused the transfer, or went away.
            LocalError: the header is longer than `MAX_HEADER_BYTES`.
        """
        peer = self._peer(to, header)
        flat = [part.cast("B") for part in parts if part.nbytes]
        size_bytes = sum(len(part) for part in flat)
        wanted = max(1, min(peer.width, size_bytes // self._limits.stripe_bytes))
        async with self._borrow(peer, wanted) as channels:
            began_s = time.monotonic()
            transfer = secrets.token_bytes(ID_BYTES)
            stripes = [Announcement(transfer, size_bytes, len(channels), i, header) for i in range(len(channels))]
            failures: list[Unavailable] = []
            async with trio.open_nursery() as nursery:
                for channel, stripe in zip(channels, stripes, strict=True):
                    nursery.start_soon(self._send_stripe, channel, stripe, flat, failures, nursery.cancel_scope)
            if failures:
                raise failures[0]
            peer.gauge.transferred(size_bytes, time.monotonic() - began_s)

    async def open_stream(self, to: PeerId, header: bytes) -> SealedStream:
        """Open a stream to a peer, over connections of its own; the caller must close it.

        Raises:
            Unavailable: the peer is unknown, unreachable, or refused the stream.
            LocalError: the header is longer than `MAX_HEADER_BYTES`.
        """
        peer = self._peer(to, header)
        channels: list[Channel] = []
        try:
            await self._dial_all(peer, channels)
        except BaseException:
            _close_all(channels)
            raise
        stream = SealedStream(channels, gauge=peer.gauge, closed=leaving(peer.streams))
        peer.streams.add(stream)
        try:
            with trio.fail_after(self._limits.handshake_timeout_s):
                await in_thread(self._sending, stream, stream.offer, secrets.token_bytes(ID_BYTES), header)
        except BaseException as error:
            stream.interrupt()
            stream.close()
            if isinstance(error, PeerError | trio.TooSlowError):
                raise Unavailable(f"peer {to}: did not take the stream ({error or 'too slow'})") from error
            raise
        return stream

    async def _dial_all(self, peer: _Peer, channels: list[Channel]) -> None:
        """Dial as many connections as a stream wants, at least one; the first one's round trip says how many."""
        channels.append(await self._dial_patiently(peer))
        async with trio.open_nursery() as nursery:
            for _ in range((self._limits.connections or peer.wants) - 1):
                nursery.start_soon(self._dial_one_more, peer, channels)
        if not peer.is_known:
            raise Unavailable(f"peer {peer.id}: was forgotten while it was dialled")

    async def _dial_one_more(self, peer: _Peer, channels: list[Channel]) -> None:
        with contextlib.suppress(Unavailable):
            channels.append(await self._dial(peer))

    def _peer(self, to: PeerId, header: bytes) -> _Peer:
        if len(header) > MAX_HEADER_BYTES:
            raise LocalError(f"a bulk header of {len(header)} bytes; it has at most {MAX_HEADER_BYTES}")
        peer = self._peers.get(to)
        if peer is None:
            raise Unavailable(f"peer {to}: no bulk address is known; is it connected?")
        return peer

    async def _send_stripe(
        self,
        channel: Channel,
        stripe: Announcement,
        parts: Sequence[memoryview],
        failures: list[Unavailable],
        transfer: trio.CancelScope,
    ) -> None:
        try:
            await in_thread(self._sending, channel, send_stripe, channel, stripe, parts)
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
        began_s = time.monotonic()
        try:
            with trio.fail_after(self._limits.handshake_timeout_s):
                stream = await trio.open_tcp_stream(peer.host, peer.port)
        except (OSError, UnicodeError, trio.TooSlowError) as error:
            raise Unavailable(f"peer {peer.id}: cannot be reached at {where} ({error or 'too slow'})") from error
        sock = socket.socket(fileno=stream.socket.detach())
        self._measure(peer, sock, time.monotonic() - began_s)
        try:
            return await self._open_channel(sock, Dialer(self._credentials, peer.id), self._sending)
        except PeerError as error:
            raise Unavailable(f"{error} (at {where})") from error

    def _measure(self, peer: _Peer, sock: socket.socket, connected_s: float) -> None:
        """Note how long the way is, by TCP's own measure if there is one, and set what follows from it."""
        measured = congestion.measured(sock)
        round_trip_s = measured.round_trip_s if measured and measured.round_trip_s else connected_s
        peer.gauge.round_trip(round_trip_s)
        is_paced = congestion.control(sock, self._limits.congestion, round_trip_s)
        peer.gauge.is_held_by_loss = round_trip_s > congestion.LONG_ROUND_TRIP_S and not is_paced
        if not self._limits.connections:
            peer.wants = connections_for(round_trip_s, peer.gauge.bandwidth_bytes_s, is_paced=is_paced)
            peer.widen(peer.wants)

    async def _open_channel(self, sock: socket.socket, handshake: Handshake, limiter: trio.CapacityLimiter) -> Channel:
        """Run the handshake in a thread and return the channel; on any failure the socket is closed."""
        try:
            deadline_s = self._limits.handshake_timeout_s
            agreed = await in_thread(limiter, Connecting(sock), shake_hands, sock, handshake, self._meter, deadline_s)
            return Channel(sock, agreed, self._meter, self._limits.idle_timeout_s)
        except BaseException:
            sock.close()
            raise

    async def _run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._close_inbox_at_the_end)
                while True:
                    nursery.start_soon(self._receive, await accept(self._listener))
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
        if peer is None or len(peer.accepted) >= self._limits.max_accepted_per_peer:
            channel.close()
            if peer is None:
                raise Unavailable(f"peer {channel.peer}: was forgotten during its handshake")
            raise PeerError(channel.peer, f"over {self._limits.max_accepted_per_peer} connections")
        is_streams = False
        peer.accepted.add(channel)
        try:
            is_streams = await in_thread(self._receiving, channel, serve, channel, self._inbox)
            if is_streams:
                await peer.gatherer.take(channel, self._receiving)
        finally:
            peer.accepted.discard(channel)
            if not is_streams:
                channel.close()

    async def _close_inbox_at_the_end(self) -> None:
        """Wake the threads that wait for their transfer's turn: no socket's end would."""
        try:
            await trio.sleep_forever()
        finally:
            self._inbox.close()


async def _acquire(permits: trio.Semaphore, wanted: int) -> int:
    """Wait for one permit, take up to ``wanted`` that are free, return how many."""
    await permits.acquire()
    taken = 1
    with contextlib.suppress(trio.WouldBlock):
        while taken < wanted:
            permits.acquire_nowait()
            taken += 1
    return taken


def _close_all(channels: list[Channel]) -> None:
    while channels:
        channels.pop().close()
