"""Links over trio's in-memory streams: framing, bounded queues, and that a full queue is never silent."""

import contextlib

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from barnraise.errors import LocalError, PeerError, Unavailable
from barnraise.ids import PeerId
from barnraise.net import links
from barnraise.net.addresses import MAX_PEERS_TOLD, decode_peers, encode_peers, parse_address
from barnraise.net.links import Link, frame, receive_frame
from barnraise.net.seam import MAX_MESSAGE_BYTES, NetworkEvent, Received

BOB = PeerId("bob")
ID_A = "12D3KooWAbjyTxsioxh5a7eTeZHDn6PVuahKHDiJZSH9vpwtoPGi"
ID_B = "12D3KooWG52RXA9ByVHJLEnMvyiunySJbswJor7SrAN7RdvLbgrd"


def ignore(payload: bytes) -> None:
    pass


def check_peers(payload: bytes) -> None:
    decode_peers(BOB, payload)


async def run_against(data: bytes) -> tuple[str, list[NetworkEvent]]:
    """Return why a link ended whose peer sent these bytes and closed, and what came out of it."""
    near, far = memory_stream_pair()
    events_in, events = links.open_events()
    await far.send_all(data)
    await far.send_eof()
    reason = await Link(BOB, b"", near, check_peers).run(events_in)
    events_in.close()
    return reason, [event async for event in events]


async def test_frames_arrive_whole_and_in_order() -> None:
    messages = [b"", b"a", bytes(MAX_MESSAGE_BYTES)]
    reason, events = await run_against(b"".join(frame(b"\0" + message) for message in messages))
    assert events == [Received(peer=BOB, message=message) for message in messages]
    assert reason == "the peer closed the connection"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xff\xff\xff", "frame of 4294967295 bytes"),
        ((MAX_MESSAGE_BYTES + 2).to_bytes(4, "little"), "frame of 65538 bytes"),
        (bytes(4), "frame of 0 bytes"),
        (frame(b"\x07x"), "unknown kind 7"),
        (frame(b"\x01x"), "malformed list of peers"),
        (frame(b"\x02" + bytes(links.MAX_NOTICE_BYTES + 1)), "a notice of 1025 bytes"),
        (frame(b"\0" + b"cut")[:-1], "closed the connection"),
    ],
)
async def test_a_hostile_frame_ends_the_link_with_its_reason(data: bytes, words: str) -> None:
    reason, events = await run_against(data)
    assert words in reason
    assert events == []


async def test_a_warning_arrives_printable_and_cut() -> None:
    near, far = memory_stream_pair()
    heard: list[str] = []
    sender = Link(BOB, b"", far, ignore)
    receiver = Link(BOB, b"", near, ignore, heard.append)
    events_in, events = links.open_events()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run, events_in.clone())
        await sender.warn("two processes\x1b[2J")
        await sender.warn("\N{SNOWMAN}" * 1000)
        sender.leave()
        await receiver.run(events_in)
    assert heard[0] == "two processes?[2J"
    assert heard[1].startswith("\N{SNOWMAN}" * 341)
    assert len(heard) == 2
    events.close()


@given(st.binary(max_size=64))
def test_no_bytes_break_a_link(data: bytes) -> None:
    reason, events = trio.run(run_against, data)
    assert reason
    assert all(isinstance(event, Received) for event in events)


async def test_an_announced_length_is_not_allocated() -> None:
    near, far = memory_stream_pair()
    await far.send_all((2**32 - 1).to_bytes(4, "little"))
    with pytest.raises(ValueError, match="the limits are 1 and 100"):
        await receive_frame(near, 100)


async def test_unread_messages_end_the_link_and_what_came_before_is_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = memory_stream_pair()
    events_in, events = trio.open_memory_channel[NetworkEvent](0)
    link = Link(BOB, b"", near, ignore)
    reasons: list[str] = []

    async def run() -> None:
        reasons.append(await link.run(events_in))
        events_in.close()

    sent = links.MAX_UNREAD_MESSAGES + 10
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for number in range(sent):
            await far.send_all(frame(b"\0" + number.to_bytes(2, "little")))
        await trio.sleep(2 * links.STALL_DEADLINE_S)
        received = [event async for event in events]
    numbers = [int.from_bytes(event.message, "little") for event in received if isinstance(event, Received)]
    assert numbers == list(range(links.MAX_UNREAD_MESSAGES + 1))
    assert "unread" in reasons[0]


async def test_a_slow_application_holds_the_peer_up_but_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_stream_pair()
    events_in, events = trio.open_memory_channel[NetworkEvent](0)
    link = Link(BOB, b"", near, ignore)
    sent = 2 * links.MAX_UNREAD_MESSAGES
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run, events_in)
        for number in range(sent):
            await far.send_all(frame(b"\0" + number.to_bytes(2, "little")))
        for number in range(sent):
            await trio.sleep(links.STALL_DEADLINE_S / 4)
            event = await events.receive()
            assert event == Received(peer=BOB, message=number.to_bytes(2, "little"))
        link.close("enough")


