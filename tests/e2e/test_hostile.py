"""Peers that have the right key, or not, and misbehave: honest ones refuse them in plain words, go on and agree."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import trio

from barnraise.codec.chain import codec_of
from barnraise.collective import shards
from barnraise.consensus import pbft_messages
from barnraise.consensus.raft_messages import Append
from barnraise.errors import Unavailable
from barnraise.identity import SIGNATURE_BYTES, ClusterKey, Identity
from barnraise.ids import Digest, PeerId
from barnraise.net.bulk import SealedBulk, open_bulk
from barnraise.net.host import Libp2pNetwork, open_network
from barnraise.net.seam import MAX_MESSAGE_BYTES, PeerUp, Received
from barnraise.observe import status
from barnraise.peer.courier import Header
from barnraise.peer.keyring import Hello, read_hello
from barnraise.swarm import messages, records
from barnraise.swarm import round as rounds
from barnraise.swarm.messages import Commit
from barnraise.swarm.records import Commitment, Signed
from barnraise.swarm.round import COMMIT_CONTEXT, Trained
from barnraise.swarm.state import State, genesis
from barnraise.swarm.workspace import as_bytes, root_of

from .swarm import ROUND, SIZE, Peer, Record, Swarm, check, raised
from .tiny_trainer import initial

TOO_LONG = MAX_MESSAGE_BYTES + 1000
BLOCKS = ((0, SIZE // 2), (SIZE // 2, SIZE))


class Hostile:
    """A peer of our own parts that says what it likes."""

    def __init__(self, identity: Identity, network: Libp2pNetwork, bulk: SealedBulk) -> None:
        self.identity, self.network, self.bulk = identity, network, bulk

    async def meet(self, num_peers: int) -> None:
        """Wait until this many peers have admitted us."""
        met: set[PeerId] = set()
        while len(met) < num_peers:
            event = await self.network.events.receive()
            if isinstance(event, PeerUp):
                _, host, port = read_hello(event.peer, event.hello)
                self.bulk.learn(event.peer, host, port)
                met.add(event.peer)

    async def hear(self, kind: type[messages.Message]) -> messages.Message:
        """Wait for a message of a kind."""
        while True:
            event = await self.network.events.receive()
            if isinstance(event, Received):
                message = messages.decode(event.peer, event.message)
                if isinstance(message, kind):
                    return message

    async def tell(self, peers: list[Peer], message: messages.Message) -> None:
        """Send a message to all."""
        for peer in peers:
            await self.network.send(peer.id, messages.encode(message))

    async def push(self, to: PeerId, header: Header, payload: bytes) -> None:
        """Send a payload until it is taken."""
        while True:
            try:
                await self.bulk.send(to, msgspec.msgpack.encode(header), [memoryview(payload)])
                return
            except Unavailable:
                await trio.sleep(0.02)


@contextlib.asynccontextmanager
async def hostile(
    swarm: Swarm, identity: Identity, *, key: ClusterKey | None = None, run: bytes | None = None
) -> AsyncIterator[Hostile]:
    """Knock at the first peer's door."""
    key = key or ClusterKey.load(swarm.directory.path / "cluster.key")
    async with open_bulk(identity, key, sink=lambda *_: None, arrived=lambda *_: None) as bulk:
        host, port = bulk.address
        hello = msgspec.msgpack.encode(Hello(records.VERSION, identity.public.encode(), host, port))
        async with open_network(
            identity,
            key,
            run=run or swarm.directory.config.run_id,
            hello=hello,
            bootstrap=[swarm.door],
        ) as network:
            yield Hostile(identity, network, bulk)


async def refused(swarm: Swarm, identity: Identity, *, key: ClusterKey | None = None, run: bytes | None = None) -> str:
    """Knock, and return why nobody opens."""
    async with hostile(swarm, identity, key=key, run=run) as stranger:
        while not stranger.network.refusals:  # noqa: ASYNC110  # a mapping tells nobody that it has changed
            await trio.sleep(0.02)
        return next(iter(stranger.network.refusals.values()))


async def test_who_has_another_key_or_run_is_not_let_in(tmp_path: Path) -> None:
    async with raised(tmp_path, 2) as swarm:
        await swarm.start()
        await swarm.peers[0].committed(0)
        assert "cluster key" in await refused(swarm, Identity.generate(), key=ClusterKey.generate())
        assert "run" in await refused(swarm, Identity.generate(), run=secrets.token_bytes(32))
        for peer in swarm.peers:
            await peer.committed(peer.round + 1)
        assert "different cluster keys" in swarm.peers[0].words
        assert "is in run" in swarm.peers[0].words
        await swarm.leave()
        check(swarm)


