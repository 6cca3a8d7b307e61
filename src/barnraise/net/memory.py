"""The control and bulk planes in one process and on trio's clock: for tests and the simulator, not for machines.

A `MemoryMedium` is the air between peers. It delays, partitions, cuts and crashes; every random draw comes from the
``rng`` that it is given, one stream of draws per direction and pair, so that the order in which trio happens to run
tasks changes nothing. Links are the same `Link` as over libp2p, so queues, limits and reasons are the same as well.
With `trio.testing.MockClock(autojump_threshold=0)` hours of delays pass in no time.
"""

import math
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from barnraise.errors import LocalError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.linked import LinkedNetwork
from barnraise.net.links import Link
from barnraise.net.memory_streams import MemoryStream, Pipe
from barnraise.net.seam import (
    MAX_HEADER_BYTES,
    Arrived,
    LinkSpeed,
    PeerDown,
    PeerUp,
    Sink,
    StreamSink,
)

RELINK_S: Final = 0.2
"""About how long two peers take to find each other again after they lost their link."""


class _Pipe(trio.abc.HalfCloseableStream):
    """One end of a connection whose bytes take their time; nothing is lost until it breaks."""

    def __init__(self, delay_s: Callable[[], float]) -> None:
        self._delay_s = delay_s
        self._due = 0.0
        self._arriving_in, self._arriving = trio.open_memory_channel[tuple[float, bytes]](math.inf)
        self._rest = b""
        self.other: _Pipe = self

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._due = max(self._due, trio.current_time() + self._delay_s())
        try:
            self.other._arriving_in.send_nowait((self._due, bytes(data)))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise trio.BrokenResourceError("the connection is cut") from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._rest:
            try:
                due, self._rest = await self._arriving.receive()
            except trio.EndOfChannel:
                return b""
            except trio.ClosedResourceError as error:
                raise trio.BrokenResourceError("the connection is cut") from error
            await trio.sleep_until(due)
        size = len(self._rest) if max_bytes is None else max_bytes
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self.other._arriving_in.close()

    async def aclose(self) -> None:
        self.cut()
        await trio.lowlevel.checkpoint()

    def cut(self) -> None:
        """Break both directions now; what is under way is lost."""
        for end in (self, self.other):
            end._arriving_in.close()
            end._arriving.close()


class MemoryNetwork(LinkedNetwork):
    """The `Network` of one peer on a medium. Made by `MemoryMedium.join`."""

    def __init__(self, peer: PeerId, hello: bytes) -> None:
        super().__init__(peer)
        self.hello = hello

    @property
    def addresses(self) -> tuple[str, ...]:
        """One made-up multiaddress."""
        return (f"/memory/0/p2p/{self.peer_id}",)

    async def carry(self, peer: PeerId, hello: bytes, pipe: _Pipe) -> None:
        """Carry one link until it is over."""
        link = self._links[peer] = Link(peer, hello, pipe, lambda payload: None)
        try:
            await self._events_in.send(PeerUp(peer=peer, hello=hello))
            reason = await link.run(self._events_in)
            await self._events_in.send(PeerDown(peer=peer, reason=reason))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # This peer crashed: nobody listens to its events any more.
            pipe.cut()
        finally:
            del self._links[peer]

    def crash(self) -> None:
        """Stop at once; ``events`` ends."""
        self._events_in.close()
        for link in list(self._links.values()):
            link.close("this peer crashed")


