"""What a member's machine looks like from outside, phase by phase."""

import os

import numpy as np
import pytest

from barnraise.config import RoundConfig, RunConfig
from barnraise.identity import Identity
from barnraise.observe.status import Connected, MemberStatus
from barnraise.peer.status import status_of
from barnraise.swarm.member import Member
from barnraise.swarm.messages import Status
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
