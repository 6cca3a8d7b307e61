"""SIGSTOP: a peer that is stopped holds its connections open and says nothing; the others do not wait for it for ever."""

import signal
from dataclasses import replace
from pathlib import Path

import trio

from .swarm import ROUND, Peer, Swarm, check, everybody_contributes, raised

STOPPED_S = 10.0


async def test_who_is_stopped_is_left_behind_and_catches_up(tmp_path: Path) -> None:
    rules = replace(ROUND, max_missed=2)
    async with raised(tmp_path, 3, rules=rules, round_s=0.3, peer_timeout_s=3.0) as swarm:
        await swarm.start()
        coordinator, _, junior = swarm.peers
        for peer in swarm.peers:
            await peer.committed(1)
        began = trio.current_time()
        await goes_on_without(swarm, coordinator)
        await trio.sleep_until(began + STOPPED_S)
        await comes_back(swarm, coordinator)
        await goes_on_without(swarm, junior)
        await comes_back(swarm, junior)
        await swarm.leave()
        check(swarm)


async def goes_on_without(swarm: Swarm, stopped: Peer) -> None:
    """Stop a peer, and see the others agree on rounds that it is not in."""
    stopped.strike(signal.SIGSTOP)
    for peer in swarm.peers:
        if peer is not stopped:
            await peer.until_found(
                lambda event: event["event"] == "round.committed" and stopped.id not in event["members"],
                since=len(peer.events),
                what="a round after the members let the stopped one go",
            )


async def comes_back(swarm: Swarm, stopped: Peer) -> None:
    """Let a peer go on, and see everybody in a round again."""
    marks = [len(peer.events) for peer in swarm.peers]
    stopped.strike(signal.SIGCONT)
    for peer, mark in zip(swarm.peers, marks, strict=True):
        await peer.until_found(everybody_contributes(3), since=mark, what="a round with everybody in it")
