"""The total order keeps the links busy: rounds counted where each rank sends one chunk and receives one at a time."""

import pytest

from barnraise.collective.formulas import cost_of, counted
from barnraise.collective.kinds import schedule_of
from barnraise.collective.program import STEP_LAG
from barnraise.collective.schedule import all_gather, reduce_scatter
from barnraise.collective.tree import broadcast, tree

from .driver import drive_in_step, programs_of

NUM_CHUNKS = 16
"""Chunks of a part."""


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("kind", ["ring", "shards", "butterfly"])
def test_no_rank_idles_while_parts_go_round(kind: str, world_size: int) -> None:
    schedule, cost = schedule_of(kind, world_size), cost_of(kind, world_size)
    chunk_times = cost.path * schedule.num_parts * NUM_CHUNKS
    programs = programs_of(schedule, schedule.num_parts * NUM_CHUNKS, 1)
    for latency in (1, 4):
        rounds = drive_in_step(programs, latency=latency)
        assert rounds <= chunk_times + latency * cost.num_steps
    assert drive_in_step(programs, capacity=2) <= 1.1 * chunk_times + cost.num_steps


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["ring", "shards", "butterfly"])
def test_both_halves_are_as_busy(kind: str, world_size: int) -> None:
    schedule = schedule_of(kind, world_size)
    for half in (reduce_scatter(schedule), all_gather(schedule)):
        rounds = drive_in_step(programs_of(half, world_size * NUM_CHUNKS, 1))
        assert rounds <= (world_size - 1) * NUM_CHUNKS + counted(half).num_steps


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 8, 17])
@pytest.mark.parametrize("num_chunks", [16, 128])
def test_a_tree_is_pipelined(world_size: int, num_chunks: int) -> None:
    """Unpipelined it would take ``path * num_chunks`` rounds."""
    cost = cost_of("tree", world_size)
    programs = programs_of(tree(world_size), num_chunks, 1)
    for latency in (1, 4):
        rounds = drive_in_step(programs, latency=latency)
        assert rounds <= cost.sent * num_chunks + (STEP_LAG + latency) * cost.num_steps


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 8, 17])
@pytest.mark.parametrize("num_chunks", [16, 128])
def test_a_broadcast_takes_little_more_than_the_vectors_own_time(world_size: int, num_chunks: int) -> None:
    num_steps = counted(broadcast(world_size)).num_steps
    for latency in (1, 4):
        rounds = drive_in_step(programs_of(broadcast(world_size), num_chunks, 1), latency=latency)
        assert rounds <= num_chunks + (STEP_LAG + latency) * num_steps


@pytest.mark.parametrize("world_size", [2, 3, 8, 17])
def test_the_root_of_a_centralised_one_sends_while_it_receives(world_size: int) -> None:
    rounds = drive_in_step(programs_of(schedule_of("centralised", world_size), 48, 1))
    assert rounds <= (world_size - 1) * (48 + 2) + 2


@pytest.mark.parametrize("inner", ["ring", "shards", "butterfly"])
@pytest.mark.parametrize("outer", ["ring", "shards", "butterfly"])
def test_a_hierarchy_is_as_busy_as_its_kinds(inner: str, outer: str) -> None:
    groups = ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))
    schedule = schedule_of("hierarchical", 16, groups=groups, inner=inner, outer=outer)
    cost = counted(schedule)
    rounds = drive_in_step(programs_of(schedule, 6 * schedule.num_parts, 1))
    assert rounds <= cost.path * 6 * schedule.num_parts + cost.num_steps


@pytest.mark.parametrize("kind", ["ring", "shards", "butterfly", "tree", "centralised"])
def test_one_chunk_a_link_is_enough(kind: str) -> None:
    schedule = schedule_of(kind, 8)
    programs = programs_of(schedule, 64, 1)
    assert drive_in_step(programs, capacity=1) <= 2 * cost_of(kind, 8).path * 64
