"""Who a peer is and what admits it: hybrid signatures, the key file, the cluster key. No sockets, no libp2p.

A peer has two signing keys. Ed25519 is its libp2p identity (the peer id is that key's multihash); ML-DSA-65
(FIPS 204) stands beside it against a quantum computer. A record that both sign binds them, and every signature of
ours is a pair that must hold in both halves. A context says what a signature is for, so none can stand for another.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from barnraise.errors import ConfigError, LocalError
from barnraise.ids import PeerId

SEED_BYTES: Final = 32
ED25519_KEY_BYTES: Final = 32
ED25519_SIGNATURE_BYTES: Final = 64
ML_DSA_KEY_BYTES: Final = 1952
ML_DSA_SIGNATURE_BYTES: Final = 3309
SIGNATURE_BYTES: Final = ED25519_SIGNATURE_BYTES + ML_DSA_SIGNATURE_BYTES
PUBLIC_IDENTITY_BYTES: Final = 1 + ED25519_KEY_BYTES + ML_DSA_KEY_BYTES + SIGNATURE_BYTES
MAX_CONTEXT_BYTES: Final = 255
"""ML-DSA's own limit (FIPS 204, algorithm 2)."""
MAX_KEY_FILE_BYTES: Final = 4096
MAX_PEER_ID_CHARS: Final = 52
"""All peer ids of Ed25519 keys have so many."""

BINDING_CONTEXT: Final = "barnraise 1 identity binding"
LIBP2P_PUBLIC_KEY_PREFIX: Final = bytes.fromhex("08011220")
"""libp2p's protobuf around an Ed25519 public key: field 1 = type Ed25519, field 2 = 32 bytes."""

