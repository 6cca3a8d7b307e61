"""Whole peers on the network in memory, with a trainer that is a function: rounds, garbage, and introductions.

The driver's arithmetic runs in threads, which a mocked clock would run away from; so these rounds take real time,
some hundredths of a second each.
"""

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import trio
import trio.testing

from barnraise.codec.chain import codec_of
from barnraise.config import InnerConfig, PeerConfig, RoundConfig, RunConfig
from barnraise.consensus.agreement import Decision, decided
from barnraise.dag.blobs import Blobs
from barnraise.dag.store import Store
from barnraise.errors import PeerError
from barnraise.identity import Identity
from barnraise.ids import PeerId
from barnraise.link.messages import Begin, Done, Finished, Initialise, Progress
from barnraise.link.process import TrainerEvent, TrainerProcess
from barnraise.net.memory import MemoryMedium, open_medium
from barnraise.observe.events import EventLog
from barnraise.observe.status import Status, read
from barnraise.peer.driver import Driver
from barnraise.peer.keyring import Hello, Keyring, read_hello
from barnraise.swarm import messages, records
from barnraise.swarm.member import Member
from barnraise.swarm.state import genesis
from barnraise.swarm.workspace import Workspace, root_of

BLOCKS = ((0, 100), (100, 300))
SIZE = 300
ROUNDS = 3
DEADLINE_S = 30.0
IDENTITIES = tuple(Identity(bytes([number]) * 32, bytes([number + 100]) * 32) for number in range(3))
OTHER = Identity(bytes([9]) * 32, bytes([10]) * 32)


class FunctionTrainer:
    """A trainer without a process: the update is a function of the parameters and the samples."""

    def __init__(self) -> None:
        self._send, self.events = trio.open_memory_channel[TrainerEvent](64)
        self.begun: list[Begin] = []
        self.finished: list[Finished] = []

    async def assign(self, work: Begin | Initialise | Finished) -> None:
        if isinstance(work, Finished):
            self.finished.append(work)
            return
        assert isinstance(work, Begin)
        self.begun.append(work)
        theta = np.fromfile(work.theta_path, np.float32)
        noise = np.random.default_rng(work.segments[0].first).normal(0, 1e-3, len(theta))
        (theta * np.float32(0.1) + noise).astype(np.float32).tofile(work.update_path)
        samples = sum(segment.count for segment in work.segments)
        await self._send.send(Progress(round=work.round, step=work.steps, loss=1.5))
        await self._send.send(
            Done(
                round=work.round,
                order=work.order,
                steps=work.steps,
                samples=samples,
                tokens=samples * 128,
                loss=1.5,
                validation_nats=256.0,
                validation_tokens=128,
                took_s=0.01,
            )
        )


