"""How two peers begin a bulk channel: TLS 1.3 with a post-quantum group, then proofs of the cluster key. No sockets.

    dialer                                             listener
    ClientHello ------------------------------------->
           <------------------------------------------ ServerHello .. Certificate .. Finished
    (group and peer id checked)
    Certificate .. Finished, Offer ------------------>
                                                       (group, peer id, proof checked)
           <------------------------------------------ Accept, or Refusal
    (proof checked)

The certificates are libp2p's (`certificate.py`), both sides show one. The group must have been X25519MLKEM768: what is
recorded today stays secret from tomorrow's quantum computer. Offer and Accept prove the cluster key by an HMAC over a
TLS exporter value (RFC 5705; RFC 8446 section 7.5) and both peer ids, so a proof is worth nothing on another channel.
As in DTLS-SRTP (RFC 5764) the frames' keys are exported as well, and the TLS connection is then dropped.

No byte of a frame can end up in the TLS object, nor the reverse: the caller cuts the stream into TLS records, both
sides know which record is the last (the one with Offer or Accept), and session tickets come before Accept.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
from OpenSSL import SSL

from barnraise.errors import LocalError, PeerError
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net.certificate import certified_peer, make_certificate
from barnraise.net.frames import KEY_BYTES, Opener, Sealer, Suite, agree_suite
from barnraise.swarm.records import Decoder

VERSION: Final = 1
GROUP: Final = "X25519MLKEM768"
RECORD_HEADER_BYTES: Final = 5
MAX_RECORD_BYTES: Final = 16 * 1024 + 256
"""RFC 8446 section 5.2."""
MAX_HANDSHAKE_BYTES: Final = 32 * 1024
"""From one peer, records and their headers together; an honest handshake takes less than 4 KiB each way."""
MAX_MESSAGE_BYTES: Final = 1024
MAX_REASON_CHARACTERS: Final = 200

_ALPN: Final = b"barnraise-bulk/1"
_RECORD_TYPES: Final = frozenset({20, 21, 22, 23})
_NOT_NAMED: Final = PeerId("(not named yet)")


class Offer(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """Dialer to listener: my version, the suite that suits me, my proof of the cluster key."""

    version: int
    suite: Suite
    proof: bytes


class Accept(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """Listener to dialer: the suite we use, my proof of the cluster key."""

    suite: Suite
    proof: bytes


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True):
    """Listener to dialer: no, and why."""

    reason: str


_offers: Decoder[Offer] = Decoder(msgspec.msgpack.Decoder(Offer))
_answers: Decoder[Accept | Refusal] = Decoder(msgspec.msgpack.Decoder(Accept | Refusal))


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a handshake ends in: who is there and what seals the frames each way."""

    peer: PeerId
    suite: Suite
    sealer: Sealer
    opener: Opener


class Credentials:
    """What this peer shows and checks in every handshake; made once per process, used by many threads."""

    def __init__(
        self, identity: Identity, cluster_key: ClusterKey, suite: Suite, clock: Callable[[], datetime]
    ) -> None:
        """Make a fresh certificate for the identity. ``suite`` is what this machine seals faster."""
        self.peer_id = identity.peer_id
        self.cluster_key = cluster_key
        self.suite = suite
        self.clock = clock
        self.context = _context(identity)


class Handshake:
    """One side of one handshake: feed it TLS records, send what `outgoing` returns, until `agreed` is there."""

    def __init__(self, credentials: Credentials) -> None:
        """Use `Dialer` or `Listener`."""
        self.agreed: Agreed | None = None
        self.peer = _NOT_NAMED
        self._credentials = credentials
        self._tls = SSL.Connection(credentials.context, None)
        self._secured = False
        self._received_bytes = 0

    def outgoing(self) -> bytes:
        """Return what is to be sent now, maybe nothing; after an error, an alert or a refusal for the other side."""
        with contextlib.suppress(SSL.WantReadError):
            return self._tls.bio_read(2 * MAX_HANDSHAKE_BYTES)
        return b""

    def receive(self, record: bytes) -> None:
        """Take one whole TLS record, its header included.

        Raises:
            PeerError: the other side is not who it must be, lacks the cluster key, refuses, or breaks the protocol.
            LocalError: the handshake is over.
        """
        if self.agreed:
            raise LocalError("a record was given to a handshake that is over")
        self._received_bytes += len(record)
        if self._received_bytes > MAX_HANDSHAKE_BYTES:
            raise self._broken(f"the handshake is over {MAX_HANDSHAKE_BYTES} bytes")
        self._tls.bio_write(record)
        try:
            if not self._secured:
                self._tls.do_handshake()
                self._check_tls()
                self._secured = True
                self._on_secured()
            self._on_message(self._tls.recv(MAX_MESSAGE_BYTES + 1))
        except SSL.WantReadError:
            return
        except SSL.Error as error:
            raise self._broken(f"TLS failed: {_text(error)}") from error
        except msgspec.MsgspecError as error:
            raise self._broken(f"the handshake's message is malformed: {error}") from error

    def _check_tls(self) -> None:
        group, protocol = self._tls.get_group_name(), self._tls.get_alpn_proto_negotiated()
        if group != GROUP:
            raise self._broken(f"the key exchange was {group}, not the post-quantum {GROUP}; is its OpenSSL over 3.5?")
        if protocol != _ALPN:
            raise self._broken(f"it speaks {protocol[:32]!r}, not {_ALPN!r}")
        certificate = self._tls.get_peer_certificate(as_cryptography=True)
        if certificate is None:
            raise self._broken("it showed no certificate")
        try:
            peer = certified_peer(certificate, self._credentials.clock())
        except ValueError as error:
            raise self._broken(str(error)) from error
        self._check_peer(peer)
        self.peer = peer

    def _check_peer(self, peer: PeerId) -> None:
        raise NotImplementedError

    def _on_secured(self) -> None:
        raise NotImplementedError

    def _on_message(self, message: bytes) -> None:
        raise NotImplementedError

    def _say(self, message: Offer | Accept | Refusal) -> None:
        self._tls.send(msgspec.msgpack.encode(message))

    def _export(self, label: bytes, context: bytes) -> bytes:
        return self._tls.export_keying_material(b"EXPORTER-barnraise-bulk-" + label, KEY_BYTES, context)

    def _channel(self, dialer: PeerId, listener: PeerId) -> bytes:
        """Return what a proof is bound to; TLS 1.3's exporter alone does not cover the dialer's certificate."""
        return self._export(b"proof", b"") + f"{dialer} {listener}".encode()

    def _finish(self, suite: Suite, outward: bytes, inward: bytes) -> None:
        context = suite.value.encode()
        sealer = Sealer(suite, self._export(outward, context))
        opener = Opener(suite, self._export(inward, context))
        self.agreed = Agreed(self.peer, suite, sealer, opener)

    def _broken(self, message: str) -> PeerError:
        return PeerError(self.peer, message)


