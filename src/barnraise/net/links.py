"""One admitted peer's control stream as a pair of bounded queues; knows trio's streams, nothing of libp2p.

A frame is four bytes of little-endian length, then one byte of kind and the payload, which the length counts.

Four tasks per link. The reader takes frames off the stream as fast as they come, since py-libp2p's yamux kills a
stream whose reader stalls for 5 s; the deliverer moves them from a queue of ours to the application's channel; the
writer empties the queue of what is to be sent; the pacemaker puts a ping there now and then. A queue that stays full
ends the link: nothing is dropped quietly.

Pings and their answers do not wait in the queue: the writer puts them before the next frame, so that the time in our
own queue is not taken for the line's, and an empty body in the queue wakes it for them. A ping waits for company, since
a write of its own costs ten times as much; an answer does not. Waiting answers are bounded, whoever sends pings.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Final

import trio

from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.admission import printable
from barnraise.net.heartbeat import COMPANY_S, EVERY_S, HASTE_S, MAX_CREDIT, WINDOW, Heartbeat
from barnraise.net.seam import MAX_MESSAGE_BYTES, NetworkEvent, Received

MESSAGE: Final = 0
"""Kind of a frame that carries a message of the node."""
PEERS: Final = 1
"""Kind of a frame that tells whom a peer knows."""
NOTICE: Final = 2
"""Kind of a frame that warns the operator at the other end, in plain words."""
PING: Final = 3
"""Kind of a frame that asks for its own payload back, a nonce."""
PONG: Final = 4
"""Kind of a frame that is the answer."""
PREFIX_BYTES: Final = 4
MAX_NOTICE_BYTES: Final = 1024

MAX_UNREAD_MESSAGES: Final = 256
"""Messages of one peer that wait for the application: at most 16 MiB."""
MAX_UNSENT_MESSAGES: Final = 64
"""Messages that wait for one peer: at most 4 MiB."""
STALL_DEADLINE_S: Final = 2.0
"""How long the reader waits for room in a full queue; well under the 5 s after which yamux gives up."""
SEND_DEADLINE_S: Final = 5.0
"""How long `Link.send` waits for room in a full queue."""
WRITE_DEADLINE_S: Final = 10.0
"""How long one frame may take to be written; a stopped peer's socket takes nothing."""

_NOTHING: Final = b""


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """Read exactly ``size`` bytes.

    Raises:
        EOFError: the stream ended before.
        trio.BrokenResourceError: the connection broke.
    """
    data = bytearray()
    while len(data) < size:
        part = await stream.receive_some(size - len(data))
        if not part:
            raise EOFError(f"the stream ended {size - len(data)} bytes early")
        data += part
    return bytes(data)


async def receive_frame(stream: trio.abc.ReceiveStream, max_bytes: int) -> bytes:
    """Read one length-prefixed frame.

    Raises:
        ValueError: its length is 0 or over ``max_bytes``; nothing was allocated for it.
        EOFError: the stream ended before or within it.
        trio.BrokenResourceError: the connection broke.
    """
    size = int.from_bytes(await receive_exactly(stream, PREFIX_BYTES), "little")
    if not 0 < size <= max_bytes:
        raise ValueError(f"a frame of {size} bytes was announced; the limits are 1 and {max_bytes}")
    return await receive_exactly(stream, size)


def frame(body: bytes) -> bytes:
    """Return the bytes to write for one frame."""
    return len(body).to_bytes(PREFIX_BYTES, "little") + body


