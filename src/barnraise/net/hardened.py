"""py-libp2p 0.8.1 made fit for strangers: TCP, Noise and yamux alone, every known way to crash or starve it closed.

All that touches py-libp2p's insides is in this file. What is changed, and why:

* Security is Noise and nothing else. The library's default offers plaintext and SECIO as well: a dialler falls back
  to plaintext, a listener believes whatever peer id a plaintext client claims.
* `_guarded`: an exception that leaves a stream handler cancels the nursery of the whole host.
* ``_HAPPY_EYEBALLS_DELAY``: `Swarm.dial_peer` waits this long even after it succeeded.
* `_Swarm` gives an inbound slot back when the connection ends. The library keeps it for ever, so that 250 connections,
  of anybody, one after the other, shut the listener for good. It also cuts connections that carry no admitted link.
* `_close` closes the socket even when cancelled; the library's own shutdown leaves some to the garbage collector.
* `_Yamux` bounds what a peer can make us buffer: the library only logs when a peer overruns its window. The window
  does not grow, since 64 KiB messages do not need it.
* Identify, ping and the automatic dialler are switched off: what the host speaks is ``/multistream/1.0.0``,
  ``/noise``, ``/yamux/1.0.0`` and the control protocol.
* Dials go to `Swarm.dial_addr`: `Swarm.dial_peer` refuses for 60 s to try a peer again that it could not reach.
* `quieten`: one module logs through the root logger, and thereby installs a handler on it.
"""

import errno
import ipaddress
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import libp2p.network.connection.swarm_connection as swarm_connection
import libp2p.network.swarm as swarm_module
import libp2p.stream_muxer.yamux.yamux as yamux_module
import structlog
import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, IRawConnection, ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as x25519_key_pair
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # the package has no py.typed
from multiaddr.exceptions import Error as MultiaddrError  # type: ignore[import-untyped]

from barnraise.errors import ConfigError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.addresses import MAX_ADDRESSES_PER_PEER, PeerAddress
from barnraise.net.admission import ADMISSION_DEADLINE_S
from barnraise.net.claims import DIAL_DEADLINE_S
from barnraise.net.congestion import measured
from barnraise.net.keepalive import keep_alive

CONTROL_PROTOCOL: Final = TProtocol("/barnraise/control/1")
_YAMUX: Final = TProtocol(yamux_module.PROTOCOL_ID)

HAPPY_EYEBALLS_DELAY_S: Final = 0.02
MAX_CONNECTIONS: Final = 256
"""Inbound and outbound together; a full mesh of 100 peers with room for handshakes under way."""
MAX_STREAMS_PER_CONNECTION: Final = 4
"""A link needs one."""
WINDOW_BYTES: Final = yamux_module.DEFAULT_WINDOW_SIZE
"""256 KiB: what a peer may have under way on one stream."""
MAX_UNREAD_BYTES: Final = MAX_STREAMS_PER_CONNECTION * WINDOW_BYTES
"""What one connection may make us hold beyond our own queues."""
STRANGER_DEADLINE_S: Final = 2 * ADMISSION_DEADLINE_S
"""How long an inbound connection may stay that carries no admitted link: time to open a stream and to prove oneself."""
CLOSE_DEADLINE_S: Final = 1.0
"""How long a polite goodbye may take; a stopped peer's socket takes none."""

Handler = Callable[["ControlStream"], Awaitable[None]]

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def quieten() -> None:
    """Keep py-libp2p's log to warnings, and what barnraise itself reports (dials, broken connections) out of it."""
    logging.getLogger("libp2p").setLevel(logging.WARNING)
    for reported_by_us in (
        "libp2p.network.swarm",
        "libp2p.protocol_muxer.multiselect_client",
        "libp2p.security.noise.patterns",
        "libp2p.stream_muxer.yamux",
        "libp2p.transport.tcp.tcp",
    ):
        logging.getLogger(reported_by_us).setLevel(logging.CRITICAL)
    logger = logging.getLogger("libp2p.network.connection")
    swarm_connection.logging = logger  # type: ignore[attr-defined, assignment]  # it has the functions called there


