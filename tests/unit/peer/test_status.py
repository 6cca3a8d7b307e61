"""What a member's machine looks like from outside, phase by phase."""

import os
from typing import cast

import numpy as np
import pytest

from barnraise.collective.links import Row
from barnraise.config import RoundConfig, RunConfig
from barnraise.identity import Identity
from barnraise.ids import PeerId
from barnraise.net.seam import Bulk, LinkSpeed, Network
from barnraise.observe.counters import Meter
from barnraise.observe.status import Connected, LinkRow, MemberStatus
from barnraise.peer.links import LinkSurvey
from barnraise.peer.status import status_of
from barnraise.swarm.member import Member
from barnraise.swarm.messages import Links, Status
from barnraise.swarm.round import Phase, Trained
from barnraise.swarm.state import genesis
from barnraise.swarm.workspace import root_of

IDENTITIES = sorted((Identity(bytes([n]) * 32, bytes([n + 100]) * 32) for n in range(3)), key=lambda one: one.peer_id)
PEERS = tuple(identity.peer_id for identity in IDENTITIES)
RUN = RunConfig(founders=PEERS, round=RoundConfig(rounds=4, steps=2))


@pytest.fixture
def member() -> Member:
    """The second of three, who has met nobody yet."""
    zeros = np.zeros(8, np.float32)
    return Member(
        me=PEERS[1],
        state=genesis(RUN, 1, root_of(zeros), root_of(zeros)),
        sign=IDENTITIES[1].sign,
        verify=lambda *vote: True,
        now=100.0,
        peer_timeout_s=5.0,
    )


def test_at_first_it_waits_for_those_it_has_not_met(member: Member) -> None:
    member.peer_up(101.0, PEERS[2])
    status = status_of(member, now=103.5, unix_time=7.0, address="/ip4/1", device="cpu", bytes_sent=1, bytes_received=2)
    assert (status.phase, status.waiting_for) == (Phase.GATHER.value, (PEERS[0],))
    assert status.connected == (Connected(peer=PEERS[2], silent_s=2.5),)
    assert status.members == tuple(MemberStatus(peer=peer, counts_from=0) for peer in PEERS)
    assert (status.round, status.rounds, status.peer, status.pid) == (0, 4, PEERS[1], os.getpid())
    assert (status.time, status.address, status.device, status.bytes_sent, status.bytes_received) == (
        7.0,
        "/ip4/1",
        "cpu",
        1,
        2,
    )
    assert (status.run, status.train_loss, status.val_bits_per_byte) == (RUN.run_id.hex(), None, None)


def test_a_trained_member_waits_for_the_others_commitments(member: Member) -> None:
    for peer in (PEERS[0], PEERS[2]):
        member.peer_up(101.0, peer)
        member.receive(101.0, peer, Status(height=0, round=0, wants_in=False))
    member.tick(110.0)  # long enough after the start
    assert status_of(member, now=101.0, unix_time=0).phase == Phase.TRAIN.value
    assert status_of(member, now=101.0, unix_time=0).waiting_for == ()
    samples = sum(segment.count for segment in member.work.plan.slots[PEERS[1]])
    trained = Trained(
        round=0,
        steps=2,
        samples=samples,
        tokens=samples * 128,
        train_loss=1,
        validation_loss=1,
        validation_tokens=1,
        leaves=tuple(root_of(np.zeros(1, np.float32)) for _ in range(member.work.plan.num_shards)),
    )
    member.trained(111.0, trained)
    status = status_of(member, now=111.0, unix_time=0)
    assert (status.phase, status.waiting_for) == (Phase.COMMIT.value, (PEERS[0], PEERS[2]))


def test_too_few_to_agree_is_said_in_words(member: Member) -> None:
    for peer in (PEERS[0], PEERS[2]):
        member.peer_up(101.0, peer)
        member.peer_down(102.0, peer)
    assert "1 of 3 members are reachable" in status_of(member, now=103.0, unix_time=0).waiting


def test_looking_changes_nothing(member: Member) -> None:
    before = (member.phase, member.state, dict(member.presence.silences(101.0)))
    status_of(member, now=101.0, unix_time=0)
    assert (member.phase, member.state, dict(member.presence.silences(101.0))) == before


class Planes:
    """Control and bulk plane that measured the same of everybody."""

    def latency_s(self, peer: PeerId) -> float:
        return 0.0123456789

    def speed(self, peer: PeerId) -> LinkSpeed:
        return LinkSpeed(latency_s=1.0, bandwidth_bytes_s=2_500_000.4)


def test_it_tells_its_own_links_and_those_that_others_told(member: Member) -> None:
    survey = LinkSurvey(member.me, cast(Network, Planes()), cast(Bulk, Planes()))
    member.peer_up(101.0, PEERS[2])
    row = Row(uplink_kb_s=5, downlink_kb_s=6, latencies_us=(1, 2, 0), bandwidths_kb_s=(3, 4, 0))
    member.receive(101.0, PEERS[2], Links(epoch=0, row=row))
    meter = Meter().plus(took_s=1.0, sent_bytes=1, received_bytes=1)
    status = status_of(member, now=101.0, unix_time=0, parameters=8, survey=survey, exchange=meter)
    assert status.connected == (
        Connected(peer=PEERS[2], silent_s=0.0, latency_s=0.012346, bandwidth_bytes_s=2_500_000.0),
    )
    assert status.links == (
        LinkRow(peer=PEERS[1], latencies_us=(12346, 0, 12346), bandwidths_kb_s=(2500, 0, 2500)),
        LinkRow(peer=PEERS[2], uplink_kb_s=5, downlink_kb_s=6, latencies_us=(1, 2, 0), bandwidths_kb_s=(3, 4, 0)),
    )
    assert (status.parameters, status.exchange) == (8, meter)