class Peer:
    """One driver with everything around it."""

    def __init__(self, run: RunConfig, identity: Identity, medium: MemoryMedium, home: Path) -> None:
        self.id = identity.peer_id
        self.home = home
        home.mkdir()
        theta = np.linspace(-1, 1, SIZE, dtype=np.float32)
        zeros = np.zeros(SIZE, np.float32)
        self.store, self.blobs = Store(home / "log.sqlite", run.run_id), Blobs(home / "blobs")
        self.blobs.put(theta)
        keys = Keyring(identity)
        self.trainer = FunctionTrainer()
        port = 1024 + len(medium.bulks)
        hello = msgspec.msgpack.encode(Hello(records.VERSION, identity.public.encode(), "127.0.0.1", port))
        self.network = medium.join(self.id, hello)
        self.member = Member(
            me=self.id,
            state=genesis(run, len(BLOCKS), root_of(theta), root_of(zeros)),
            sign=identity.sign,
            verify=keys.verify,
            now=trio.current_time(),
            peer_timeout_s=5.0,
        )
        self.driver = Driver(
            config=PeerConfig(data_dir=home, cluster_key_file=home / "key"),
            member=self.member,
            workspace=Workspace(BLOCKS, theta, zeros, zeros.copy(), codec=codec_of(run.round.codec, np.int16)),
            store=self.store,
            blobs=self.blobs,
            keys=keys,
            trainer=cast(TrainerProcess, self.trainer),
            events=EventLog(home / "metrics.jsonl"),
            network=self.network,
        )

    async def run(self, medium: MemoryMedium, nursery: trio.Nursery) -> None:
        courier = self.driver.courier

        def arrived(sender: PeerId, header: bytes) -> None:
            nursery.start_soon(trio.to_thread.run_sync, courier.arrived, sender, header)  # where sockets call it

        await self.driver.run(medium.bulk(self.id, courier.sink, arrived))

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.home / "metrics.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]

    async def saw(self, name: str, accept: Callable[[dict[str, Any]], bool] = lambda event: True) -> dict[str, Any]:
        while True:
            found = [event for event in self.events(name) if accept(event)]
            if found:
                return found[0]
            await trio.sleep(0.02)

    async def knew_all_links(self, count: int) -> Status:
        """Wait until it has said a latency of every ordered pair, and that it exchanged something."""
        while True:
            found = read(self.home / "status.json")
            rows = found.links if found else ()
            known = sum(latency_us > 0 for row in rows for latency_us in row.latencies_us)
            if found and known == count * (count - 1) and found.exchange.seconds.count:
                return found
            await trio.sleep(0.05)

    def theta(self) -> bytes:
        return Path(self.events("run.finished")[0]["theta_path"]).read_bytes()


@asynccontextmanager
async def swarm(tmp_path: Path, rounds: int = ROUNDS) -> AsyncIterator[tuple[list[Peer], MemoryMedium, trio.Nursery]]:
    """Assemble three peers; the block starts them."""
    run = RunConfig(
        founders=tuple(identity.peer_id for identity in IDENTITIES),
        inner=InnerConfig(batch_size=2),
        round=RoundConfig(rounds=rounds, steps=3),
    )
    with trio.fail_after(DEADLINE_S):
        async with open_medium(random.Random(1)) as medium, trio.open_nursery() as nursery:
            peers = []
            for number, identity in enumerate(IDENTITIES):
                peer = Peer(run, identity, medium, tmp_path / f"peer-{number}")
                peers.append(peer)
                nursery.start_soon(peer.run, medium, nursery)
                await trio.testing.wait_all_tasks_blocked()
            yield peers, medium, nursery
            nursery.cancel_scope.cancel()
    for peer in peers:
        peer.store.close()


async def test_three_peers_finish_with_equal_parameters(tmp_path: Path) -> None:
    async with swarm(tmp_path) as (peers, _, _):
        for peer in peers:
            await peer.saw("run.finished")
    assert len({peer.theta() for peer in peers}) == 1
    assert len({peer.member.state.vertex for peer in peers}) == 1
    for peer in peers:
        assert [event["round"] for event in peer.events("round.committed")] == list(range(ROUNDS))
        assert all(len(event["contributors"]) == 3 for event in peer.events("round.committed"))
        assert peer.events("peer.refused") == []
        (told,) = peer.trainer.finished
        assert (told.round, told.theta_path) == (ROUNDS, peer.events("run.finished")[0]["theta_path"])
    values = [[decision.value for decision in log] for log in map(log_on_disk, peers)]
    assert values[0] == values[1] == values[2]
    first = sorted(work.segments[0].first for peer in peers for work in peer.trainer.begun)
    assert first == list(range(0, 3 * ROUNDS * 6, 6))


async def test_everybody_comes_to_know_all_links_between_the_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("barnraise.peer.links.SURVEY_S", 0.1)
    async with swarm(tmp_path, rounds=100_000) as (peers, _, _):
        for peer in peers:
            found = await peer.knew_all_links(len(peers))
            assert found.parameters == SIZE
            assert [entry.latency_s is not None for entry in found.connected] == [True, True]
            assert [row.peer for row in found.links] == [member.peer for member in found.members]
            assert peer.events("peer.refused") == []


def log_on_disk(peer: Peer) -> list[Any]:
    store = Store(peer.home / "log.sqlite", peer.member.state.run)
    log = store.log()
    store.close()
    assert len(log) == 2 * ROUNDS
    return log