_FORMAT_VERSION: Final = 1
_SIGNATURE_DOMAIN: Final = b"barnraise hybrid signature 1"
_IDENTITY_FILE_TITLE: Final = "barnraise identity 1"
_CLUSTER_KEY_PREFIX: Final = "brk1"
_CHECKSUM_BYTES: Final = 4
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicIdentity:
    """A peer's two public keys and the record that binds them; made by `decode` it is known to be sound."""

    peer_id: PeerId
    ed25519: bytes
    """32 bytes."""
    ml_dsa: bytes
    """1952 bytes."""
    binding: bytes = field(compare=False)
    """Both keys' signature over both keys, 3373 bytes. ML-DSA's half is randomised, so it differs from start to start:
    compare and hash the keys, never this or `encode`."""

    def encode(self) -> bytes:
        """Return the 5358 bytes that `decode` reads: version, keys, binding. The peer id follows from them."""
        return bytes([_FORMAT_VERSION]) + self.ed25519 + self.ml_dsa + self.binding

    @classmethod
    def decode(cls, data: bytes) -> "PublicIdentity":
        """Read an identity that a peer sent and check that its keys are bound to each other.

        Raises:
            ValueError: wrong size or version, or one of the two binding signatures does not hold.
        """
        identity = cls._parsed(data)
        if not identity.verify(BINDING_CONTEXT, identity.ed25519 + identity.ml_dsa, identity.binding):
            raise ValueError(f"the identity of {identity.peer_id} is not signed by both of its keys")
        return identity

    @classmethod
    def decode_claim(cls, data: bytes) -> "PublicIdentity":
        """Read an identity whose Ed25519 key vouches for the other key; whether it has the other one is not checked.

        It is enough where a signature by both is checked next, which shows that, and takes a third less of the time.

        Raises:
            ValueError: wrong size or version, or the Ed25519 half of the binding does not hold.
        """
        identity = cls._parsed(data)
        signed = _preamble(BINDING_CONTEXT) + identity.ed25519 + identity.ml_dsa
        try:
            key = Ed25519PublicKey.from_public_bytes(identity.ed25519)
            key.verify(identity.binding[:ED25519_SIGNATURE_BYTES], signed)
        except InvalidSignature:
            raise ValueError(f"the identity of {identity.peer_id} is not signed by its key") from None
        return identity

    @classmethod
    def _parsed(cls, data: bytes) -> "PublicIdentity":
        if len(data) != PUBLIC_IDENTITY_BYTES:
            raise ValueError(f"an identity of {len(data)} bytes; it has {PUBLIC_IDENTITY_BYTES}")
        if data[0] != _FORMAT_VERSION:
            raise ValueError(f"an identity of format {data[0]}; this version reads {_FORMAT_VERSION}")
        keys_end = 1 + ED25519_KEY_BYTES + ML_DSA_KEY_BYTES
        ed25519, ml_dsa = data[1 : 1 + ED25519_KEY_BYTES], data[1 + ED25519_KEY_BYTES : keys_end]
        return cls(peer_id=peer_id_of(ed25519), ed25519=ed25519, ml_dsa=ml_dsa, binding=data[keys_end:])

    def verify(self, context: str, message: bytes, signature: bytes) -> bool:
        """Say whether both halves of ``signature`` are this peer's over ``message`` in this ``context``."""
        preamble = _preamble(context)
        if len(signature) != SIGNATURE_BYTES:
            return False
        classical, post_quantum = signature[:ED25519_SIGNATURE_BYTES], signature[ED25519_SIGNATURE_BYTES:]
        try:
            Ed25519PublicKey.from_public_bytes(self.ed25519).verify(classical, preamble + message)
            post_quantum_key = MLDSA65PublicKey.from_public_bytes(self.ml_dsa)
            post_quantum_key.verify(post_quantum, preamble + message, context=context.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class Identity:
    """A peer's two secret keys.

    >>> identity = Identity.load_or_create(directory / "identity.key")
    >>> signature = identity.sign("barnraise 1 vote", b"yes")
    >>> identity.public.verify("barnraise 1 vote", b"yes", signature)
    True
    """

    def __init__(self, ed25519_seed: bytes, ml_dsa_seed: bytes) -> None:
        """Derive the keys from two seeds of 32 secret bytes each."""
        self._ed25519_seed = ed25519_seed
        self._ml_dsa_seed = ml_dsa_seed
        self._ed25519 = Ed25519PrivateKey.from_private_bytes(ed25519_seed)
        self._ml_dsa = MLDSA65PrivateKey.from_seed_bytes(ml_dsa_seed)
        ed25519 = self._ed25519.public_key().public_bytes_raw()
        ml_dsa = self._ml_dsa.public_key().public_bytes_raw()
        binding = self.sign(BINDING_CONTEXT, ed25519 + ml_dsa)
        self.public = PublicIdentity(peer_id=peer_id_of(ed25519), ed25519=ed25519, ml_dsa=ml_dsa, binding=binding)

    @classmethod
    def generate(cls) -> Self:
        """Return a new identity that lives in memory only."""
        return cls(secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEED_BYTES))

    @classmethod
    def create(cls, path: Path) -> Self:
        """Return a new identity after writing it to a new file that only its owner can read.

        Raises:
            ConfigError: the file exists already or cannot be written.
        """
        identity = cls.generate()
        body = f"{_IDENTITY_FILE_TITLE}\n{identity._ed25519_seed.hex()}\n{identity._ml_dsa_seed.hex()}\n"
        write_secret(path, f"{body}{_checksum(body.encode()).hex()}\n", "an identity")
        return identity

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an identity's key file.

        Raises:
            ConfigError: the file is missing, damaged, of another format, or readable by other users.
        """
        title, *lines = read_secret(path, "an identity").split("\n")
        if title != _IDENTITY_FILE_TITLE:
            raise ConfigError(f"{path}: is not a key file of the format {_IDENTITY_FILE_TITLE!r}. Name another file.")
        try:
            ed25519_seed, ml_dsa_seed, checksum = (bytes.fromhex(line) for line in lines[:3])
        except ValueError:
            raise ConfigError(f"{path}: {_DAMAGED}") from None
        body = f"{title}\n{ed25519_seed.hex()}\n{ml_dsa_seed.hex()}\n"
        intact = len(ed25519_seed) == len(ml_dsa_seed) == SEED_BYTES and checksum == _checksum(body.encode())
        if not intact or lines[3:] != [""]:
            raise ConfigError(f"{path}: {_DAMAGED}")
        return cls(ed25519_seed, ml_dsa_seed)

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """Read the key file, or write a new one where there is none. Raises `ConfigError` like both."""
        return cls.load(path) if path.exists() else cls.create(path)

    @property
    def peer_id(self) -> PeerId:
        """Return the libp2p peer id."""
        return self.public.peer_id

    @property
    def ed25519_seed(self) -> bytes:
        """Return the 32 secret bytes from which libp2p makes the same key pair."""
        return self._ed25519_seed

    def sign(self, context: str, message: bytes) -> bytes:
        """Return `SIGNATURE_BYTES` by both keys. ML-DSA's half is randomised: two calls differ.

        Raises:
            LocalError: the context is empty or longer than `MAX_CONTEXT_BYTES`.
        """
        signed = _preamble(context) + message
        return self._ed25519.sign(signed) + self._ml_dsa.sign(signed, context=context.encode())

    def sign_ed25519(self, message: bytes) -> bytes:
        """Return libp2p's bare Ed25519 signature; only for formats that libp2p defines with a prefix of their own."""
        return self._ed25519.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


