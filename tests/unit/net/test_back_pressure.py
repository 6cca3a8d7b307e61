"""One of eight receivers stops reading: the sender's memory stays within its window, and the other seven go on."""

import fcntl
import gc
import os
import socket
import struct
import termios
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import pytest
import trio

from barnraise.errors import Unavailable
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net.bulk import BulkLimits, SealedBulk, open_bulk
from barnraise.net.frames import MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES
from barnraise.net.seam import Stream
from barnraise.net.transfer import EAGER_BYTES

KEY = ClusterKey(bytes(32))
SENDER, *RECEIVERS = (Identity(bytes([i]) * 32, bytes([i]) * 32) for i in range(1, 10))
MEBIBYTE = 1024 * 1024
NUM_FRAMES = 64
"""32 MiB to each: more than a connection's kernel buffers hold."""
SLACK_BYTES = 3 * MEBIBYTE
"""Threads, nurseries, certificates."""


def kernel_buffers_bytes() -> int:
    """Return what the kernel may hold of one connection, at both ends."""
    limits = Path("/proc/sys/net/ipv4")
    if not limits.is_dir():
        pytest.skip("only Linux tells how much its sockets hold")
    return sum(int((limits / name).read_text().split()[2]) for name in ("tcp_wmem", "tcp_rmem"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Receiver:
    """A plane; the one that stops holds its sink, or does not read its stream, until it is let go."""

    identity: Identity
    bulk: SealedBulk = field(init=False)
    streams: SimpleQueue[Stream] = field(default_factory=SimpleQueue)
    asked: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    room: bytearray = field(default_factory=lambda: bytearray(NUM_FRAMES * MAX_PAYLOAD_BYTES))
    num_arrived: int = 0

    def take(self, peer: PeerId, header: bytes, stream: Stream) -> None:
        self.streams.put(stream)

    def sink(self, peer: PeerId, header: bytes, size_bytes: int) -> memoryview:
        self.asked.set()
        self.go_on.wait()
        return memoryview(self.room)[:size_bytes]

    def note(self, peer: PeerId, header: bytes) -> None:
        self.num_arrived += 1


@asynccontextmanager
async def one_to_eight() -> AsyncIterator[tuple[SealedBulk, list[Receiver]]]:
    """Yield a sender's plane and eight others; whoever still waits is let go at the end."""
    receivers = [Receiver(identity) for identity in RECEIVERS]
    limits = BulkLimits(connections=1)
    async with AsyncExitStack() as stack:
        sender = await stack.enter_async_context(
            open_bulk(SENDER, KEY, sink=lambda *_: None, arrived=lambda *_: None, limits=limits)
        )
        for receiver in receivers:
            receiver.bulk = await stack.enter_async_context(
                open_bulk(receiver.identity, KEY, sink=receiver.sink, arrived=receiver.note, streams=receiver.take)
            )
            sender.learn(receiver.identity.peer_id, *receiver.bulk.address)
            receiver.bulk.learn(SENDER.peer_id, *sender.address)
        try:
            yield sender, receivers
        finally:
            for receiver in receivers:
                receiver.go_on.set()


@contextmanager
def memory_within(limit_bytes: int) -> Iterator[None]:
    """See that neither Python nor the process took more than this inside."""
    gc.collect()
    tracemalloc.start()
    before = resident_bytes()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak < limit_bytes
        assert resident_bytes() - before < limit_bytes
    finally:
        tracemalloc.stop()


def frame(number: int) -> bytes:
    return bytes([number]) * MAX_PAYLOAD_BYTES


class Sending(threading.Thread):
    """Sends all frames on a stream, and counts how many were taken."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream
        self.num_taken = 0
        self.error: Unavailable | None = None

    def run(self) -> None:
        try:
            for number in range(NUM_FRAMES):
                self.stream.send(frame(number))
                self.num_taken += 1
        except Unavailable as error:
            self.error = error


def receive_all(stream: Stream) -> None:
    room = memoryview(bytearray(MAX_PAYLOAD_BYTES))
    for number in range(NUM_FRAMES):
        assert stream.receive(room) == MAX_PAYLOAD_BYTES
        assert room == frame(number)


async def all_of(work: Callable[[Stream], None], streams: list[Stream]) -> None:
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(trio.to_thread.run_sync, work, stream)


@pytest.mark.parametrize("goes_on", [True, False])
async def test_reader_that_stops_blocks_its_own_stream_alone(goes_on: bool) -> None:
    held_bytes = kernel_buffers_bytes() + 2 * MAX_FRAME_BYTES
    async with one_to_eight() as (sender, receivers):
        nears = [await sender.open_stream(receiver.identity.peer_id, b"") for receiver in receivers]
        fars = [receiver.streams.get_nowait() for receiver in receivers]
        threads = [Sending(near) for near in nears]
        # A frame and its source for each sender, a frame and a room for each receiver, all in this process.
        with memory_within(8 * 4 * MAX_FRAME_BYTES + SLACK_BYTES):
            for thread in threads:
                thread.start()
            await all_of(receive_all, fars[1:])
            for thread in threads[1:]:
                await trio.to_thread.run_sync(thread.join)
                assert thread.num_taken == NUM_FRAMES
            assert threads[0].num_taken * MAX_PAYLOAD_BYTES <= held_bytes
        if goes_on:
            await trio.to_thread.run_sync(receive_all, fars[0])
        else:
            nears[0].interrupt()
        await trio.to_thread.run_sync(threads[0].join)
        assert (threads[0].error is None) == goes_on
        for end in (*nears, *fars):
            end.close()


async def test_reader_that_stops_blocks_its_own_push_alone() -> None:
    payload = memoryview(bytearray(NUM_FRAMES * MAX_PAYLOAD_BYTES))
    async with one_to_eight() as (sender, receivers), trio.open_nursery() as nursery:
        stuck, *others = receivers
        for receiver in others:
            receiver.go_on.set()
        with memory_within(8 * 3 * MAX_FRAME_BYTES + SLACK_BYTES):
            nursery.start_soon(sender.send, stuck.identity.peer_id, b"", [payload])
            await trio.to_thread.run_sync(stuck.asked.wait)
            async with trio.open_nursery() as all_:
                for receiver in others:
                    all_.start_soon(sender.send, receiver.identity.peer_id, b"", [payload])
            assert all(receiver.num_arrived == 1 for receiver in others)
            assert not stuck.num_arrived
            peers = sender._peers[stuck.identity.peer_id]
            (channel,) = peers.busy
            assert queued_bytes(channel.socket) <= EAGER_BYTES
        stuck.go_on.set()


def queued_bytes(sock: socket.socket) -> int:
    """Return what the kernel holds of a socket's and has not sent, or has no word of."""

    return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0])
