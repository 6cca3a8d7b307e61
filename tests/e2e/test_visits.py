"""Peers that are no founders come and go while the run goes on: they learn it from its peers and leave without a trace."""

import itertools
import math
import shutil
from pathlib import Path
from statistics import fmean, stdev

import pytest
import trio

from barnraise.config import RoundConfig

from .swarm import Peer, Swarm, check, everybody_contributes, raised

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

NUM_FOUNDERS = 3
NUM_VISITS = 10
AT_ONCE = 3
RULES = RoundConfig(rounds=10_000, steps=2, grace_min_s=5.0, exchange_timeout_s=5.0)


async def visit(swarm: Swarm, host: Peer, places: trio.CapacityLimiter) -> None:
    """Let somebody come, count, and leave, once there is a place: starting a process takes longer than a round."""
    async with places:
        await stay_a_while(swarm, host)


async def stay_a_while(swarm: Swarm, host: Peer) -> None:
    visitor = swarm.visitor()
    await visitor.start()
    counted = await visitor.until_found(
        lambda event: event["event"] == "round.committed" and visitor.id in event["contributors"],
        what="a round it is in",
    )
    entered = await host.until_found(
        lambda event: event["event"] == "round.committed" and visitor.id in event["members"], what="its coming"
    )
    assert visitor.id not in entered["contributors"]
    assert counted["round"] == entered["round"] + 2, "the round after it came has no place for it yet"
    since = len(host.events)
    await visitor.wish("leave")
    assert await visitor.end() == 0
    assert visitor.named("run.left")
    await host.until_found(
        lambda event: event["event"] == "round.committed" and visitor.id not in event["members"], since, "its leaving"
    )


async def test_ten_come_and_go_in_a_row(tmp_path: Path) -> None:
    async with raised(tmp_path, NUM_FOUNDERS, rules=RULES, round_s=0.5) as swarm:
        await swarm.start()
        host = swarm.peers[1]
        await host.committed(3)
        async with trio.open_nursery() as nursery:
            places = trio.CapacityLimiter(AT_ONCE)
            for _ in range(NUM_VISITS):
                nursery.start_soon(visit, swarm, host, places)
        await host.committed(host.round + 3)
        await swarm.leave()
        check(swarm)
    assert len({event["pid"] for event in host.named("peer.started")}) == 1, "a founder was started again"
    assert not any(peer.named("trainer.restarted") for peer in swarm.peers[:NUM_FOUNDERS])
    losses = {event["round"]: event["train_loss"] for event in host.named("round.committed")}
    check_no_spike([losses[number] for number in sorted(losses)])


def check_no_spike(losses: list[float]) -> None:
    """Check that no round's loss lies further above the trend of the five before than three standard deviations."""
    logs = [math.log(loss) for loss in losses]
    steps = [after - before for before, after in itertools.pairwise(logs)]
    spread = max(stdev(steps), 0.01)
    for at in range(5, len(logs)):
        assert logs[at] < fmean(logs[at - 5 : at]) + 3 * spread, (
            f"the loss leaps at round {at}: {losses[at - 5 : at + 1]}"
        )


async def test_a_member_that_lost_its_disk_is_taken_back(tmp_path: Path) -> None:
    async with raised(tmp_path, NUM_FOUNDERS, rules=RULES) as swarm:
        await swarm.start()
        victim = swarm.peers[2]
        await victim.committed(2)
        victim.kill_group()
        await victim.end()
        for left in (*victim.home.glob("log.sqlite*"), victim.home / "blobs", victim.home / "trainer"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        since = len(victim.events)
        await victim.start()
        await victim.until_found(everybody_contributes(NUM_FOUNDERS), since, "a round with everybody in it")
        await swarm.leave()
        check(swarm)


async def test_one_founder_waits_for_as_many_as_the_run_asks_for(tmp_path: Path) -> None:
    rules = RoundConfig(rounds=10_000, steps=2, min_peers=3, grace_min_s=5.0)
    async with raised(tmp_path, 1, rules=rules) as swarm:
        await swarm.start()
        founder = swarm.peers[0]
        waiting = await founder.until("peer.waiting")
        assert waiting["reason"] == "1 of at least 3 members are here"
        for visitor in (swarm.visitor(), swarm.visitor()):
            await visitor.start()
        first = await founder.until("round.committed")
        assert len(first["contributors"]) == 3, "all who are there from the beginning count from the beginning"
        await swarm.peers[2].wish("leave")
        assert await swarm.peers[2].end() == 0
        await founder.until_found(
            lambda event: event["event"] == "peer.waiting" and event["reason"].startswith("2 of at least 3"),
            what="waiting again",
        )
        newcomer = swarm.visitor()
        await newcomer.start()
        await newcomer.until_found(everybody_contributes(3), what="a round with three in it")
        await swarm.leave()
        check(swarm)
