"""What a peer says of itself: an address of its bulk plane that is none is refused before anybody dials it."""

from pathlib import Path

import msgspec
import pytest

from barnraise.errors import PeerError
from barnraise.identity import Identity
from barnraise.peer.keyring import Hello, Keyring, read_hello
from barnraise.swarm import records

PEER = Identity(bytes(32), bytes(32))
VOTERS = [Identity(bytes([number]) * 32, bytes([number]) * 32) for number in (1, 2)]


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "127.0.0.1"])
def test_an_address_of_one_machine_is_taken(host: str) -> None:
    hello = msgspec.msgpack.encode(Hello(records.VERSION, PEER.public.encode(), host, 4002))
    assert read_hello(PEER.peer_id, hello) == (PEER.public, host, 4002)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "barn.example.org", ""])  # noqa: S104
def test_anything_else_is_refused(host: str) -> None:
    hello = msgspec.msgpack.encode(Hello(records.VERSION, PEER.public.encode(), host, 4002))
    with pytest.raises(PeerError, match="introduced itself badly"):
        read_hello(PEER.peer_id, hello)


def vote_of(voter: Identity) -> bytes:
    return voter.sign("test", b"vote")


def knows(keys: Keyring, voter: Identity) -> bool:
    return keys.verify(voter.peer_id, "test", b"vote", vote_of(voter))


def test_whose_vote_held_is_known_again_after_a_restart(tmp_path: Path) -> None:
    keys = Keyring(PEER, tmp_path / "voters")
    for voter in VOTERS:
        keys.add(voter.public)
    assert knows(keys, VOTERS[0])
    assert knows(keys, VOTERS[0])
    again = Keyring(PEER, tmp_path / "voters")
    assert knows(again, VOTERS[0])
    assert knows(again, PEER)
    assert len((tmp_path / "voters").read_text().split()) == 1


def test_who_was_only_met_takes_no_room_on_disk(tmp_path: Path) -> None:
    keys = Keyring(PEER, tmp_path / "voters")
    keys.add(VOTERS[0].public)
    assert not keys.verify(VOTERS[0].peer_id, "test", b"another vote", vote_of(VOTERS[0]))
    assert not (tmp_path / "voters").exists()


@pytest.mark.parametrize("kept_bytes", [0, 1, 1000])
def test_a_line_that_a_crash_cut_short_costs_that_key_and_no_other(kept_bytes: int, tmp_path: Path) -> None:
    file = tmp_path / "voters"
    file.write_text("\n" + VOTERS[0].public.encode().hex()[:kept_bytes])
    keys = Keyring(PEER, file)
    assert not knows(keys, VOTERS[0])
    keys.add(VOTERS[1].public)
    assert knows(keys, VOTERS[1])
    assert knows(Keyring(PEER, file), VOTERS[1])
