"""The link graph: what heartbeats and transfers teach it, what it makes up, and rows told by strangers."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from barnraise.collective import links
from barnraise.collective.links import LinkGraph, LinkProfile, Links, Row, deadline_s, decode_row, encode_row
from barnraise.errors import LocalError, PeerError
from barnraise.ids import PeerId

A, B, C, D = (PeerId(name) for name in "abcd")
MEMBERS = (A, B, C, D)
MEGABYTE = 1_000_000


def test_the_first_heartbeat_counts_whole_and_later_ones_a_fifth() -> None:
    graph = LinkGraph()
    graph.note_heartbeat(A, B, 0.100)
    assert graph.profile(A, B).latency_s == pytest.approx(0.050)
    graph.note_heartbeat(A, B, 0.200)
    assert graph.profile(A, B).latency_s == pytest.approx(0.050 + 0.2 * 0.050)
    assert graph.profile(A, B).jitter_s == pytest.approx(0.2 * 0.050)


def test_latency_is_taken_out_of_a_transfer() -> None:
    graph = LinkGraph()
    graph.note_heartbeat(A, B, 0.100)
    graph.note_transfer(A, B, 10 * MEGABYTE, 1.050, num_latencies=1)
    assert graph.profile(A, B).bandwidth_bytes_s == pytest.approx(10e6)
    graph.note_transfer(A, B, 10 * MEGABYTE, 0.5 + 2 * 0.050, num_latencies=2)
    assert graph.profile(A, B).bandwidth_bytes_s == pytest.approx(10e6 + 0.2 * 10e6)


def test_a_small_transfer_says_nothing() -> None:
    graph = LinkGraph()
    graph.note_transfer(A, B, links.MIN_TRANSFER_BYTES - 1, 1e-6)
    assert graph.profile(A, B).bandwidth_bytes_s == links.DEFAULT_BANDWIDTH_BYTES_S


def test_a_transfer_that_is_mostly_latency_only_raises() -> None:
    graph = LinkGraph()
    graph.note_heartbeat(A, B, 0.200)
    graph.note_transfer(A, B, MEGABYTE, 0.110, num_latencies=1)
    at_least = MEGABYTE / 0.110
    assert graph.profile(A, B).bandwidth_bytes_s == pytest.approx(at_least)
    graph.note_transfer(A, B, MEGABYTE, 0.150, num_latencies=1)
    assert graph.profile(A, B).bandwidth_bytes_s == pytest.approx(at_least)


def test_unknown_directions_are_filled_in_from_the_other_one_then_the_median_then_the_default() -> None:
    graph = LinkGraph()
    untold = graph.between(MEMBERS)
    assert untold.profile(0, 1) == LinkProfile(
        latency_s=links.DEFAULT_LATENCY_S, bandwidth_bytes_s=links.DEFAULT_BANDWIDTH_BYTES_S
    )
    graph.note_heartbeat(A, B, 0.010)
    graph.note_heartbeat(A, C, 0.060)
    graph.note_transfer(A, B, MEGABYTE, 1.0)
    known = graph.between(MEMBERS)
    assert known.latency_s[1, 0] == pytest.approx(0.005)
    assert known.latency_s[2, 3] == pytest.approx((0.005 + 0.030) / 2)
    assert known.bandwidth_bytes_s[3, 2] == pytest.approx(1e6)


def test_a_host_sends_as_much_as_its_fastest_link_or_all_of_them_together() -> None:
    graph = LinkGraph()
    for receiver in (B, C, D):
        graph.note_transfer(A, receiver, MEGABYTE, 0.5)
    assert graph.between(MEMBERS).uplink_bytes_s[0] == pytest.approx(2e6)
    graph.note_sent(A, {B: MEGABYTE, C: MEGABYTE, D: MEGABYTE}, 1.0)
    assert graph.between(MEMBERS).uplink_bytes_s[0] == pytest.approx(3e6)
    assert graph.between(MEMBERS).bandwidth_bytes_s[0, 1] == pytest.approx(2e6)


def test_the_limit_of_a_host_that_moved_to_a_slower_line_is_forgotten() -> None:
    graph = LinkGraph()
    graph.note_received(A, {B: MEGABYTE, C: MEGABYTE}, 0.001)
    for _ in range(links.KEPT_TOTALS):
        graph.note_received(A, {B: MEGABYTE, C: MEGABYTE}, 1.0)
    assert graph.row(A, MEMBERS).downlink_kb_s == 2000


def test_a_peer_that_left_is_forgotten() -> None:
    graph = LinkGraph()
    graph.note_heartbeat(A, B, 0.010)
    graph.note_heartbeat(C, D, 0.030)
    graph.note_sent(B, {C: MEGABYTE}, 1.0)
    graph.forget(B)
    assert graph.row(A, MEMBERS).latencies_us == (0, 0, 0, 0)
    assert graph.row(B, MEMBERS).uplink_kb_s == 0
    assert graph.row(C, MEMBERS).latencies_us == (0, 0, 0, 15_000)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_times_that_no_clock_shows_are_misuse(value: float) -> None:
    graph = LinkGraph()
    with pytest.raises(LocalError):
        graph.note_heartbeat(A, B, value)
    with pytest.raises(LocalError):
        graph.note_transfer(A, B, MEGABYTE, value)
    with pytest.raises(LocalError):
        graph.note_sent(A, {B: MEGABYTE}, value)


def test_nobody_has_a_link_to_itself() -> None:
    with pytest.raises(LocalError, match="itself"):
        LinkGraph().note_heartbeat(A, A, 0.1)


def test_rows_give_all_members_the_same_links() -> None:
    mine = {peer: LinkGraph() for peer in MEMBERS}
    for number, (peer, graph) in enumerate(mine.items()):
        for other in MEMBERS:
            if other != peer:
                graph.note_heartbeat(peer, other, 0.001 * (1 + number))
                graph.note_transfer(peer, other, MEGABYTE, 0.1 * (1 + number))
    rows = {peer: decode_row(peer, encode_row(graph.row(peer, MEMBERS)), 4) for peer, graph in mine.items()}
    told = LinkGraph.of_rows(MEMBERS, rows).between(MEMBERS)
    again = LinkGraph.of_rows(MEMBERS, dict(reversed(rows.items()))).between(MEMBERS)
    np.testing.assert_array_equal(told.latency_s, again.latency_s)
    np.testing.assert_array_equal(told.bandwidth_bytes_s, again.bandwidth_bytes_s)
    for number, (peer, graph) in enumerate(mine.items()):
        for other in set(range(4)) - {number}:
            own = graph.profile(peer, MEMBERS[other])
            assert told.latency_s[number, other] == pytest.approx(own.latency_s, abs=1e-6)
            assert told.bandwidth_bytes_s[number, other] == pytest.approx(own.bandwidth_bytes_s, rel=1e-3)


def test_a_member_that_tells_nothing_is_filled_in() -> None:
    graph = LinkGraph()
    graph.note_heartbeat(A, B, 0.010)
    told = LinkGraph.of_rows(MEMBERS, {A: graph.row(A, MEMBERS)}).between(MEMBERS)
    assert told.latency_s[1, 0] == pytest.approx(0.005)


MALFORMED = [
    b"",
    b"\xc1",
    msgspec.msgpack.encode([0, 0, [1] * 4]),
    msgspec.msgpack.encode([0, 0, [1] * 4, [1] * 4, 0]),
    msgspec.msgpack.encode([0, 0, [1] * 3, [1] * 4]),
    msgspec.msgpack.encode([0, 0, [1] * 5, [1] * 5]),
    msgspec.msgpack.encode([-1, 0, [1] * 4, [1] * 4]),
    msgspec.msgpack.encode([0, 0, [links.MAX_LATENCY_US + 1] * 4, [1] * 4]),
    msgspec.msgpack.encode([0, 0, [1] * 4, [links.MAX_BANDWIDTH_KB_S + 1] * 4]),
    msgspec.msgpack.encode([0, 0, [1.5] * 4, [1] * 4]),
    bytes(links.MAX_ROW_BYTES + 1),
]


@pytest.mark.parametrize("data", MALFORMED)
def test_a_malformed_row_is_the_sender_s_fault(data: bytes) -> None:
    with pytest.raises(PeerError, match="link profile") as caught:
        decode_row(B, data, 4)
    assert caught.value.peer == B


@given(data=st.binary(max_size=64))
def test_any_bytes_are_a_row_or_refused(data: bytes) -> None:
    try:
        row = decode_row(B, data, 2)
    except PeerError:
        return
    assert decode_row(B, encode_row(row), 2) == row


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.builds(
            Row,
            uplink_kb_s=st.integers(0, links.MAX_BANDWIDTH_KB_S),
            downlink_kb_s=st.integers(0, links.MAX_BANDWIDTH_KB_S),
            latencies_us=st.tuples(*[st.integers(0, links.MAX_LATENCY_US)] * 4),
            bandwidths_kb_s=st.tuples(*[st.integers(0, links.MAX_BANDWIDTH_KB_S)] * 4),
        ),
        min_size=4,
        max_size=4,
    )
)
def test_whatever_the_rows_say_the_links_are_finite_and_positive(rows: list[Row]) -> None:
    told = LinkGraph.of_rows(MEMBERS, dict(zip(MEMBERS, rows, strict=True))).between(MEMBERS)
    for figures in (told.latency_s, told.bandwidth_bytes_s, told.uplink_bytes_s, told.downlink_bytes_s):
        assert np.isfinite(figures).all()
        assert (figures > 0).all()


def test_the_largest_row_fits() -> None:
    most = Row(
        uplink_kb_s=links.MAX_BANDWIDTH_KB_S,
        downlink_kb_s=links.MAX_BANDWIDTH_KB_S,
        latencies_us=(links.MAX_LATENCY_US,) * links.MAX_ROW_MEMBERS,
        bandwidths_kb_s=(links.MAX_BANDWIDTH_KB_S,) * links.MAX_ROW_MEMBERS,
    )
    data = encode_row(most)
    assert len(data) <= links.MAX_ROW_BYTES
    assert decode_row(A, data, links.MAX_ROW_MEMBERS) == most


def test_some_of_the_links_are_numbered_anew() -> None:
    profile = LinkProfile(latency_s=0.001, bandwidth_bytes_s=1e9)
    across = LinkProfile(latency_s=0.100, bandwidth_bytes_s=1e7)
    some = Links.of_regions([2, 2], profile, across).among([3, 0])
    assert some.world_size == 2
    assert some.profile(0, 1) == across
    assert list(some.uplink_bytes_s) == [1e9, 1e9]


def test_hosts_are_in_regions_by_what_their_heartbeats_say() -> None:
    graph = LinkGraph()
    for pair, round_trip_s in {
        (A, C): 0.002,
        (B, D): 0.002,
        (A, B): 0.2,
        (A, D): 0.2,
        (C, B): 0.2,
        (C, D): 0.2,
    }.items():
        graph.note_heartbeat(*pair, round_trip_s)
    assert graph.between(MEMBERS).region.tolist() == [0, 1, 0, 1]
    assert graph.between((A, C)).region.tolist() == [0, 0]


@given(st.floats(1e-5, 1), st.floats(1e4, 1e10), st.integers(1, 10**9))
def test_a_deadline_is_far_past_what_is_predicted(latency_s: float, bandwidth: float, size_bytes: int) -> None:
    profile = LinkProfile(latency_s=latency_s, bandwidth_bytes_s=bandwidth)
    assert deadline_s(profile, size_bytes) >= 8 * profile.predicted_s(size_bytes)
    assert deadline_s(profile, size_bytes) >= links.DEADLINE_FLOOR_S
    jittery = LinkProfile(latency_s=latency_s, bandwidth_bytes_s=bandwidth, jitter_s=1.0)
    assert deadline_s(jittery, size_bytes) > deadline_s(profile, size_bytes)


def of_figures(bandwidth: list[list[float]], region: list[int]) -> Links:
    """Return links of so many bytes a second; a host's own place is 0."""
    figures = np.array(bandwidth)
    return Links(
        latency_s=np.full(figures.shape, 0.01),
        bandwidth_bytes_s=figures,
        uplink_bytes_s=figures.max(axis=1),
        downlink_bytes_s=figures.max(axis=0),
        region=np.array(region),
    )


