"""SIGKILL of peers and trainers: nothing agreed is lost, repeated or different, and whoever starts again comes along."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from .swarm import ROUND, Peer, Swarm, check, everybody_contributes, raised

POINTS = (
    "before.Train",
    "after.Broadcast.Commit",
    "after.PersistBallot",
    "after.Append",
    "after.Transfer",
    "after.Step",
    "Saved",
    "after.Commit",
)
"""In the order of a round. ``Saved`` lies within Commit, between the tensors' files and the log entry."""


@pytest.mark.parametrize("point", POINTS)
async def test_the_coordinator_and_another_die_at_a_point_of_the_round(point: str, tmp_path: Path) -> None:
    async with raised(tmp_path, 3) as swarm:
        coordinator, survivor, other = swarm.peers
        await swarm.start(faults={0: f"kill@{point}:round=2", 2: f"kill@{point}:round=5"})
        await dies_and_starts_again(coordinator)
        await dies_and_starts_again(other)
        for peer in swarm.peers:
            await peer.until_found(everybody_contributes(3, after=7), what="a round with everybody in it again")
        await swarm.leave()
        check(swarm)
        rounds = [event["round"] for event in survivor.named("round.committed")]
        assert rounds == list(range(len(rounds)))


async def test_the_coordinator_dies_with_its_proposal_half_told(tmp_path: Path) -> None:
    async with raised(tmp_path, 3) as swarm:
        await swarm.start(faults={0: "kill@after.Broadcast.Propose:round=1:nth=2"})
        await dies_and_starts_again(swarm.peers[0])
        for peer in swarm.peers:
            await peer.until_found(everybody_contributes(3, after=3), what="a round with everybody in it again")
        await swarm.leave()
        check(swarm)


async def dies_and_starts_again(peer: Peer) -> None:
    assert await peer.end() == -signal.SIGKILL, peer.words
    await peer.start()


async def uninterrupted(path: Path, num_peers: int, last: int) -> list[bytes]:
    """Return the roots of the parameters after each round when nothing happens."""
    async with raised(path, num_peers, rules=replace(PATIENT, rounds=last), round_s=0.01) as swarm:
        await swarm.start()
        for peer in swarm.peers:
            await peer.until("run.finished")
        await swarm.leave()
        return [bytes(theta) for theta in check(swarm)[0].thetas]


PATIENT = replace(ROUND, grace_min_s=30.0, exchange_timeout_s=30.0, agree_timeout_s=30.0)
"""Nobody is left out for being slow, so that every run of the same length goes the same way."""


async def test_a_trainer_killed_in_a_round_does_the_same_work_again(tmp_path: Path) -> None:
    expected = await uninterrupted(tmp_path / "calm", 2, last=4)
    async with raised(tmp_path / "killed", 2, rules=replace(PATIENT, rounds=4), round_s=0.3) as swarm:
        await swarm.start()
        for round_, peer in ((1, swarm.peers[1]), (2, swarm.peers[0])):
            await peer.until("round.progress", round=round_)
            peer.strike_trainer(signal.SIGKILL)
        for peer in swarm.peers:
            restarted = await peer.until("trainer.restarted")
            assert restarted["exit"] == -signal.SIGKILL
            await peer.until("run.finished")
        await swarm.leave()
        assert [bytes(theta) for theta in check(swarm)[1].thetas] == expected


async def test_a_trainer_killed_before_the_first_round_is_replaced(tmp_path: Path) -> None:
    async with raised(tmp_path, 2) as swarm:
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
    expected = await uninterrupted(tmp_path / "calm", 3, last=6)
    async with raised(tmp_path / "killed", 3, rules=replace(PATIENT, rounds=6), round_s=0.3) as swarm:
        await swarm.start()
        await swarm.peers[2].until("round.progress", round=3)
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
        assert all([bytes(theta) for theta in book.thetas] == expected for book in check(swarm))


def kill_all(swarm: Swarm) -> list[int]:
    """Kill every peer; return how many events each had told."""
    marks = [len(peer.events) for peer in swarm.peers]
    for peer in swarm.peers:
        peer.strike(signal.SIGKILL)
    return marks
