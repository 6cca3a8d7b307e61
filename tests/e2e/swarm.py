"""Raises peers as real processes on loopback, follows their events, and reads what they leave on their disks."""

import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
import trio

from barnraise.config import ConsensusConfig, InnerConfig, OuterConfig, RoundConfig, RunConfig
from barnraise.dag.store import Store
from barnraise.identity import ClusterKey
from barnraise.ids import Digest
from barnraise.observe.events import describe
from barnraise.peer.faults import VARIABLE
from barnraise.runs import directory as rundir
from barnraise.runs import reading
from barnraise.runs.directory import RunDirectory
from barnraise.runs.invitation import Invitation
from barnraise.swarm import records
from barnraise.swarm.records import Cut, LogEvent, Result
from barnraise.swarm.state import State, assignment, follow, genesis
from barnraise.swarm.workspace import root_of

PATIENCE_S: Final = 140.0
"""For all that a test does with its peers. An idle machine needs 10 s; one that runs four other things takes its time."""
TINY_TRAINER: Final = Path(__file__).with_name("tiny_trainer.py")
SIZE: Final = 1000
"""Parameters of the tiny trainer's model."""
ROUND: Final = RoundConfig(rounds=10_000, steps=2, max_missed=3, grace_min_s=1.0, exchange_timeout_s=3.0)
"""Longer than any test; who wants to see the end sets ``rounds``."""
AGREE_S: Final = 1.0
ANY_PORT: Final = "/ip4/127.0.0.1/tcp/0"
Record = dict[str, Any]


