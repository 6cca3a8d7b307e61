"""What a compression level comes to over given links: a codec by the slowest one that no route avoids, and why."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.codec.level import LEVELS, SPECS
from barnraise.collective.compression import allowed, bottleneck_bytes_s
from barnraise.collective.kinds import KINDS
from barnraise.collective.links import LinkProfile, Links
from barnraise.errors import ConfigError

FLOATS = SPECS["float32"]


def line(megabits: float) -> LinkProfile:
    return LinkProfile(latency_s=0.01, bandwidth_bytes_s=megabits * 125_000)


def with_slow_host(links: Links, rank: int, factor: float) -> Links:
    limits = links.uplink_bytes_s.copy()
    limits[rank] /= factor
    return replace(links, uplink_bytes_s=limits, downlink_bytes_s=limits)


def with_pair(links: Links, one: int, other: int, megabits: float) -> Links:
    bandwidth = links.bandwidth_bytes_s.copy()
    bandwidth[one, other] = bandwidth[other, one] = megabits * 125_000
    return replace(links, bandwidth_bytes_s=bandwidth)


def test_a_slow_host_is_the_bottleneck_and_so_is_what_joins_two_regions() -> None:
    flat = Links.uniform(4, line(100))
    assert bottleneck_bytes_s(flat) == 12.5e6
    assert bottleneck_bytes_s(with_slow_host(flat, 1, 10)) == 1.25e6
    assert bottleneck_bytes_s(Links.of_regions([2, 3], line(1000), line(20))) == 2.5e6


def test_a_slow_pair_that_a_route_avoids_is_none_and_one_direction_is_as_bad_as_two() -> None:
    flat = Links.uniform(3, line(100))
    around = with_pair(flat, 0, 1, 1)
    assert bottleneck_bytes_s(around) == 12.5e6
    assert bottleneck_bytes_s(with_pair(around, 0, 2, 1)) == 125_000
    one_way = flat.bandwidth_bytes_s.copy()
    one_way[0, 1:] = 125_000
    assert bottleneck_bytes_s(replace(flat, bandwidth_bytes_s=one_way)) == 125_000


@given(st.lists(st.integers(1, 50), min_size=10, max_size=10))
def test_the_bottleneck_is_the_best_that_joins_all(speeds: list[int]) -> None:
    """It is the greatest speed at which the pairs that reach it still join all hosts."""
    links = Links.uniform(5, line(1000))
    for (one, other), speed in zip(itertools.combinations(range(5), 2), speeds, strict=True):
        links = with_pair(links, one, other, speed)

    def joins(bandwidth: float) -> bool:
        near = (links.bandwidth_bytes_s >= bandwidth) | np.eye(5, dtype=bool)
        return bool((np.linalg.matrix_power(near.astype(int), 5) > 0).all())

    best = max(speed * 125_000 for speed in speeds if joins(speed * 125_000))
    assert bottleneck_bytes_s(links) == best


@pytest.mark.parametrize("level", range(1, LEVELS + 1))
def test_without_links_a_level_is_its_own_codec(level: int) -> None:
    found = allowed(level, 4, None)
    assert found.codecs == (FLOATS[level - 1],)
    assert found.reasons == (f"level {level} is {FLOATS[level - 1]} as long as the links are not known",)


@pytest.mark.parametrize(("megabits", "level"), [(5, 5), (40, 4), (100, 3), (400, 3), (2_000, 2)])
def test_the_slowest_link_shifts_the_level_and_plain_numbers_stay_a_candidate(megabits: float, level: int) -> None:
    found = allowed(3, 4, Links.uniform(4, line(megabits)))
    assert found.codecs == ("fp32", FLOATS[level - 1])
    shift = "" if level == 3 else f", so level 3 counts as {level}"
    said = (
        f"the slowest link that no route avoids has {megabits:,} Mbit/s as far as is known{shift}: {FLOATS[level - 1]}"
    )
    assert found.reasons == (said,)


def test_a_level_of_which_nothing_is_left_is_plain_numbers_alone() -> None:
    assert allowed(3, 4, Links.uniform(4, line(20_000))).codecs == ("fp32",)
    assert allowed(1, 4, None).codecs == ("fp32",)


def test_of_one_member_nothing_is_encoded() -> None:
    assert allowed(9, 1, Links.uniform(1, line(1))).codecs == ("fp32",)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", range(1, LEVELS + 1))
def test_a_schedule_that_the_user_insists_on_gets_what_it_bears(kind: str, level: int) -> None:
    found = allowed(level, 4, None, kind)
    most = {"ring": 1, "shards": 9, "centralised": 9}.get(kind, 4)
    assert found.codecs[-1] == FLOATS[min(level, most) - 1]
    assert (len(found.reasons) == 2) == (level > most)
    if level > most:
        assert found.reasons[1] == (
            f"{kind} encodes sums again at each hop and does not bear {FLOATS[level - 1]}: {FLOATS[most - 1]}"
        )


@pytest.mark.parametrize("level", [0, 10, -1])
def test_what_is_no_level_is_refused(level: int) -> None:
    with pytest.raises(ConfigError, match=r"outside 1 \.\. 9"):
        allowed(level, 4, None)
    with pytest.raises(ConfigError, match=r"outside 1 \.\. 9"):
        allowed(level, 1, None)
