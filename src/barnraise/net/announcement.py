"""What a peer says of itself on its local network, as multicast DNS carries it (RFC 6762, RFC 6763); no sockets.

    <short id>._barnraise._tcp.local.   TXT  v=1  run=<hex>  peer=<id>  at=<multiaddress>  cluster=<hex>  name=<label>

PTR, SRV and address records stand beside it, so that ``avahi-browse`` and ``dns-sd`` list peers as well; we ourselves
read the TXT record alone. Anybody on the network can say anything here. An announcement is a hint where to dial, never
a reason to trust: the admission on the connection is. So that it cannot send us to other machines, its address has to
be the one that it came from.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from zeroconf import (  # type: ignore[attr-defined]  # documented, if not in its __all__
    DNSAddress,
    DNSIncoming,
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSRecord,
    DNSService,
    DNSText,
)

from barnraise.identity import ClusterKey
from barnraise.ids import DIGEST_BYTES, PeerId, RunId, short
from barnraise.net.addresses import PeerAddress, parse_address
from barnraise.net.admission import printable

SERVICE: Final = "_barnraise._tcp.local."
VERSION: Final = "1"
TAG_BYTES: Final = 8
TTL_S: Final = 120
"""RFC 6762 section 10, for records that name a host."""
MAX_LABEL_CHARS: Final = 64
MAX_TEXT_BYTES: Final = 1024
"""Of a TXT record; ours has less than 400."""
MAX_STRING_BYTES: Final = 255
MAX_RECORDS: Final = 64
"""Looked at in one packet, which has room for about 60 of ours at best."""

_TYPE_A, _TYPE_PTR, _TYPE_TXT, _TYPE_AAAA, _TYPE_SRV = 1, 12, 16, 28, 33
_CLASS_IN, _CLASS_UNIQUE = 1, 0x8001
_QUERY, _RESPONSE = 0x0000, 0x8400
_HEADER_BYTES: Final = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Announcement:
    """One peer of one run; made by `read_packet` it is well-formed, and nothing more is known of it."""

    peer: PeerId
    run: RunId
    address: str
    """Where the control plane listens: a multiaddress that ends in ``/p2p/<peer id>``."""
    cluster_tag: bytes
    """`cluster_tag` of the key that it admits by."""
    label: str = ""
    """For people: the machine, or what is trained."""

    @property
    def place(self) -> PeerAddress:
        """Return the address, parsed."""
        return parse_address(self.address)

    @property
    def host(self) -> str:
        """Return the IP address that the peer listens on."""
        return self.address.split("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packet:
    """What one datagram means to us."""

    asks: bool = False
    """Whether it asks who is there."""
    knows: frozenset[str] = frozenset()
    """Instances that whoever asks knows already, in lower case."""
    present: tuple[Announcement, ...] = ()
    leaving: tuple[Announcement, ...] = ()


def cluster_tag(key: ClusterKey) -> bytes:
    """Return 8 bytes by which holders of the key know each other's runs; they say nothing about the key."""
    return key.derive(b"mdns cluster tag", TAG_BYTES)


def instance_of(peer: PeerId) -> str:
    """Return the name of a peer's service."""
    return f"{short(peer)}.{SERVICE}"


def query() -> bytes:
    """Return the datagram that asks who is there."""
    outgoing = DNSOutgoing(_QUERY)
    outgoing.add_question(DNSQuestion(SERVICE, _TYPE_PTR, _CLASS_IN))
    return outgoing.packets()[0]


def response(announcement: Announcement, *, ttl_s: int = TTL_S) -> bytes:
    """Return the datagram that says that a peer is there, or with ``ttl_s`` 0 that it leaves."""
    instance = instance_of(announcement.peer)
    machine = f"barnraise-{short(announcement.peer)}.local."
    ip = ipaddress.ip_address(announcement.host)
    port = int(announcement.address.split("/")[4])
    outgoing = DNSOutgoing(_RESPONSE)
    records: tuple[DNSRecord, ...] = (
        DNSPointer(SERVICE, _TYPE_PTR, _CLASS_IN, ttl_s, instance),
        DNSService(instance, _TYPE_SRV, _CLASS_UNIQUE, ttl_s, 0, 0, port, machine),
        DNSText(instance, _TYPE_TXT, _CLASS_UNIQUE, ttl_s, _text_of(announcement)),
        DNSAddress(machine, _TYPE_A if ip.version == 4 else _TYPE_AAAA, _CLASS_UNIQUE, ttl_s, ip.packed),
    )
    for record in records:
        outgoing.add_answer_at_time(record, 0)
    return outgoing.packets()[0]


def read_packet(data: bytes, source: str) -> Packet:
    """Read a datagram of anybody; what is not ours or not right in it is left out.

    Args:
        data: all of it.
        source: the IP address it came from.
    """
    if len(data) < _HEADER_BYTES:
        return Packet()
    incoming = DNSIncoming(data)
    if not incoming.valid:
        return Packet()
    records = incoming.answers()[:MAX_RECORDS]
    if incoming.is_query():
        asks = any(question.name.lower() == SERVICE for question in incoming.questions[:MAX_RECORDS])
        known = frozenset(record.alias.lower() for record in records if isinstance(record, DNSPointer))
        return Packet(asks=asks, knows=known)
    texts = [record for record in records if isinstance(record, DNSText)]
    return Packet(
        present=tuple(_announcements([text for text in texts if text.ttl], source)),
        leaving=tuple(_announcements([text for text in texts if not text.ttl], source)),
    )


def _announcements(texts: list[DNSText], source: str) -> Iterator[Announcement]:
    for text in texts:
        try:
            announcement = _parse(text.text)
        except (ValueError, KeyError):
            continue
        if announcement.host == source and text.name.lower() == instance_of(announcement.peer).lower():
            yield announcement


def _text_of(announcement: Announcement) -> bytes:
    fields = {
        "v": VERSION,
        "run": announcement.run.hex(),
        "peer": announcement.peer,
        "at": announcement.place.transport,
        "cluster": announcement.cluster_tag.hex(),
        "name": printable(announcement.label)[:MAX_LABEL_CHARS],
    }
    # Cut in bytes, since a character may take four of them.
    strings = [f"{key}={value}".encode()[:MAX_STRING_BYTES] for key, value in fields.items()]
    return b"".join(bytes([len(string)]) + string for string in strings)


def _parse(text: bytes) -> Announcement:
    """Read a TXT record.

    Raises:
        ValueError, KeyError: it is not one of ours, or malformed.
    """
    fields = _fields(text)
    run, tag = bytes.fromhex(fields["run"]), bytes.fromhex(fields["cluster"])
    if fields["v"] != VERSION or len(run) != DIGEST_BYTES or len(tag) != TAG_BYTES:
        raise ValueError("another version, or a run or cluster of another length")
    address = parse_address(f"{fields['at']}/p2p/{fields['peer']}")
    return Announcement(
        peer=address.peer,
        run=RunId(run),
        address=address.text,
        cluster_tag=tag,
        label=printable(fields.get("name", "")[:MAX_LABEL_CHARS]),
    )


def _fields(text: bytes) -> dict[str, str]:
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"a TXT record of {len(text)} bytes, limit {MAX_TEXT_BYTES}")
    fields: dict[str, str] = {}
    position = 0
    while position < len(text):
        end = position + 1 + text[position]
        key, _, value = text[position + 1 : end].decode("utf-8", "replace").partition("=")
        # The first one counts (RFC 6763 section 6.4).
        fields.setdefault(key.lower(), value)
        position = end
    return fields
