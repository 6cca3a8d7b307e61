"""The new key takes the old one's place once the log says so, whatever happened in between; and not before."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from barnraise.config import RunConfig
from barnraise.errors import ConfigError
from barnraise.identity import Identity
from barnraise.ids import EMPTY_DIGEST, PeerId, short
from barnraise.peer.succession import NEXT_IDENTITY_FILE, refuse_if_revoked, take_over
from barnraise.runs.directory import IDENTITY_FILE
from barnraise.swarm.membership import carried_out
from barnraise.swarm.records import Change, Revoke, Rotate
from barnraise.swarm.state import State, genesis

OTHER = PeerId("other")


def state_of(me: PeerId) -> State:
    return genesis(RunConfig(founders=(me, OTHER)), 1, EMPTY_DIGEST, EMPTY_DIGEST)


def after(state: State, change: Change) -> State:
    standing = carried_out(replace(state.standing, pending=(change,)), 0)
    return replace(state, members=standing.members, retired=standing.retired)


def test_the_new_key_takes_the_old_ones_place(tmp_path: Path) -> None:
    old, new = Identity.create(tmp_path / IDENTITY_FILE), Identity.create(tmp_path / NEXT_IDENTITY_FILE)
    state = state_of(old.peer_id)
    assert not take_over(tmp_path, state, old.peer_id)
    asked = replace(state, pending=(Rotate(old=old.peer_id, new=new.peer_id),))
    assert not take_over(tmp_path, asked, old.peer_id)
    agreed = after(state, asked.pending[0])
    assert take_over(tmp_path, agreed, old.peer_id)
    assert Identity.load(tmp_path / IDENTITY_FILE).peer_id == new.peer_id
    assert Identity.load(tmp_path / f"identity.{short(old.peer_id)}.key").peer_id == old.peer_id
    assert not (tmp_path / NEXT_IDENTITY_FILE).exists()
    assert not take_over(tmp_path, agreed, new.peer_id)
    refuse_if_revoked(agreed, new.peer_id)


def test_killed_between_the_two_changes_it_is_done_by_the_next_start(tmp_path: Path) -> None:
    old, new = Identity.create(tmp_path / IDENTITY_FILE), Identity.create(tmp_path / NEXT_IDENTITY_FILE)
    agreed = after(state_of(old.peer_id), Rotate(old=old.peer_id, new=new.peer_id))
    os.link(tmp_path / IDENTITY_FILE, tmp_path / f"identity.{short(old.peer_id)}.key")
    assert take_over(tmp_path, agreed, old.peer_id)
    assert Identity.load(tmp_path / IDENTITY_FILE).peer_id == new.peer_id


def test_a_key_that_nobody_agreed_to_is_not_taken_up(tmp_path: Path) -> None:
    old = Identity.create(tmp_path / IDENTITY_FILE)
    agreed = after(state_of(old.peer_id), Rotate(old=old.peer_id, new="somebody"))
    assert not take_over(tmp_path, agreed, old.peer_id)
    Identity.create(tmp_path / NEXT_IDENTITY_FILE)
    assert not take_over(tmp_path, agreed, old.peer_id)
    assert Identity.load(tmp_path / IDENTITY_FILE).peer_id == old.peer_id


def test_a_peer_with_a_revoked_key_is_told(tmp_path: Path) -> None:
    me = Identity.generate().peer_id
    state = state_of(me)
    refuse_if_revoked(state, me)
    refuse_if_revoked(replace(state, pending=(Revoke(peer=me),)), me)
    with pytest.raises(ConfigError, match="key readmit"):
        refuse_if_revoked(after(state, Revoke(peer=me)), me)