@pytest.mark.parametrize("garbage", [b"", b"\xc1", b"\x91" * 4096, b"\x94\xa4Want\x01\x01\x91\xa2\xff\xfe"])
async def test_garbage_is_refused_by_name_and_changes_nothing(tmp_path: Path, garbage: bytes) -> None:
    async with swarm(tmp_path, rounds=1) as (peers, _, _):
        sender, receiver = peers[0], peers[1]
        await receiver.saw("peer.joined", lambda event: event["other"] == sender.id)
        await sender.network.send(receiver.id, garbage)
        refused = await receiver.saw("peer.refused")
        assert sender.id in refused["reason"]
        assert "malformed" in refused["reason"]
        for peer in peers:
            await peer.saw("run.finished")
    assert len({peer.theta() for peer in peers}) == 1
    assert len(receiver.events("peer.refused")) == 1


async def test_a_decision_with_too_many_votes_for_a_message_does_not_end_the_peer(tmp_path: Path) -> None:
    """From some 34 members on a quorum's votes are more than a control message holds."""
    votes = tuple((f"{number:052}", bytes(3373)) for number in range(19))
    async with swarm(tmp_path, rounds=1) as (peers, _, _):
        asking, asked = peers[0], peers[1]
        await asked.saw("peer.joined", lambda event: event["other"] == asking.id)
        asked.member._mailbox._recent[0] = decided(0, Decision(value=bytes(5000), view=0, votes=votes))
        await asking.network.send(asked.id, messages.encode(messages.Want(height=0, round=0, commitments=())))
        for peer in peers:
            await peer.saw("run.finished")
    assert len({peer.theta() for peer in peers}) == 1


async def test_who_introduces_itself_badly_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    async with swarm(tmp_path, rounds=1) as (peers, medium, _):
        medium.join(OTHER.peer_id, b"\x94\x01\xa2\xff\xfe\xa0\x01")
        for peer in peers:
            refused = await peer.saw("peer.refused")
            assert OTHER.peer_id in refused["reason"]
        for peer in peers:
            await peer.saw("run.finished")
            assert all(event["other"] != OTHER.peer_id for event in peer.events("peer.joined"))


def hello_of(**changes: object) -> bytes:
    fields = {"version": records.VERSION, "identity": OTHER.public.encode(), "host": "127.0.0.1", "port": 4001}
    return msgspec.msgpack.encode(list((fields | changes).values()))


def test_an_introduction_tells_keys_and_address() -> None:
    assert read_hello(OTHER.peer_id, hello_of()) == (OTHER.public, "127.0.0.1", 4001)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(hello_of()[:-1], id="cut short"),
        pytest.param(hello_of(version=2), id="another version"),
        pytest.param(hello_of(identity=IDENTITIES[0].public.encode()), id="somebody else's keys"),
        pytest.param(hello_of(identity=b"\x01" + bytes(100)), id="no keys"),
        pytest.param(hello_of(identity=OTHER.public.encode()[:-1] + b"\0"), id="keys not bound"),
        pytest.param(hello_of(port=0), id="port zero"),
        pytest.param(hello_of(port=65536), id="a port too high"),
        pytest.param(hello_of(host=b"\xff"), id="a host that is no text"),
        pytest.param(hello_of(host="a..b"), id="a host to be looked up"),
        pytest.param(hello_of(more=1), id="a field too many"),
    ],
)
def test_a_bad_introduction_is_a_peers_error(data: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        read_hello(OTHER.peer_id, data)
    assert caught.value.peer == OTHER.peer_id


def test_a_keyring_knows_only_whom_it_met() -> None:
    keys = Keyring(IDENTITIES[0])
    signature = IDENTITIES[1].sign("test", b"message")
    assert not keys.verify(IDENTITIES[1].peer_id, "test", b"message", signature)
    keys.add(IDENTITIES[1].public)
    assert keys.verify(IDENTITIES[1].peer_id, "test", b"message", signature)
    assert not keys.verify(IDENTITIES[1].peer_id, "other", b"message", signature)
