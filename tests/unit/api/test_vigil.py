"""How long an attempt may stand still, by what is known of the links, and who is named then."""

from collections.abc import Mapping
from typing import Final

import pytest

from barnraise.api.attempt import Attempt, Party
from barnraise.api.streams import Begin, Call
from barnraise.api.vigil import Vigil, hop_s
from barnraise.collective.links import DEADLINE_FLOOR_S
from barnraise.collective.survival_messages import Fault
from barnraise.ids import PeerId
from barnraise.net.frames import MAX_PAYLOAD_BYTES
from barnraise.net.seam import LinkSpeed

LAN: Final = LinkSpeed(latency_s=0.0001, bandwidth_bytes_s=1e9)
BETWEEN_REGIONS: Final = LinkSpeed(latency_s=0.04, bandwidth_bytes_s=50e6 / 8)


def attempt_of(count: int) -> Attempt:
    """Return one that stands at its very beginning: place 0 waits for a chunk of place 1."""
    parties = [Party(rank, PeerId(f"peer {rank}")) for rank in range(count)]

    def prepare(weights: object) -> object:
        raise AssertionError("nothing is carried out here")

    begin = Begin(7, 1, b"digest", Call("sum", "float32", 100))
    attempt = Attempt(begin=begin, parties=parties, place=0, prepare=prepare)  # type: ignore[arg-type]
    attempt.receiving_from = parties[1]
    return attempt


def vigil_of(speeds: Mapping[int, LinkSpeed | None]) -> Vigil:
    return Vigil(lambda peer: speeds[int(peer.split()[1])])


def is_late(vigil: Vigil, attempt: Attempt, now: float) -> bool:
    return vigil.late(attempt, now, lambda peer: True, 1e9) is not None


def test_on_a_local_network_a_stop_is_noticed_within_seconds() -> None:
    assert DEADLINE_FLOOR_S <= hop_s([LAN] * 7) < DEADLINE_FLOOR_S + 0.1


def test_what_all_may_have_put_on_a_shared_link_before_us_gets_eight_times_its_time() -> None:
    ahead_s = 6 * MAX_PAYLOAD_BYTES / BETWEEN_REGIONS.bandwidth_bytes_s
    assert hop_s([BETWEEN_REGIONS] * 5) == pytest.approx(8 * (ahead_s + BETWEEN_REGIONS.latency_s) + DEADLINE_FLOOR_S)


@pytest.mark.parametrize("unknown", [None, LinkSpeed(latency_s=0.0, bandwidth_bytes_s=0.0)])
def test_a_link_that_was_not_measured_may_be_a_long_one(unknown: LinkSpeed | None) -> None:
    assert hop_s([LAN, unknown]) > hop_s([LAN, LAN]) + 1
    assert hop_s([unknown] * 5) < 10


def test_a_stopped_attempt_and_the_next_one_are_watched_in_turns() -> None:
    # 1. a thread is stuck in a stopped attempt; 2. the next one waits for it, and is looked at as well: if each look at
    # one forgot the other, the thread would never be freed, and live ranks were taken for stalled.
    vigil, stopped, following = vigil_of({1: LAN}), attempt_of(2), attempt_of(2)
    for now in range(4):
        assert [vigil.stands_for(attempt, float(now)) for attempt in (stopped, following)] == [now, now]


def test_a_near_peer_may_wait_for_a_far_one() -> None:
    near, far = vigil_of({1: LAN, 2: LAN}), vigil_of({1: LAN, 2: BETWEEN_REGIONS})
    attempt = attempt_of(3)
    for vigil in (near, far):
        assert not is_late(vigil, attempt, 100.0)
        assert not is_late(vigil, attempt, 100.0 + DEADLINE_FLOOR_S)
    assert is_late(near, attempt, 106.0)
    assert not is_late(far, attempt, 106.0)
    assert is_late(far, attempt, 101.0 + hop_s([LAN, BETWEEN_REGIONS]))


def test_whom_we_wait_for_is_named_and_for_how_long_nothing_moved() -> None:
    vigil, attempt = vigil_of({1: LAN}), attempt_of(2)
    assert not is_late(vigil, attempt, 100.0)
    late = vigil.late(attempt, 106.5, lambda peer: True, 1e9)
    assert late
    assert (late.fault, late.rank, late.reason) == (Fault.STALLED, 1, "moved nothing for 6.5 s")


def test_who_has_not_begun_has_until_the_user_gives_up() -> None:
    vigil, attempt = vigil_of({1: LAN}), attempt_of(2)
    assert vigil.late(attempt, 100.0, lambda peer: False, 160.0) is None
    assert vigil.late(attempt, 160.0, lambda peer: False, 160.0) is None
    late = vigil.late(attempt, 160.1, lambda peer: False, 160.0)
    assert late
    assert (late.fault, late.reason) == (Fault.LATE, "has not called collective 7 in time")


def test_another_attempt_has_all_the_time_again() -> None:
    vigil = vigil_of({1: LAN})
    assert not is_late(vigil, attempt_of(2), 100.0)
    assert not is_late(vigil, attempt_of(2), 200.0)
