"""The desk: what lies in a peer's directory is read, whole, once for each place in the log, and nothing else is."""

import os
from pathlib import Path

import pytest

from barnraise.identity import Identity
from barnraise.ids import PeerId, RunId
from barnraise.peer import petitions as desks
from barnraise.peer.keyring import Keyring
from barnraise.peer.petitions import MAX_FILE_BYTES, MAX_FILES, Desk, introduce
from barnraise.swarm import petitions
from barnraise.swarm.petitions import Petition, Voucher
from barnraise.swarm.records import Revoke

RUN = RunId(bytes(32))


def petition_of(peer: str, num_vouchers: int = 1) -> Petition:
    vouchers = tuple(Voucher(f"{number}", b"signature", b"keys") for number in range(num_vouchers))
    return Petition(body=petitions.wish_of(RUN, Revoke(peer=peer)), vouchers=vouchers)


def leave(home: Path, name: str, data: bytes) -> Path:
    file = home / desks.DIRECTORY / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return file


def test_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert Desk(tmp_path).look(0) == []


def test_a_petition_is_handed_over_once_for_each_place_in_the_log(tmp_path: Path) -> None:
    desk, petition = Desk(tmp_path), petition_of("one")
    file = leave(tmp_path, "a.petition", petitions.encode(petition))
    assert desk.look(0) == [petition]
    assert desk.look(0) == []
    assert desk.look(1) == [petition]
    other = petition_of("other")
    leave(tmp_path, "b.petition", petitions.encode(other))
    assert desk.look(1) == [other]
    file.unlink()
    assert desk.look(2) == [other]


def test_a_petition_that_was_signed_once_more_is_new(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    file = leave(tmp_path, "a.petition", petitions.encode(petition_of("one")))
    desk.look(0)
    leave(tmp_path, "a.petition", petitions.encode(petition_of("one", 2)))
    os.utime(file, ns=(1, 1))
    assert desk.look(0) == [petition_of("one", 2)]


def test_many_signatures_come_in_pieces(tmp_path: Path) -> None:
    leave(tmp_path, "a.petition", petitions.encode(petition_of("one", 8)))
    found = Desk(tmp_path).look(0)
    assert [len(piece.vouchers) for piece in found] == [3, 3, 2]


@pytest.mark.parametrize("data", [b"", b"\xc1", bytes(MAX_FILE_BYTES + 1)])
def test_what_is_no_petition_is_passed_over(data: bytes, tmp_path: Path) -> None:
    leave(tmp_path, "a.petition", data)
    leave(tmp_path, "b.partial", petitions.encode(petition_of("half")))
    leave(tmp_path, "c.petition", petitions.encode(petition_of("whole")))
    assert Desk(tmp_path).look(0) == [petition_of("whole")]


def test_so_many_files_are_read_and_no_more(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 5):
        leave(tmp_path, f"{number:03}.petition", petitions.encode(petition_of(f"{number}")))
    assert len(Desk(tmp_path).look(0)) == MAX_FILES


def test_a_signers_keys_are_remembered_and_nobody_elses(tmp_path: Path) -> None:
    me, signer, other = Identity.generate(), Identity.generate(), Identity.generate()
    keys = Keyring(me)
    for data in (b"", b"keys", other.public.encode()):
        introduce(keys, signer.peer_id, data)
        assert signer.peer_id not in keys.known
    introduce(keys, signer.peer_id, signer.public.encode())
    assert keys.verify(signer.peer_id, "here", b"said", signer.sign("here", b"said"))
    introduce(keys, signer.peer_id, other.public.encode())
    assert keys.known[signer.peer_id] == signer.public


def test_the_longest_petition_is_a_file_that_is_read() -> None:
    body = bytes(petitions.MAX_BODY_BYTES)
    vouchers = tuple(Voucher(PeerId("p" * 52), bytes(3373), bytes(5358)) for _ in range(8))
    assert len(petitions.encode(Petition(body=body, vouchers=vouchers))) < MAX_FILE_BYTES