class Link:
    """What two peers that took each other talk over.

    Args:
        peer: who is at the other end, proved.
        hello: what it said of itself.
        stream: the control stream, admission done.
        on_peers: called with the payload of each ``PEERS`` frame; may raise `PeerError`, which ends the link.
        on_notice: called with the words of each ``NOTICE`` frame, made printable.
        shortest_s: what the kernel saw as the shortest round trip, in seconds, if it says so.
    """

    def __init__(
        self,
        peer: PeerId,
        hello: bytes,
        stream: trio.abc.HalfCloseableStream,
        on_peers: Callable[[bytes], None],
        on_notice: Callable[[str], None] = lambda words: None,
        shortest_s: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.peer = peer
        self.hello = hello
        self.finished = trio.Event()
        """Set by the owner once the link's `PeerDown` is out, so that a successor may come up."""
        self._stream = stream
        self._on_peers = on_peers
        self._on_notice = on_notice
        self._shortest_s = shortest_s
        self._reason = ""
        self._scope = trio.CancelScope()
        self._heartbeat = Heartbeat(peer)
        self._to_answer: deque[bytes] = deque()
        """Nonces of pings, at most ``MAX_CREDIT``."""
        self._ping_due = False
        self._outbox_in, self._outbox = trio.open_memory_channel[bytes](MAX_UNSENT_MESSAGES)
        self._inbox_in, self._inbox = trio.open_memory_channel[Received](MAX_UNREAD_MESSAGES)

    async def send(self, message: bytes) -> None:
        """Queue one message of the node.

        Raises:
            LocalError: it is longer than ``MAX_MESSAGE_BYTES``.
            Unavailable: the link is over, or the queue stayed full.
        """
        if len(message) > MAX_MESSAGE_BYTES:
            raise LocalError(
                f"a control message of {len(message)} bytes is over the limit of {MAX_MESSAGE_BYTES}: "
                "send a hash and move the body over the bulk plane"
            )
        await self._queue(bytes([MESSAGE]) + message)

    async def tell_peers(self, payload: bytes) -> None:
        """Queue a ``PEERS`` frame; raises `Unavailable` as `send` does."""
        await self._queue(bytes([PEERS]) + payload)

    async def warn(self, words: str) -> None:
        """Queue a ``NOTICE`` frame; raises `Unavailable` as `send` does."""
        await self._queue(bytes([NOTICE]) + words.encode()[:MAX_NOTICE_BYTES])

    async def _queue(self, body: bytes) -> None:
        try:
            with trio.fail_after(SEND_DEADLINE_S):
                await self._outbox_in.send(body)
        except trio.TooSlowError as error:
            raise Unavailable(
                f"peer {self.peer} left {MAX_UNSENT_MESSAGES} messages untaken for {SEND_DEADLINE_S:g} s; try later"
            ) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unavailable(f"peer {self.peer} went away: {self._reason or 'leaving'}") from error

    @property
    def latency_s(self) -> float | None:
        """Return the one-way latency that heartbeats found, or the kernel where it saw less; None before an answer."""
        beaten_s, shortest_s = self._heartbeat.latency_s, self._shortest_s()
        if beaten_s is None or not shortest_s:
            return beaten_s
        return min(beaten_s, shortest_s / 2)

    @property
    def silent_s(self) -> float:
        """Return for how long the other side owes the answer to a ping."""
        return self._heartbeat.silent_s(trio.current_time())

    def close(self, reason: str) -> None:
        """End the link; the first reason given counts."""
        self._reason = self._reason or reason
        self._scope.cancel()

    def leave(self) -> None:
        """Send what is queued, then tell the other side that nothing follows; it will close."""
        self._outbox_in.close()

    async def run(self, events: trio.MemorySendChannel[NetworkEvent]) -> str:
        """Carry the link until it is over; return why. All that arrived whole has gone to ``events`` by then."""
        try:
            async with trio.open_nursery() as outer:
                outer.start_soon(self._deliver, events)
                with self._inbox_in, self._outbox, self._scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._read)
                        nursery.start_soon(self._write)
                        nursery.start_soon(self._beat)
                # Before what arrived is delivered, which may take as long as the application likes: the peer must
                # learn at once that nothing more is taken.
                await self._stream.aclose()
        finally:
            self._outbox_in.close()
            self._inbox.close()
        return self._reason or "closed"

    async def _deliver(self, events: trio.MemorySendChannel[NetworkEvent]) -> None:
        try:
            async for received in self._inbox:
                await events.send(received)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.close("this process stopped reading its messages")

    async def _read(self) -> None:
        try:
            while True:
                body = await receive_frame(self._stream, MAX_MESSAGE_BYTES + 1)
                await self._take(body[0], body[1:])
        except EOFError:
            self.close("the peer closed the connection")
        except trio.BrokenResourceError as error:
            self.close(f"the connection broke: {error}")
        except (ValueError, PeerError, Unavailable) as error:
            self.close(str(error))

    async def _take(self, kind: int, payload: bytes) -> None:
        if kind == MESSAGE:
            with trio.move_on_after(STALL_DEADLINE_S):
                await self._inbox_in.send(Received(peer=self.peer, message=payload))
                return
            raise Unavailable(
                f"this process left {MAX_UNREAD_MESSAGES} messages of the peer unread for {STALL_DEADLINE_S:g} s"
            )
        if kind == PEERS:
            self._on_peers(payload)
            return
        if kind == NOTICE and len(payload) <= MAX_NOTICE_BYTES:
            self._on_notice(printable(payload.decode("utf-8", "replace")))
            return
        if kind == PING:
            self._owe(payload)
            return
        if kind == PONG:
            self._heartbeat.answered(trio.current_time(), payload)
            return
        raise ValueError(f"frame of unknown kind {kind}, or a notice of {len(payload)} bytes")

    async def _write(self) -> None:
        try:
            async for body in self._outbox:
                data = self._heartbeats() + (frame(body) if body else _NOTHING)
                if data:
                    with trio.fail_after(WRITE_DEADLINE_S):
                        await self._stream.send_all(data)
            await self._stream.send_eof()
        except trio.TooSlowError:
            self.close(f"the peer took nothing for {WRITE_DEADLINE_S:g} s")
        except trio.BrokenResourceError as error:
            self.close(f"the connection broke: {error}")

    # -- heartbeats --

    async def _beat(self) -> None:
        """Have a ping sent every now and then: with what is sent anyhow, or alone where that is nothing for a while."""
        for number in count():
            await trio.sleep(HASTE_S if number < WINDOW else EVERY_S - COMPANY_S)
            self._ping_due = self._heartbeat.may_ask
            if number >= WINDOW:
                await trio.sleep(COMPANY_S)
            if self._ping_due:
                self._wake_writer()

    def _owe(self, nonce: bytes) -> None:
        """Answer a ping as soon as the writer can.

        Raises:
            PeerError: the peer sends too many, or does not take the answers.
        """
        self._heartbeat.asked(trio.current_time(), nonce)
        if len(self._to_answer) >= MAX_CREDIT:
            raise PeerError(self.peer, f"sent {MAX_CREDIT} pings and took no answer", nonce)
        self._to_answer.append(nonce)
        self._wake_writer()

    def _wake_writer(self) -> None:
        """Have the writer look for what else there is, if its queue has room: with a full one it is awake anyhow."""
        with suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._outbox_in.send_nowait(_NOTHING)

    def _heartbeats(self) -> bytes:
        """Return the frames that answer the pings so far, and our own ping if it is time for one."""
        found = b"".join(frame(bytes([PONG]) + nonce) for nonce in self._to_answer)
        self._to_answer.clear()
        if self._ping_due:
            self._ping_due = False
            found += frame(bytes([PING]) + self._heartbeat.ask(trio.current_time()))
        return found


def open_events() -> tuple[trio.MemorySendChannel[NetworkEvent], trio.MemoryReceiveChannel[NetworkEvent]]:
    """Return the two ends of an application's event channel."""
    return trio.open_memory_channel[NetworkEvent](MAX_UNSENT_MESSAGES)