async def test_a_peer_that_takes_nothing_makes_send_fail_and_ends_the_link(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, _far = trio.testing.lockstep_stream_pair()
    events_in, _events = links.open_events()
    link = Link(BOB, b"", near, ignore)
    reasons: list[str] = []

    async def run() -> None:
        reasons.append(await link.run(events_in))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for _ in range(links.MAX_UNSENT_MESSAGES + 1):
            await link.send(b"")
        with pytest.raises(Unavailable, match="untaken for 5 s"):
            await link.send(b"")
    assert "took nothing for 10 s" in reasons[0]
    with pytest.raises(Unavailable, match="went away: the peer took nothing"):
        await link.send(b"")


async def test_leaving_sends_what_is_queued_first() -> None:
    near, far = memory_stream_pair()
    events_in, _events = links.open_events()
    link = Link(BOB, b"", near, ignore)
    for number in range(links.MAX_UNSENT_MESSAGES):
        await link.send(bytes([number]))
    link.leave()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run, events_in)
        for number in range(links.MAX_UNSENT_MESSAGES):
            assert await receive_frame(far, 100) == bytes([0, number])
        assert await far.receive_some(1) == b""
        await far.aclose()


async def test_a_message_over_the_limit_is_our_own_fault() -> None:
    near, _far = memory_stream_pair()
    with pytest.raises(LocalError, match="65537 bytes is over the limit of 65536"):
        await Link(BOB, b"", near, ignore).send(bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("text", ["/ip4/127.0.0.1/tcp/1/p2p/", "/ip6/::1/tcp/65535/p2p/"])
def test_addresses_that_can_be_dialled(text: str) -> None:
    address = parse_address(text + ID_A)
    assert (address.peer, address.text) == (ID_A, text + ID_A)
    assert address.transport + "/p2p/" == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ip4/127.0.0.1/tcp/1",
        f"/ip4/127.0.0.1/udp/1/p2p/{ID_A}",
        f"/ip4/127.0.0.1/tcp/1/ws/p2p/{ID_A}",
        f"/ip4/127.0.0.1/tcp/1/p2p/{ID_A}/p2p-circuit",
        f"/unix/tmp/tcp/1/p2p/{ID_A}",
        f"/ip4/127.0.0.1/tcp/0/p2p/{ID_A}",
        f"/ip4/127.0.0.1/tcp/65536/p2p/{ID_A}",
        f"/ip4/0.0.0.0/tcp/1/p2p/{ID_A}",
        f"/ip4/224.0.0.1/tcp/1/p2p/{ID_A}",
        f"/ip4/::1/tcp/1/p2p/{ID_A}",
        f"/ip6/127.0.0.1/tcp/1/p2p/{ID_A}",
        f"/dns4/example.org/tcp/1/p2p/{ID_A}",
        f"/ip4/127.0.0.1/tcp/1/p2p/{'1' * 52}",
        f"/ip4/127.0.0.1/tcp/1/p2p/{ID_A}" + "x" * 100,
    ],
)
def test_addresses_that_cannot(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an|not the|is not|does not appear"):
        parse_address(text)


def test_a_user_may_name_hosts() -> None:
    assert parse_address(f"/dns4/example.org/tcp/1/p2p/{ID_A}", names=True).peer == ID_A
    with pytest.raises(ValueError, match="not an IP address"):
        parse_address(f"/dns4/-bad-/tcp/1/p2p/{ID_A}", names=True)


def test_peers_are_told_within_limits() -> None:
    text = f"/ip4/127.0.0.1/tcp/1/p2p/{ID_A}"
    assert decode_peers(BOB, encode_peers({PeerId(ID_A): [text] * 9})) == {ID_A: (parse_address(text),) * 4}
    longest = "/ip6/" + "f" * (128 - len("/ip6//tcp/65535/p2p/") - 52) + f"/tcp/65535/p2p/{ID_A}"
    assert len(encode_peers({PeerId(f"{ID_A}{n}"): [longest] * 4 for n in range(200)})) < MAX_MESSAGE_BYTES
    crowd = encode_peers({PeerId(str(number)): [] for number in range(MAX_PEERS_TOLD)})
    with pytest.raises(PeerError, match="97 peers told"):
        decode_peers(BOB, b"\xdc\x00\x61" + crowd[3:] + b"\x92\xa1x\x90")


def test_nobody_speaks_for_anothers_address() -> None:
    with pytest.raises(PeerError, match="another peer's"):
        decode_peers(BOB, encode_peers({PeerId(ID_B): [f"/ip4/127.0.0.1/tcp/1/p2p/{ID_A}"]}))


@given(st.binary(max_size=100))
def test_no_bytes_break_the_list_of_peers(data: bytes) -> None:
    with contextlib.suppress(PeerError):
        assert isinstance(decode_peers(BOB, data), dict)
