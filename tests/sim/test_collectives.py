"""Ranks die, stop and send damage, and the others end with the same exact sums."""

from itertools import product

import pytest

from barnraise.sim.mishaps import Corrupt, Cut, Hang, Kill, KillSpeaker, Late, Stop

from .collective_worlds import (
    SCHEDULES,
    ended_with,
    fail_at_each_step,
    lost_in,
    random_world,
    run_random_world,
    world_of,
)


@pytest.mark.parametrize("world_size", [4, 5, 8])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_rank_that_fails_at_any_step_costs_the_others_nothing_but_time(kind: str, world_size: int) -> None:
    """Each fault before each of a rank's sends and receives; `test_collectives_everywhere` does it to every rank."""
    assert fail_at_each_step(kind, world_size, [world_size // 2]) >= 6


@pytest.mark.parametrize("kind", SCHEDULES)
def test_so_does_the_rank_that_would_lead(kind: str) -> None:
    assert fail_at_each_step(kind, 4, [0]) >= 6


@pytest.mark.parametrize("block", range(4))
def test_whatever_a_seed_brings_nobody_hangs_and_nobody_has_another_result(block: int) -> None:
    for seed in range(50 * block, 50 * block + 50):
        run_random_world(seed)


def test_damage_that_lasts_puts_its_sender_out_and_damage_that_does_not_costs_one_attempt() -> None:
    lasting = world_of("shards", 4, Corrupt(rank=2, sequence=1, step=0))
    assert lost_in(lasting) == {2}
    assert ended_with(lasting, 1) == (0, 1, 3)
    assert all("authenticate" in rank.lost[2] for rank in lasting.survivors)
    once = world_of("shards", 4, Corrupt(rank=2, sequence=1, step=0, is_lasting=False))
    assert ended_with(once, 1) == (0, 1, 2, 3)
    assert [(set(rank.named), set(rank.lost)) for rank in once.survivors] == [({2}, set())] * 4


def test_every_survivor_of_a_kill_goes_on_within_some_latencies() -> None:
    for step in range(14):
        world = world_of("ring", 8, Kill(rank=3, sequence=1, step=step), seed=step)
        assert all(0 < rank.last_loss_at - world.last_kill_at < 0.2 for rank in world.survivors), step


@pytest.mark.parametrize("kind", ["ring", "shards", "tree"])
def test_the_leader_may_die_at_each_of_its_messages(kind: str) -> None:
    """Rank 0 leads the recovery from the death of rank 3, and dies itself after its n-th message."""
    seen = 0
    for nth in range(1, 40):
        world = world_of(kind, 5, Kill(rank=3, sequence=1, step=1), KillSpeaker(rank=0, nth=nth), seed=nth)
        if len(world.struck) == 2:
            assert [rank.index for rank in world.survivors] == [1, 2, 4], nth
            assert ended_with(world, 2) == (1, 2, 4), nth
            assert ended_with(world, 1) in ((1, 2, 4), (0, 1, 2, 4), (0, 1, 2, 3, 4)), nth
            seen += 1
    assert seen >= 12


def test_what_a_dead_leader_told_one_that_died_too_is_what_the_others_decide() -> None:
    """Rank 0 decides that all stay in, tells rank 1, and dies; rank 1 begins, and dies. The others only accepted it."""
    seen = 0
    for step, nth in product(range(1, 4), range(4, 16)):
        damage = Corrupt(rank=1, sequence=1, step=0, is_lasting=False)
        world = world_of("ring", 5, damage, KillSpeaker(rank=0, nth=nth), Kill(rank=1, sequence=1, step=step), seed=nth)
        if len(world.struck) == 3:
            assert ended_with(world, 2) == (2, 3, 4), (step, nth)
            seen += 1
    assert seen >= 20


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_second_rank_may_fail_in_the_redo(kind: str) -> None:
    first = Kill(rank=2, sequence=1, step=0)
    undone = world_of(kind, 5, first)
    seen = 0
    for step in range(undone.ranks[4].num_ops[1]):
        for second in (Kill(rank=4, sequence=1, step=step), Stop(rank=4, sequence=1, step=step)):
            world = world_of(kind, 5, first, second, seed=step)
            if len(world.struck) == 2:  # How far rank 4 came in the first attempt depends on the seed.
                assert [rank.index for rank in world.survivors] == [0, 1, 3]
                assert ended_with(world, 2) == (0, 1, 3)
                seen += 1
    assert seen >= 6


def test_a_late_user_is_waited_for() -> None:
    world = world_of("tree", 4, Late(rank=3, sequence=2, for_s=100.0))
    assert world.now > 100.0
    assert ended_with(world, 2) == (0, 1, 2, 3)
    assert not lost_in(world)


def test_a_late_user_is_waited_for_in_a_redo_too() -> None:
    world = world_of("ring", 4, Late(rank=3, sequence=1, for_s=100.0), Kill(rank=1, sequence=1, step=2))
    assert ended_with(world, 1) == (0, 2, 3)
    assert lost_in(world) == {1}


def test_two_that_cannot_reach_each_other_try_once_more_and_then_the_junior_goes() -> None:
    for_ever = Cut(one=1, other=2, at_s=0.0, for_s=1e6, has_control=False)
    world = world_of("shards", 4, for_ever)
    assert lost_in(world) == {2}
    assert ended_with(world, 1) == (0, 1, 3)
    a_moment = Cut(one=1, other=2, at_s=0.06, for_s=0.01, has_control=False)
    world = world_of("shards", 4, a_moment, num_collectives=3)
    assert ended_with(world, 3) == (0, 1, 2, 3)


def test_a_control_link_that_breaks_for_a_moment_costs_nobody_its_place() -> None:
    for seed in range(10):
        cut = Cut(one=1, other=3, at_s=0.05, for_s=0.3, has_data=False)
        world = world_of("ring", 5, cut, seed=seed)
        assert ended_with(world, 2) == (0, 1, 2, 3, 4)
        assert not lost_in(world)


def test_a_rank_whose_data_threads_hang_is_found_by_who_waits_for_whom() -> None:
    for step in range(4):
        world = world_of("ring", 5, Hang(rank=3, sequence=1, step=step), seed=step)
        assert lost_in(world) == {3}


def test_the_smaller_side_of_a_group_ends_instead_of_going_on() -> None:
    cuts = [Cut(one=one, other=other, at_s=0.01, for_s=1e6) for one in (0, 1) for other in (2, 3, 4)]
    world = world_of("shards", 5, *cuts)
    assert [rank.index for rank in world.survivors] == [2, 3, 4]
    assert all("no decision" in (world.ranks[rank].ended or "") for rank in (0, 1))


def test_of_two_the_junior_ends_when_the_senior_dies() -> None:
    world = world_of("ring", 2, Kill(rank=0, sequence=2, step=1))
    assert not world.survivors
    assert "1 of 2 ranks" in (world.ranks[1].ended or "")
    assert [rank.index for rank in world_of("ring", 2, Kill(rank=1, sequence=2, step=1)).survivors] == [0]


def test_the_same_seed_gives_the_same_world() -> None:
    ends = []
    for seed in (7, 7, 8):
        world = random_world(seed)
        world.run()
        ends.append((world.now, [rank.num_told for rank in world.ranks]))
    assert ends[0] == ends[1] != ends[2]
