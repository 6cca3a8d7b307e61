"""Where peers listen: what an operator may ask for, strict parsing of multiaddresses, and telling whom one knows.

Only what our own listener can be is understood: ``/ip4|ip6/<address>/tcp/<port>/p2p/<peer id>``; a user may also name
a host by ``/dns4|dns6|dns/``. Whatever else libp2p can spell (relays, QUIC, paths of sockets) is refused, so that no
peer makes us open something that we did not think of.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from barnraise.errors import ConfigError, PeerError
from barnraise.ids import PeerId

MAX_PEERS_TOLD: Final = 96
"""With the limits below a full message stays under ``MAX_MESSAGE_BYTES``."""
MAX_ADDRESSES_PER_PEER: Final = 4
MAX_ADDRESS_CHARS: Final = 128

_ADDRESS = re.compile(r"/(ip4|ip6|dns4|dns6|dns)/([^/]+)/tcp/([0-9]{1,5})/p2p/([1-9A-HJ-NP-Za-km-z]{52})")
_PEER_ID = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
"""The base58 form of an Ed25519 key's identity multihash always begins and measures like this."""
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerAddress:
    """One place where one peer listens."""

    peer: PeerId
    text: str
    """The whole multiaddress, ``/p2p/<peer id>`` included."""

    @property
    def transport(self) -> str:
        """Return the part without the peer id."""
        return self.text.rpartition("/p2p/")[0]


def parse_address(text: str, *, names: bool = False) -> PeerAddress:
    """Read a multiaddress that ends in a peer id.

    Args:
        text: the multiaddress.
        names: whether host names are allowed beside IP addresses.

    Raises:
        ValueError: it is none of the few forms that we dial; the message says which.
    """
    match = _ADDRESS.fullmatch(text[: MAX_ADDRESS_CHARS + 1]) if len(text) <= MAX_ADDRESS_CHARS else None
    if match is None:
        raise ValueError(
            f"{text[:MAX_ADDRESS_CHARS]!r} is not an address that can be dialled: "
            "it must look like /ip4/192.0.2.7/tcp/4001/p2p/12D3KooW..."
        )
    kind, host, port, peer = match.groups()
    if not _PEER_ID.fullmatch(peer):
        raise ValueError(f"{peer!r} is not the peer id of an Ed25519 key")
    if not 0 < int(port) < 65536:
        raise ValueError(f"port {port} of {text!r} is not between 1 and 65535")
    if kind in ("ip4", "ip6"):
        address = ipaddress.ip_address(host)
        if address.version != int(kind[-1]) or address.is_multicast or address.is_unspecified:
            raise ValueError(f"{host} of {text!r} is not an {kind} address of one machine")
    elif not names or not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{host!r} of {text!r} is not an IP address")
    return PeerAddress(peer=PeerId(peer), text=text)