def test_links_that_share_lines_are_as_fast_as_the_lines() -> None:
    """Host 0 sends and receives a tenth of what the others do; all were measured while they sent to several."""
    measured = of_figures([[0, 10, 4, 3], [3, 0, 100, 40], [8, 33, 0, 95], [10, 90, 35, 0]], [0] * 4)
    assert measured.unshared().bandwidth_bytes_s[~np.eye(4, dtype=bool)].tolist() == [
        *(10, 10, 10),
        *(10, 100, 95),
        *(10, 90, 95),
        *(10, 90, 90),
    ]


def test_link_that_is_too_slow_to_be_a_share_is_left_alone() -> None:
    measured = of_figures([[0, 2, 100], [100, 0, 100], [100, 100, 0]], [0] * 3)
    assert measured.unshared().bandwidth_bytes_s.tolist() == measured.bandwidth_bytes_s.tolist()


def test_lines_to_other_regions_are_lines_of_their_own() -> None:
    measured = of_figures([[0, 100, 5, 10], [100, 0, 10, 5], [6, 4, 0, 50], [4, 6, 50, 0]], [0, 0, 1, 1])
    unshared = measured.unshared().bandwidth_bytes_s.tolist()
    assert unshared == [[0, 100, 10, 10], [100, 0, 10, 10], [6, 6, 0, 50], [6, 6, 50, 0]]


