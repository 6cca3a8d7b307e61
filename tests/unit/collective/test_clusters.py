"""Regions found from latencies alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.collective.clusters import clusters
from barnraise.collective.links import LinkProfile, Links


def noisy_regions(sizes: list[int], inside_s: float, across_s: float, seed: int) -> tuple[np.ndarray, list[int]]:
    """Return latencies of regions with noise of a factor of 0.7 .. 1.4, and the region of each rank, shuffled."""
    rng = np.random.default_rng(seed)
    region = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    base = np.where(region[:, None] == region[None, :], inside_s, across_s)
    return base * rng.uniform(0.7, 1.4, base.shape), region.tolist()


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(2, 6), min_size=2, max_size=5),
    inside_s=st.floats(0.0001, 0.004),
    across_s=st.floats(0.040, 0.200),
    seed=st.integers(0, 2**32 - 1),
)
def test_regions_are_found_through_noise(sizes: list[int], inside_s: float, across_s: float, seed: int) -> None:
    latency, region = noisy_regions(sizes, inside_s, across_s, seed)
    found = clusters(latency)
    assert len(found) == len(sizes)
    assert all(len({region[rank] for rank in cluster}) == 1 for cluster in found)
    assert found == tuple(sorted(found))


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 17), latency_s=st.floats(0.00005, 0.3), seed=st.integers(0, 2**32 - 1))
def test_a_flat_graph_is_one_cluster(count: int, latency_s: float, seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(0.8, 1.3, (count, count))
    assert clusters(latency_s * noise) == (tuple(range(count)),)


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 17), seed=st.integers(0, 2**32 - 1), steepness=st.floats(0, 12))
def test_every_rank_is_in_just_one_cluster(count: int, seed: int, steepness: float) -> None:
    latency = 10 ** -np.random.default_rng(seed).uniform(0, steepness, (count, count))
    found = clusters(latency)
    assert sorted(rank for cluster in found for rank in cluster) == list(range(count))
    assert clusters(latency) == found


def test_a_host_alone_is_a_cluster() -> None:
    latency, _ = np.full((4, 4), 0.001), None
    latency[3, :] = latency[:, 3] = 0.100
    assert clusters(latency) == ((0, 1, 2), (3,))


def test_wireless_hosts_are_not_regions() -> None:
    latency = np.full((6, 6), 0.00008)
    latency[4:, :] = latency[:, 4:] = 0.001
    assert clusters(latency) == (tuple(range(6)),)


def test_of_several_levels_the_one_that_takes_longest_counts() -> None:
    rooms = Links.of_regions(
        [2, 2],
        LinkProfile(latency_s=0.0002, bandwidth_bytes_s=1e9),
        LinkProfile(latency_s=0.004, bandwidth_bytes_s=1e9),
    ).latency_s
    latency = np.full((8, 8), 0.080)
    latency[:4, :4] = latency[4:, 4:] = rooms
    assert clusters(latency) == ((0, 1, 2, 3), (4, 5, 6, 7))


def test_the_slower_direction_counts() -> None:
    latency = np.full((4, 4), 0.001)
    latency[:2, 2:] = 0.090
    assert clusters(latency) == ((0, 1), (2, 3))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_hosts_have_no_gap_between_them(count: int) -> None:
    assert len(clusters(np.full((count, count), 0.1))) == (1 if count else 0)
