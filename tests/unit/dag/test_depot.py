"""Blobs between peers over the network in memory: from several donors, bad ones among them, and again after a kill."""

import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from barnraise.codec.grid import Float32
from barnraise.dag import download, shelf
from barnraise.dag.asking import Answer, Ask, Part, decode, encode
from barnraise.dag.blobs import Blobs
from barnraise.dag.depot import Depot
from barnraise.dag.download import Wanted
from barnraise.dag.partial import CHUNKS, PARTIAL, Partial
from barnraise.dag.sealing import Seal, SealedBlobs
from barnraise.errors import PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net.memory import MemoryBulk, MemoryMedium, open_medium
from barnraise.swarm.manifest import CHUNK_BYTES, manifest_of
from barnraise.swarm.workspace import as_bytes, root_of

ME = PeerId("me")
SIZE = 5 * CHUNK_BYTES // 4 + 1000
"""Elements; five chunks and a bit."""
THETA = np.arange(SIZE, dtype=np.float32)
MOMENTUM = np.arange(SIZE, dtype=np.float32)[::-1].copy()


def wanted_of(*vectors: Float32) -> list[Wanted]:
    return [Wanted(name=root_of(vector), size_bytes=vector.nbytes) for vector in vectors]


class Peer:
    """One peer with a directory of blobs."""

    def __init__(
        self, name: str, home: Path, medium: MemoryMedium, *vectors: Float32, blobs: Blobs | None = None
    ) -> None:
        self.id = PeerId(name)
        self.blobs = blobs or Blobs(home / name)
        for vector in vectors:
            self.blobs.put(vector)
        self.accused: list[PeerError] = []
        self.depot = Depot(self.blobs, self.accused.append)
        medium.join(self.id)
        self.bulk: MemoryBulk = medium.bulk(self.id, self.depot.sink, self.depot.arrived)


@asynccontextmanager
async def swarm(
    home: Path, *donors: tuple[Float32, ...], bytes_per_s: float = 1e9
) -> AsyncIterator[tuple[Peer, list[Peer], MemoryMedium]]:
    """Run a peer without anything, and donors with some vectors each."""
    with trio.fail_after(30.0):
        async with open_medium(random.Random(1), bytes_per_s=bytes_per_s) as medium, trio.open_nursery() as nursery:
            me = Peer(ME, home, medium)
            others = [Peer(f"donor-{place}", home, medium, *vectors) for place, vectors in enumerate(donors)]
            for other in others:
                me.bulk.learn(other.id, *other.bulk.address)
                other.bulk.learn(me.id, *me.bulk.address)
                nursery.start_soon(other.depot.shelf.serve, other.bulk)
            await trio.testing.wait_all_tasks_blocked()
            yield me, others, medium
            nursery.cancel_scope.cancel()


def ids(peers: list[Peer]) -> list[PeerId]:
    return [peer.id for peer in peers]


@pytest.mark.parametrize("num_donors", [1, 2, 4])
async def test_blobs_come_from_everybody_who_has_them(tmp_path: Path, num_donors: int) -> None:
    async with swarm(tmp_path, *[(THETA, MOMENTUM)] * num_donors, bytes_per_s=2e7) as (me, donors, _):
        came = await me.depot.fetch(me.bulk, wanted_of(THETA, MOMENTUM), lambda: ids(donors))
    assert sum(came.values()) >= THETA.nbytes + MOMENTUM.nbytes
    assert set(came) == set(ids(donors))
    for vector in (THETA, MOMENTUM):
        assert np.array_equal(me.blobs.get(root_of(vector)), vector)
    left = sorted(path.name for path in me.blobs.path(root_of(THETA)).parent.iterdir())
    assert left == sorted(root_of(vector).hex() for vector in (THETA, MOMENTUM))


@pytest.mark.parametrize("size", [1, 1000, CHUNK_BYTES // 4, CHUNK_BYTES // 4 + 1])
async def test_small_ones_come_as_well(tmp_path: Path, size: int) -> None:
    vector = THETA[:size].copy()
    async with swarm(tmp_path, (vector,)) as (me, donors, _):
        await me.depot.fetch(me.bulk, wanted_of(vector), lambda: ids(donors))
        assert np.array_equal(me.blobs.get(root_of(vector)), vector)


async def test_what_is_in_memory_alone_is_served_for_a_while(tmp_path: Path) -> None:
    async with swarm(tmp_path, ()) as (me, donors, _):
        donors[0].depot.shelf.lend(root_of(THETA), THETA)
        await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: ids(donors))
        assert np.array_equal(me.blobs.get(root_of(THETA)), THETA)


async def test_what_is_being_served_is_served_to_the_end_though_its_file_is_deleted(tmp_path: Path) -> None:
    async with swarm(tmp_path, (THETA,), bytes_per_s=2e7) as (me, donors, _), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def delete_meanwhile() -> None:
            while not me.depot.num_arrived:  # noqa: ASYNC110  # a counter has no event
                await trio.sleep(0.001)
            donors[0].blobs.keep([])
            assert not donors[0].blobs.path(root_of(THETA)).exists()

        await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: ids(donors))
        assert np.array_equal(me.blobs.get(root_of(THETA)), THETA)