class Dialer(Handshake):
    """The side that connects; it knows whom it wants."""

    def __init__(self, credentials: Credentials, expected: PeerId) -> None:
        """Write the first flight, to be taken by `outgoing`."""
        super().__init__(credentials)
        self.peer = expected
        self._tls.set_connect_state()
        with contextlib.suppress(SSL.WantReadError):
            self._tls.do_handshake()

    def _check_peer(self, peer: PeerId) -> None:
        if peer != self.peer:
            raise self._broken(f"{peer} answers at its address; it may have moved")

    def _on_secured(self) -> None:
        mine = self._credentials
        proof = mine.cluster_key.prove(b"dialer", self._channel(mine.peer_id, self.peer))
        self._say(Offer(VERSION, mine.suite, proof))

    def _on_message(self, message: bytes) -> None:
        answer = _answers.decode(message)
        if isinstance(answer, Refusal):
            raise self._broken(f"it refused: {answer.reason[:MAX_REASON_CHARACTERS]!r}")
        mine = self._credentials
        if not mine.cluster_key.check(b"listener", self._channel(mine.peer_id, self.peer), answer.proof):
            raise self._broken("it has another cluster key; compare the key files")
        self._finish(answer.suite, b"dialer", b"listener")


class Listener(Handshake):
    """The side that is connected to; it asks ``known`` whether it wants to talk to whoever comes."""

    def __init__(self, credentials: Credentials, known: Callable[[PeerId], bool]) -> None:
        """Wait for the dialer's first flight."""
        super().__init__(credentials)
        self._known = known
        self._tls.set_accept_state()

    def _check_peer(self, peer: PeerId) -> None:
        """Let a stranger come as far as its Offer: then it can be told why it is refused."""

    def _on_secured(self) -> None:
        """Send nothing: the dialer's Offer is next."""

    def _on_message(self, message: bytes) -> None:
        offer, mine = _offers.decode(message), self._credentials
        if offer.version != VERSION:
            raise self._refuse(f"bulk version {offer.version} is not spoken here, {VERSION} is")
        if not mine.cluster_key.check(b"dialer", self._channel(self.peer, mine.peer_id), offer.proof):
            raise self._refuse("another cluster key; compare the key files")
        if not self._known(self.peer):
            raise self._refuse("this peer does not know you yet")
        suite = agree_suite(mine.suite, offer.suite)
        self._say(Accept(suite, mine.cluster_key.prove(b"listener", self._channel(self.peer, mine.peer_id))))
        self._finish(suite, b"listener", b"dialer")

    def _refuse(self, reason: str) -> PeerError:
        self._say(Refusal(reason))
        return self._broken(f"refused: {reason}")


def record_length(header: bytes) -> int:
    """Return how many bytes follow a TLS record's 5-byte header.

    Raises:
        ValueError: no TLS record, or over `MAX_RECORD_BYTES`; nothing was allocated.
    """
    length = int.from_bytes(header[3:5], "big")
    if header[0] not in _RECORD_TYPES or header[1] != 3:
        raise ValueError("it does not speak TLS")
    if length > MAX_RECORD_BYTES:
        raise ValueError(f"a TLS record of {length} bytes is over the limit of {MAX_RECORD_BYTES}")
    return length


def _context(identity: Identity) -> SSL.Context:
    certificate, key = make_certificate(identity)
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    context.use_certificate(certificate)
    context.use_privatekey(key)
    # Self-signed by design: what makes a certificate good is checked after the handshake, in `certified_peer`.
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
    context.set_alpn_protos([_ALPN])
    context.set_alpn_select_callback(lambda _, offered: _ALPN if _ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS)
    return context


def _text(error: SSL.Error) -> str:
    reasons = [part[-1] for part in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    return "; ".join(reasons) or type(error).__name__
