"""The trainer's end of the socket: whole messages, a peer that goes away, bytes that are no message."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from barnraise.errors import LocalError, Unavailable
from barnraise.link import messages
from barnraise.link.messages import MAX_FRAME_BYTES, Initialise, Initialised, Stop
from barnraise.train.session import PeerGone, Session


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Session]]:
    ours, theirs = socket.socketpair()
    with ours, Session(theirs) as session:
        yield ours, session


def test_messages_arrive_however_they_are_cut(pair: tuple[socket.socket, Session]) -> None:
    ours, session = pair
    sent: list[messages.FromPeer] = [Initialise(path="a" * 30), Stop()]
    for byte in b"".join(messages.frame(message) for message in sent):
        ours.send(bytes([byte]))
    assert [session.receive(), session.receive()] == sent


def test_what_is_sent_is_one_frame(pair: tuple[socket.socket, Session]) -> None:
    ours, session = pair
    session.send(Initialised())
    assert ours.recv(100) == messages.frame(Initialised())


@pytest.mark.parametrize("last_words", [b"", b"\x05", b"\x05\0\0\0abc"])
def test_a_peer_that_closes_is_gone(pair: tuple[socket.socket, Session], last_words: bytes) -> None:
    ours, session = pair
    ours.sendall(last_words)
    ours.close()
    with pytest.raises(PeerGone):
        session.receive()
    with pytest.raises(PeerGone):
        session.send(Initialised())


def test_an_oversized_frame_is_refused_before_it_is_read(pair: tuple[socket.socket, Session]) -> None:
    ours, session = pair
    ours.sendall((MAX_FRAME_BYTES + 1).to_bytes(4, "little"))
    with pytest.raises(LocalError, match=f"{MAX_FRAME_BYTES + 1} bytes is over the limit"):
        session.receive()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x92\xa5Begin\x01", messages.frame(Initialised())[4:]])
def test_bytes_that_are_no_message_are_refused(pair: tuple[socket.socket, Session], body: bytes) -> None:
    ours, session = pair
    ours.sendall(len(body).to_bytes(4, "little") + body)
    with pytest.raises(LocalError, match="no message of version 2"):
        session.receive()


def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="start the peer first"):
        Session.connect(tmp_path / "peer.sock")
