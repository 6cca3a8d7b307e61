"""Real programs of all ranks in simulated time: they end, and the cost model foretells when."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.collective.closed_forms import closed_form_s
from barnraise.collective.cost import FLOAT32, Job, Wire, estimate
from barnraise.collective.kinds import FLAT, schedule_of
from barnraise.collective.links import LinkProfile, Links
from barnraise.collective.planner import plan
from barnraise.collective.program import Program
from barnraise.collective.schedule import Schedule
from barnraise.errors import LocalError
from barnraise.sim.links import MAX_TRANSFERS, programs, run_programs, simulate

NEAR = LinkProfile(latency_s=0.001, bandwidth_bytes_s=125e6)
FAR = LinkProfile(latency_s=0.050, bandwidth_bytes_s=12.5e6)
INT8 = Wire(name="int8", reduce_bytes=1.004, copy_bytes=1.004, encode_s=0.5e-9, decode_s=0.4e-9, is_lossy=True)
ROOMS = {
    "flat": Links.uniform(8, FAR),
    "near": Links.uniform(8, NEAR),
    "two regions": Links.of_regions([4, 4], NEAR, FAR),
    "three regions": Links.of_regions([3, 3, 2], NEAR, FAR),
}


def scheduled(kind: str, links: Links) -> Schedule:
    groups = None
    if kind == "hierarchical":
        half = links.world_size // 2
        groups = [range(half), range(half, links.world_size)]
    return schedule_of(kind, links.world_size, groups=groups)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("kind", ["shards", "ring", "butterfly", "centralised", "hierarchical"])
@pytest.mark.parametrize("wire", [FLOAT32, INT8], ids=["fp32", "int8"])
def test_the_estimate_is_what_the_programs_take(room: str, kind: str, wire: Wire) -> None:
    schedule, job = scheduled(kind, ROOMS[room]), Job(size=1 << 20, wire=wire, chunk_elements=1 << 14)
    simulated_s = simulate(schedule, ROOMS[room], job).makespan_s
    tolerance = 0.08 if (kind, room) == ("butterfly", "three regions") else 0.03
    assert estimate(schedule, ROOMS[room], job).makespan_s == pytest.approx(simulated_s, rel=tolerance)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize(("kind", "world_size"), [("tree", 8), ("tree", 5), ("butterfly", 5)])
def test_where_children_meet_on_a_downlink_it_is_nearly_that(room: str, kind: str, world_size: int) -> None:
    links = ROOMS[room].among(range(world_size))
    schedule, job = schedule_of(kind, world_size), Job(size=1 << 20, wire=FLOAT32, chunk_elements=1 << 14)
    simulated_s = simulate(schedule, links, job).makespan_s
    assert estimate(schedule, links, job).makespan_s == pytest.approx(simulated_s, rel=0.2)


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(sorted(FLAT)),
    world_size=st.integers(1, 12),
    size=st.integers(0, 200_000),
    chunk_elements=st.sampled_from([512, 4096, 65536]),
)
def test_every_program_ends(kind: str, world_size: int, size: int, chunk_elements: int) -> None:
    links = Links.uniform(world_size, FAR)
    outcome = simulate(
        schedule_of(kind, world_size), links, Job(size=size, wire=FLOAT32, chunk_elements=chunk_elements)
    )
    assert outcome.makespan_s == max(outcome.finish_s)
    assert all(0 <= idle_s <= outcome.makespan_s for idle_s in outcome.idle_s)


def test_the_same_world_takes_the_same_time_twice() -> None:
    job = Job(size=1 << 18, wire=FLOAT32, chunk_elements=4096)
    schedule = scheduled("hierarchical", ROOMS["three regions"])
    assert simulate(schedule, ROOMS["three regions"], job) == simulate(schedule, ROOMS["three regions"], job)


def test_plans_come_true() -> None:
    for links in ROOMS.values():
        chosen = plan(links, 1 << 20, [FLOAT32])
        job = Job(size=1 << 20, wire=FLOAT32, chunk_elements=chosen.chunk_elements)
        assert simulate(chosen.schedule, links, job).makespan_s == pytest.approx(chosen.predicted_s, rel=0.1)


@pytest.mark.parametrize("kind", ["tree", "centralised"])
def test_a_thousand_ranks(kind: str) -> None:
    links, job = Links.uniform(1024, FAR), Job(size=1 << 16, wire=FLOAT32, chunk_elements=1 << 14)
    outcome = simulate(schedule_of(kind, 1024), links, job)
    assert outcome.makespan_s == pytest.approx(closed_form_s(kind, 1024, FAR, job), rel=0.15)


def test_a_hierarchy_of_hundreds_of_ranks() -> None:
    groups = [range(start, start + 2) for start in range(0, 512, 2)]
    schedule = schedule_of("hierarchical", 512, groups=groups, inner="shards", outer="tree")
    links = Links.of_regions([2] * 256, NEAR, FAR)
    outcome = simulate(schedule, links, Job(size=1 << 14, wire=FLOAT32, chunk_elements=1 << 14))
    assert 16 * FAR.latency_s < outcome.makespan_s < 2 * 16 * FAR.latency_s


def test_ranks_that_wait_for_one_who_does_nothing_are_named() -> None:
    job = Job(size=100, wire=FLOAT32, chunk_elements=10)
    parts = programs(schedule_of("tree", 4), job)
    parts[3] = Program(rank=3, sends=(), receives=(), finished=())
    with pytest.raises(LocalError, match=r"deadlocks: ranks \[0, 1, 2\]"):
        run_programs(parts, Links.uniform(4, NEAR), job)


def test_what_does_not_fit_in_memory_is_refused() -> None:
    schedule = schedule_of("ring", 2)
    huge = replace(schedule, transfers=schedule.transfers * MAX_TRANSFERS)
    with pytest.raises(LocalError, match="closed_forms"):
        simulate(huge, Links.uniform(2, NEAR), Job(size=100, wire=FLOAT32, chunk_elements=10))