@given(
    st.integers(1, 6).flatmap(lambda n: st.lists(st.floats(1, 1e9), min_size=n * n, max_size=n * n)), st.integers(1, 3)
)
def test_no_link_gets_slower_nor_faster_than_the_fastest(figures: list[float], num_regions: int) -> None:
    count = round(len(figures) ** 0.5)
    before = of_figures(np.reshape(figures, (count, count)).tolist(), [rank % num_regions for rank in range(count)])
    after = before.unshared().bandwidth_bytes_s
    assert (after >= before.bandwidth_bytes_s).all()
    assert after.max() == before.bandwidth_bytes_s.max()


def test_one_host_whose_connections_are_held_by_losses_is_known_to_all() -> None:
    own = Row(uplink_kb_s=0, downlink_kb_s=0, latencies_us=(0, 1, 1, 1), bandwidths_kb_s=(0, 1, 1, 1))
    held = msgspec.structs.replace(own, is_held_by_loss=True)
    assert decode_row(A, encode_row(held), 4) == held
    assert links.has_changed(own, held)
    for rows, expected in (({A: own}, False), ({A: own, B: held}, True)):
        between = LinkGraph.of_rows(MEMBERS, rows).between(MEMBERS)
        assert between.is_held_by_loss == expected
        assert between.among([2, 3]).is_held_by_loss == expected
    assert not LinkGraph.of_rows(MEMBERS, {B: held}).between((A, C)).is_held_by_loss