class MemoryBulk:
    """The `Bulk` of one peer on a medium. Made by `MemoryMedium.bulk`.

    The three callbacks are called in trio's own thread, since a mocked clock would run away from worker threads; what
    hands over by `trio.lowlevel.TrioToken.run_sync_soon` works here and over sockets.
    """

    def __init__(
        self,
        medium: "MemoryMedium",
        peer: PeerId,
        port: int,
        sink: Sink,
        arrived: Arrived,
        streams: StreamSink | None,
    ) -> None:
        self._medium = medium
        self._peer = peer
        self._port = port
        self._sink, self._arrived, self._streams = sink, arrived, streams
        self._learned: dict[PeerId, int] = {}
        self.bytes_sent = 0
        self.bytes_received = 0

    @property
    def address(self) -> tuple[str, int]:
        """Made-up host and port to tell others."""
        return ("127.0.0.1", self._port)

    def learn(self, peer: PeerId, host: str, port: int) -> None:
        """Remember where a peer listens; from now on that peer may send here as well."""
        self._learned[peer] = port

    def forget(self, peer: PeerId) -> None:
        """Forget a peer; transfers under way raise `Unavailable` when they would have ended, streams at once."""
        self._learned.pop(peer, None)
        self._medium.cut_streams(lambda *pair: set(pair) == {self._peer, peer})

    async def send(self, to: PeerId, header: bytes, parts: Sequence[memoryview]) -> None:
        """Send one payload; raises `Unavailable` and `LocalError` as over sockets."""
        self._check(header)
        payload = b"".join(part.cast("B") for part in parts)
        buffer = self._receiver(to)._sink(self._peer, header, len(payload))
        if buffer is None:
            raise Unavailable(f"peer {to} refused the transfer")
        await trio.sleep(self._medium.transfer_s(self._peer, to, len(payload)))
        receiver = self._receiver(to)
        buffer.cast("B")[:] = payload
        self.bytes_sent += len(header) + len(payload)
        receiver.bytes_received += len(header) + len(payload)
        receiver._arrived(self._peer, header)

    async def open_stream(self, to: PeerId, header: bytes) -> MemoryStream:
        """Open a stream, through which bytes take no time; raises `Unavailable` and `LocalError` as over sockets."""
        self._check(header)
        await trio.sleep(self._medium.delay_s(self._peer, to))
        receiver, pipe = self._receiver(to), Pipe()
        if receiver._streams is None:
            raise Unavailable(f"peer {to} refused the stream: 'not wanted'")
        try:
            receiver._streams(self._peer, header, MemoryStream(self._peer, pipe, is_sending=False))
        except Unavailable as refusal:
            raise Unavailable(f"peer {to} refused the stream: {str(refusal)!r}") from refusal
        self._medium.pipes.append((self._peer, to, pipe))
        return MemoryStream(to, pipe, is_sending=True)

    def speed(self, peer: PeerId) -> LinkSpeed | None:
        """Return what the medium does to bytes, if they take any time at all."""
        return self._medium.speed if peer in self._learned else None

    @staticmethod
    def _check(header: bytes) -> None:
        if len(header) > MAX_HEADER_BYTES:
            raise LocalError(f"a bulk header of {len(header)} bytes is over the limit of {MAX_HEADER_BYTES}")

    def _receiver(self, to: PeerId) -> "MemoryBulk":
        receiver = self._medium.bulks.get(to)
        if receiver is None or self._learned.get(to) != receiver._port or not self._medium.reachable(self._peer, to):
            raise Unavailable(f"peer {to} is unknown or cannot be reached")
        if self._peer not in receiver._learned:
            raise Unavailable(f"peer {to} does not know peer {self._peer}")
        return receiver