async def test_a_donor_that_goes_away_costs_only_its_chunks(tmp_path: Path) -> None:
    async with (
        swarm(tmp_path, (THETA,), (THETA,), bytes_per_s=2e7) as (me, donors, medium),
        trio.open_nursery() as nursery,
    ):
        present = set(ids(donors))

        @nursery.start_soon
        async def crash_meanwhile() -> None:
            while not me.depot.num_arrived:  # noqa: ASYNC110  # a counter has no event
                await trio.sleep(0.001)
            medium.crash(donors[0].id)
            present.discard(donors[0].id)

        await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: present)
        assert np.array_equal(me.blobs.get(root_of(THETA)), THETA)


class Liar:
    """Answers each ask with bytes of its own making."""

    def __init__(self, medium: MemoryMedium, me: PeerId, *, lies_about_manifests: bool) -> None:
        self.id, self.me = PeerId("liar"), me
        self._lies_about_manifests = lies_about_manifests
        self._asks_in, self._asks = trio.open_memory_channel[Part](100)
        medium.join(self.id)
        self.bulk = medium.bulk(self.id, lambda *_: memoryview(bytearray()), self._note)

    def _note(self, sender: PeerId, data: bytes) -> None:
        header = decode(data)
        assert isinstance(header, Ask)
        self._asks_in.send_nowait(header.part)

    async def lie(self) -> None:
        manifest = manifest_of(as_bytes(THETA))
        async for part in self._asks:
            if part.is_manifest:
                body = bytearray(manifest.encode())
                body[20] ^= self._lies_about_manifests
            else:
                body = bytearray(part.length_bytes(manifest.size_bytes) or 0)
            await self.bulk.send(self.me, encode(Answer(part)), [memoryview(body)])


@pytest.mark.parametrize("about_manifests", [True, False])
async def test_a_liar_is_named_and_nothing_of_it_is_written(tmp_path: Path, about_manifests: bool) -> None:
    async with swarm(tmp_path, (THETA,), bytes_per_s=2e7) as (me, donors, medium), trio.open_nursery() as nursery:
        liar = Liar(medium, me.id, lies_about_manifests=about_manifests)
        me.bulk.learn(liar.id, *liar.bulk.address)
        liar.bulk.learn(me.id, *me.bulk.address)
        nursery.start_soon(liar.lie)
        await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: [liar.id, *ids(donors)])
        assert np.array_equal(me.blobs.get(root_of(THETA)), THETA)
        nursery.cancel_scope.cancel()
    (error,) = me.accused
    assert (error.peer, bool(error.evidence)) == (liar.id, True)
    assert ("the manifest of" in str(error)) is about_manifests


async def test_a_donor_whose_file_is_damaged_sends_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("FIRST_PATIENCE_S", 0.2), ("MIN_PATIENCE_S", 0.2)):
        monkeypatch.setattr(download, name, seconds)
    async with swarm(tmp_path, (THETA,), (THETA,)) as (me, donors, _):
        path = donors[0].blobs.path(root_of(THETA))
        damaged = bytearray(path.read_bytes())
        damaged[3 * CHUNK_BYTES] ^= 1
        path.write_bytes(damaged)
        came = await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: ids(donors))
        assert set(came) == {donors[1].id}
        assert me.accused == []


async def test_nobody_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STARVED_S", 0.2)
    async with swarm(tmp_path, (THETA,)) as (me, donors, _):
        with pytest.raises(Unavailable, match="nobody of 1 donors sends the"):
            await me.depot.fetch(me.bulk, wanted_of(MOMENTUM), lambda: ids(donors))
        came = await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: ids(donors))
        assert came[donors[0].id] == THETA.nbytes


async def test_one_download_at_a_time_and_one_that_is_given_up_leaves_its_chunks(tmp_path: Path) -> None:
    async with swarm(tmp_path, (THETA, MOMENTUM), bytes_per_s=2e7) as (me, donors, _), trio.open_nursery() as nursery:
        first = trio.CancelScope()

        @nursery.start_soon
        async def begin() -> None:
            with first:
                await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: ids(donors))

        while me.depot.num_arrived < 2:  # noqa: ASYNC110  # a counter has no event
            await trio.sleep(0.001)
        nursery.start_soon(me.depot.fetch, me.bulk, wanted_of(MOMENTUM), lambda: ids(donors))
        await trio.testing.wait_all_tasks_blocked()
        assert me.depot.num_arrived >= 2, "the first goes on"
        first.cancel()
        came = await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: ids(donors))
    assert 0 < came[donors[0].id] < THETA.nbytes
    for vector in (THETA, MOMENTUM):
        assert np.array_equal(me.blobs.get(root_of(vector)), vector)


