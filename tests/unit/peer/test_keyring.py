"""What a peer says of itself: an address of its bulk plane that is none is refused before anybody dials it."""

import msgspec
import pytest

from barnraise.errors import PeerError
from barnraise.identity import Identity
from barnraise.peer.keyring import Hello, read_hello
from barnraise.swarm import records

PEER = Identity(bytes(32), bytes(32))


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "127.0.0.1"])
def test_an_address_of_one_machine_is_taken(host: str) -> None:
    hello = msgspec.msgpack.encode(Hello(records.VERSION, PEER.public.encode(), host, 4002))
    assert read_hello(PEER.peer_id, hello) == (PEER.public, host, 4002)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "barn.example.org", ""])  # noqa: S104
def test_anything_else_is_refused(host: str) -> None:
    hello = msgspec.msgpack.encode(Hello(records.VERSION, PEER.public.encode(), host, 4002))
    with pytest.raises(PeerError, match="introduced itself badly"):
        read_hello(PEER.peer_id, hello)