class MemoryMedium:
    """What lies between the peers of one test. Made by `open_medium`."""

    def __init__(
        self, nursery: trio.Nursery, rng: random.Random, delays_s: tuple[float, float], bytes_per_s: float
    ) -> None:
        self._nursery = nursery
        self._seed = rng.getrandbits(64)
        self._delays_s = delays_s
        self._bytes_per_s = bytes_per_s
        self._networks: dict[PeerId, MemoryNetwork] = {}
        self.bulks: dict[PeerId, MemoryBulk] = {}
        self.pipes: list[tuple[PeerId, PeerId, Pipe]] = []
        self._sides: dict[PeerId, int] = {}
        self._pipes: dict[frozenset[PeerId], _Pipe] = {}
        self._draws: dict[tuple[PeerId, PeerId], random.Random] = {}
        self._changed = trio.Event()

    def join(self, peer: PeerId, hello: bytes = b"") -> MemoryNetwork:
        """Put a peer on the medium; it finds all the others by itself. One that crashed may join again."""
        network = MemoryNetwork(peer, hello)
        others = [other for other in self._networks.values() if other.peer_id != peer]
        self._networks[peer] = network
        for other in others:
            self._nursery.start_soon(self._keep_linked, network, other)
        return network

    def bulk(self, peer: PeerId, sink: Sink, arrived: Arrived, streams: StreamSink | None = None) -> MemoryBulk:
        """Return a peer's bulk plane."""
        port = 1024 + len(self.bulks)
        bulk = self.bulks[peer] = MemoryBulk(self, peer, port, sink, arrived, streams)
        return bulk

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Let only peers of the same group reach each other; whoever is in none of them is a group of its own."""
        sides = {peer: number for number, group in enumerate(groups) for peer in group}
        alone = {peer: len(groups) + number for number, peer in enumerate(self._networks)}
        self._sides = {**alone, **sides}
        for pair, pipe in list(self._pipes.items()):
            if not self.reachable(*pair):
                pipe.cut()
        self.cut_streams(lambda *pair: not self.reachable(*pair))
        self._announce()

    def heal(self) -> None:
        """Let everybody reach everybody again."""
        self._sides = {}
        self._announce()

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Break the connection of two peers, if they have one; they link again by themselves."""
        if pipe := self._pipes.get(frozenset((one, other))):
            pipe.cut()
        self.cut_streams(lambda *pair: set(pair) == {one, other})

    def cut_streams(self, applies: Callable[[PeerId, PeerId], bool]) -> None:
        """Break the streams between certain peers."""
        for sender, receiver, pipe in self.pipes:
            if applies(sender, receiver):
                pipe.cut()
        self.pipes = [entry for entry in self.pipes if not applies(*entry[:2])]

    def crash(self, peer: PeerId) -> None:
        """Take a peer away without a word."""
        self._networks.pop(peer).crash()
        self.bulks.pop(peer, None)
        self.cut_streams(lambda *pair: peer in pair)
        self._announce()

    def reachable(self, one: PeerId, other: PeerId) -> bool:
        """Return whether bytes get from one to the other now."""
        alive = one in self._networks and other in self._networks
        return alive and self._sides.get(one) == self._sides.get(other)

    def delay_s(self, sender: PeerId, receiver: PeerId) -> float:
        """Draw how long the next bytes from one peer to another take."""
        if (sender, receiver) not in self._draws:
            self._draws[sender, receiver] = random.Random(f"{self._seed} {sender} {receiver}")  # noqa: S311
        return self._draws[sender, receiver].uniform(*self._delays_s)

    def transfer_s(self, sender: PeerId, receiver: PeerId, size_bytes: int) -> float:
        """Draw how long a bulk transfer takes."""
        return self.delay_s(sender, receiver) + size_bytes / self._bytes_per_s

    @property
    def speed(self) -> LinkSpeed | None:
        """Return the mean delay and the bandwidth, if that is finite."""
        if math.isinf(self._bytes_per_s):
            return None
        return LinkSpeed(latency_s=sum(self._delays_s) / 2, bandwidth_bytes_s=self._bytes_per_s)

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _keep_linked(self, one: MemoryNetwork, other: MemoryNetwork) -> None:
        """Link two peers whenever they can reach each other, until one of them is gone."""
        while self._networks.get(one.peer_id) is one and self._networks.get(other.peer_id) is other:
            if not self.reachable(one.peer_id, other.peer_id):
                await self._changed.wait()
                continue
            await self._carry(one, other)
            await trio.sleep(RELINK_S + self.delay_s(one.peer_id, other.peer_id))

    async def _carry(self, one: MemoryNetwork, other: MemoryNetwork) -> None:
        pair = frozenset((one.peer_id, other.peer_id))
        near = _Pipe(lambda: self.delay_s(one.peer_id, other.peer_id))
        far = _Pipe(lambda: self.delay_s(other.peer_id, one.peer_id))
        near.other, far.other = far, near
        self._pipes[pair] = near
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.carry, other.peer_id, other.hello, near)
            nursery.start_soon(other.carry, one.peer_id, one.hello, far)
        if self._pipes.get(pair) is near:
            del self._pipes[pair]


@asynccontextmanager
async def open_medium(
    rng: random.Random, *, delays_s: tuple[float, float] = (0.001, 0.005), bytes_per_s: float = math.inf
) -> AsyncIterator[MemoryMedium]:
    """Run a medium for as long as the block lasts.

    Args:
        rng: where its seed comes from.
        delays_s: least and most that bytes take from one peer to another.
        bytes_per_s: bandwidth of each bulk transfer.

    Example:
        >>> async with open_medium(random.Random(7)) as medium:
        ...     alice, bob = medium.join(PeerId("alice")), medium.join(PeerId("bob"))
    """
    async with trio.open_nursery() as nursery:
        yield MemoryMedium(nursery, rng, delays_s, bytes_per_s)
        nursery.cancel_scope.cancel()
