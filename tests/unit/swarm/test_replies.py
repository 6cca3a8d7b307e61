"""What a member answers, notes, and lets be known of itself."""

from dataclasses import replace

import pytest

from barnraise.collective.links import Row
from barnraise.config import DataConfig, ModelConfig, parse_run_config
from barnraise.errors import PeerError
from barnraise.swarm import effects
from barnraise.swarm.messages import Genesis, GenesisWanted, Links, StateWanted

from .room import A, B, C, Room, config_of, room_of


def test_the_runs_configuration_is_told_without_paths_and_its_hash_is_the_runs_name() -> None:
    config = replace(
        config_of(A),
        data=DataConfig(source="/home/me/secret.txt", digest="ab" * 32),
        model=ModelConfig(source="/home/me/model", initial="cd" * 32),
    )
    room = Room(config)
    member = room.enter(A)
    (answer,) = member.receive(room.now, B, GenesisWanted())[:1]
    assert isinstance(answer, effects.Send)
    assert isinstance(answer.message, Genesis)
    assert answer.to == B
    assert "/home" not in answer.message.config
    told = parse_run_config(answer.message.config, "what was told")
    assert told.run_id == config.run_id == member.state.run
    assert (told.data.source, told.model.source) == ("bundled", "")


def test_a_request_for_the_state_says_whether_the_tensors_are_wanted_at_equal_height() -> None:
    room = room_of(A)
    for is_hollow in (True, False):
        found = room.members[A].receive(room.now, B, StateWanted(height=0, is_hollow=is_hollow))
        assert effects.SendState(to=B, height=0, is_hollow=is_hollow) in found


def links_of(*latencies_us: int, epoch: int = 0) -> Links:
    row = Row(uplink_kb_s=0, downlink_kb_s=0, latencies_us=latencies_us, bandwidths_kb_s=(0,) * len(latencies_us))
    return Links(epoch=epoch, row=row)


def test_what_members_say_of_their_links_is_noted_until_they_are_gone() -> None:
    room = Room(config_of(A, B))
    member = room.enter(A)
    room.enter(B)
    before = (member.phase, member.state)
    member.receive(room.now, B, links_of(7, 0))
    member.receive(room.now, B, links_of(8, 0))
    assert member.presence.links(0) == {B: links_of(8, 0).row}
    assert member.presence.links(1) == {}
    assert (member.phase, member.state) == before
    room.die(B)
    assert member.presence.links(0) == {}


def test_links_of_other_members_or_of_a_stranger_are_passed_over() -> None:
    room = Room(config_of(A, B))
    member = room.enter(A)
    room.enter(B)
    member.receive(room.now, B, links_of(7, 0, 0, epoch=1))
    member.receive(room.now, C, links_of(7, 0))
    assert member.presence.links(0) == member.presence.links(1) == {}


@pytest.mark.parametrize("latencies_us", [(), (1,), (1,) * 3, (1,) * 4096])
def test_links_to_more_or_fewer_than_there_are_break_the_protocol(latencies_us: tuple[int, ...]) -> None:
    room = Room(config_of(A, B))
    member = room.enter(A)
    room.enter(B)
    member.receive(room.now, B, links_of(7, 0))
    with pytest.raises(PeerError, match="of links to 2 members"):
        member.receive(room.now, B, links_of(*latencies_us))
    assert member.presence.links(0) == {B: links_of(7, 0).row}