async def test_garbage_of_a_stranger_with_the_key_changes_nothing(tmp_path: Path) -> None:
    async with raised(tmp_path, 2) as swarm:
        await swarm.start()
        await swarm.peers[1].committed(0)
        async with hostile(swarm, Identity.generate()) as stranger:
            await stranger.meet(2)
            target = swarm.peers[0]
            await stranger.network.send(target.id, secrets.token_bytes(500))
            await target.until_found(refusal_of(stranger, "malformed message"), what="a refusal of garbage")
            await nothing_is_taken(stranger, target)
            await send_noise_to_the_bulk_plane(stranger, target)
            with pytest.raises(Unavailable):
                await oversize(stranger, target)
        for peer in swarm.peers:
            await peer.committed(peer.round + 2)
        assert [event["reason"] for event in target.named("peer.lost")] == [
            f"a frame of {TOO_LONG} bytes was announced; the limits are 1 and {MAX_MESSAGE_BYTES + 1}"
        ]
        await swarm.leave()
        check(swarm)


def refusal_of(stranger: Hostile, words: str) -> Callable[[Record], bool]:
    def fits(event: Record) -> bool:
        return event["event"] == "peer.refused" and stranger.identity.peer_id in str(event) and words in str(event)

    return fits


async def nothing_is_taken(stranger: Hostile, target: Peer) -> None:
    """Push shards and states that nobody asked for."""
    for kind in ("update", "aggregate", "state"):
        for round_ in (target.round, 0, 1 << 40):
            header = Header(kind=kind, round=round_, attempt=0, shard=64)
            with pytest.raises(Unavailable, match="refused"):
                await stranger.bulk.send(target.id, msgspec.msgpack.encode(header), [memoryview(bytes(8 * SIZE + 64))])
    with pytest.raises(Unavailable, match="refused"):
        await stranger.bulk.send(target.id, b"no header", [memoryview(bytes(10))])


async def send_noise_to_the_bulk_plane(stranger: Hostile, target: Peer) -> None:
    """Connect without a handshake and send what is none."""
    known = stranger.bulk._peers[target.id]
    with contextlib.suppress(ConnectionError):
        async with await trio.open_tcp_stream(known.host, known.port) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(secrets.token_bytes(100_000))


async def oversize(stranger: Hostile, target: Peer) -> None:
    """Announce a frame over the limit, and go on until we are thrown out."""
    link = stranger.network._links[target.id]
    await link._stream.send_all(TOO_LONG.to_bytes(4, "little") + bytes(1000))
    await link.finished.wait()
    raise Unavailable("thrown out")


async def test_a_member_that_breaks_its_word_is_left_out(tmp_path: Path) -> None:
    rules = replace(ROUND, grace_min_s=20.0, exchange_timeout_s=2.0)
    async with raised(tmp_path, 4, rules=rules) as swarm:
        *honest, bad = swarm.peers
        identity = Identity.load(bad.home / "identity.key")
        await swarm.start(only=[0, 1, 2])
        async with hostile(swarm, identity) as member:
            await member.meet(3)
            await member.hear(Commit)
            state = beginning(swarm)
            promise = commitment(state, identity)
            for wrong, words in forgeries(promise, identity):
                await member.tell(honest, wrong)
                for peer in honest:
                    await peer.until_found(refusal_of(member, words), what=f"the refusal: {words}")
            await member.tell(honest, promise)
            await member.hear(Append)
            size_bytes = codec_of(swarm.directory.config.round.codec, np.int16).bound_bytes
            async with trio.open_nursery() as nursery:
                for peer in honest:
                    for shard, (start, stop) in enumerate(shards.bounds(SIZE, 4)):
                        header = Header(kind="update", round=0, attempt=0, shard=shard)
                        nursery.start_soon(member.push, peer.id, header, bytes(size_bytes(stop - start)))
                for peer in honest:
                    await peer.until_found(refusal_of(member, "is not what it committed to"), what="a refused shard")
                    voided = await peer.until("round.void", round=0)
                    assert bad.id in voided["without"]
                    nursery.cancel_scope.deadline = trio.current_time() + 1.0
            for peer in honest:
                done = await peer.until("round.committed", round=0)
                assert bad.id not in done["contributors"]
        for peer in honest:
            await peer.until("peer.left", other=bad.id)
            await peer.committed(peer.round + 2)
        await swarm.leave()
        check_honest(swarm, honest)


