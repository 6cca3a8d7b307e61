"""The cost model: its walk, its closed forms, and both against the textbook."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.codec.chain import codec_of
from barnraise.collective.closed_forms import KINDS, closed_form_s, hierarchical_s
from barnraise.collective.cost import (
    FLOAT32,
    GRAIN_ELEMENTS,
    MAX_CHUNK_BYTES,
    Effort,
    Job,
    Wire,
    chunk_moves,
    coarse_chunk,
    estimate,
)
from barnraise.collective.formulas import cost_of
from barnraise.collective.kinds import FLAT, schedule_of
from barnraise.collective.links import LinkProfile, Links
from barnraise.collective.program import program_of
from barnraise.collective.schedule import Schedule
from barnraise.errors import ConfigError, LocalError

FREE = Effort(chunk_s=0.0, byte_s=0.0, turn_factor=1.0)
INT8 = Wire(name="int8", reduce_bytes=1.004, copy_bytes=1.004, encode_s=0.5e-9, decode_s=0.4e-9, is_lossy=True)
LINE = LinkProfile(latency_s=0.020, bandwidth_bytes_s=12.5e6)

kinds = st.sampled_from(sorted(FLAT))
worlds = st.integers(1, 9)
profiles = st.builds(
    LinkProfile,
    latency_s=st.sampled_from([0.0001, 0.005, 0.05]),
    bandwidth_bytes_s=st.sampled_from([1.25e6, 12.5e6, 125e6, 1.25e9]),
)


def job_of(size: int, wire: Wire = FLOAT32, chunk_elements: int = 65536, effort: Effort | None = None) -> Job:
    return Job(size=size, wire=wire, chunk_elements=chunk_elements, effort=effort or Effort())


@pytest.mark.parametrize("kind", ["shards", "ring", "centralised"])
@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 8, 13, 16])
def test_without_chunks_and_cpu_time_forms_are_the_textbook_s(kind: str, world_size: int) -> None:
    size = 1 << 20
    job = job_of(size, chunk_elements=size, effort=FREE)
    cost = cost_of(kind, world_size)
    textbook_s = cost.num_steps * LINE.latency_s + float(cost.path) * 4 * size / LINE.bandwidth_bytes_s
    assert closed_form_s(kind, world_size, LINE, job) == pytest.approx(textbook_s, rel=0.002)
    walked_s = estimate(schedule_of(kind, world_size), Links.uniform(world_size, LINE), job).makespan_s
    assert walked_s == pytest.approx(textbook_s, rel=0.002)


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
def test_a_butterfly_hides_some_of_its_latencies_behind_its_many_parts(world_size: int) -> None:
    size = 1 << 20
    job = job_of(size, chunk_elements=size, effort=FREE)
    cost = cost_of("butterfly", world_size)
    line_s = float(cost.path) * 4 * size / LINE.bandwidth_bytes_s
    form_s = closed_form_s("butterfly", world_size, LINE, job)
    assert line_s + 2 * LINE.latency_s <= form_s <= (line_s + cost.num_steps * LINE.latency_s) * 1.002


@pytest.mark.parametrize("wire", [FLOAT32, INT8], ids=["fp32", "int8"])
@pytest.mark.parametrize(("latency_ms", "megabits"), [(0.1, 10), (0.1, 1000), (5, 100), (50, 10), (50, 1000)])
@pytest.mark.parametrize("world_size", [2, 4, 8])
@pytest.mark.parametrize("kind", ["shards", "ring", "butterfly", "centralised"])
def test_walk_and_form_agree_on_links_that_are_all_alike(
    kind: str, world_size: int, latency_ms: float, megabits: float, wire: Wire
) -> None:
    profile = LinkProfile(latency_s=latency_ms / 1e3, bandwidth_bytes_s=megabits * 1e6 / 8)
    job = job_of(1 << 19, wire, chunk_elements=1 << 14)  # parts of 32, 16, ... 4 whole chunks
    walked_s = estimate(schedule_of(kind, world_size), Links.uniform(world_size, profile), job, 10**6).makespan_s
    assert closed_form_s(kind, world_size, profile, job) == pytest.approx(walked_s, rel=0.05)


@pytest.mark.parametrize(("kind", "world_size"), [("tree", 4), ("tree", 8), ("tree", 13), ("butterfly", 13)])
@pytest.mark.parametrize("latency_ms", [0.1, 5, 50])
def test_walk_and_form_agree_less_closely_on_trees_and_folded_butterflies(
    kind: str, world_size: int, latency_ms: float
) -> None:
    profile = LinkProfile(latency_s=latency_ms / 1e3, bandwidth_bytes_s=12.5e6)
    job = job_of(1 << 20, chunk_elements=1 << 14)
    walked_s = estimate(schedule_of(kind, world_size), Links.uniform(world_size, profile), job, 10**6).makespan_s
    assert closed_form_s(kind, world_size, profile, job) == pytest.approx(walked_s, rel=0.25)


@pytest.mark.parametrize(("num_groups", "width"), [(2, 4), (4, 4), (3, 2)])
def test_the_form_of_a_hierarchy_is_a_little_too_much(num_groups: int, width: int) -> None:
    inside, across = LinkProfile(latency_s=0.001, bandwidth_bytes_s=125e6), LINE
    groups = [tuple(range(i * width, (i + 1) * width)) for i in range(num_groups)]
    schedule = schedule_of("hierarchical", num_groups * width, groups=groups)
    links = Links.of_regions([width] * num_groups, inside, across)
    job = job_of(1 << 20, chunk_elements=1 << 14)
    walked_s = estimate(schedule, links, job, 10**6).makespan_s
    form_s = hierarchical_s(("shards", width, inside), ("shards", num_groups, across), job)
    assert 0.97 * walked_s <= form_s <= 1.3 * walked_s


@settings(deadline=None, max_examples=25)
@given(kinds, worlds, profiles, st.integers(0, 1 << 17), st.integers(2, 8))
def test_more_takes_longer(kind: str, world_size: int, profile: LinkProfile, size: int, times: int) -> None:
    links, schedule = Links.uniform(world_size, profile), schedule_of(kind, world_size)
    little, much = (estimate(schedule, links, job_of(elements)).makespan_s for elements in (size, size * times))
    assert little <= much * 1.0001


@settings(deadline=None, max_examples=25)
@given(kinds, worlds, profiles, st.integers(0, 1 << 19), st.floats(0, 0.2))
def test_further_takes_longer(kind: str, world_size: int, profile: LinkProfile, size: int, more_s: float) -> None:
    further = LinkProfile(latency_s=profile.latency_s + more_s, bandwidth_bytes_s=profile.bandwidth_bytes_s)
    schedule, job = schedule_of(kind, world_size), job_of(size)
    near_s, far_s = (estimate(schedule, Links.uniform(world_size, each), job).makespan_s for each in (profile, further))
    assert near_s <= far_s * 1.0001
    assert far_s <= near_s + len(schedule.transfers) * 10 * more_s + 1e-9


@given(kinds, worlds, profiles, st.integers(0, 1 << 18))
def test_the_form_grows_with_size_and_latency(kind: str, world_size: int, profile: LinkProfile, size: int) -> None:
    further = LinkProfile(latency_s=2 * profile.latency_s, bandwidth_bytes_s=profile.bandwidth_bytes_s)
    here = closed_form_s(kind, world_size, profile, job_of(size))
    assert here <= closed_form_s(kind, world_size, further, job_of(size)) * 1.0001
    assert here <= closed_form_s(kind, world_size, profile, job_of(size + (1 << 20))) * 1.0001


@settings(deadline=None, max_examples=40)
@given(kinds, st.integers(1, 17), st.integers(0, 5000), st.sampled_from([64, 300, 4096]))
def test_chunks_are_walked_in_every_program_s_order(kind: str, world_size: int, size: int, chunk_elements: int) -> None:
    schedule = schedule_of(kind, world_size)
    bounds = schedule.bounds(size)
    walked: dict[int, list[tuple[int, int, int]]] = {rank: [] for rank in range(world_size)}
    for transfer, index, elements in chunk_moves(schedule, size, chunk_elements):
        start = bounds[transfer.part][0] + index * chunk_elements
        walked[transfer.sender].append((transfer.receiver, start, start + elements))
    for rank in range(world_size):
        sends = program_of(schedule, rank, size, chunk_elements).sends
        assert walked[rank] == [(send.to, send.chunk.start, send.chunk.stop) for send in sends]


def test_a_slow_host_is_felt_by_all() -> None:
    schedule = schedule_of("ring", 4)
    links = Links.uniform(4, LINE)
    slow = links.uplink_bytes_s.copy()
    slow[2] /= 10
    uneven = Links(
        latency_s=links.latency_s,
        bandwidth_bytes_s=links.bandwidth_bytes_s,
        uplink_bytes_s=slow,
        downlink_bytes_s=links.downlink_bytes_s,
        region=links.region,
    )
    job = job_of(1 << 20)
    assert estimate(schedule, uneven, job).makespan_s > 8 * estimate(schedule, links, job).makespan_s


def test_what_goes_to_other_regions_shares_a_line() -> None:
    inside = LinkProfile(latency_s=0.001, bandwidth_bytes_s=125e6)
    job = job_of(1 << 20, effort=FREE)
    links = Links.of_regions([2, 2], inside, LINE)
    shards_s = estimate(schedule_of("shards", 4), links, job).makespan_s
    across_bytes = 2 * 2 * 4 * (1 << 20) / 4  # both halves, to two peers, a quarter of the vector each
    assert shards_s >= across_bytes / LINE.bandwidth_bytes_s


def test_one_rank_takes_no_time_and_nor_does_nothing() -> None:
    assert estimate(schedule_of("ring", 1), Links.uniform(1, LINE), job_of(1000)).makespan_s == 0
    assert estimate(schedule_of("ring", 4), Links.uniform(4, LINE), job_of(0)).makespan_s == 0
    assert all(closed_form_s(kind, 1, LINE, job_of(1000)) == 0 for kind in KINDS)
    assert all(closed_form_s(kind, 4, LINE, job_of(0)) == 0 for kind in KINDS)


def test_a_walk_past_its_budget_goes_in_coarser_chunks() -> None:
    schedule: Schedule = schedule_of("ring", 8)
    job = job_of(8 << 20, chunk_elements=GRAIN_ELEMENTS)
    step = coarse_chunk(schedule, job, 2000)
    assert step % GRAIN_ELEMENTS == 0
    assert len(list(chunk_moves(schedule, job.size, step))) <= 2000
    exact_s = estimate(schedule, Links.uniform(8, LINE), job, 10**6).makespan_s
    assert exact_s <= estimate(schedule, Links.uniform(8, LINE), job, 2000).makespan_s <= 2 * exact_s


def test_there_is_no_form_for_what_has_no_name() -> None:
    with pytest.raises(LocalError, match="shards"):
        closed_form_s("gossip", 4, LINE, job_of(10))


@pytest.mark.parametrize("spec", ["fp32", "bf16", "int8", "int4", "topk:0.016+int2", "int8+zstd:1", "powersgd:4"])
def test_a_codec_s_chunks_fit_a_frame(spec: str) -> None:
    codec = codec_of(spec, "float32")
    wire = Wire.of(codec, 8)
    assert wire.is_lossy == (spec != "fp32")
    for elements in wire.chunk_choices():
        assert elements % GRAIN_ELEMENTS == 0
        assert codec.bound_bytes(elements) <= MAX_CHUNK_BYTES
        assert codec.for_aggregate(8).bound_bytes(elements) <= MAX_CHUNK_BYTES


def test_sparse_sums_grow_with_the_number_of_peers() -> None:
    few, many = (Wire.of(codec_of("topk:0.01", "float32"), peers) for peers in (2, 8))
    assert few.reduce_bytes == many.reduce_bytes < few.copy_bytes < many.copy_bytes
    assert many.is_once


def test_a_chunk_that_holds_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="4096 elements of fp32"):
        FLOAT32.chunk_elements(1024)