class Peer:
    """One peer's place on disk, and its process while it has one."""

    def __init__(self, swarm: "Swarm", index: int, directory: RunDirectory | None = None) -> None:
        """``directory``: a visitor's own; founders share the swarm's."""
        self.index = index
        self.directory = directory or swarm.directory
        self.number = 0 if directory else index
        self.id = self.directory.peers[self.number]
        self.home = self.directory.home(self.number)
        self.events: list[Record] = []
        """All that it said, over all its processes."""
        self.process: trio.Process | None = None
        self.trainer: tuple[str, ...] = ()
        """Options of its tiny trainer."""
        self._swarm = swarm
        self._told = trio.Condition()
        self._ended = trio.Event()

    async def start(
        self, *, fault: str = "", prefix: Sequence[str] = (), listen: str = ANY_PORT, bulk_listen: str = "127.0.0.1:0"
    ) -> None:
        """Start its process; ``prefix`` is a command that starts the command after it."""
        others = [peer.address for peer in self._swarm.peers if peer is not self]
        options = (*self._swarm.trainer, *self.trainer)
        settings = dataclasses.replace(
            self.directory.peer_config(self.number),
            listen=listen,
            bulk_listen=bulk_listen,
            bootstrap=tuple(filter(None, [*others, self._swarm.door])),
            trainer=(sys.executable, "-P", str(TINY_TRAINER), *options),
            peer_timeout_s=self._swarm.peer_timeout_s,
        )
        file = self.directory.write_peer_config(self.number, settings)
        command = [*prefix, sys.executable, "-P", "-m", "barnraise.node", str(file)]
        with self.directory.stderr_file(self.number).open("ab") as stderr:
            self.process = await trio.lowlevel.open_process(
                [*command, str(self.directory.run_file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env={**os.environ, VARIABLE: fault},
            )
        self._ended = trio.Event()
        self._swarm.nursery.start_soon(self._listen, self.process, self._ended)

    @property
    def address(self) -> str:
        """Where it listens, once it has said so."""
        return next((event["address"] for event in reversed(self.events) if event["event"] == "peer.started"), "")

    async def until(self, name: str, since: int = 0, **fields: object) -> Record:
        """Wait for an event with these fields, or find one told already, from the ``since``-th on."""
        return await self.until_found(
            lambda event: event["event"] == name and all(event.get(key) == fields[key] for key in fields), since, name
        )

    async def until_found(self, fits: Callable[[Record], bool], since: int = 0, what: str = "an event") -> Record:
        """Wait for an event, or find one told already.

        Raises:
            AssertionError: its process ended without.
        """
        self._swarm.waits_for = f"peer {self.index} to come to {what}"
        while True:
            found = next((event for event in self.events[since:] if fits(event)), None)
            if found is not None:
                return found
            assert not self._ended.is_set(), f"peer {self.index} ended without {what}"
            since = len(self.events)
            async with self._told:
                if since == len(self.events) and not self._ended.is_set():
                    await self._told.wait()

    async def committed(self, round_: int) -> Record:
        """Wait until it has applied a round, or a later one, whose event it returns."""
        return await self.until_found(
            lambda event: event["event"] == "round.committed" and event["round"] >= round_, what=f"round {round_}"
        )

    async def end(self) -> int:
        """Wait for its process to end; return the exit status."""
        assert self.process is not None
        self._swarm.waits_for = f"peer {self.index} to end"
        await self._ended.wait()
        return await self.process.wait()

    async def leave(self) -> int:
        """Close its stdin, which asks it to leave; return the exit status."""
        assert self.process is not None
        assert self.process.stdin is not None
        await self.process.stdin.aclose()
        return await self.end()

    async def wish(self, text: str) -> None:
        """Ask it for something on its stdin: ``leave``, or ``pause N``."""
        assert self.process is not None
        assert self.process.stdin is not None
        await self.process.stdin.send_all(f"{text}\n".encode())

    def strike(self, number: signal.Signals) -> None:
        """Send a signal to its process alone."""
        assert self.process is not None
        self.process.send_signal(number)

    def strike_trainer(self, number: signal.Signals) -> None:
        """Send a signal to its newest trainer."""
        pids = [event["pid"] for event in self.events if event["event"] in ("trainer.started", "trainer.restarted")]
        os.kill(pids[-1], number)

    def named(self, name: str) -> list[Record]:
        """Return its events of a name."""
        return [event for event in self.events if event["event"] == name]

    @property
    def round(self) -> int:
        """Number of rounds that it has said to be behind it."""
        return max((event["round"] + 1 for event in self.named("round.committed")), default=0)

    @property
    def words(self) -> str:
        """The end of its stderr."""
        file = self.directory.stderr_file(self.number)
        return file.read_text(errors="replace")[-1500:] if file.exists() else ""

    def kill_group(self) -> None:
        """Kill whatever is left of its processes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def _listen(self, process: trio.Process, ended: trio.Event) -> None:
        assert process.stdout is not None
        buffered = b""
        async for chunk in process.stdout:
            *lines, buffered = (buffered + chunk).split(b"\n")
            async with self._told:
                self.events += [msgspec.json.decode(line, type=Record) for line in lines]
                self._told.notify_all()
        await process.wait()
        ended.set()
        async with self._told:
            self._told.notify_all()


class Swarm:
    """Peers of one run; made by `raised`."""

    def __init__(self, directory: RunDirectory, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.nursery = nursery
        self.trainer: tuple[str, ...] = ()
        """Options of everybody's tiny trainer."""
        self.peer_timeout_s = 30.0
        self.door = ""
        """Address that everybody is told to find the others through."""
        self.waits_for = ""
        """What the test waits for, in words."""
        self.peers = [Peer(self, index) for index in range(len(directory.peers))]
        """By seniority."""

    async def start(self, *, faults: dict[int, str] | None = None, only: Iterable[int] | None = None) -> None:
        """Start all at once, or only some; they meet at the first one's door."""
        first, *others = (self.peers[index] for index in (range(len(self.peers)) if only is None else only))
        listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
        self.door = f"{listen}/p2p/{first.id}"
        await first.start(fault=(faults or {}).get(first.index, ""), listen=listen)
        for peer in others:
            await peer.start(fault=(faults or {}).get(peer.index, ""))

    def visitor(self) -> Peer:
        """Return a peer that is no founder and knows no more than an invitation tells."""
        config = self.directory.config
        assert config is not None
        key = ClusterKey.load(self.directory.path / rundir.CLUSTER_KEY_FILE)
        invitation = Invitation(run=config.run_id, addresses=(self.door,), secret=key.secret)
        place = self.directory.path.parent / f"visitor-{len(self.peers)}"
        peer = Peer(self, len(self.peers), rundir.join(invitation, place, datetime(2026, 1, 2)))
        self.peers.append(peer)
        return peer

    def tell(self) -> None:
        """Print how far everybody is, for whoever reads of a failure."""
        print(f"waited for {self.waits_for} in {self.directory.path}")
        for peer in self.peers:
            print(f"-- peer {peer.index}, {peer.id}")
            for event in peer.events[-12:]:
                print("  ", describe(event))
            print(textwrap.indent(peer.words, "   | "))

    async def leave(self) -> None:
        """Ask all that run to leave, at once, and see that they do so in order."""
        running = [peer for peer in self.peers if peer.process is not None and peer.process.returncode is None]
        for peer in running:
            assert peer.process is not None
            assert peer.process.stdin is not None
            await peer.process.stdin.aclose()
        codes = [await peer.end() for peer in running]
        assert codes == [0] * len(codes), [peer.words for peer in running]


def free_port() -> int:
    """Return a port that nobody listens on, of those that the system gives to nobody by itself."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.asynccontextmanager
async def raised(
    path: Path,
    num_peers: int,
    *,
    rules: RoundConfig = ROUND,
    round_s: float = 0.1,
    peer_timeout_s: float = 30.0,
    profile: Literal["home", "open"] = "home",
) -> AsyncIterator[Swarm]:
    """Make a run and its peers' places; whatever is started is gone when the block is left, however it is left."""
    config = RunConfig(
        profile=profile,
        round=rules,
        inner=InnerConfig(batch_size=4),
        outer=OuterConfig(lr=0.7, momentum=0.5),
        consensus=ConsensusConfig(timeout_s=AGREE_S),
    )
    directory = rundir.create(config, num_peers, path / "run", datetime(2026, 1, 2))
    async with trio.open_nursery() as nursery:
        swarm = Swarm(directory, nursery)
        swarm.trainer = ("--size", str(SIZE), "--round-s", str(round_s))
        swarm.peer_timeout_s = peer_timeout_s
        try:
            with trio.fail_after(PATIENCE_S):
                yield swarm
        except BaseException:
            swarm.tell()
            raise
        finally:
            for peer in swarm.peers:
                peer.kill_group()
            with trio.CancelScope(shield=True):
                for process in [peer.process for peer in swarm.peers if peer.process is not None]:
                    await process.wait()
            nursery.cancel_scope.cancel()


def everybody_contributes(num_peers: int, after: int = 0) -> Callable[[Record], bool]:
    """Return what tells that an event is of a round with all of ``num_peers`` members in it, ``after`` or later."""

    def fits(event: Record) -> bool:
        if event["event"] != "round.committed" or event["round"] < after:
            return False
        return len(event["contributors"]) == len(event["members"]) == num_peers

    return fits


# ---- what is on the disks afterwards ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Book:
    """One peer's log, followed from the genesis on."""

    values: tuple[bytes, ...]
    thetas: tuple[Digest, ...]
    """Root of the parameters after each round."""
    state: State
    consumed: tuple[tuple[int, int], ...]
    """``(first, count)`` of all samples whose updates are in."""


def read(swarm: Swarm, index: int) -> Book:
    """Read and check the store of a peer that has ended: its log follows, its tensors are those that it names."""
    home, config = swarm.peers[index].home, swarm.directory.config
    assert config is not None
    store = Store(home / "log.sqlite", config.run_id)
    try:
        founding = store.founding()
        assert founding is not None
        state = genesis(
            config,
            len(founding.blocks),
            founding.theta,
            root_of(np.zeros(founding.blocks[-1][1], np.float32)),
        )
        log = [decision.value for decision in store.log()]
        vertices = store.vertices()
    finally:
        store.close()
    thetas: list[Digest] = []
    consumed: list[tuple[int, int]] = []
    for value in log:
        event: LogEvent = records.decode_event.decode(value)
        if isinstance(event, Result):
            consumed += taken(state)
            thetas.append(Digest(event.theta_root))
        state, vertex = follow(state, event)
        if vertex is not None:
            assert vertex in vertices
    assert len(vertices) == len(thetas) == state.round
    for root in (state.theta_root, state.momentum_root) if thetas else ():
        assert reading.holds(home, root)
    return Book(values=tuple(log), thetas=tuple(thetas), state=state, consumed=tuple(consumed))


def taken(state: State) -> list[tuple[int, int]]:
    """Return the samples of the members in the state's cut."""
    cut: Cut | None = state.cut
    assert cut is not None
    slots = assignment(state).slots
    return [(s.first, s.count) for entry in cut.contributions for s in slots[type(state.peers[0])(entry.member)]]


def check(swarm: Swarm) -> list[Book]:
    """Check what must hold whatever happened, once all have ended; return the books, by seniority."""
    books = [read(swarm, peer.index) for peer in swarm.peers]
    longest = max(books, key=lambda book: len(book.values))
    for book in books:
        assert book.values == longest.values[: len(book.values)], "two values were decided at one height"
    for peer, book in zip(swarm.peers, books, strict=True):
        for event in peer.named("round.committed"):
            assert event["theta"] == longest.thetas[event["round"]].hex(), "a peer stepped elsewhere"
        assert book.state.round >= peer.round, "an agreed round was lost"
    check_samples(longest)
    return books


def check_samples(book: Book) -> None:
    """Check that each sample was used once, or waits to be used, and no other."""
    waiting = [(segment.first, segment.count) for segment in book.state.requeued]
    end = 0
    for first, count in sorted([*book.consumed, *waiting]):
        assert first == end, f"samples from {min(first, end)} on were used twice or not at all"
        end = first + count
    assert end == book.state.cursor