class ControlStream(trio.abc.HalfCloseableStream):
    """A libp2p stream as trio knows streams: EOF is empty bytes, a broken connection `trio.BrokenResourceError`."""

    def __init__(self, stream: INetStream) -> None:
        connection = _connection_of(stream)
        assert isinstance(stream, NetStream)
        assert isinstance(connection.muxed_conn, _Yamux)
        self._stream = stream
        self._connection = connection
        self._muxer = connection.muxed_conn
        self.peer = PeerId(str(self._muxer.peer_id))
        """Who is at the other end, as Noise authenticated it."""
        remote = self._muxer.secured_conn.get_remote_address()
        self.remote = f"{remote[0]}:{remote[1]}" if remote else ""
        """Host and port of the other end, for people to read."""

    @property
    def binding(self) -> bytes:
        """Noise's handshake hash: known to the two ends of this connection alone, different on every connection."""
        secured: Any = self._muxer.secured_conn
        handshake_hash = secured.conn.noise_state.get_handshake_hash()
        assert isinstance(handshake_hash, bytes)
        assert len(handshake_hash) == 32
        return handshake_hash

    @property
    def round_trip_s(self) -> float | None:
        """Return the shortest round trip that the kernel saw; None where it does not say."""
        secured: Any = self._muxer.secured_conn
        try:
            found = measured(secured.conn.conn.stream.stream.socket)
        except AttributeError:  # another transport than TCP is underneath, or the socket is closed
            return None
        return found.round_trip_s or None if found else None

    def keep(self) -> None:
        """Mark the connection as carrying an admitted link, so that the admission deadline no longer applies to it."""
        self._muxer.admitted = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived, at most ``max_bytes``; empty at EOF, which py-libp2p raises."""
        try:
            return await self._stream.read(max_bytes if max_bytes is not None else WINDOW_BYTES)
        except StreamEOF:
            return b""
        except BaseLibp2pError as error:
            raise trio.BrokenResourceError(_words(error)) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``."""
        try:
            await self._stream.write(bytes(data))
        except BaseLibp2pError as error:
            raise trio.BrokenResourceError(_words(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: yamux cannot tell."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Say that nothing follows."""
        try:
            await self._stream.close_write()
        except BaseLibp2pError as error:
            raise trio.BrokenResourceError(_words(error)) from error

    async def aclose(self) -> None:
        """Close the whole connection: it lives for its control stream alone."""
        await _close(self._connection)


def _words(error: BaseException) -> str:
    """Return what py-libp2p says of an error, which often is in the cause alone."""
    return str(error) or str(error.__cause__ or "") or type(error).__name__


class _WindowOverrun(trio.TooSlowError):
    """The one exception on which py-libp2p's yamux closes the connection instead of going on out of step."""


class _Yamux(Yamux):
    """Yamux that hangs up on a peer that sends more than it was allowed to."""

    admitted = False

    async def _read_data_body(self, length: int) -> bytes:
        unread = sum(len(buffer) for buffer in self.stream_buffers.values())
        if unread + length > MAX_UNREAD_BYTES:
            log.warning("peer.overran_window", peer=str(self.peer_id), unread=unread, announced=length)
            raise _WindowOverrun(f"{unread} bytes unread and {length} announced, limit {MAX_UNREAD_BYTES}")
        return await super()._read_data_body(length)


class _Upgrader(TransportUpgrader):
    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Make the multiplexer that we named; the library makes its own Yamux whatever class it is given."""
        try:
            muxer = await self.muxer_multistream.select_transport(conn)
        except MultiselectError as error:
            raise MuxerUpgradeFailure("failed to negotiate the multiplexer protocol") from error
        return muxer(conn, peer_id)


class _IdleConnector(AutoConnector):
    async def start(self) -> None:
        """Stay stopped: whom to dial, and when, is ours to say; the library's would wake up every 10 s."""


class _TCP(TCP):
    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Connect, and have the kernel notice when the other machine is gone."""
        raw: Any = await super().dial(maddr)
        keep_alive(raw.stream.stream.socket)
        return raw  # type: ignore[no-any-return]


class _Swarm(Swarm):
    async def _do_handle_inbound_connection(self, read_write_closer: Any, maddr: Multiaddr, failure_event: Any) -> None:
        try:
            keep_alive(read_write_closer.stream.socket)
            muxer = await self.upgrade_inbound_raw_conn(RawConnection(read_write_closer, False), maddr)
            assert isinstance(muxer, _Yamux)
            with trio.move_on_after(STRANGER_DEADLINE_S):
                await muxer.event_closed.wait()
            if muxer.admitted:
                await muxer.event_closed.wait()
        finally:
            await read_write_closer.close()


class HardenedHost:
    """A running libp2p host that speaks the control protocol and nothing else. Made by `open_host`."""

    def __init__(self, swarm: Swarm, host: BasicHost) -> None:
        self._swarm = swarm
        self._host = host

    @property
    def protocols(self) -> tuple[str, ...]:
        """Return the protocols that a peer can open a stream for."""
        return tuple(str(protocol) for protocol in self._host.get_mux().get_protocols())

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return where we listen, ``/p2p/<peer id>`` included."""
        suffix = f"/p2p/{self._swarm.get_peer_id()}"
        listened = [str(address) for listener in self._swarm.listeners.values() for address in listener.get_addrs()]
        return tuple(text + suffix for text in listened)[:MAX_ADDRESSES_PER_PEER]

    async def dial(self, address: PeerAddress, deadline_s: float = DIAL_DEADLINE_S) -> ControlStream:
        """Connect to a peer and open a control stream to it, within ``deadline_s`` seconds.

        Raises:
            Unavailable: nobody answers there, or not the peer that the address names.
        """
        stream: NetStream | None = None
        try:
            with trio.fail_after(deadline_s):
                peer = ID.from_string(address.peer)
                connection = await self._swarm.dial_addr(Multiaddr(address.transport), peer)
                assert isinstance(connection, SwarmConn)
                stream = await connection.new_stream()
                negotiation = MultiselectCommunicator(stream)
                timeout_s = int(ADMISSION_DEADLINE_S)
                await MultiselectClient().select_one_of([CONTROL_PROTOCOL], negotiation, timeout_s)
                return ControlStream(stream)
        except trio.TooSlowError as error:
            await _hang_up(stream)
            raise Unavailable(
                f"no answer within {deadline_s:g} s: the machine is off, the address is wrong, or a firewall is between"
            ) from error
        except (BaseLibp2pError, OSError, UnicodeDecodeError) as error:
            await _hang_up(stream)
            raise Unavailable(_why_unreachable(error)) from error


def _why_unreachable(error: BaseException) -> str:
    """Return in plain words why a dial failed; py-libp2p has it somewhere among the causes."""
    for cause in _causes(error):
        if isinstance(cause, PeerIDMismatchesPubkey):
            return "another peer answers there, not the one that the address names"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused: nobody listens there now"
        if isinstance(cause, OSError) and cause.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return "this machine has no way to that network"
        if isinstance(cause, OSError) and cause.errno == errno.ETIMEDOUT:
            return "no answer: the machine is off, the address is wrong, or a firewall is between"
    return f"it cannot be reached: {_words(error)}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return an error and whatever led to it."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            for part in cause.exceptions:
                yield from _causes(part)
        cause = cause.__cause__


async def _hang_up(stream: NetStream | None) -> None:
    if stream is not None:
        await ControlStream(stream).aclose()


def _connection_of(stream: INetStream) -> SwarmConn:
    assert isinstance(stream, NetStream)
    assert isinstance(stream.swarm_conn, SwarmConn)
    return stream.swarm_conn


def _guarded(handler: StreamHandlerFn) -> StreamHandlerFn:
    async def guarded(stream: INetStream) -> None:
        try:
            if len(_connection_of(stream).streams) > MAX_STREAMS_PER_CONNECTION:
                raise ConnectionAbortedError(f"more than {MAX_STREAMS_PER_CONNECTION} streams at once")
            await handler(stream)
        except Exception as error:
            # The one place that swallows what it does not know: a peer must not end the process by what it sends.
            log.warning("peer.stream_failed", peer=str(stream.muxed_conn.peer_id), error=repr(error))
            await _close(_connection_of(stream))

    return guarded


def _make_swarm(ed25519_seed: bytes, max_connections: int = MAX_CONNECTIONS) -> _Swarm:
    key_pair = ed25519_key_pair(ed25519_seed)
    peer = ID.from_pubkey(key_pair.public_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer, key_pair)
    noise = NoiseTransport(key_pair, noise_privkey=x25519_key_pair().private_key)
    upgrader = _Upgrader({NOISE: noise}, {_YAMUX: _Yamux}, negotiate_timeout=int(ADMISSION_DEADLINE_S))
    config = ConnectionConfig(
        max_connections=max_connections,
        high_watermark=max_connections,
        min_connections=0,
        low_watermark=0,
        max_connections_per_peer=max_connections,
        inbound_upgrade_timeout=ADMISSION_DEADLINE_S,
        outbound_upgrade_timeout=ADMISSION_DEADLINE_S,
        inbound_stream_protocol_negotiation_timeout=ADMISSION_DEADLINE_S,
        outbound_stream_protocol_negotiation_timeout=ADMISSION_DEADLINE_S,
    )
    swarm = _Swarm(peer, peerstore, upgrader, [_TCP()], RetryConfig(max_retries=0), config)
    swarm.auto_connector = _IdleConnector(swarm)
    return swarm


async def _close(connection: INetConn) -> None:
    """Close a connection for certain, even when cancelled, politely if that is quick."""
    with trio.move_on_after(CLOSE_DEADLINE_S) as politely:
        politely.shield = True
        await connection.close()
    # A peer that takes nothing blocks the goodbye; and the library, once it began to close a connection and was
    # cancelled, thinks it done and leaves the socket to the garbage collector.
    assert isinstance(connection.muxed_conn, _Yamux)
    with trio.CancelScope(shield=True):
        await connection.muxed_conn.secured_conn.close()


@asynccontextmanager
async def open_host(
    ed25519_seed: bytes, listen: str, handler: Handler, max_connections: int = MAX_CONNECTIONS
) -> AsyncIterator[HardenedHost]:
    """Run a host for as long as the block lasts.

    Args:
        ed25519_seed: 32 bytes; the peer id is the multihash of their public key.
        listen: multiaddress to listen on, ``/ip4|ip6/<address>/tcp/<port>``.
        handler: called with each control stream that a peer opens to us; the connection ends when it returns.
        max_connections: inbound and outbound together; more are cut off.

    Raises:
        ConfigError: ``listen`` is not such an address, or is taken.
    """
    quieten()
    swarm_module._HAPPY_EYEBALLS_DELAY = HAPPY_EYEBALLS_DELAY_S
    yamux_module.MAX_WINDOW_SIZE = WINDOW_BYTES
    swarm = _make_swarm(ed25519_seed, max_connections)

    async def handle(stream: INetStream) -> None:
        control = ControlStream(stream)
        try:
            await handler(control)
        finally:
            await control.aclose()

    host = BasicHost(
        swarm, default_protocols=OrderedDict({CONTROL_PROTOCOL: handle}), disable_identify_address_discovery=True
    )
    swarm.notifees.clear()
    swarm.set_stream_handler(_guarded(swarm.common_stream_handler))
    try:
        address = Multiaddr(listen)
    except (MultiaddrError, ValueError) as error:
        raise ConfigError(f"listen address {listen!r} cannot be read: {error}; try /ip4/127.0.0.1/tcp/0") from error
    if [protocol.name for protocol in address.protocols()] not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise ConfigError(f"listen address {listen!r} is not of the form /ip4/<address>/tcp/<port>; port 0 picks one")
    if ipaddress.ip_address(listen.split("/")[2]).is_unspecified:
        raise ConfigError(
            f"listen address {listen!r} means every interface; others would be told addresses that lead nowhere. Name "
            "one address of this machine, or say --listen lan for the one that leads to other machines."
        )
    async with background_trio_service(swarm):
        listening = await swarm.listen(address)
        try:
            if listening:
                yield HardenedHost(swarm, host)
        finally:
            async with trio.open_nursery() as nursery:
                for connection in swarm.get_connections():
                    nursery.start_soon(_close, connection)
    if not listening:
        # Raised out here, since the service's nursery would wrap it in a group.
        raise ConfigError(f"cannot listen on {listen}: the address is not this machine's or the port is taken")
