"""What the planner chooses where, and that it says why."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.codec.chain import codec_of
from barnraise.collective.cost import FLOAT32, Job, Wire, estimate
from barnraise.collective.kinds import FLAT, KINDS, schedule_of
from barnraise.collective.links import LinkProfile, Links
from barnraise.collective.planner import plan, relabelled
from barnraise.collective.schedule import check
from barnraise.errors import ConfigError, LocalError

MEGABYTE = 250_000
"""In elements of float32."""


def line(milliseconds: float, megabits: float) -> LinkProfile:
    return LinkProfile(latency_s=milliseconds / 1e3, bandwidth_bytes_s=megabits * 1e6 / 8)


def wire(spec: str, world_size: int = 8) -> Wire:
    return Wire.of(codec_of(spec, "float32"), world_size)


def with_slow_host(links: Links, rank: int, factor: float) -> Links:
    limits = links.uplink_bytes_s.copy()
    limits[rank] /= factor
    return replace(links, uplink_bytes_s=limits, downlink_bytes_s=limits)


SWITCH = line(0.1, 1000)
HOMES = line(50, 100)
TWO_REGIONS = Links.of_regions([4, 4], line(1, 1000), line(100, 100))


def test_a_tree_for_small_vectors_of_many_hosts() -> None:
    assert plan(Links.uniform(64, SWITCH), 2500, [FLOAT32]).kind == "tree"


@pytest.mark.parametrize(("profile", "size"), [(HOMES, MEGABYTE), (line(0.1, 10_000), MEGABYTE), (SWITCH, 2500)])
def test_shards_or_a_butterfly_for_the_middle(profile: LinkProfile, size: int) -> None:
    assert plan(Links.uniform(8, profile), size, [FLOAT32]).kind in ("shards", "butterfly")


@pytest.mark.parametrize("profile", [SWITCH, HOMES])
def test_a_ring_for_large_vectors_on_flat_links(profile: LinkProfile) -> None:
    assert plan(Links.uniform(8, profile), 100 * MEGABYTE, [FLOAT32]).kind == "ring"


@pytest.mark.parametrize("size", [MEGABYTE, 5 * MEGABYTE, 25 * MEGABYTE, 100 * MEGABYTE])
@pytest.mark.parametrize("regions", [[4, 4], [3, 3, 2], [6, 2]])
def test_a_hierarchy_over_regions_with_little_between_them(regions: list[int], size: int) -> None:
    chosen = plan(Links.of_regions(regions, line(1, 1000), line(100, 100)), size, [FLOAT32])
    assert chosen.kind == "hierarchical"
    assert [len(group) for group in chosen.groups] == regions
    shards_s = plan(
        Links.of_regions(regions, line(1, 1000), line(100, 100)), size, [FLOAT32], kind="shards"
    ).predicted_s
    assert chosen.predicted_s < shards_s


@settings(deadline=None, max_examples=20)
@given(
    world_size=st.integers(1, 20),
    size=st.integers(0, 8 * MEGABYTE),
    profile=st.sampled_from([SWITCH, HOMES, line(10, 1000), line(0.1, 10_000)]),
    spec=st.sampled_from(["fp32", "int8", "topk:0.01"]),
)
def test_on_flat_links_the_choice_is_no_worse_than_any_flat_kind(
    world_size: int, size: int, profile: LinkProfile, spec: str
) -> None:
    links, used = Links.uniform(world_size, profile), wire(spec, world_size)
    chosen = plan(links, size, [used])
    check(chosen.schedule)
    job = Job(size=size, wire=used, chunk_elements=chosen.chunk_elements)
    chosen_s = estimate(chosen.schedule, links, job, 100_000).makespan_s
    for kind in ("shards",) if used.is_once else ("shards", "butterfly"):
        assert chosen_s <= 1.1 * estimate(schedule_of(kind, world_size), links, job, 100_000).makespan_s + 1e-9


@settings(deadline=None, max_examples=12)
@given(
    latencies=st.integers(2, 9).flatmap(
        lambda count: st.lists(st.floats(1e-4, 0.2), min_size=count * count, max_size=count * count)
    ),
    size=st.integers(0, 4 * MEGABYTE),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_links_give_the_same_sound_plan_twice(latencies: list[float], size: int, seed: int) -> None:
    count = round(len(latencies) ** 0.5)
    rng = np.random.default_rng(seed)
    bandwidth = rng.uniform(1e6, 1e9, (count, count))
    links = Links(
        latency_s=np.array(latencies).reshape(count, count),
        bandwidth_bytes_s=bandwidth,
        uplink_bytes_s=bandwidth.max(axis=1),
        downlink_bytes_s=bandwidth.max(axis=0),
        region=rng.integers(0, 3, count),
    )
    first, again = (plan(links, size, [FLOAT32, wire("int8", count)]) for _ in range(2))
    assert first == again
    check(first.schedule)
    assert first.schedule.world_size == count
    assert first.reasons
    assert first.predicted_s >= 0


def test_a_codec_is_chosen_by_what_it_saves() -> None:
    candidates = [wire(spec) for spec in ("fp32", "bf16", "int8")]
    over_homes = plan(Links.uniform(8, HOMES), 25 * MEGABYTE, candidates)
    assert over_homes.codec == "int8"
    assert any("int8 takes" in reason for reason in over_homes.reasons)
    in_a_room = plan(Links.uniform(8, line(0.1, 10_000)), MEGABYTE, candidates)
    assert in_a_room.codec == "fp32"
    assert any("save too little" in reason for reason in in_a_room.reasons)


def test_a_lossy_codec_goes_round_no_ring_unless_asked_for() -> None:
    links = Links.uniform(8, SWITCH)
    free = plan(links, 100 * MEGABYTE, [wire("int8")])
    assert "ring" not in free.schedule.kind
    assert any("no ring" in reason for reason in free.reasons)
    with pytest.raises(ConfigError, match="ring"):
        plan(links, MEGABYTE, [wire("topk:0.01")], kind="ring")


def test_a_sparse_codec_goes_straight_to_the_owners() -> None:
    chosen = plan(TWO_REGIONS, 25 * MEGABYTE, [wire("topk:0.01")])
    assert chosen.kind in ("shards", "centralised")
    assert any("straight to their owner" in reason for reason in chosen.reasons)


def test_a_slow_host_owns_less() -> None:
    links = with_slow_host(Links.uniform(4, HOMES), 2, 4)
    chosen = plan(links, 25 * MEGABYTE, [FLOAT32], kind="shards")
    sizes = [stop - start for start, stop in chosen.schedule.bounds(25 * MEGABYTE)]
    assert sizes[2] < min(sizes[0], sizes[1], sizes[3]) / 2
    assert any("rank 2 owns" in reason for reason in chosen.reasons)
    equal = estimate(schedule_of("shards", 4), links, Job(size=25 * MEGABYTE, wire=FLOAT32, chunk_elements=131072))
    assert chosen.predicted_s < 0.95 * equal.makespan_s


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_user_insists_on_is_planned(kind: str) -> None:
    for links in (Links.uniform(8, SWITCH), TWO_REGIONS, Links.uniform(1, SWITCH), Links.uniform(3, HOMES)):
        chosen = plan(links, MEGABYTE, [FLOAT32], kind=kind)
        check(chosen.schedule)
        assert chosen.kind == kind
        assert chosen.schedule.world_size == links.world_size


def test_every_alternative_is_slower_or_about_the_same() -> None:
    chosen = plan(TWO_REGIONS, 5 * MEGABYTE, [FLOAT32])
    assert len(chosen.alternatives) >= 3
    assert chosen.predicted_s <= min(seconds for _, seconds in chosen.alternatives) / 0.97
    assert [seconds for _, seconds in chosen.alternatives] == sorted(seconds for _, seconds in chosen.alternatives)


def test_reasons_name_the_regions() -> None:
    situation = plan(TWO_REGIONS, MEGABYTE, [FLOAT32]).reasons[0]
    assert situation == "8 hosts in 2 regions (0+1+2+3, 4+5+6+7): 1 ms inside, 100 ms between, 1 Gbit/s"


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(LocalError, match="no codec"):
        plan(TWO_REGIONS, MEGABYTE, [])
    with pytest.raises(ConfigError, match="'star' is unknown"):
        plan(TWO_REGIONS, MEGABYTE, [FLOAT32], kind="star")


@given(kind=st.sampled_from(sorted(FLAT)), order=st.permutations(range(6)))
def test_ranks_may_take_each_other_s_places(kind: str, order: list[int]) -> None:
    schedule = relabelled(schedule_of(kind, 6), order)
    check(schedule)
    assert schedule.owners == tuple(order[owner] for owner in schedule_of(kind, 6).owners)


def test_an_order_names_everybody_once() -> None:
    with pytest.raises(LocalError, match="once"):
        relabelled(schedule_of("ring", 3), [0, 1, 1])


def test_no_single_streams_where_losses_hold_them_back() -> None:
    free = Links.uniform(4, HOMES)
    held = replace(free, is_held_by_loss=True)
    assert plan(free, 25 * MEGABYTE, [FLOAT32]).kind == "ring"
    chosen = plan(held, 25 * MEGABYTE, [FLOAT32])
    assert chosen.kind == "shards"
    assert any("without bbr" in reason for reason in chosen.reasons)
    assert plan(held, 25 * MEGABYTE, [FLOAT32], kind="ring").kind == "ring"
    assert plan(replace(Links.uniform(2, HOMES), is_held_by_loss=True), MEGABYTE, [FLOAT32]).kind in FLAT


def test_measured_shares_of_a_line_do_not_hide_a_slow_host() -> None:
    """Host 0 has a tenth of the others' line; the links were measured while all sent to several."""
    measured = np.array([[0, 10, 4, 3], [3, 0, 100, 40], [8, 33, 0, 95], [10, 90, 35, 0]]) * 125_000.0
    limits = np.array([10, 100, 100, 100]) * 125_000.0
    links = replace(Links.uniform(4, HOMES), bandwidth_bytes_s=measured, uplink_bytes_s=limits, downlink_bytes_s=limits)
    chosen = plan(links, 10 * MEGABYTE, [FLOAT32])
    assert chosen.kind == "shards"
    assert 8.0 < chosen.predicted_s < 10.0  # 10 MB at 10 Mbit/s take 8 s there, and back at the same time


def test_unlike_figures_of_lines_held_by_losses_make_no_unlike_shards() -> None:
    speeds = np.array([71, 99, 105, 83]) * 125_000.0
    links = replace(Links.uniform(4, HOMES), uplink_bytes_s=speeds, downlink_bytes_s=speeds)
    uneven = plan(links, 25 * MEGABYTE, [FLOAT32], kind="shards").schedule.bounds(100)
    even = plan(replace(links, is_held_by_loss=True), 25 * MEGABYTE, [FLOAT32], kind="shards").schedule.bounds(100)
    assert len({stop - start for start, stop in uneven}) > 1
    assert {stop - start for start, stop in even} == {25}
