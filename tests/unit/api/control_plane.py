"""A group of ranks in one process: real pumps over plain streams, and a control plane that a test can delay and cut."""

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from barnraise.api.collectives import Collectives
from barnraise.api.plans import Input
from barnraise.api.streams import Call
from barnraise.codec.feedback import Residual
from barnraise.collective.buffers import Vector
from barnraise.collective.links import Row
from barnraise.errors import Unavailable
from barnraise.ids import PeerId
from barnraise.net.seam import Stream

from .plain_streams import Air, PlainStream

LOOK_S = 0.05


class WatchedStream(PlainStream):
    """A sending end that asks the test before each frame what to put there instead."""

    def send(self, payload: memoryview | bytes) -> None:
        super().send(self.before(payload))

    before: Callable[[memoryview | bytes], memoryview | bytes]


class WatchedAir(Air):
    """Streams whose frames the test sees: ``on_send(sender, receiver, payload)`` returns what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.on_send: Callable[[PeerId, PeerId, Any], Any] = lambda sender, receiver, payload: payload

    def _open(self, me: PeerId, peer: PeerId, header: bytes) -> Stream | Unavailable:
        stream = super()._open(me, peer, header)
        if isinstance(stream, PlainStream):
            stream.__class__ = WatchedStream
            stream.before = lambda payload: self.on_send(me, peer, payload)  # type: ignore[attr-defined]
        return stream


class Group:
    """So many ranks; a thread of its own carries what they tell each other, and lets each look around."""

    def __init__(self, count: int, *, seed: int = 0, max_delay_s: float = 0.0) -> None:
        self.air = WatchedAir()
        self.peers = [PeerId(f"peer {rank}") for rank in range(count)]
        self.rows: list[Row | None] = [None] * count
        self.dead: set[int] = set()
        self.does_pass: Callable[[int, int, object], bool] = lambda sender, to, message: True
        self._rng, self._max_delay_s = random.Random(seed), max_delay_s
        self._said: queue.SimpleQueue[tuple[float, int, int, Any]] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self.ranks = [self._rank(rank) for rank in range(count)]
        self.pool = ThreadPoolExecutor(count)
        self._postman = threading.Thread(target=self._carry_for_good)
        self._postman.start()

    def _rank(self, rank: int) -> Collectives:
        return Collectives(
            rank=rank,
            group=self.peers,
            streams=self.air.join(self.peers[rank]),
            tell=lambda to, message: self._said.put((time.monotonic(), rank, to, message)),
            survey=lambda: self.rows[rank],
        )

    def _carry_for_good(self) -> None:
        waiting: list[tuple[float, int, int, Any]] = []
        looked_at = 0.0
        while not self._is_over.is_set():
            try:
                said_at, sender, to, message = self._said.get(timeout=LOOK_S / 5)
                delay_s = self._rng.uniform(0.0, self._max_delay_s)
                before = [due for due, *pair, _ in waiting if pair == [sender, to]]
                waiting.append((max([said_at + delay_s, *before]), sender, to, message))
            except queue.Empty:
                pass
            now = time.monotonic()
            for entry in [entry for entry in waiting if entry[0] <= now]:
                waiting.remove(entry)
                self._deliver(*entry[1:])
            if now >= looked_at + LOOK_S:
                looked_at = now
                for rank in set(range(len(self.ranks))) - self.dead:
                    self.ranks[rank].watch()

    def _deliver(self, sender: int, to: int, message: Any) -> None:
        if not {sender, to} & self.dead and self.does_pass(sender, to, message):
            is_of_links = type(message).__module__.endswith("adoption")
            hear = self.ranks[to].heard_of_links if is_of_links else self.ranks[to].heard
            hear(sender, message)

    def kill(self, victim: int) -> None:
        """Take a rank away in the middle of whatever it does; the others see its links break."""
        self.dead.add(victim)
        self.ranks[victim].end(Unavailable("killed"))
        peer = self.peers[victim]
        self.air.unreachable.add(peer)
        for pair, ends in list(self.air.streams.items()):
            if peer in pair:
                for end in ends:
                    end.interrupt()
        for rank in set(range(len(self.ranks))) - self.dead:
            self.ranks[rank].peer_down(victim, "killed")

    def call(
        self,
        rank: int,
        vector: Vector,
        *,
        timeout_s: float = 20.0,
        weight: float | None = None,
        feedback: Residual | None = None,
        **call: Any,
    ) -> Vector:
        """Let a rank make a call, in this thread; return the result."""
        fields: dict[str, Any] = {"operation": "sum", "dtype": "float32", "size": len(vector)} | call
        out = vector.copy()
        made = Call(**fields, is_weighted=weight is not None)
        given = Input(vector=vector, weight=1.0 if weight is None else weight, residual=feedback)
        self.ranks[rank].carry_out(made, given, out, timeout_s)
        return out

    def start(self, rank: int, value: float, size: int = 1000, **call: Any) -> "Future[Vector]":
        """Let a rank call for the sum of a vector of one value."""
        return self.pool.submit(self.call, rank, np.full(size, value, np.float32), **call)

    def sums(self, ranks: Sequence[int], size: int = 1000, **call: Any) -> list[set[float]]:
        """Let ranks add up one more than their numbers; return which values each has at the end."""
        futures = [self.start(rank, rank + 1, size, **call) for rank in ranks]
        return [set(np.unique(future.result()).tolist()) for future in futures]

    def close(self) -> None:
        """End it all."""
        for collectives in self.ranks:
            collectives.end(Unavailable("the test is over"))
        self.pool.shutdown()
        self._is_over.set()
        self._postman.join()
        for collectives in self.ranks:
            collectives.close()
        for end in self.air.all:
            end.close()
