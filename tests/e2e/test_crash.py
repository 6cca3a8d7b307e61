"""SIGKILL of peers and trainers: nothing agreed is lost, repeated or different, and whoever starts again comes along."""

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from barnraise.codec.chain import codec_of
from barnraise.ids import Digest
from barnraise.swarm.workspace import Part, Workspace

from .swarm import ROUND, SIZE, Peer, Swarm, check, everybody_contributes, raised
from .tiny_trainer import initial, update_of

POINTS = (
    "before.Train",
    "after.Broadcast.Commit",
    "after.PersistBallot",
    "after.Append",
    "after.Transfer",
    "after.Step",
    "Saved",
)
"""In the order of a round. ``Saved`` lies within Commit, between the tensors' files and the log entry; Train is the
first effect after Commit."""


@pytest.mark.parametrize("point", POINTS)
async def test_the_coordinator_and_another_die_at_a_point_of_the_round(point: str, tmp_path: Path) -> None:
    async with raised(tmp_path, 3, round_s=0.4) as swarm:
        coordinator, survivor, other = swarm.peers
        await swarm.start(faults={0: f"kill@{point}:round=2", 2: f"kill@{point}:round=5"})
        await dies_and_starts_again(coordinator)
        await dies_and_starts_again(other)
        for peer in swarm.peers:
            await peer.until_found(everybody_contributes(3, after=7), what="a round with everybody in it again")
        await swarm.leave()
        check(swarm)
        check_unbroken(survivor)


def check_unbroken(survivor: Peer) -> None:
    """Check that it saw the rounds one after the other, but for those that it says it fetched.

    A coordinator that dies right after a round was agreed may take to the grave the shard that it owed the survivor,
    who then has the round from the other.
    """
    following, fetches = 0, False
    for event in survivor.events:
        if event["event"] == "peer.catching_up":
            fetches = True
        elif event["event"] == "round.committed":
            assert event["round"] == following or (fetches and event["round"] > following)
            following, fetches = event["round"] + 1, False


async def test_the_coordinator_dies_with_its_proposal_half_told(tmp_path: Path) -> None:
    async with raised(tmp_path, 3, round_s=0.4) as swarm:
        await swarm.start(faults={0: "kill@after.Broadcast.raft.Append:round=1:nth=2"})
        await dies_and_starts_again(swarm.peers[0])
        for peer in swarm.peers:
            await peer.until_found(everybody_contributes(3, after=3), what="a round with everybody in it again")
        await swarm.leave()
        check(swarm)


async def dies_and_starts_again(peer: Peer) -> None:
    assert await peer.end() == -signal.SIGKILL, peer.words
    await peer.start()


def uninterrupted(swarm: Swarm) -> tuple[Digest, ...]:
    """Return the roots of the parameters after each round when nothing happens, computed here and now."""
    config, peers = swarm.directory.config, swarm.directory.peers
    zeros, blocks = np.zeros(SIZE, np.float32), ((0, SIZE // 2), (SIZE // 2, SIZE))
    codec = codec_of(config.round.codec, np.int16)
    spaces = {peer: Workspace(blocks, initial(SIZE), zeros, zeros, codec=codec) for peer in peers}
    memories = dict.fromkeys(peers, zeros)
    exponents = (config.round.grid_exponent,) * len(blocks)
    count = config.round.steps * config.inner.batch_size
    ours = spaces[peers[0]]
    roots: list[Digest] = []
    for round_ in range(config.round.rounds):
        parts = [Part(round_, shard, len(peers)) for shard in range(len(peers))]
        for place, peer in enumerate(peers, start=round_ * len(peers)):
            samples = iter(range(place * count, (place + 1) * count))
            update, memories[peer] = update_of(spaces[peer].theta, memories[peer], samples)
            spaces[peer].encode(update, exponents, round_, len(peers))
            for part in parts:
                ours.keep_update(peer, part, np.array(spaces[peer].outgoing(part)))
        for part in parts:
            ours.aggregate(part, 0, [(peer, count) for peer in peers], peers[0])
        made = ours.step(0, exponents, config, round_, len(peers))
        exponents = made.exponents
        roots.append(made.theta)
        theta, momentum = ours.pending()
        for space in spaces.values():
            space.replace(theta, momentum, space.residual_behind(contributed=True))
    return tuple(roots)


PATIENT = replace(ROUND, rounds=4, grace_min_s=30.0, exchange_timeout_s=30.0)
"""Nobody is left out for being slow, so that every run goes the same way."""


async def test_a_trainer_killed_in_a_round_does_the_same_work_again(tmp_path: Path) -> None:
    async with raised(tmp_path, 2, rules=PATIENT, round_s=0.3) as swarm:
        await swarm.start()
        for round_, peer in ((1, swarm.peers[1]), (2, swarm.peers[0])):
            await peer.until("round.progress", round=round_)
            peer.strike_trainer(signal.SIGKILL)
        for peer in swarm.peers:
            restarted = await peer.until("trainer.restarted")
            assert restarted["exit"] == -signal.SIGKILL
            await peer.until("run.finished")
        await swarm.leave()
        assert [book.thetas for book in check(swarm)] == [uninterrupted(swarm)] * 2


async def test_a_trainer_killed_before_the_first_round_is_replaced(tmp_path: Path) -> None:
    async with raised(tmp_path, 2, round_s=0.4) as swarm:
        await swarm.start(only=[0])
        first = swarm.peers[0]
        await first.until("trainer.started")
        first.strike_trainer(signal.SIGKILL)
        await first.until("trainer.restarted")
        await swarm.peers[1].start()
        for peer in swarm.peers:
            await peer.committed(1)
        await swarm.leave()
        check(swarm)


async def test_all_are_killed_at_once_and_go_on_from_the_last_agreed_round(tmp_path: Path) -> None:
    async with raised(tmp_path, 3, rules=PATIENT, round_s=1.0) as swarm:
        await swarm.start()
        for peer in swarm.peers:
            await peer.until("round.progress", round=2)
        marks = kill_all(swarm)
        for peer in swarm.peers:
            assert await peer.end() == -signal.SIGKILL
        behind = [peer.round for peer in swarm.peers]
        await swarm.start()
        for peer, mark, round_ in zip(swarm.peers, marks, behind, strict=True):
            resumed = await peer.until("round.planned", since=mark)
            assert resumed["round"] >= round_
            await peer.until("run.finished")
        await swarm.leave()
        assert [book.thetas for book in check(swarm)] == [uninterrupted(swarm)] * 3


def kill_all(swarm: Swarm) -> list[int]:
    """Kill every peer; return how many events each had told."""
    marks = [len(peer.events) for peer in swarm.peers]
    for peer in swarm.peers:
        peer.strike(signal.SIGKILL)
    return marks
