"""Seven peers that agree by PBFT, as strangers do: killed, stopped, parted, robbed of their disks, they never disagree."""

import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from .lan import HERE, THERE, Lan
from .swarm import ROUND, Peer, Swarm, check, everybody_contributes, free_port, raised

NUM_PEERS = 7
NUM_TRAITORS = 2
"""As many as agreement withstands among seven."""
RULES = replace(ROUND, grace_min_s=3.0, exchange_timeout_s=5.0, max_missed=1000)
"""Nobody is let go for missing rounds, but for being gone."""
PHASES = (
    ("before.Broadcast.pbft.PrePrepare", "after.Broadcast.pbft.PrePrepare"),
    ("after.Broadcast.pbft.Prepare", "after.Broadcast.pbft.Commit"),
    ("after.Append", "Saved"),
)
"""Where the primary dies, and then the next one, in the order of an entry."""


@pytest.mark.parametrize("phases", PHASES)
async def test_two_primaries_die_one_after_the_other(phases: tuple[str, str], tmp_path: Path) -> None:
    """Who is gone when a round is agreed is let go, and so the next in seniority leads."""
    async with raised(tmp_path, NUM_PEERS, rules=RULES, round_s=0.2, profile="open") as swarm:
        primaries, others = swarm.peers[:2], swarm.peers[2:]
        await swarm.start(faults={0: f"kill@{phases[0]}:round=1", 1: f"kill@{phases[1]}:round=6"})
        for primary in primaries:
            assert await primary.end() == -signal.SIGKILL, primary.words
            at_death = max(peer.round for peer in swarm.peers)
            for peer in others:
                await peer.committed(at_death + 1)
            await primary.start()
        back = max(peer.round for peer in swarm.peers) + 1
        for peer in swarm.peers:
            await peer.until_found(everybody_contributes(NUM_PEERS, after=back), what="a round with everybody in it")
        await swarm.leave()
        check(swarm)


async def test_a_third_less_one_may_stop(tmp_path: Path) -> None:
    async with raised(tmp_path, NUM_PEERS, rules=RULES, peer_timeout_s=5.0, profile="open") as swarm:
        await swarm.start()
        for peer in swarm.peers:
            await peer.committed(0)
        stopped, others = swarm.peers[:NUM_TRAITORS], swarm.peers[NUM_TRAITORS:]
        for peer in stopped:
            peer.strike(signal.SIGSTOP)
        at_stop = max(peer.round for peer in swarm.peers)
        for peer in others:
            await peer.committed(at_stop + 2)
        marks = [len(peer.events) for peer in swarm.peers]
        for peer in stopped:
            peer.strike(signal.SIGCONT)
        for peer, mark in zip(swarm.peers, marks, strict=True):
            await peer.until_found(everybody_contributes(NUM_PEERS), mark, "a round with everybody in it")
        await swarm.leave()
        check(swarm)


async def test_neither_side_of_a_split_goes_on_and_both_do_when_it_heals(lan: Lan, tmp_path: Path) -> None:
    """Three on one machine, four on the other: five are needed."""
    async with raised(tmp_path, NUM_PEERS, rules=RULES, peer_timeout_s=4.0, profile="open") as swarm:
        await start_on_both(swarm, lan)
        for peer in swarm.peers:
            await peer.until_found(everybody_contributes(NUM_PEERS), what="a round with everybody in it")
        lan.part()
        for peer in swarm.peers:
            await peer.until_found(
                lambda event: event["event"] == "peer.waiting" and "of 7 members" in event["reason"],
                what="saying that too few are there",
            )
        behind = [peer.round for peer in swarm.peers]
        assert max(behind) - min(behind) <= 1
        await trio.sleep(5.0)
        assert [peer.round for peer in swarm.peers] == behind, "somebody went on without a quorum"
        marks = [len(peer.events) for peer in swarm.peers]
        lan.heal()
        for peer, mark in zip(swarm.peers, marks, strict=True):
            await peer.until_found(everybody_contributes(NUM_PEERS), mark, "a round with everybody in it")
        await swarm.leave()
        check(swarm)


async def start_on_both(swarm: Swarm, lan: Lan) -> None:
    """Start three peers here and four there; they meet at the first one's door."""
    door = f"/ip4/{HERE[0]}/tcp/{free_port()}"
    swarm.door = f"{door}/p2p/{swarm.peers[0].id}"
    for peer in swarm.peers:
        machine = 0 if peer.index < 3 else 1
        host = (HERE, THERE)[machine][0]
        await peer.start(
            prefix=lan.enter[machine],
            listen=door if peer.index == 0 else f"/ip4/{host}/tcp/0",
            bulk_listen=f"{host}:0",
        )


async def test_who_lost_its_disk_comes_back(tmp_path: Path) -> None:
    async with raised(tmp_path, NUM_PEERS, rules=RULES, profile="open") as swarm:
        await swarm.start()
        victim = swarm.peers[2]
        await victim.committed(1)
        victim.kill_group()
        await victim.end()
        wipe(victim)
        since = len(victim.events)
        await victim.start()
        await victim.until_found(everybody_contributes(NUM_PEERS), since, "a round with everybody in it")
        await swarm.leave()
        check(swarm)


def wipe(peer: Peer) -> None:
    """Take all that a peer had on disk but its keys."""
    for left in (*peer.home.glob("log.sqlite*"), peer.home / "blobs", peer.home / "trainer"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


async def test_a_power_cut_takes_all_at_once(tmp_path: Path) -> None:
    async with raised(tmp_path, NUM_PEERS, rules=RULES, round_s=0.5, profile="open") as swarm:
        await swarm.start()
        for peer in swarm.peers:
            await peer.committed(1)
        marks = [len(peer.events) for peer in swarm.peers]
        for peer in swarm.peers:
            peer.strike(signal.SIGKILL)
        for peer in swarm.peers:
            assert await peer.end() == -signal.SIGKILL
        behind = max(peer.round for peer in swarm.peers)
        await swarm.start()
        for peer, mark in zip(swarm.peers, marks, strict=True):
            done = await peer.until_found(everybody_contributes(NUM_PEERS), mark, "a round with everybody in it")
            assert done["round"] >= behind, "an agreed round was done again"
        await swarm.leave()
        check(swarm)


async def test_three_strangers_wait_for_a_fourth(tmp_path: Path) -> None:
    async with raised(tmp_path, 3, rules=RULES, profile="open") as swarm:
        await swarm.start()
        for peer in swarm.peers:
            waiting = await peer.until("peer.waiting")
            assert waiting["reason"] == "an open run trains from 4 members on, and there are 3"
        newcomer = swarm.visitor()
        await newcomer.start()
        for peer in swarm.peers:
            first = await peer.until("round.committed")
            assert len(first["contributors"]) == 4, "all who are there from the beginning count from the beginning"
        await swarm.leave()
        check(swarm)