class ClusterKey:
    """The secret that a cluster's peers share: whoever proves that it knows it is admitted.

    >>> key = ClusterKey.generate()
    >>> proof = key.prove(b"dialer", b"the channel")
    >>> key.check(b"dialer", b"the channel", proof), key.check(b"listener", b"the channel", proof)
    (True, False)
    """

    def __init__(self, secret: bytes) -> None:
        """Take the 32 secret bytes."""
        if len(secret) != SEED_BYTES:
            raise LocalError(f"a cluster key of {len(secret)} bytes; it has {SEED_BYTES}")
        self._secret = secret
        self._proof_key = self.derive(b"admission proof")

    @classmethod
    def generate(cls) -> Self:
        """Return a new random key."""
        return cls(secrets.token_bytes(SEED_BYTES))

    @classmethod
    def create(cls, path: Path) -> Self:
        """Return a new key after writing it to a new file that only its owner can read.

        Raises:
            ConfigError: the file exists already or cannot be written.
        """
        key = cls.generate()
        key.save(path)
        return key

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file.

        Raises:
            ConfigError: the file is missing, damaged, or readable by other users.
        """
        try:
            return cls.from_text(read_secret(path, "a cluster key"))
        except ValueError as error:
            raise ConfigError(f"{path}: {error}. Copy the file again from a peer of the cluster.") from None

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what `to_text` wrote; case and surrounding space do not matter.

        Raises:
            ValueError: the text is no cluster key, or its checksum says that a character is wrong.
        """
        text = text.strip().lower()
        if not text.startswith(_CLUSTER_KEY_PREFIX):
            raise ValueError(f"a cluster key starts with {_CLUSTER_KEY_PREFIX!r}")
        letters = text.removeprefix(_CLUSTER_KEY_PREFIX)
        try:
            data = base64.b32decode(letters.upper() + "=" * (-len(letters) % 8))
        except (binascii.Error, ValueError):
            raise ValueError("the cluster key has a wrong character or length") from None
        secret, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if len(secret) != SEED_BYTES or checksum != _checksum(secret) or cls(secret).to_text() != text:
            raise ValueError("the cluster key's checksum does not fit: a character is wrong or missing")
        return cls(secret)

    def to_text(self) -> str:
        """Return the key with its checksum as one word of 62 letters and digits, for a join line."""
        data = self._secret + _checksum(self._secret)
        return _CLUSTER_KEY_PREFIX + base64.b32encode(data).decode().rstrip("=").lower()

    @property
    def secret(self) -> bytes:
        """Return the 32 secret bytes, for an invitation: who has them is in the cluster."""
        return self._secret

    @classmethod
    def keep(cls, secret: bytes, path: Path) -> Self:
        """Return the key of 32 secret bytes after seeing that ``path`` holds it; it is written where no file is yet.

        Raises:
            ConfigError: the file holds another key, or cannot be read or written.
        """
        key = cls(secret)
        if not path.exists():
            key.save(path)
        elif not hmac.compare_digest(cls.load(path)._secret, secret):
            raise ConfigError(
                f"{path}: holds the key of another cluster, which is never overwritten. Name another directory, or "
                "move the file away."
            )
        return key

    def save(self, path: Path) -> None:
        """Write the key to a new file that only its owner can read; raises `ConfigError` where one exists."""
        write_secret(path, self.to_text() + "\n", "a cluster key")

    def derive(self, info: bytes, length: int = 32) -> bytes:
        """Return ``length`` bytes for the purpose that ``info`` names (HKDF-SHA256, RFC 5869)."""
        hkdf = HKDF(algorithm=hashes.SHA256(), length=length, salt=b"barnraise 1 cluster key", info=info)
        return hkdf.derive(self._secret)

    def prove(self, role: bytes, channel: bytes) -> bytes:
        """Return 32 bytes that only a holder of the key can make, good for one ``role`` on one ``channel``.

        ``channel`` is a value that only the two ends of a connection know, such as a TLS exporter's.
        """
        return hmac.digest(self._proof_key, len(role).to_bytes(2, "big") + role + channel, "sha256")

    def check(self, role: bytes, channel: bytes, proof: bytes) -> bool:
        """Say, in constant time, whether ``proof`` is what `prove` returns for the same arguments."""
        return hmac.compare_digest(self.prove(role, channel), proof)

    def __repr__(self) -> str:
        return "ClusterKey(...)"