async def test_what_nobody_asked_for_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    name = root_of(THETA)
    async with swarm(tmp_path, (THETA,), bytes_per_s=1e7) as (me, donors, _), trio.open_nursery() as nursery:
        answers = [Answer(Part(name)), Answer(Part(name, 0, 4)), Answer(Part(bytes(32), 0, 1))]
        for answer in answers:
            assert me.depot.sink(donors[0].id, encode(answer), 4 * CHUNK_BYTES) is None
        nursery.start_soon(me.depot.fetch, me.bulk, wanted_of(THETA), lambda: ids(donors))
        while not me.depot.num_arrived:  # noqa: ASYNC110  # a counter has no event
            await trio.sleep(0.001)
        for answer in answers:
            assert me.depot.sink(PeerId("stranger"), encode(answer), 4 * CHUNK_BYTES) is None
            for size in (0, CHUNK_BYTES - 1, CHUNK_BYTES + 1, 5 * CHUNK_BYTES, 1 << 50):
                assert me.depot.sink(donors[0].id, encode(answer), size) is None
        me.depot.arrived(donors[0].id, encode(answers[0]))
        nursery.cancel_scope.cancel()


async def test_a_donor_takes_on_only_so_much(tmp_path: Path) -> None:
    ask = encode(Ask(Part(root_of(THETA), 0, 4)))
    async with swarm(tmp_path, (THETA,), bytes_per_s=1e4) as (me, donors, _):
        donor = donors[0]
        assert me.depot.sink(donor.id, ask, 0) is None, "it serves nothing itself"
        assert donor.depot.sink(me.id, ask, 1) is None, "an ask has no payload"
        assert donor.depot.sink(me.id, encode(Ask(Part(bytes(32), 0, 4))), 0) is None, "it has no such blob"
        taken = 0
        while donor.depot.sink(me.id, ask, 0) is not None:  # some may be answered meanwhile, and leave their places
            donor.depot.arrived(me.id, ask)
            taken += 1
            assert taken < 10 * shelf.MAX_QUEUED_PER_PEER
            await trio.lowlevel.checkpoint()
        assert taken >= shelf.MAX_QUEUED_PER_PEER
        for place in range(2 * shelf.MAX_QUEUED):
            other = PeerId(f"other-{place}")
            if donor.depot.sink(other, ask, 0) is not None:
                donor.depot.arrived(other, ask)
        while donor.depot.sink(PeerId("late"), ask, 0) is None:  # noqa: ASYNC110  # those out of reach are passed over
            await trio.sleep(0.01)


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_what_nobody_asks_for_any_more_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "SWEEP_S", 0.01)
    monkeypatch.setattr(shelf, "LEASE_S", 0.05)
    before = num_open_files()
    async with swarm(tmp_path, (THETA,)) as (me, donors, _):
        await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: ids(donors))
        while num_open_files() > before + 3:  # noqa: ASYNC110  # trio's own
            await trio.sleep(0.01)


def sealed(home: Path) -> SealedBlobs:
    scratch = home / "memory"
    scratch.mkdir(parents=True)
    return SealedBlobs(home / "blobs", Seal("cluster", bytes(32)), scratch)


async def test_between_disks_that_are_sealed_nothing_plain_is_written(tmp_path: Path) -> None:
    with trio.fail_after(30.0):
        async with open_medium(random.Random(1)) as medium, trio.open_nursery() as nursery:
            donor = Peer("donor", tmp_path, medium, THETA, blobs=sealed(tmp_path / "donor"))
            me = Peer("me", tmp_path, medium, blobs=sealed(tmp_path / "me"))
            me.bulk.learn(donor.id, *donor.bulk.address)
            donor.bulk.learn(me.id, *me.bulk.address)
            nursery.start_soon(donor.depot.shelf.serve, donor.bulk)
            await trio.testing.wait_all_tasks_blocked()
            await me.depot.fetch(me.bulk, wanted_of(THETA), lambda: [donor.id])
            nursery.cancel_scope.cancel()
    assert np.array_equal(me.blobs.get(root_of(THETA)), THETA)
    (file,) = (tmp_path / "me" / "blobs").iterdir()
    assert file == me.blobs.path(root_of(THETA))
    assert as_bytes(THETA)[:4096] not in file.read_bytes()
    assert list((tmp_path / "me" / "memory").iterdir()) == []


