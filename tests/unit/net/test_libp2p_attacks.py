"""No bytes of a stranger's end our libp2p host or fill its memory, and who says nothing is cut off."""

import contextlib
import random
import socket
import struct
from typing import Any

import pytest
import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # the package has no py.typed

from barnraise.net import hardened
from barnraise.net import host as host_module
from barnraise.net.addresses import parse_address
from barnraise.net.hardened import CONTROL_PROTOCOL, ControlStream, open_host

from .hostile_libp2p import (
    ACK,
    ALICE,
    BOB,
    DATA,
    FIN,
    GO_AWAY,
    LOOPBACK,
    MALLORY,
    PING,
    RST,
    SYN,
    WINDOW,
    assert_still_serves,
    frame,
    ignore,
    stream_to,
    yamux_to,
)
from .hosts import PATIENCE_S, network, until

PAYLOADS = [
    b"",
    b"\xff" * 20,
    b"\x05abc",
    random.Random(1).randbytes(200),
    b"\xff\xff\xff\xff\x7f" + random.Random(2).randbytes(50),
    b"\x80" * 30,
    b"\n\n\x08" + random.Random(3).randbytes(8),
    b'\x10{"a": notjson}}',
    struct.pack("<I", 5) + b"\x91\xa7Opening",
    struct.pack("<I", 6) + b"\x91\xa4\xff\xff\xff\xff",
]
TCP_PAYLOADS = [
    b"",
    b"GET / HTTP/1.0\r\n\r\n",
    random.Random(4).randbytes(100),
    b"\x13/multistream/1.0.0\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n",
    b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20" + random.Random(5).randbytes(32),
    b"\x13/multistream/1.0.0\n\x07/noise\n\xff\xff" + random.Random(6).randbytes(300),
    b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\x0f",
    b"\x13/multistream/1.0.0\n\x03\xff\xfe\n",
    b"\x13/multistream/1.0.0\n\x03ls\n",
]


async def test_the_host_speaks_the_control_protocol_and_nothing_else() -> None:
    async with open_host(ALICE.ed25519_seed, LOOPBACK, ignore) as host:
        assert host.protocols == (CONTROL_PROTOCOL,)


async def test_no_bytes_on_the_port_end_the_host() -> None:
    async with network(ALICE) as alice:
        port = int(Multiaddr(alice.addresses[0]).value_for_protocol("tcp"))
        for payload in TCP_PAYLOADS:
            attacker = await trio.open_tcp_stream("127.0.0.1", port)
            async with attacker:
                await attacker.send_all(payload)
                with trio.move_on_after(0.05):
                    await attacker.receive_some(100)
                attacker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await assert_still_serves(alice)


@pytest.mark.parametrize("ending", ["close", "reset"])
async def test_no_bytes_on_the_control_protocol_end_the_host(ending: str) -> None:
    async with network(ALICE) as alice, open_host(MALLORY.ed25519_seed, LOOPBACK, ignore) as host:

        async def attack(payload: bytes) -> None:
            stream = await host.dial(parse_address(alice.addresses[0]))
            await stream.send_all(payload)
            if ending == "reset":
                await stream._stream.reset()
            else:
                await stream.send_eof()
                with trio.move_on_after(0.2):
                    await stream.receive_some(100)
            await stream.aclose()

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for payload in PAYLOADS:
                    nursery.start_soon(attack, payload)
        await assert_still_serves(alice)


YAMUX_PAYLOADS = [
    b"\x00",
    frame(DATA, 0, 99, 4) + b"data",
    frame(DATA, SYN, 1, 0) + frame(DATA, SYN, 1, 0),
    frame(DATA, SYN | FIN | RST | ACK, 1, 3) + b"abc",
    frame(DATA, SYN, 0, 0),
    frame(WINDOW, SYN, 1, 0) + frame(WINDOW, 0, 1, 2**32 - 1) * 3,
    frame(WINDOW, SYN, 1, 0) + frame(DATA, 0, 1, 3) + b"\xff\xff\xff" + frame(WINDOW, RST, 1, 0),
    frame(PING, SYN, 0, 7) + frame(PING, ACK, 0, 7) + frame(PING, 0, 9, 7),
    frame(9, 0xFFFF, 2**32 - 1, 2**32 - 1, 255),
    frame(DATA, SYN, 1, 2**32 - 1),
    frame(GO_AWAY, 0, 0, 77),
    frame(WINDOW, SYN, 2, 0) + frame(DATA, FIN, 2, 0) + frame(DATA, 0, 2, 4) + b"more",
]