def peer_id_of(ed25519: bytes) -> PeerId:
    """Return the libp2p peer id of a 32-byte Ed25519 public key: base58 of its identity multihash."""
    if len(ed25519) != ED25519_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key of {len(ed25519)} bytes; it has {ED25519_KEY_BYTES}")
    key = LIBP2P_PUBLIC_KEY_PREFIX + ed25519
    multihash = bytes([0x00, len(key)]) + key
    number, digits = int.from_bytes(multihash, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    leading_zeros = len(multihash) - len(multihash.lstrip(b"\0"))
    return PeerId(_BASE58[0] * leading_zeros + digits)


def ed25519_of(peer: PeerId) -> bytes:
    """Return the 32-byte Ed25519 public key that a peer id is made of; undoes `peer_id_of`.

    Raises:
        ValueError: it is not the peer id of an Ed25519 key.
    """
    number = 0
    for digit in peer[:MAX_PEER_ID_CHARS]:
        number = 58 * number + _BASE58.index(digit)
    key = (number & ((1 << 8 * ED25519_KEY_BYTES) - 1)).to_bytes(ED25519_KEY_BYTES, "big")
    if peer_id_of(key) != peer:
        raise ValueError(f"{peer[:MAX_PEER_ID_CHARS]!r} is not the peer id of an Ed25519 key")
    return key


_DAMAGED: Final = (
    "the key file is damaged. Restore it from a copy, or move it away to make a new identity (its peer id will differ)."
)


def _preamble(context: str) -> bytes:
    data = context.encode()
    if not 1 <= len(data) <= MAX_CONTEXT_BYTES:
        raise LocalError(f"a signature context of {len(data)} bytes; it has 1 .. {MAX_CONTEXT_BYTES}")
    return _SIGNATURE_DOMAIN + bytes([len(data)]) + data


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(b"barnraise checksum" + data).digest()[:_CHECKSUM_BYTES]


def write_secret(path: Path, text: str, what: str) -> None:
    """Write ASCII text to a new file that only its owner can read, and see it to the disk.

    Args:
        path: the file; its directory is made.
        text: what to write.
        what: its name in an error, article included.

    Raises:
        ConfigError: the file exists already or cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.parent.is_dir():
            raise ConfigError(f"{path}: exists already; {what} is never overwritten. Name another file.") from None
        raise ConfigError(f"{path}: {what} cannot be written there ({error.strerror}). Name another file.") from error
    _write_and_sync(descriptor, path, text, what)


def _write_and_sync(descriptor: int, path: Path, text: str, what: str) -> None:
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        # A new file's name survives a power cut only once its directory is on disk as well.
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        path.unlink()
        raise ConfigError(f"{path}: {what} could not be written ({error.strerror}). Free some space.") from error


def read_secret(path: Path, what: str) -> str:
    """Read a file of at most `MAX_KEY_FILE_BYTES` of ASCII text that only its owner can read.

    Raises:
        ConfigError: it is missing, readable by others, too large, or no text.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path}: is not a regular file. Name the file that holds {what}.")
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    f"{path}: other users can read or change it (mode {stat.S_IMODE(mode):04o}, wanted 0600). "
                    f"Run: chmod 600 {path}"
                )
            data = file.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {what} cannot be read ({error.strerror}). Name a readable file.") from error
    if len(data) > MAX_KEY_FILE_BYTES:
        raise ConfigError(f"{path}: is over {MAX_KEY_FILE_BYTES} bytes, so it does not hold {what}. Name another file.")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text, so it does not hold {what}. Name another file.") from None
