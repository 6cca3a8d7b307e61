"""The handshake in memory: who gets through, who does not, and that no byte of frames gets lost in it."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from barnraise.errors import LocalError, PeerError
from barnraise.identity import ClusterKey, Identity
from barnraise.ids import PeerId
from barnraise.net import certificate as certificates
from barnraise.net import handshake as handshakes
from barnraise.net.certificate import EXTENSION, certified_peer, make_certificate
from barnraise.net.frames import HEADER_BYTES, TAG_BYTES, Kind, Opener, Sealer, Suite
from barnraise.net.handshake import (
    MAX_HANDSHAKE_BYTES,
    MAX_RECORD_BYTES,
    RECORD_HEADER_BYTES,
    VERSION,
    Accept,
    Credentials,
    Dialer,
    Handshake,
    Listener,
    Offer,
    Refusal,
    record_length,
)

NOW = datetime(2026, 11, 22, tzinfo=UTC)
AES, CHACHA = Suite.AES_256_GCM, Suite.CHACHA20_POLY1305
KEY = ClusterKey(bytes(32))
ALICE, BOB, EVE = (Identity(bytes([i]) * 32, bytes([i + 1]) * 32) for i in (1, 2, 3))


def credentials(identity: Identity, key: ClusterKey = KEY, suite: Suite = AES) -> Credentials:
    return Credentials(identity, key, suite, lambda: NOW)


def everyone(peer: PeerId) -> bool:
    return True


def records(data: bytes) -> Iterator[bytes]:
    while data:
        size = RECORD_HEADER_BYTES + record_length(data[:RECORD_HEADER_BYTES])
        yield data[:size]
        data = data[size:]


def converse(dialer: Handshake, listener: Handshake) -> list[PeerError]:
    """Carry records both ways until both are silent; return what went wrong, the listener's first."""
    failures: dict[Handshake, PeerError] = {}
    moved = True
    while moved:
        moved = False
        for sender, receiver in ((dialer, listener), (listener, dialer)):
            for record in records(sender.outgoing()):
                moved = True
                if receiver not in failures and not receiver.agreed:
                    try:
                        receiver.receive(record)
                    except PeerError as error:
                        failures[receiver] = error
    return [failures[side] for side in (listener, dialer) if side in failures]


def texts(failures: list[PeerError]) -> str:
    return " | ".join(map(str, failures))


def with_certificate(
    mine: Credentials, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
) -> Credentials:
    mine.context.use_certificate(certificate)
    mine.context.use_privatekey(key)
    return mine