async def test_no_yamux_frames_end_the_host() -> None:
    async with network(ALICE) as alice:
        for payload in YAMUX_PAYLOADS:
            async with yamux_to(alice) as connection:
                await connection.write(payload)
                with trio.move_on_after(0.03):
                    await is_cut_off(connection)
        await assert_still_serves(alice)


async def is_cut_off(connection: Any) -> bool:
    """Return whether the other side closes within our patience."""
    with trio.move_on_after(PATIENCE_S):
        try:
            while await connection.read(12):
                pass
        except BaseLibp2pError:
            pass
        return True
    return False


@pytest.fixture
def patient_with_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is cut off for taking long, so that whoever is was cut off for what the test is about."""
    monkeypatch.setattr(hardened, "STRANGER_DEADLINE_S", 10 * PATIENCE_S)


async def test_who_overruns_its_window_is_cut_off(patient_with_strangers: None) -> None:
    """The library logs, and buffers on; a stranger fills the memory."""
    opening = b"\x13/multistream/1.0.0\n" + bytes([len(CONTROL_PROTOCOL) + 1]) + CONTROL_PROTOCOL.encode() + b"\n"
    async with open_host(ALICE.ed25519_seed, LOOPBACK, ignore) as host, yamux_to(host) as connection:
        await connection.write(frame(WINDOW, SYN, 1, 0) + frame(DATA, 0, 1, len(opening)) + opening)
        with contextlib.suppress(BaseLibp2pError):
            for _ in range(hardened.MAX_UNREAD_BYTES // 65_000 + 1):
                await connection.write(frame(DATA, 0, 1, 65_000) + bytes(65_000))
        assert await is_cut_off(connection)


async def test_a_frame_over_the_window_is_not_waited_for(patient_with_strangers: None) -> None:
    async with network(ALICE) as alice, yamux_to(alice) as connection:
        await connection.write(frame(DATA, SYN, 1, 0) + frame(DATA, 0, 1, hardened.WINDOW_BYTES + 1))
        assert await is_cut_off(connection)


async def test_who_opens_streams_without_end_is_cut_off(patient_with_strangers: None) -> None:
    async with network(ALICE) as alice, yamux_to(alice) as connection:
        for number in range(hardened.MAX_STREAMS_PER_CONNECTION + 1):
            await connection.write(frame(WINDOW, SYN, 2 * number + 1, 0))
        assert await is_cut_off(connection)
        await assert_still_serves(alice)


async def test_who_connects_and_proves_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardened, "STRANGER_DEADLINE_S", 0.2)
    async with network(ALICE) as alice, yamux_to(alice) as connection:
        assert await is_cut_off(connection)


async def test_who_opens_a_stream_and_says_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "ADMISSION_DEADLINE_S", 0.2)
    async with network(ALICE) as alice, stream_to(alice) as stream:
        with trio.fail_after(PATIENCE_S):
            assert await stream.receive_some(1) == b""
        await until(lambda: "did not prove itself" in alice.refusals.get(MALLORY.peer_id, ""))


@pytest.mark.parametrize("error", [RuntimeError("boom"), ExceptionGroup("group", [ValueError("boom")])])
async def test_an_exception_in_a_handler_does_not_end_the_host(error: Exception) -> None:
    calls: list[str] = []

    async def fail_once(stream: ControlStream) -> None:
        calls.append(stream.peer)
        await stream.receive_some(1)
        if len(calls) == 1:
            raise error
        await stream.send_all(b"fine")
        await stream.receive_some(1)

    async with (
        open_host(ALICE.ed25519_seed, LOOPBACK, fail_once) as host,
        open_host(BOB.ed25519_seed, LOOPBACK, ignore) as other,
    ):
        address = parse_address(host.addresses[0])
        first = await other.dial(address)
        await first.send_all(b"1")
        assert await first.receive_some(10) == b""
        await first.aclose()
        second = await other.dial(address)
        await second.send_all(b"2")
        assert await second.receive_some(10) == b"fine"
        await second.aclose()
    assert calls == [BOB.peer_id] * 2


async def test_an_unknown_protocol_is_refused_and_harms_nobody() -> None:
    async with network(ALICE) as alice, stream_to(alice) as stream:
        extra = await stream._connection.new_stream()
        with pytest.raises(BaseLibp2pError):
            await MultiselectClient().select_one_of([TProtocol("/nope")], MultiselectCommunicator(extra), 5)
        await extra.reset()
        await assert_still_serves(alice)