LAN: Final = "lan"
"""What an operator says instead of this machine's own address on its network."""
LOOPBACK: Final = "127.0.0.1"
_ELSEWHERE: Final = ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses of documentation (RFC 5737, RFC 3849): nobody has them, and nothing is sent there."""


def lan_address() -> str:
    """Return the address of the interface by which this machine reaches others; no packet is sent to find out.

    Raises:
        ConfigError: there is none.
    """
    for family, elsewhere in _ELSEWHERE:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                # Connecting a UDP socket only asks the kernel for the route.
                probe.connect((elsewhere, 9))
            except OSError:
                continue
            address = ipaddress.ip_address(probe.getsockname()[0])
        if not (address.is_loopback or address.is_unspecified or address.is_link_local):
            return str(address)
    raise ConfigError(
        "this machine has no route to others, so there is no address to listen on for them. Connect it to a network, "
        "or name one of its addresses: --listen 192.0.2.7"
    )


def listening(host: str, control_port: int, bulk_port: int) -> tuple[str, str]:
    """Return what to listen on, as `PeerConfig.listen` (a multiaddress) and `PeerConfig.bulk_listen` (host:port).

    Args:
        host: an IPv4 or IPv6 address of this machine, ``localhost``, or ``lan`` for `lan_address`.
        control_port: of the control plane; 0 picks a free one.
        bulk_port: of the bulk plane; 0 picks a free one.

    Raises:
        ConfigError: the host is no such address, or means every interface; or a port is out of range.
    """
    address = _own_address(lan_address() if host == LAN else host, host)
    for port in (control_port, bulk_port):
        if not 0 <= port <= 65535:
            raise ConfigError(f"port {port} is not between 0 and 65535; 0 picks a free one.")
    bracketed = f"[{address}]" if address.version == 6 else str(address)
    return f"/ip{address.version}/{address}/tcp/{control_port}", f"{bracketed}:{bulk_port}"


def control_endpoint(listen: str) -> str:
    """Return the multiaddress that `PeerConfig.listen` means, which may be ``/ip4/lan/tcp/<port>``.

    Raises:
        ConfigError: this machine has no address on a network. What else is wrong is found when it is listened on.
    """
    asked = re.fullmatch(r"/ip[46]/lan/tcp/([0-9]{1,5})", listen)
    return listening(LAN, int(asked[1]), 0)[0] if asked else listen


def bulk_endpoint(bulk_listen: str, listen: str) -> tuple[str, int]:
    """Read `PeerConfig.bulk_listen` (``192.0.2.7:4002``, ``[2001:db8::7]:4002``, ``lan:4002``) into host and port.

    Args:
        bulk_listen: host and port.
        listen: the control plane's multiaddress, which must be as reachable.

    Raises:
        ConfigError: it is malformed, means every interface, or only one of the two is on loopback.
    """
    host, _, port = bulk_listen.rpartition(":")
    if not host or not port.isdecimal() or not port.isascii() or int(port) > 65535:
        raise ConfigError(f"bulk_listen = {bulk_listen!r} is not HOST:PORT. Write 127.0.0.1:0 for any free port.")
    address = _own_address(lan_address() if host == LAN else host.removeprefix("[").removesuffix("]"), bulk_listen)
    control = re.match(r"/ip[46]/([^/]*)/", control_endpoint(listen))
    if control and _own_address(control[1], listen).is_loopback != address.is_loopback:
        raise ConfigError(
            f"listen = {listen!r} and bulk_listen = {bulk_listen!r}: one is for this machine alone and the other is "
            "not, so nobody could use both. Name the same host in both."
        )
    return str(address), int(port)


def _own_address(host: str, told: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address to listen on; ``told`` is what the operator wrote."""
    try:
        address = ipaddress.ip_address(LOOPBACK if host == "localhost" else host)
    except ValueError:
        raise ConfigError(
            f"{told!r}: {host!r} is not an IP address. Name one of this machine's, or say --listen lan for the one "
            "that leads to other machines."
        ) from None
    if address.is_unspecified:
        raise ConfigError(
            f"{told!r} means every interface; others would be told to connect to {address}, which leads nowhere. Name "
            "one address of this machine, or say --listen lan for the one that leads to other machines."
        )
    if address.is_multicast or getattr(address, "scope_id", None):
        raise ConfigError(f"{told!r}: {address} is not an address that other machines can dial. Name another one.")
    return address


class _Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    peer: str
    addresses: tuple[str, ...]


_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[tuple[_Entry, ...]] = msgspec.msgpack.Decoder(tuple[_Entry, ...])


def encode_peers(known: Mapping[PeerId, Iterable[str]]) -> bytes:
    """Return the message that tells whom we know; the first ``MAX_PEERS_TOLD`` entries of ``known`` go in."""
    entries = [
        _Entry(peer, tuple(addresses)[:MAX_ADDRESSES_PER_PEER])
        for peer, addresses in list(known.items())[:MAX_PEERS_TOLD]
    ]
    return _encode(entries)


def decode_peers(sender: PeerId, data: bytes) -> dict[PeerId, tuple[PeerAddress, ...]]:
    """Read such a message.

    Raises:
        PeerError: it is malformed, over a limit, or holds an address that is not one or not the named peer's.
    """
    try:
        entries = _decoder.decode(data)
        if len(entries) > MAX_PEERS_TOLD:
            raise ValueError(f"{len(entries)} peers told, limit {MAX_PEERS_TOLD}")
        return {PeerId(entry.peer): _addresses_of(entry) for entry in entries}
    except (msgspec.DecodeError, ValueError) as error:
        raise PeerError(sender, f"malformed list of peers: {error}", data) from error


def _addresses_of(entry: _Entry) -> tuple[PeerAddress, ...]:
    if len(entry.addresses) > MAX_ADDRESSES_PER_PEER:
        raise ValueError(f"{len(entry.addresses)} addresses of one peer told, limit {MAX_ADDRESSES_PER_PEER}")
    addresses = tuple(parse_address(text) for text in entry.addresses)
    if any(address.peer != entry.peer for address in addresses):
        raise ValueError(f"an address told for {entry.peer[:60]!r} is another peer's")
    return addresses