def changed_certificate(
    identity: Identity, extension: bytes | None
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a self-signed certificate like ours, but with these bytes as its libp2p extension (None: without one)."""
    key = ec.generate_private_key(ec.SECP256R1())
    honest, _ = make_certificate(identity)
    builder = (
        x509.CertificateBuilder()
        .subject_name(honest.subject)
        .issuer_name(honest.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
    )
    if extension is not None:
        builder = builder.add_extension(x509.UnrecognizedExtension(EXTENSION, extension), critical=False)
    return builder.sign(key, hashes.SHA256()), key


def extension_of(certificate: x509.Certificate) -> bytes:
    value = certificate.extensions.get_extension_for_oid(EXTENSION).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def test_both_sides_agree_and_their_frames_open() -> None:
    dialer, listener = Dialer(credentials(ALICE), BOB.peer_id), Listener(credentials(BOB), {ALICE.peer_id}.__contains__)
    assert converse(dialer, listener) == []
    assert dialer.agreed
    assert listener.agreed
    assert (dialer.agreed.peer, listener.agreed.peer) == (BOB.peer_id, ALICE.peer_id)
    for one, other in ((dialer.agreed, listener.agreed), (listener.agreed, dialer.agreed)):
        assert passes(one.sealer, other.opener)
    assert not passes(dialer.agreed.sealer, dialer.agreed.opener)


def passes(sealer: Sealer, opener: Opener) -> bool:
    frame, opened = memoryview(bytearray(HEADER_BYTES + 5 + TAG_BYTES)), bytearray(5)
    sealer.seal_into(Kind.PAYLOAD, b"hello", frame)
    try:
        opener.open_into(bytes(frame[:HEADER_BYTES]), frame[HEADER_BYTES:], memoryview(opened))
    except ValueError:
        return False
    return opened == b"hello"


@pytest.mark.parametrize(("mine", "theirs", "agreed"), [(AES, AES, AES), (AES, CHACHA, CHACHA), (CHACHA, AES, CHACHA)])
def test_suite_suits_the_slower_machine(mine: Suite, theirs: Suite, agreed: Suite) -> None:
    dialer = Dialer(credentials(ALICE, suite=mine), BOB.peer_id)
    listener = Listener(credentials(BOB, suite=theirs), everyone)
    assert converse(dialer, listener) == []
    assert [side.agreed and side.agreed.suite for side in (dialer, listener)] == [agreed, agreed]


def test_every_handshake_has_keys_of_its_own() -> None:
    mine, theirs = credentials(ALICE), credentials(BOB)
    first, second = Dialer(mine, BOB.peer_id), Dialer(mine, BOB.peer_id)
    for dialer in (first, second):
        assert converse(dialer, Listener(theirs, everyone)) == []
    assert first.agreed
    assert second.agreed
    assert not passes(first.agreed.sealer, second.agreed.opener)


def test_last_record_of_each_side_ends_its_part() -> None:
    """The listener says nothing after Accept, the dialer nothing after Offer: frames may follow at once."""
    dialer, listener = Dialer(credentials(ALICE), BOB.peer_id), Listener(credentials(BOB), everyone)
    for record in records(dialer.outgoing()):
        listener.receive(record)
    for record in records(listener.outgoing()):
        dialer.receive(record)
    *before, offer = records(dialer.outgoing())
    for record in before:
        listener.receive(record)
        assert not listener.agreed
    listener.receive(offer)
    assert listener.agreed
    *before, accept = records(listener.outgoing())
    for record in before:
        dialer.receive(record)
        assert not dialer.agreed
    dialer.receive(accept)
    assert dialer.agreed
    assert dialer.outgoing() == listener.outgoing() == b""
    with pytest.raises(LocalError, match="is over"):
        dialer.receive(accept)


def test_dialer_refuses_another_peer_than_it_wants() -> None:
    dialer, listener = Dialer(credentials(ALICE), BOB.peer_id), Listener(credentials(EVE), everyone)
    assert f"{EVE.peer_id} answers at its address" in texts(converse(dialer, listener))
    assert not dialer.agreed
    assert not listener.agreed


def test_listener_refuses_a_stranger_and_tells_it() -> None:
    dialer, listener = Dialer(credentials(EVE), BOB.peer_id), Listener(credentials(BOB), {ALICE.peer_id}.__contains__)
    ours, theirs = converse(dialer, listener)
    assert ours.peer == EVE.peer_id
    assert "refused: this peer does not know you yet" in str(ours)
    assert "this peer does not know you yet" in str(theirs)


def test_another_cluster_key_is_refused_and_told() -> None:
    dialer = Dialer(credentials(ALICE, ClusterKey(bytes([1]) * 32)), BOB.peer_id)
    ours, theirs = converse(dialer, Listener(credentials(BOB), everyone))
    assert "another cluster key" in str(ours)
    assert "another cluster key" in str(theirs)


def test_dialer_checks_the_listeners_proof() -> None:
    class Impostor(Listener):
        """Holds the peer's identity but not the cluster's key, and accepts anybody."""

        def _on_message(self, message: bytes) -> None:
            self._say(Accept(AES, bytes(32)))

    dialer = Dialer(credentials(ALICE), BOB.peer_id)
    assert "it has another cluster key" in texts(converse(dialer, Impostor(credentials(BOB), everyone)))
    assert not dialer.agreed


def test_text_that_is_not_utf8_is_refused_like_any_other_nonsense() -> None:
    """msgspec raises `UnicodeDecodeError` for it, which is none of its own errors."""
    honest, suite = msgspec.msgpack.encode(Offer(VERSION, AES, bytes(32))), AES.value.encode()
    assert suite in honest
    broken = honest.replace(suite, b"\xff" * len(suite))

    class Mumbler(Dialer):
        def _on_secured(self) -> None:
            self._tls.send(broken)

    listener = Listener(credentials(BOB), everyone)
    assert "malformed" in texts(converse(Mumbler(credentials(ALICE), BOB.peer_id), listener))
    assert not listener.agreed


def test_proof_of_one_channel_is_worth_nothing_on_another() -> None:
    proofs: list[bytes] = []

    class Recorder(Listener):
        def _on_message(self, message: bytes) -> None:
            proofs.append(msgspec.msgpack.decode(message, type=Offer).proof)

    class Replayer(Dialer):
        def _on_secured(self) -> None:
            self._say(Offer(VERSION, AES, proofs[0]))

    converse(Dialer(credentials(ALICE), BOB.peer_id), Recorder(credentials(BOB), everyone))
    stranger = credentials(ALICE, ClusterKey(bytes([9]) * 32))
    assert "another cluster key" in texts(
        converse(Replayer(stranger, BOB.peer_id), Listener(credentials(BOB), everyone))
    )


@pytest.mark.parametrize("classical_side", ["dialer", "listener"])
def test_key_exchange_without_ml_kem_is_refused(classical_side: str) -> None:
    mine, theirs = credentials(ALICE), credentials(BOB)
    side = mine if classical_side == "dialer" else theirs
    side.context.set_tmp_ecdh(ec.SECP256R1())
    dialer, listener = Dialer(mine, BOB.peer_id), Listener(theirs, everyone)
    failures = converse(dialer, listener)
    assert "not the post-quantum X25519MLKEM768" in texts(failures)
    assert not dialer.agreed
    assert not listener.agreed


def test_listener_itself_refuses_a_classical_key_exchange() -> None:
    class Careless(Dialer):
        def _check_tls(self) -> None:
            self.peer = BOB.peer_id

    mine = credentials(ALICE)
    mine.context.set_tmp_ecdh(ec.SECP256R1())
    (failure,) = converse(Careless(mine, BOB.peer_id), Listener(credentials(BOB), everyone))
    assert "not the post-quantum" in str(failure)


def test_peer_without_a_certificate_is_refused() -> None:
    mine = credentials(ALICE)
    mine.context = SSL.Context(SSL.TLS_METHOD)
    mine.context.set_alpn_protos([b"barnraise-bulk/1"])
    assert "peer did not return a certificate" in texts(
        converse(Dialer(mine, BOB.peer_id), Listener(credentials(BOB), everyone))
    )


def test_other_application_protocol_is_refused() -> None:
    mine = credentials(ALICE)
    mine.context.set_alpn_protos([b"h2"])
    assert "it speaks" in texts(converse(Dialer(mine, BOB.peer_id), Listener(credentials(BOB), everyone)))


def forged_extensions() -> dict[str, bytes | None]:
    stolen = extension_of(make_certificate(BOB)[0])
    return {
        "missing": None,
        "empty": b"",
        "cut": stolen[:-1],
        "longer": stolen + b"x",
        "stolen from another certificate": stolen,
        "key off the curve": stolen[:8] + b"\xff" * 32 + stolen[40:],
    }


@pytest.mark.parametrize("name", forged_extensions())
def test_certificate_with_a_forged_extension_is_refused_by_both_sides(name: str) -> None:
    forged = changed_certificate(BOB, forged_extensions()[name])
    as_dialer = Dialer(with_certificate(credentials(EVE), *forged), ALICE.peer_id)
    listener = Listener(credentials(ALICE), everyone)
    assert "the certificate" in texts(converse(as_dialer, listener))
    assert not listener.agreed
    dialer = Dialer(credentials(ALICE), BOB.peer_id)
    assert "the certificate" in texts(converse(dialer, Listener(with_certificate(credentials(EVE), *forged), everyone)))
    assert not dialer.agreed


def test_certificate_is_good_for_libp2p_too() -> None:
    libp2p = pytest.importorskip("libp2p.security.tls.certificate")
    libp2p_id = pytest.importorskip("libp2p.peer.id")
    certificate, _ = make_certificate(ALICE)
    key = libp2p.verify_certificate_chain([certificate])
    assert str(libp2p_id.ID.from_pubkey(key)) == ALICE.peer_id == certified_peer(certificate, NOW)


def test_libp2ps_certificate_is_good_for_us() -> None:
    libp2p = pytest.importorskip("libp2p.security.tls.certificate")
    keys = pytest.importorskip("libp2p.crypto.ed25519")
    private = keys.create_new_key_pair(BOB.ed25519_seed).private_key
    pem, _ = libp2p.generate_certificate(private, libp2p.create_cert_template())
    certificate = x509.load_pem_x509_certificate(pem.encode())
    assert certified_peer(certificate, datetime.now(UTC)) == BOB.peer_id


def test_certificate_outside_its_dates_is_refused() -> None:
    certificate, _ = changed_certificate(BOB, b"")
    with pytest.raises(ValueError, match="check both clocks"):
        certified_peer(certificate, NOW + timedelta(days=2))


def test_certificate_signed_by_another_key_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    honest, _ = make_certificate(BOB)
    builder = x509.CertificateBuilder(
        honest.issuer, honest.subject, honest.public_key(), 1, NOW - timedelta(days=1), NOW + timedelta(days=1)
    ).add_extension(x509.UnrecognizedExtension(EXTENSION, extension_of(honest)), critical=False)
    with pytest.raises(ValueError, match="not signed by its own key"):
        certified_peer(builder.sign(other, hashes.SHA256()), NOW)


def test_certificate_on_another_kind_of_key_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    honest, _ = make_certificate(BOB)
    builder = x509.CertificateBuilder(
        honest.issuer, honest.subject, key.public_key(), 1, NOW - timedelta(days=1), NOW + timedelta(days=1)
    )
    with pytest.raises(ValueError, match="P-256"):
        certified_peer(builder.sign(key, None), NOW)


@given(st.binary(max_size=120))
def test_no_bytes_pass_for_the_extension(data: bytes) -> None:
    extensions = x509.Extensions([x509.Extension(EXTENSION, False, x509.UnrecognizedExtension(EXTENSION, data))])
    with pytest.raises(ValueError, match="does not hold an Ed25519 key"):
        certificates._read_extension(extensions)


@given(st.binary(min_size=5, max_size=5))
def test_record_length_is_within_the_limit_or_refused(header: bytes) -> None:
    length = int.from_bytes(header[3:], "big")
    if header[0] in {20, 21, 22, 23} and header[1] == 3 and length <= MAX_RECORD_BYTES:
        assert record_length(header) == length
    else:
        with pytest.raises(ValueError, match="TLS"):
            record_length(header)


@given(st.binary(max_size=300))
def test_listener_survives_any_record(body: bytes) -> None:
    listener = Listener(LISTENING, everyone)
    record = b"\x16\x03\x01" + len(body).to_bytes(2, "big") + body
    with contextlib.suppress(PeerError):
        listener.receive(record)
    listener.outgoing()
    assert not listener.agreed


LISTENING = credentials(BOB)


def test_handshake_has_a_size_limit() -> None:
    listener = Listener(credentials(BOB), everyone)
    with pytest.raises(PeerError, match=f"over {MAX_HANDSHAKE_BYTES} bytes"):
        listener.receive(bytes(MAX_HANDSHAKE_BYTES + 1))


@pytest.mark.parametrize(
    "message",
    [
        b"\xc1",
        b"",
        msgspec.msgpack.encode(Refusal("x")),
        msgspec.msgpack.encode([1, VERSION, "rot13", bytes(32)]),
        msgspec.msgpack.encode([1, VERSION, "aes-256-gcm", bytes(32), "extra"]),
        msgspec.msgpack.encode([1, VERSION, "aes-256-gcm", bytes(2000)]),
    ],
)
def test_malformed_offer_is_refused(message: bytes) -> None:
    class Mumbler(Dialer):
        def _on_secured(self) -> None:
            self._tls.send(message or b"\x90")

    listener = Listener(credentials(BOB), everyone)
    assert "malformed" in texts(converse(Mumbler(credentials(ALICE), BOB.peer_id), listener))


def test_other_version_is_refused_and_told() -> None:
    class Future(Dialer):
        def _on_secured(self) -> None:
            self._say(Offer(VERSION + 1, AES, bytes(32)))

    ours, theirs = converse(Future(credentials(ALICE), BOB.peer_id), Listener(credentials(BOB), everyone))
    assert "is not spoken here" in str(ours)
    assert "is not spoken here" in str(theirs)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_sound_message_or_refused(data: bytes) -> None:
    for decode in (handshakes._offers.decode, handshakes._answers.decode):
        with contextlib.suppress(msgspec.MsgspecError):
            decoded = decode(data)
            assert decode(msgspec.msgpack.encode(decoded)) == decoded
