"""Certificates that carry a libp2p peer id: made for our identity, checked for a peer's. No sockets, no libp2p.

The libp2p TLS specification in short: a self-signed certificate on a fresh P-256 key holds the extension
1.3.6.1.4.1.53594.1.1 = SEQUENCE { public key protobuf, signature over "libp2p-tls-handshake:" || certificate's key },
both OCTET STRINGs. Here the identity is always Ed25519, so the extension's DER has one possible shape.
(``libp2p.security.tls.certificate`` does the same, but importing it costs a second and 50 MB.)
"""

import secrets
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from barnraise.identity import LIBP2P_PUBLIC_KEY_PREFIX, Identity, peer_id_of
from barnraise.ids import PeerId

EXTENSION: Final = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
SIGNED_PREFIX: Final = b"libp2p-tls-handshake:"

_DER_START: Final = bytes.fromhex("30680424") + LIBP2P_PUBLIC_KEY_PREFIX
_DER_MIDDLE: Final = bytes.fromhex("0440")
_KEY_END: Final = len(_DER_START) + 32
_DER_BYTES: Final = _KEY_END + len(_DER_MIDDLE) + 64
_NOT_BEFORE: Final = datetime(1975, 1, 1, tzinfo=UTC)
_NOT_AFTER: Final = datetime(4096, 1, 1, tzinfo=UTC)
"""As rust-libp2p: the key lives as long as the process, and a home machine's clock may be years off."""


def make_certificate(identity: Identity) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a fresh certificate that names this identity, and its secret key."""
    key = ec.generate_private_key(ec.SECP256R1())
    signature = identity.sign_ed25519(SIGNED_PREFIX + _subject_key(key.public_key()))
    extension = _DER_START + identity.public.ed25519 + _DER_MIDDLE + signature
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "libp2p")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(63) + 1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.UnrecognizedExtension(EXTENSION, extension), critical=False)
    )
    return builder.sign(key, hashes.SHA256()), key


def certified_peer(certificate: x509.Certificate, now: datetime) -> PeerId:
    """Return the peer that a certificate names, after checking all of its signatures.

    That the other side holds the certificate's key is for the TLS handshake to prove.

    Raises:
        ValueError: no P-256 key, not self-signed, outside its dates, or the extension is missing, malformed or forged.
    """
    try:
        key, extensions = certificate.public_key(), certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(f"the certificate cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the certificate's key is not on P-256")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ValueError(f"the certificate is not valid at {now:%Y-%m-%d}; check both clocks")
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise ValueError("the certificate is not signed by its own key") from None
    ed25519, signature = _read_extension(extensions)
    try:
        Ed25519PublicKey.from_public_bytes(ed25519).verify(signature, SIGNED_PREFIX + _subject_key(key))
    except (InvalidSignature, ValueError):
        raise ValueError(f"the certificate claims {peer_id_of(ed25519)}, which did not sign it") from None
    return peer_id_of(ed25519)


def _read_extension(extensions: x509.Extensions) -> tuple[bytes, bytes]:
    try:
        value = extensions.get_extension_for_oid(EXTENSION).value
    except x509.ExtensionNotFound:
        raise ValueError("the certificate has no libp2p extension") from None
    data = value.value if isinstance(value, x509.UnrecognizedExtension) else b""
    shape = data[: len(_DER_START)] + data[_KEY_END : _KEY_END + len(_DER_MIDDLE)]
    if len(data) != _DER_BYTES or shape != _DER_START + _DER_MIDDLE:
        raise ValueError("the certificate's libp2p extension does not hold an Ed25519 key and a signature")
    return data[len(_DER_START) : _KEY_END], data[_KEY_END + len(_DER_MIDDLE) :]


def _subject_key(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