def check_honest(swarm: Swarm, honest: list[Peer]) -> None:
    swarm.peers = honest
    check(swarm)


def beginning(swarm: Swarm) -> State:
    """Return the state that the run begins with."""
    roots = root_of(initial(SIZE)), root_of(np.zeros(SIZE, np.float32))
    return genesis(swarm.directory.config, len(BLOCKS), *roots)


def commitment(state: State, identity: Identity) -> Commit:
    """Return a commitment to an update of ones, in order."""
    update = np.ones(SIZE, np.int16)
    leaves = tuple(shards.leaf(as_bytes(update[start:stop])) for start, stop in shards.bounds(SIZE, 4))
    trained = Trained(
        round=0,
        steps=2,
        samples=8,
        tokens=80,
        train_loss=1,
        validation_loss=1,
        validation_tokens=1,
        leaves=leaves,
    )
    return rounds.commitment_of(state, identity.peer_id, trained, identity.sign)


def forgeries(promise: Commit, identity: Identity) -> list[tuple[Commit, str]]:
    """Return commitments with one thing wrong, and the word for it."""
    record: Commitment = records.decode_commitment.decode(promise.commitment.record)

    def signed(**changes: object) -> Commit:
        data = records.encode(msgspec.structs.replace(record, **changes))
        return Commit(commitment=Signed(record=data, signature=identity.sign(COMMIT_CONTEXT, data)), leaves=leaves)

    leaves = promise.leaves
    other = Digest(bytes(32))
    return [
        (signed(epoch=7), "its epoch is 7"),
        (signed(run=bytes(32)), "its run is"),
        (signed(base=bytes(32)), "its base vertex is"),
        (signed(samples=1_000_000), "it claims 1000000 samples"),
        (signed(update_root=other), "its shards' hashes do not make up its root"),
        (signed(train_loss=-1), "out of range"),
        (msgspec.structs.replace(promise, leaves=(*leaves[1:], other)), "do not make up its root"),
        (msgspec.structs.replace(promise, leaves=leaves[1:]), "it has 3 shards instead of 4"),
        (
            Commit(
                commitment=Signed(promise.commitment.record, bytes(len(promise.commitment.signature))), leaves=leaves
            ),
            "its signature does not hold",
        ),
    ]


FLOOD = 6000
"""Messages to each honest member."""


async def test_a_member_that_floods_with_forged_votes_is_counted_and_holds_nobody_up(tmp_path: Path) -> None:
    rules = replace(ROUND, grace_min_s=0.5, max_missed=1000)
    async with raised(tmp_path, 4, rules=rules, profile="open") as swarm:
        *honest, bad = swarm.peers
        await swarm.start(only=[0, 1, 2])
        async with hostile(swarm, Identity.load(bad.home / "identity.key")) as member:
            await member.meet(3)
            for peer in honest:
                await peer.committed(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, member)
                for peer in honest:
                    nursery.start_soon(flood, member, peer, honest[0].round)
                for peer in honest:
                    await peer.committed(peer.round + 2)
                    await peer.until_found(refusal_of(member, "16 times"), what="a sixteenth refusal")
                await counted(bad.id, honest)
                nursery.cancel_scope.cancel()
        await swarm.leave()
        check_honest(swarm, honest)


async def listen(member: Hostile) -> None:
    """Take what others say: they part with who never does."""
    async for _ in member.network.events:
        pass


async def flood(member: Hostile, to: Peer, round_: int) -> None:
    """Send votes that nobody signed, for views and heights old, new and yet to come; and some of another run's."""
    for number in range(FLOOD):
        vote = pbft_messages.Commit(
            height=2 * round_ + number % 5,
            view=number % 3,
            member=member.identity.peer_id,
            value=number.to_bytes(32, "big"),
            signature=bytes(SIGNATURE_BYTES),
        )
        await member.network.send(to.id, messages.encode(vote))


async def counted(bad: PeerId, peers: list[Peer]) -> None:
    """Wait until every peer says in its status that it dropped far more than it checked."""
    for peer in peers:
        while True:
            said = status.read(peer.home / status.STATUS_FILE)
            if said and sum(entry.num_refused for entry in said.connected if entry.peer == bad) > FLOOD // 2:
                break
            await trio.sleep(0.1)
