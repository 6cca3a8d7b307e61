"""What a link's length and loss decide: congestion control and number of connections; and what is measured of it."""

import math
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from barnraise.errors import ConfigError
from barnraise.net import congestion, speed
from barnraise.net.congestion import (
    LONG_ROUND_TRIP_S,
    MAX_CONNECTIONS,
    Measured,
    check,
    connections_for,
    control,
    measured,
    rate,
)
from barnraise.net.seam import LinkSpeed
from barnraise.net.speed import KEPT_RATES, MIN_TRANSFER_BYTES, Gauge

needs_linux = pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux lets a socket choose and tell")
MEGABIT = 125_000.0


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far = listener.accept()[0]
        with near, far:
            yield near


def in_force(sock: socket.socket) -> str:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def may_have(name: str) -> bool:
    try:
        check(name)
    except ConfigError:
        return False
    return True


@needs_linux
def test_short_way_is_not_paced(sock: socket.socket) -> None:
    before = in_force(sock)
    assert not control(sock, "auto", 0.0001)
    assert in_force(sock) == ("reno" if before == "bbr" else before)


@needs_linux
def test_long_way_is_paced_where_it_may_be_and_otherwise_left_alone(sock: socket.socket) -> None:
    before = in_force(sock)
    assert control(sock, "auto", 0.05) == may_have("bbr")
    assert in_force(sock) == ("bbr" if may_have("bbr") else before)


@needs_linux
def test_named_control_is_set_on_any_way(sock: socket.socket) -> None:
    for round_trip_s in (0.0001, 0.05):
        assert not control(sock, "reno", round_trip_s)
        assert in_force(sock) == "reno"


@needs_linux
@pytest.mark.parametrize("name", ["", "warp", "naïve", "a" * 40])
def test_unknown_control_is_the_users_to_change_and_the_message_says_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError, match=r"Say auto, or one of: .*reno"):
        check(name)


def test_system_without_a_choice_has_auto_alone(monkeypatch: pytest.MonkeyPatch, sock: socket.socket) -> None:
    monkeypatch.delattr(socket, "TCP_CONGESTION", raising=False)
    monkeypatch.delattr(socket, "TCP_INFO", raising=False)
    monkeypatch.setattr(congestion, "_KNOWN", congestion._KNOWN / "is not there")
    check("auto")
    assert not control(sock, "auto", 1.0)
    assert measured(sock) is None
    with pytest.raises(ConfigError, match="cannot be had on this system"):
        check("reno")


@pytest.mark.parametrize(
    ("round_trip_s", "bandwidth", "is_paced", "expected"),
    [
        (0.00003, None, False, 1),
        (0.00003, 80_000 * MEGABIT, False, 1),
        (LONG_ROUND_TRIP_S, None, False, 1),
        (0.05, None, False, MAX_CONNECTIONS),
        (0.05, 100 * MEGABIT, False, MAX_CONNECTIONS),
        (0.01, 20 * MEGABIT, False, 1),
        (0.02, 50 * MEGABIT, False, 2),
        (0.05, None, True, 1),
        (0.05, 100 * MEGABIT, True, 1),
        (0.05, 1000 * MEGABIT, True, 3),
        (0.2, 10_000 * MEGABIT, True, MAX_CONNECTIONS),
    ],
)
def test_connections_by_bandwidth_delay_product(
    round_trip_s: float, bandwidth: float | None, is_paced: bool, expected: int
) -> None:
    assert connections_for(round_trip_s, bandwidth, is_paced=is_paced) == expected


@given(st.floats(0, 10), st.none() | st.floats(0, math.inf, exclude_min=True), st.booleans())
def test_number_of_connections_stays_in_bounds(round_trip_s: float, bandwidth: float | None, is_paced: bool) -> None:
    assert 1 <= connections_for(round_trip_s, bandwidth, is_paced=is_paced) <= MAX_CONNECTIONS


@needs_linux
def test_kernels_own_measure_is_read_from_where_it_is(sock: socket.socket) -> None:
    found = measured(sock)
    assert found
    assert 0 < found.round_trip_s < 1
    assert 0 <= found.delivered_bytes < 1_000_000
    assert 0 <= found.busy_s < 60
    sock.close()
    assert measured(sock) is None


def test_gauge_knows_nothing_before_both_are_measured() -> None:
    gauge = Gauge()
    assert gauge.read() is None
    gauge.round_trip(0.02)
    assert gauge.read() is None
    gauge.transferred(MIN_TRANSFER_BYTES, 1.02)
    assert gauge.read() == LinkSpeed(latency_s=0.01, bandwidth_bytes_s=pytest.approx(MIN_TRANSFER_BYTES))


def test_small_transfers_say_nothing_of_the_bandwidth() -> None:
    gauge = Gauge()
    gauge.transferred(MIN_TRANSFER_BYTES - 1, 1.0)
    gauge.transferred(MIN_TRANSFER_BYTES, 0.0)
    assert gauge.bandwidth_bytes_s is None


