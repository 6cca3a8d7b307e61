"""A peer's own row: what it takes from the two planes, and when the others are told."""

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from barnraise.collective.links import Row
from barnraise.config import RoundConfig, RunConfig
from barnraise.ids import PeerId
from barnraise.net.seam import Bulk, LinkSpeed, Network
from barnraise.peer.links import MAX_LINK_MEMBERS, SURVEY_S, TELL_S, LinkSurvey, is_news
from barnraise.swarm.effects import Broadcast, Effect
from barnraise.swarm.messages import Links
from barnraise.swarm.state import State, genesis
from barnraise.swarm.workspace import root_of

ALICE, BOB, CAROL = MEMBERS = (PeerId("alice"), PeerId("bob"), PeerId("carol"))


class Planes:
    """Control and bulk plane of which a test says what they measured."""

    def __init__(self) -> None:
        self.beaten: dict[PeerId, float] = {}
        self.speeds: dict[PeerId, LinkSpeed] = {}

    def latency_s(self, peer: PeerId) -> float | None:
        return self.beaten.get(peer)

    def speed(self, peer: PeerId) -> LinkSpeed | None:
        return self.speeds.get(peer)


@pytest.fixture
def planes() -> Planes:
    return Planes()


@pytest.fixture
def survey(planes: Planes) -> LinkSurvey:
    return LinkSurvey(ALICE, cast(Network, planes), cast(Bulk, planes))


def state_of(*members: PeerId) -> State:
    zeros = np.zeros(8, np.float32)
    return genesis(RunConfig(founders=members, round=RoundConfig(rounds=4)), 1, root_of(zeros), root_of(zeros))


def told(effects: list[Effect]) -> Row | None:
    if not effects:
        return None
    (effect,) = effects
    assert isinstance(effect, Broadcast)
    assert isinstance(effect.message, Links)
    return effect.message.row


def test_latency_is_the_lesser_of_heartbeats_and_tcps(planes: Planes, survey: LinkSurvey) -> None:
    assert survey.measured(BOB) == (None, None)
    planes.beaten[BOB] = 0.004
    assert survey.measured(BOB) == (0.004, None)
    planes.speeds[BOB] = LinkSpeed(latency_s=0.001, bandwidth_bytes_s=1e6)
    assert survey.measured(BOB) == (0.001, 1e6)
    planes.beaten[BOB] = 0.0005
    assert survey.measured(BOB) == (0.0005, 1e6)
    del planes.beaten[BOB]
    assert survey.measured(BOB) == (0.001, 1e6)


def test_a_row_has_whole_numbers_and_zero_for_what_is_unknown_and_for_itself(
    planes: Planes, survey: LinkSurvey
) -> None:
    planes.beaten |= {ALICE: 9.0, BOB: 1e-9, CAROL: 1e9}
    planes.speeds[CAROL] = LinkSpeed(latency_s=1e9, bandwidth_bytes_s=2.5e6)
    row = survey.row(MEMBERS)
    assert row.latencies_us == (0, 1, 60_000_000)
    assert row.bandwidths_kb_s == (0, 0, 2_500)
    assert (row.uplink_kb_s, row.downlink_kb_s) == (0, 0)


def test_the_hosts_limits_are_the_most_that_exchanges_moved(survey: LinkSurvey) -> None:
    survey.note_exchange(3_000_000, 1_000_000, 1.0)
    survey.note_exchange(1_000_000, 1_000_000, 0.5)
    survey.note_exchange(1_000, 1_000, 1e-6)
    survey.note_exchange(10**9, 10**9, 0.0)
    row = survey.row(MEMBERS)
    assert (row.uplink_kb_s, row.downlink_kb_s) == (3_000, 2_000)
    for _ in range(16):
        survey.note_exchange(500_000, 500_000, 1.0)
    assert survey.row(MEMBERS).uplink_kb_s == 500


def test_a_row_is_told_at_once_then_seldom_and_sooner_when_it_changed(planes: Planes, survey: LinkSurvey) -> None:
    state = state_of(*MEMBERS)
    planes.beaten |= {BOB: 0.010, CAROL: 0.010}
    assert told(survey.news(0.0, state)) == survey.row(state.peers)
    planes.beaten[BOB] = 0.100
    assert told(survey.news(SURVEY_S / 2, state)) is None
    assert told(survey.news(SURVEY_S, state)) == survey.row(state.peers)
    planes.beaten[BOB] = 0.110
    for seconds in (2, 4, 6, 8):
        assert told(survey.news(SURVEY_S + seconds, state)) is None
    assert told(survey.news(SURVEY_S + TELL_S, state)) == survey.row(state.peers)
    assert told(survey.news(SURVEY_S + TELL_S + 2, replace(state, epoch=1))) is not None


@pytest.mark.parametrize(
    "members",
    [(ALICE,), (BOB, CAROL), (ALICE, *(PeerId(f"peer-{number:03}") for number in range(MAX_LINK_MEMBERS)))],
)
def test_who_is_alone_no_member_or_one_of_too_many_tells_nothing(
    survey: LinkSurvey, members: tuple[PeerId, ...]
) -> None:
    assert survey.news(0.0, state_of(*members)) == []


def test_a_figure_that_becomes_known_is_news() -> None:
    row = Row(uplink_kb_s=0, downlink_kb_s=0, latencies_us=(0, 0), bandwidths_kb_s=(0, 100))
    before = Links(epoch=0, row=row)
    assert is_news(before, None)
    assert not is_news(before, before)
    for latency, bandwidth, expected in ((0, 120, False), (0, 121, True), (0, 79, True), (1, 100, True)):
        after = Row(uplink_kb_s=0, downlink_kb_s=0, latencies_us=(0, latency), bandwidths_kb_s=(0, bandwidth))
        assert is_news(Links(epoch=0, row=after), before) is expected


@pytest.mark.parametrize(
    ("megabytes_s", "is_at_least", "kb_s"), [(0.5, True, 0), (0.5, False, 500), (20.0, True, 20_000)]
)
def test_a_low_bound_of_a_bandwidth_is_not_told_as_one(
    planes: Planes, survey: LinkSurvey, megabytes_s: float, is_at_least: bool, kb_s: int
) -> None:
    planes.speeds[BOB] = LinkSpeed(latency_s=0.05, bandwidth_bytes_s=megabytes_s * 1e6, is_at_least=is_at_least)
    assert survey.row(MEMBERS).bandwidths_kb_s == (0, kb_s, 0)


@pytest.mark.parametrize("is_held", [False, True])
def test_a_row_tells_whether_losses_hold_the_connections_back(
    planes: Planes, survey: LinkSurvey, is_held: bool
) -> None:
    assert not survey.row(MEMBERS).is_held_by_loss
    planes.speeds[BOB] = LinkSpeed(latency_s=0.05, bandwidth_bytes_s=1e6)
    planes.speeds[CAROL] = LinkSpeed(latency_s=0.05, bandwidth_bytes_s=1e6, is_held_by_loss=is_held)
    assert survey.row(MEMBERS).is_held_by_loss == is_held
