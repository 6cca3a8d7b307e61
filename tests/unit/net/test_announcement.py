"""What multicast DNS carries: what goes in comes out, and nothing that anybody can send does harm or lies of others."""

import dataclasses
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import DNSIncoming, DNSOutgoing, DNSText  # type: ignore[attr-defined]

from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId, RunId
from barnraise.net.announcement import (
    MAX_TEXT_BYTES,
    SERVICE,
    Announcement,
    Packet,
    cluster_tag,
    instance_of,
    query,
    read_packet,
    response,
)

PEER = Identity(bytes(32), bytes(32)).peer_id
KEY = ClusterKey(bytes(32))
OURS = Announcement(
    peer=PEER,
    run=RunId(bytes(range(32))),
    address=f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}",
    cluster_tag=cluster_tag(KEY),
    label="the barn",
)
FIELDS = {
    "v": "1",
    "run": OURS.run.hex(),
    "peer": PEER,
    "at": "/ip4/127.0.0.1/tcp/4001",
    "cluster": OURS.cluster_tag.hex(),
    "name": "the barn",
}


def text_packet(text: bytes, name: str | None = None, ttl: int = 120) -> bytes:
    outgoing = DNSOutgoing(0x8400)
    outgoing.add_answer_at_time(DNSText(name or instance_of(PEER), 16, 0x8001, ttl, text), 0)
    packet = outgoing.packets()[0]
    assert isinstance(packet, bytes)
    return packet


def text_of(fields: dict[str, str]) -> bytes:
    strings = [f"{key}={value}".encode() for key, value in fields.items()]
    return b"".join(bytes([len(string)]) + string for string in strings)


@pytest.mark.parametrize(
    "announcement",
    [
        OURS,
        dataclasses.replace(OURS, label=""),
        dataclasses.replace(OURS, address=f"/ip6/fd00::2/tcp/65535/p2p/{PEER}"),
    ],
)
def test_what_goes_in_comes_out(announcement: Announcement) -> None:
    packet = response(announcement)
    assert len(packet) < 600
    assert read_packet(packet, announcement.host) == Packet(present=(announcement,))
    assert read_packet(response(announcement, ttl_s=0), announcement.host) == Packet(leaving=(announcement,))


def test_a_question_is_a_question_for_us() -> None:
    assert read_packet(query(), "127.0.0.1") == Packet(asks=True)
    incoming = DNSIncoming(query())
    assert [(question.name, question.type) for question in incoming.questions] == [(SERVICE, 12)]


def test_the_tag_is_the_clusters_and_tells_nothing_of_the_key() -> None:
    assert len(OURS.cluster_tag) == 8
    assert cluster_tag(KEY) != cluster_tag(ClusterKey(b"x" * 32))
    assert KEY.secret.hex().encode() not in response(OURS)
    assert KEY.secret not in response(OURS)


def test_an_announcement_of_another_machines_address_is_left_out() -> None:
    """Else anybody on the network could have all peers dial whom they like."""
    assert read_packet(response(OURS), "127.0.0.2") == Packet()


@pytest.mark.parametrize(
    "changes",
    [
        {"v": "2"},
        {"run": "00"},
        {"run": "zz" * 32},
        {"cluster": "00"},
        {"peer": "12D3KooW"},
        {"peer": Identity(b"o" * 32, bytes(32)).peer_id},
        {"at": "/ip4/0.0.0.0/tcp/1"},
        {"at": "/ip4/127.0.0.1/tcp/0"},
        {"at": "/dns4/localhost/tcp/1"},
        {"at": "/ip4/127.0.0.1/udp/1/quic"},
        {"at": "/ip4/127.0.0.1/tcp/1/p2p/x"},
        {"at": ""},
    ],
)
def test_a_text_record_that_is_not_right_is_left_out(changes: dict[str, str]) -> None:
    assert read_packet(text_packet(text_of(FIELDS)), "127.0.0.1") == Packet(present=(OURS,))
    assert read_packet(text_packet(text_of(FIELDS | changes)), "127.0.0.1") == Packet()


@pytest.mark.parametrize("missing", sorted(FIELDS.keys() - {"name"}))
def test_a_text_record_with_a_field_missing_is_left_out(missing: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != missing}
    assert read_packet(text_packet(text_of(fields)), "127.0.0.1") == Packet()


def test_an_endless_text_record_is_left_out() -> None:
    padding = {f"x{number}": "y" * 200 for number in range(5)}
    packet = text_packet(text_of(FIELDS | padding))
    assert len(text_of(FIELDS | padding)) > MAX_TEXT_BYTES
    assert read_packet(packet, "127.0.0.1") == Packet()


def test_a_label_is_made_printable_and_cut() -> None:
    (seen,) = read_packet(text_packet(text_of(FIELDS | {"name": "\x1b[2J" + "é" * 90})), "127.0.0.1").present
    assert seen.label == "?[2J" + "é" * 60
    long = dataclasses.replace(OURS, label="\x07" + "\N{SNOWMAN}" * 300)
    (seen,) = read_packet(response(long), "127.0.0.1").present
    assert seen.label == "?" + "\N{SNOWMAN}" * 63


def test_a_name_that_is_not_the_peers_is_left_out() -> None:
    other = instance_of(PeerId("x" * 52))
    assert read_packet(text_packet(text_of(FIELDS), name=other), "127.0.0.1") == Packet()


@given(st.binary(max_size=1500))
def test_no_datagram_does_harm(data: bytes) -> None:
    assert read_packet(data, "127.0.0.1") == Packet() or data


@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4), st.integers(0, 600))
def test_no_changed_datagram_does_harm(position: int, change: bytes, length: int) -> None:
    for whole in (response(OURS), query()):
        at = position % len(whole)
        changed = whole[:at] + change + whole[at + len(change) :]
        read_packet(changed, "127.0.0.1")
        read_packet(changed[:length], "127.0.0.1")


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), st.text(max_size=40)), st.binary(max_size=300))
def test_no_text_record_does_harm(changes: dict[str, str], rest: bytes) -> None:
    text = text_of({key: value for key, value in (FIELDS | changes).items() if len(value.encode()) < 240})
    for seen in read_packet(text_packet((text + rest)[:1200] or b"\0"), "127.0.0.1").present:
        assert seen.host == "127.0.0.1"
        assert seen.label.isprintable()


def test_a_packet_full_of_pointers_to_itself_ends() -> None:
    header = bytes([0, 0, 0x84, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0])
    assert read_packet(header + b"\xc0\x0c" * 700, "127.0.0.1") == Packet()


def test_the_address_record_is_the_listeners() -> None:
    records = DNSIncoming(response(OURS)).answers()
    assert [record.address for record in records if hasattr(record, "address")] == [socket.inet_aton("127.0.0.1")]