def test_newest_transfer_has_a_fifth_of_the_weight() -> None:
    gauge = Gauge()
    for size in (10_000_000, 20_000_000):
        gauge.transferred(size, 1.0)
    assert gauge.bandwidth_bytes_s == pytest.approx(12_000_000)


def test_round_trip_takes_at_most_half_of_a_transfers_time() -> None:
    gauge = Gauge()
    gauge.round_trip(5.0)
    gauge.transferred(10_000_000, 1.0)
    assert gauge.bandwidth_bytes_s == pytest.approx(20_000_000)


def test_rate_that_we_held_up_counts_only_if_it_is_higher() -> None:
    gauge = Gauge(math.inf)
    gauge.delivered(10e6, is_bound_by_us=False)
    gauge.delivered(1e6, is_bound_by_us=True)
    assert gauge.bandwidth_bytes_s == 10e6
    gauge.delivered(20e6, is_bound_by_us=True)
    assert gauge.bandwidth_bytes_s == 20e6


def test_link_is_as_fast_as_the_best_of_its_last_rates() -> None:
    gauge = Gauge(math.inf)
    for rate_bytes_s in (10e6, 12e6, *[7e6] * (KEPT_RATES - 1)):
        gauge.delivered(rate_bytes_s, is_bound_by_us=False)
    assert gauge.bandwidth_bytes_s == 12e6
    gauge.delivered(7e6, is_bound_by_us=False)
    assert gauge.bandwidth_bytes_s == 7e6


def test_speed_is_a_lower_bound_until_there_was_enough_to_send() -> None:
    gauge = Gauge(math.inf)
    gauge.round_trip(0.02)
    gauge.delivered(1e6, is_bound_by_us=True)
    assert gauge.read() == LinkSpeed(latency_s=0.01, bandwidth_bytes_s=1e6, is_at_least=True)
    gauge.delivered(0.9e6, is_bound_by_us=False)
    assert gauge.read() == LinkSpeed(latency_s=0.01, bandwidth_bytes_s=1e6)
    pushed = Gauge()
    pushed.round_trip(0.02)
    pushed.transferred(MIN_TRANSFER_BYTES, 1.0)
    assert pushed.read().is_at_least is False


def test_line_that_is_shared_hides_what_one_stream_can() -> None:
    gauge = Gauge(math.inf)
    gauge.delivered(12e6, is_bound_by_us=False, in_all_bytes_s=12e6)
    for _ in range(2 * KEPT_RATES):
        gauge.delivered(4e6, is_bound_by_us=False, in_all_bytes_s=11.9e6)
    assert gauge.bandwidth_bytes_s == 11.9e6
    for _ in range(KEPT_RATES):
        gauge.delivered(1e6, is_bound_by_us=False, in_all_bytes_s=3e6)
    assert gauge.bandwidth_bytes_s == 3e6


def test_nothing_is_believed_that_this_machine_cannot_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "sealing_bytes_s", lambda suite: 3e9)
    gauge, usual = Gauge(2e9), Gauge()
    for each in (gauge, usual):
        each.delivered(10e9, is_bound_by_us=False)
        each.delivered(13e9, is_bound_by_us=True)
    assert gauge.bandwidth_bytes_s == 2e9
    assert usual.bandwidth_bytes_s == 3e9
    gauge.transferred(10**11, 1.0)
    assert gauge.bandwidth_bytes_s == 2e9


def looked(
    delivered_bytes: int, busy_s: float, *, burst_bytes_s: float = 5e6, is_bound_by_us: bool = False
) -> Measured:
    return Measured(0.05, burst_bytes_s, is_bound_by_us, delivered_bytes, busy_s)


def test_busy_connections_together_are_as_fast_as_what_they_delivered() -> None:
    before, after = [looked(1_000, 1.0), looked(0, 2.0)], [looked(201_000, 1.2), looked(400_000, 2.19)]
    assert rate(before, after, 0.2) == (pytest.approx(3e6), False)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [looked(9, 9.0)], (5e6, False)),
        ([], [looked(9, 9.0, is_bound_by_us=True)], (5e6, True)),
        ([], [looked(9, 9.0), looked(9, 9.0, burst_bytes_s=7e6)], (0.0, True)),
        ([looked(0, 1.0), looked(0, 1.0)], [looked(10**6, 1.2), looked(10**6, 1.1)], (15e6, True)),
        ([looked(0, 1.0), looked(0, 1.0)], [looked(10**6, 1.2), looked(0, 1.0)], (5e6, True)),
        ([looked(0, 1.0)], [looked(10**6, 1.2, is_bound_by_us=True)], (5e6, True)),
        ([looked(0, 1.0)], [looked(10**6, 1.1)], (5e6, False)),
    ],
)
def test_connections_that_lacked_our_bytes_give_less(
    before: list[Measured], after: list[Measured], expected: tuple[float, bool]
) -> None:
    assert rate(before, after, 0.2) == pytest.approx(expected)


def test_count_of_segments_that_began_again_is_no_speed_below_nothing() -> None:
    assert rate([looked(10**9, 1.0)], [looked(0, 1.2)], 0.2) == (0.0, False)
