"""The one word by which somebody joins a run: where its peers listen, which run it is, and the cluster's secret.

    barnraise1-<base64url of: msgpack [run, [[kind, host, port, public key], ...], secret], 4 bytes of its SHA-256>

The secret is the cluster key itself. Whoever reads the word can join this run and every other of the cluster, so it
is handed on like a password: a file of mode 0600 rather than a command line, which other users of a machine can see.
"""

import base64
import hashlib
import ipaddress
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec

from barnraise.errors import ConfigError, LocalError
from barnraise.identity import SEED_BYTES, ClusterKey, ed25519_of, peer_id_of, read_secret, write_secret
from barnraise.ids import DIGEST_BYTES, RunId
from barnraise.net.addresses import MAX_ADDRESS_CHARS, parse_address

PREFIX: Final = "barnraise1-"
MAX_ADDRESSES: Final = 8
"""One is enough to find all the others; a few more survive the loss of that one."""
MAX_CHARS: Final = 2048
"""An invitation of eight addresses by long host names has less."""
CHECKSUM_BYTES: Final = 4

_Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
_Secret = Annotated[bytes, msgspec.Meta(min_length=SEED_BYTES, max_length=SEED_BYTES)]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_KINDS: Final = ("ip4", "ip6", "dns4", "dns6", "dns")


class _Place(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    kind: Annotated[int, msgspec.Meta(ge=0, lt=len(_KINDS))]
    host: Annotated[bytes, msgspec.Meta(max_length=MAX_ADDRESS_CHARS)]
    """4 or 16 bytes of an IP address, or a name."""
    port: _Port
    key: _Digest
    """The peer's Ed25519 key, of which its id is made: 20 characters shorter than the id."""


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    run: _Digest
    places: Annotated[tuple[_Place, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]
    secret: _Secret


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode


@dataclass(frozen=True, kw_only=True, slots=True)
class Invitation:
    """What somebody needs to join a run; made by `parse` it is known to be well-formed.

    Anybody who has it can join: it holds the cluster's secret.

    >>> word = Invitation(run=run_id, addresses=network.addresses, secret=key.secret).encode()
    >>> parse(word).run == run_id
    True
    """

    run: RunId
    addresses: tuple[str, ...]
    """Multiaddresses of peers of the run, each ending in ``/p2p/<peer id>``; none: they are found by mDNS."""
    secret: bytes = field(repr=False)
    """32 bytes: the cluster key."""

    @property
    def cluster_key(self) -> ClusterKey:
        """Return the key that admits to the cluster."""
        return ClusterKey(self.secret)

    def encode(self) -> str:
        """Return the invitation as one word that a shell takes as it is; of the addresses the first `MAX_ADDRESSES`.

        Raises:
            LocalError: an address, the run id or the secret is none.
        """
        try:
            places = tuple(_place(address) for address in self.addresses[:MAX_ADDRESSES])
            body = _encode(_Body(self.run, places, self.secret))
            _decode(body)
        except (ValueError, msgspec.ValidationError) as error:
            raise LocalError(f"an invitation cannot be made of this: {error}") from error
        return PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")

    def write(self, path: Path) -> None:
        """Write the word to a file that only its owner can read, in the place of one that is there.

        Raises:
            ConfigError: it cannot be written there.
        """
        staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        write_secret(staged, self.encode() + "\n", "an invitation")
        try:
            staged.replace(path)
        except OSError as error:
            staged.unlink()
            raise ConfigError(f"{path}: no invitation can be written there ({error.strerror}).") from error


def parse(text: str) -> Invitation:
    """Read an invitation, or the file that holds one, whose path ``text`` is then.

    Spaces and line breaks within, which a mail or a terminal may have put there, and words before it do not matter.

    Raises:
        ConfigError: it is none, or not whole, or the file cannot be read or can be read by others.
    """
    if PREFIX not in text:
        return _parse_word(_word_in(text), f"the file {text}")
    return _parse_word(text, "the invitation")


def _word_in(name: str) -> str:
    path = Path(name)
    try:
        is_there = path.is_file()
    except (OSError, ValueError):  # a path that no file system takes
        is_there = False
    if not is_there:
        shown = "".join(character if character.isprintable() else "?" for character in name[:40])
        raise ConfigError(
            f"{shown!r} is neither an invitation nor a file that holds one. An invitation is one word that starts "
            f"with {PREFIX}: copy all of it from the terminal of somebody who is in the run."
        )
    text = read_secret(path, "an invitation")
    if PREFIX not in text:
        raise ConfigError(f"{path}: holds no invitation, which starts with {PREFIX}. Name another file.")
    return text


def _parse_word(text: str, where: str) -> Invitation:
    word = "".join(text[text.index(PREFIX) + len(PREFIX) :].split()) if len(text) <= MAX_CHARS else ""
    try:
        data = base64.b64decode(word + "=" * (-len(word) % 4), altchars=b"-_", validate=True)
        body = data[:-CHECKSUM_BYTES]
        if data[-CHECKSUM_BYTES:] != _checksum(body):
            raise ValueError("the checksum does not fit")
        decoded = _decode(body)
        addresses = tuple(_address(place) for place in decoded.places)
    except (ValueError, msgspec.DecodeError):
        raise ConfigError(
            f"{where} is not whole: characters are missing, changed or too many ({len(text)} of them here). Copy the "
            f"whole word again, from {PREFIX} to its end; where a terminal cut it, send it as a file."
        ) from None
    return Invitation(run=RunId(decoded.run), addresses=addresses, secret=decoded.secret)


def _place(address: str) -> _Place:
    peer = parse_address(address, names=True)
    _, kind, host, _, port = peer.transport.split("/")
    packed = ipaddress.ip_address(host).packed if kind.startswith("ip") else host.encode()
    return _Place(_KINDS.index(kind), packed, int(port), ed25519_of(peer.peer))


def _address(place: _Place) -> str:
    kind = _KINDS[place.kind]
    host = str(ipaddress.ip_address(place.host)) if kind.startswith("ip") else place.host.decode("ascii")
    return parse_address(f"/{kind}/{host}/tcp/{place.port}/p2p/{peer_id_of(place.key)}", names=True).text


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"barnraise invitation" + body).digest()[:CHECKSUM_BYTES]