# ---- after a kill -------------------------------------------------------------------------------------------------


def test_a_download_goes_on_where_a_kill_left_it(tmp_path: Path) -> None:
    blobs, (wanted,) = Blobs(tmp_path), wanted_of(THETA)
    manifest, data = manifest_of(as_bytes(THETA)), as_bytes(THETA)
    first = Partial(blobs, wanted)
    assert first.found() is None
    first.begin(manifest)
    for index in (4, 0):
        assert first.write(index, data[slice(*manifest.bounds(index))])
    assert not first.write(1, data[slice(*manifest.bounds(2))])
    first.close()
    assert not first.write(1, data[slice(*manifest.bounds(1))]), "closed"
    second = Partial(blobs, wanted)
    found = second.found()
    assert found is not None
    assert (found.manifest, found.chunks) == (manifest, {0, 4})
    for index in (1, 2, 3, 5):
        second.write(index, data[slice(*manifest.bounds(index))])
    second.finish()
    assert np.array_equal(blobs.get(wanted.name), THETA)
    assert [path.name for path in tmp_path.iterdir()] == [wanted.name.hex()]


@pytest.mark.parametrize("which", [PARTIAL, CHUNKS])
@pytest.mark.parametrize("damage", ["gone", "empty", "short", "zeros", "flipped", "long"])
def test_what_a_power_cut_left_is_not_believed(tmp_path: Path, which: str, damage: str) -> None:
    blobs, (wanted,) = Blobs(tmp_path), wanted_of(THETA)
    manifest, data = manifest_of(as_bytes(THETA)), as_bytes(THETA)
    partial = Partial(blobs, wanted)
    partial.begin(manifest)
    for index in range(4):
        partial.write(index, data[slice(*manifest.bounds(index))])
    partial.close()
    path = tmp_path / (wanted.name.hex() + which)
    before = path.read_bytes()
    after = {
        "empty": b"",
        "short": before[: len(before) // 2],
        "zeros": bytes(len(before)),
        "flipped": bytes([before[0] ^ 1]) + before[1:],
        "long": before + b"\xff" * 100,
    }
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(after[damage])
    partial = Partial(blobs, wanted)
    found = partial.found()
    if found is None:
        partial.begin(manifest)
    have = found.chunks if found else frozenset[int]()
    assert have <= {0, 1, 2, 3}
    for index in set(range(manifest.num_chunks)) - have:
        assert partial.write(index, data[slice(*manifest.bounds(index))])
    partial.finish()
    assert np.array_equal(blobs.get(wanted.name), THETA)


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from barnraise.dag.blobs import Blobs
from barnraise.dag.download import Wanted
from barnraise.dag.partial import Partial
from barnraise.swarm.manifest import manifest_of
from barnraise.swarm.workspace import as_bytes

theta = np.arange(int(sys.argv[2]), dtype=np.float32)
data, manifest = as_bytes(theta), manifest_of(as_bytes(theta))

def strike_after(steps):
    def counted(call):
        def struck(*arguments, **options):
            nonlocal steps
            if not steps:
                os.kill(os.getpid(), signal.SIGKILL)
            steps -= 1
            return call(*arguments, **options)
        return struck
    for name in ("pwrite", "ftruncate", "fsync", "open", "close"):
        setattr(os, name, counted(getattr(os, name)))
    for name in ("replace", "unlink"):
        setattr(Path, name, counted(getattr(Path, name)))

def live(home):
    blobs, wanted = Blobs(home), Wanted(name=manifest.name, size_bytes=manifest.size_bytes)
    if blobs.path(wanted.name).exists():
        return
    file = Partial(blobs, wanted)
    found = file.found()
    if found is None:
        file.begin(manifest)
    for index in range(manifest.num_chunks):
        if found is None or index not in found.chunks:
            file.write(index, data[slice(*manifest.bounds(index))])
    file.finish()

def is_killed(home, steps):
    child = os.fork()
    if not child:
        strike_after(steps)
        live(home)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

first = 0
while is_killed(Path(sys.argv[1]) / str(first), first):
    second = 0
    while is_killed(Path(sys.argv[1]) / str(first), second) and second < 2:
        second += 7  # a second life is killed, too: at its beginning, or a little later
    live(Path(sys.argv[1]) / str(first))
    assert np.array_equal(Blobs(Path(sys.argv[1]) / str(first)).get(manifest.name), theta), first
    assert [file.name for file in (Path(sys.argv[1]) / str(first)).iterdir() if file.suffix == ".partial"] == [], first
    first += 1
print(first)
"""


def test_killed_between_any_two_steps_it_resumes(tmp_path: Path) -> None:
    """Each life is killed one step later than the one before, and a second one soon after; the third ends well."""
    size = CHUNK_BYTES // 4 + 7
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(size)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15
