"""Bulk planes on loopback that keep the streams they are given, for tests."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar

import trio
import trio.testing

from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net.bulk import BulkLimits, SealedBulk, open_bulk
from barnraise.net.frames import MAX_PAYLOAD_BYTES
from barnraise.net.seam import Stream

T = TypeVar("T")

KEY = ClusterKey(bytes(32))
SMALL_BYTES = 16 * 1024
"""Of a frame that fits the kernel's buffers before anybody reads."""
IDENTITIES = [Identity(bytes([i]) * 32, bytes([i]) * 32) for i in range(1, 4)]


@dataclass
class Node:
    """A bulk plane that keeps the streams it is given."""

    identity: Identity
    limits: BulkLimits = field(default_factory=BulkLimits)
    refusal: Exception | None = None
    given: SimpleQueue[tuple[PeerId, bytes, Stream]] = field(default_factory=SimpleQueue)
    bulk: SealedBulk = field(init=False)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def take(self, peer: PeerId, header: bytes, stream: Stream) -> None:
        if self.refusal:
            raise self.refusal
        self.given.put((peer, header, stream))

    def learn(self, other: "Node") -> None:
        self.bulk.learn(other.peer_id, *other.bulk.address)


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[Sequence[Node]]:
    async with AsyncExitStack() as stack:
        for node in nodes:
            plane = open_bulk(
                node.identity, KEY, sink=lambda *_: None, arrived=lambda *_: None, streams=node.take, limits=node.limits
            )
            node.bulk = await stack.enter_async_context(plane)
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.learn(other)
        yield nodes


@asynccontextmanager
async def stream(
    connections: int = 1, header: bytes = b"header", limits: BulkLimits | None = None
) -> AsyncIterator[tuple[Stream, Stream, Node, Node]]:
    """Yield a stream's two ends, and close them."""
    alice = Node(IDENTITIES[0], limits or BulkLimits(connections=connections))
    bob = Node(IDENTITIES[1])
    async with running(alice, bob):
        near = await alice.bulk.open_stream(bob.peer_id, header)
        _, _, far = bob.given.get_nowait()
        try:
            yield near, far, alice, bob
        finally:
            for end in (near, far):
                end.interrupt()
                end.close()


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(work, *arguments)


def receive(far: Stream, room_bytes: int = MAX_PAYLOAD_BYTES) -> bytes:
    room = memoryview(bytearray(room_bytes))
    return bytes(room[: far.receive(room)])
