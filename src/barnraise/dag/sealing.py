"""Encryption at rest: vectors sealed on disk, plain copies in memory for the trainer; log and vertices stay as they are.

A sealed file is a header and pieces of 1 MiB, each with a tag (ChaCha20-Poly1305, RFC 8439). The key of a file is
derived (HKDF-SHA256, RFC 5869) from the master key and a salt of its own, so that a nonce is no more than the piece's
number; the header, which tells the size, goes into every tag, so that no piece can be cut off, moved or exchanged.

    header   magic, version | where the master key comes from | log2 of scrypt's N | salt of the passphrase
             salt of the file | bytes sealed | check value: tells a wrong key from a damaged file

The master key comes from the cluster key, or from a passphrase by scrypt (RFC 7914). Whoever has the disk learns the
hashes and sizes of tensors, the log, and this peer's keys, which are no part of it; with the cluster key on the same
disk, nothing is hidden.

A trainer maps parameters, which takes a plain file. It lies in a directory of this peer alone (mode 0700) on a file
system in memory, as do the trainer's updates and snapshots; it is removed at the end, and by the next start after a
kill. Such memory may be swapped out: encrypt the swap space as well.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import struct
import threading
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import blake3
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from barnraise.codec.grid import Float32
from barnraise.config import PeerConfig
from barnraise.dag import disk
from barnraise.dag.blobs import Blobs, name_of
from barnraise.errors import BarnraiseError, ConfigError, LocalError
from barnraise.identity import ClusterKey
from barnraise.ids import Digest
from barnraise.swarm.workspace import as_bytes, root_of

Source = Literal["cluster", "passphrase"]

SUFFIX: Final = ".sealed"
BLOBS_DIRECTORY: Final = "blobs"
PIECE_BYTES: Final = 1 << 20
TAG_BYTES: Final = 16
PASSPHRASE_VARIABLE: Final = "BARNRAISE_PASSPHRASE"  # noqa: S105 - where it is, not what it is
MEMORY_VARIABLE: Final = "BARNRAISE_MEMORY_DIR"
SCRYPT_LOG2_N: Final = 17
"""128 MiB and some 0.3 s for each guess, with r = 8: what OWASP asks for."""
MAX_SCRYPT_LOG2_N: Final = 20
"""A header may ask for 1 GiB at most."""
PLAIN_LEFTOVERS: Final = ("update.f32", "initial.f32", "trainer/round-*.safetensors")
"""What a peer that did not seal leaves in its data directory, besides vectors."""

_MAGIC: Final = b"barnraise sealed 1"
_HEADER: Final = struct.Struct(">18sBB16s32sQ16s")
_SOURCES: Final[tuple[Source, ...]] = ("cluster", "passphrase")
_SALT_BYTES: Final = 16
_FILE_SALT_BYTES: Final = 32
_CHECK_BYTES: Final = 16

Environment = MutableMapping[str, str]


class Header(NamedTuple):
    """What a sealed file says of itself before any of it is opened."""

    source: Source
    log2_n: int
    salt: bytes
    file_salt: bytes
    size_bytes: int
    check: bytes

    def encode(self) -> bytes:
        """Return the bytes that a file begins with."""
        return _HEADER.pack(_MAGIC, _SOURCES.index(self.source), *self[1:])


class Seal:
    """A secret that files are sealed with and opened by; `keys` that it took long to derive are kept."""

    def __init__(self, source: Source, secret: bytes, salt: bytes = b"", log2_n: int = SCRYPT_LOG2_N) -> None:
        """Take the secret.

        Args:
            source: where it comes from.
            secret: 32 bytes derived from the cluster key, or a passphrase in UTF-8.
            salt: 16 bytes, for new files sealed by a passphrase; empty: new ones.
            log2_n: scrypt's cost for new files, as a power of two.
        """
        self.source: Source = source
        self._secret = secret
        self._log2_n = log2_n if source == "passphrase" else 0
        self._salt = (salt or secrets.token_bytes(_SALT_BYTES)) if source == "passphrase" else bytes(_SALT_BYTES)
        self._masters: dict[tuple[bytes, int], bytes] = {}

    def sealed(self, data: memoryview) -> Iterator[bytes]:
        """Return the parts of a sealed file, one after another, so that no second copy of it is in memory."""
        file_salt = secrets.token_bytes(_FILE_SALT_BYTES)
        master = self._master(self._salt, self._log2_n)
        check = _derived(master, file_salt, b"check", _CHECK_BYTES)
        header = Header(self.source, self._log2_n, self._salt, file_salt, len(data), check).encode()
        cipher = _cipher(master, file_salt)
        yield header
        for number, start in enumerate(range(0, len(data), PIECE_BYTES)):
            yield cipher.encrypt(_nonce(number), data[start : start + PIECE_BYTES], header)

    def opened(self, path: Path) -> bytearray:
        """Return what was sealed in a file.

        Raises:
            ConfigError: it was sealed by another key.
            LocalError: it is no sealed file, or damaged.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            header = _read_header(file.read(_HEADER.size), path)
            master = self.check(header, path)
            sealed_bytes = _HEADER.size + header.size_bytes + TAG_BYTES * -(-header.size_bytes // PIECE_BYTES)
            if os.fstat(file.fileno()).st_size != sealed_bytes:
                raise LocalError(f"{path}: is cut off, or something was added to it")
            cipher, about = _cipher(master, header.file_salt), header.encode()
            data = bytearray(header.size_bytes)
            for number, start in enumerate(range(0, header.size_bytes, PIECE_BYTES)):
                try:
                    piece = cipher.decrypt(_nonce(number), file.read(PIECE_BYTES + TAG_BYTES), about)
                except InvalidTag:
                    raise LocalError(f"{path}: piece {number} is damaged") from None
                data[start : start + len(piece)] = piece
        return data

    def check(self, header: Header, path: Path) -> bytes:
        """Return the master key of a file; ``path`` names it in errors.

        Raises:
            ConfigError: it was sealed by another key.
        """
        if header.source != self.source:
            raise ConfigError(f"{path}: is sealed by the {called(header.source)}. Set encrypt = {header.source!r}.")
        master = self._master(header.salt, header.log2_n)
        if _derived(master, header.file_salt, b"check", _CHECK_BYTES) != header.check:
            raise ConfigError(
                f"{path}: is sealed by another {called(self.source)}. Give the one that this peer had, or delete "
                f"{path.parent}: what lies there is fetched again from other peers."
            )
        return master

    def _master(self, salt: bytes, log2_n: int) -> bytes:
        if self.source == "cluster":
            return self._secret
        if (salt, log2_n) not in self._masters:
            memory_bytes = 2 * 128 * 8 << log2_n
            self._masters[salt, log2_n] = hashlib.scrypt(
                self._secret, salt=salt, n=1 << log2_n, r=8, p=1, maxmem=memory_bytes, dklen=32
            )
        return self._masters[salt, log2_n]


class SealedBlobs(Blobs):
    """Vectors of which the disk sees nothing but sealed files."""

    def __init__(self, directory: Path, seal: Seal, scratch: Path) -> None:
        """Open the directory, and seal what lies there in the open.

        Args:
            directory: of the sealed files.
            seal: their key.
            scratch: for plain files, in memory; this peer's own.

        Raises:
            ConfigError: what lies there was sealed by another key.
        """
        super().__init__(directory)
        self._seal, self._scratch = seal, scratch
        self._copying = threading.Lock()
        if found := _any_header(directory):
            seal.check(*found)
        in_the_open = Blobs(directory)
        for file in list(directory.iterdir()):
            name = name_of(file)
            if name is None or file.suffix:
                continue
            if (vector := in_the_open.find(name)) is not None:
                self.put(vector, name)
            file.unlink(missing_ok=True)

    @property
    def scratch(self) -> Path:
        """Return where plain files must lie."""
        return self._scratch

    def path(self, name: Digest) -> Path:
        """Return where a vector lies sealed, whether or not it is there."""
        return self._directory / (name.hex() + SUFFIX)

    def put(self, vector: Float32, name: Digest | None = None, what: str = "theta") -> Digest:
        """Write float32[d] sealed and return its name. Raises `OSError` where the disk is full, say."""
        name = name or root_of(vector)
        if not self.path(name).exists():
            disk.write_whole(self.path(name), self._seal.sealed(as_bytes(vector)), what, self.watch)
        return name

    def plain(self, name: Digest) -> Path:
        """Return a plain copy in memory, made from what is sealed. Raises like `get`, and `OSError` for lack of room."""
        path = self._scratch / name.hex()
        with self._copying:
            if not path.exists() and self.path(name).exists():
                partial = path.with_suffix(disk.WRITING)
                partial.write_bytes(as_bytes(self.get(name)))
                partial.replace(path)
        return path

    def keep(self, names: Collection[Digest]) -> None:
        """Delete every vector but these and those that are held, and every plain copy that is not held."""
        super().keep(names)
        self._sweep(self._scratch, (), strays=False)

    def close(self) -> None:
        """Remove the plain copies, and whatever else lies beside them."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _read(self, name: Digest) -> Float32:
        data = self._seal.opened(self.path(name))
        return np.frombuffer(data, "<f4", len(data) // 4).astype(np.float32, copy=False)


def open_blobs(config: PeerConfig, cluster_key: ClusterKey, environment: Environment = os.environ) -> Blobs:
    """Return where a peer keeps its vectors, sealed if its settings say so. This process holds the directory's lock.

    The passphrase is taken out of the environment: no process that this one starts is to see it.

    Raises:
        ConfigError: there is no passphrase, it is another one, no file system in memory is there, or what lies there is
            sealed and ought not to be.
    """
    directory = config.data_dir / BLOBS_DIRECTORY
    if not config.encrypt:
        if found := _any_header(directory):
            source = found[0].source
            raise ConfigError(f"{directory}: is sealed by the {called(source)}. Set encrypt = {source!r}, as it was.")
        return Blobs(directory)
    seal = seal_of(config.encrypt, cluster_key, directory, environment)
    blobs = SealedBlobs(directory, seal, scratch_of(config.data_dir, environment))
    for pattern in PLAIN_LEFTOVERS:
        for file in config.data_dir.glob(pattern):
            file.unlink()
    return blobs


def seal_of(source: Source, cluster_key: ClusterKey, directory: Path, environment: Environment = os.environ) -> Seal:
    """Return the seal for a directory of vectors; its files' salt is used again, so that scrypt runs once.

    Raises:
        ConfigError: there is no passphrase.
    """
    if source == "cluster":
        return Seal("cluster", cluster_key.derive(b"sealed files"))
    passphrase = environment.pop(PASSPHRASE_VARIABLE, "")
    if not passphrase:
        raise ConfigError(
            f"encrypt = 'passphrase' and there is none. Set {PASSPHRASE_VARIABLE} before the peer starts."
        )
    found = _any_header(directory)
    if found and found[0].source == source:
        return Seal(source, passphrase.encode(), found[0].salt, found[0].log2_n)
    return Seal(source, passphrase.encode())


def source_of(directory: Path) -> Source | Literal[""]:
    """Return what the vectors in a directory are sealed by; "": nothing there is sealed."""
    found = _any_header(directory)
    return found[0].source if found else ""


def damage_of(path: Path, name: Digest, seal: Seal | None) -> str:
    """Say what is wrong with a vector's file; "": its bytes are what its name says.

    Args:
        path: the file; sealed if its suffix says so.
        name: the vector's.
        seal: opens sealed files.
    """
    try:
        if path.suffix == SUFFIX:
            if seal is None:
                return "it is sealed, and no key was given"
            data = np.frombuffer(seal.opened(path), np.uint8)
        else:
            size_bytes = path.stat().st_size
            data = np.memmap(path, np.uint8, "r") if size_bytes else np.zeros(0, np.uint8)
    except OSError as error:
        return error.strerror or "it cannot be read"
    except BarnraiseError as error:
        return str(error)
    if len(data) % 4:
        return f"{len(data)} bytes are no whole number of values"
    return "" if root_of(data.view("<f4")) == name else "its bytes have another hash"


def scratch_of(data_dir: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Return an empty directory in memory, mode 0700, for the peer whose data directory this process holds locked.

    What a life of the peer that was killed left there is removed.

    Raises:
        ConfigError: this system keeps no files in memory, or somebody else has the directory.
    """
    path = scratch_place(data_dir, environment)
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(
            f"{path}: no directory for plain copies can be made there ({error.strerror}). Name another one, in memory: "
            f"{MEMORY_VARIABLE}."
        ) from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise ConfigError(f"{path}: is open to others. Name another directory, in memory: {MEMORY_VARIABLE}.")
    return path


def scratch_place(data_dir: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Return where `scratch_of` puts the directory. Raises `ConfigError`."""
    name = blake3.blake3(bytes(data_dir.resolve())).hexdigest(8)
    return memory_place(environment) / f"barnraise-{os.geteuid()}-{name}"


def memory_place(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the roomiest file system in memory, or the directory that the user named.

    Raises:
        ConfigError: none is known.
    """
    if named := environment.get(MEMORY_VARIABLE):
        return Path(named).expanduser()
    candidates = [Path("/dev/shm"), Path(environment.get("XDG_RUNTIME_DIR", "/dev/shm"))]  # noqa: S108 - it is in memory
    usable = [path for path in candidates if path in _in_memory() and os.access(path, os.W_OK | os.X_OK)]
    if not usable:
        raise ConfigError(
            "sealed tensors are read by the trainer as plain files, and no file system in memory is known here. Make "
            f"one, and name a directory on it: {MEMORY_VARIABLE}."
        )
    return max(usable, key=lambda path: shutil.disk_usage(path).free)


def _in_memory() -> frozenset[Path]:
    """Return where file systems in memory are mounted; nothing where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    fields = [line.split(" ") for line in lines]
    return frozenset(Path(field[1]) for field in fields if len(field) > 2 and field[2] in ("tmpfs", "ramfs"))


def _any_header(directory: Path) -> tuple[Header, Path] | None:
    """Return what some sealed file in a directory says of itself, and which; None: there is none that is whole."""
    for path in directory.glob(f"*{SUFFIX}"):
        with contextlib.suppress(LocalError, OSError), path.open("rb") as file:
            return _read_header(file.read(_HEADER.size), path), path
    return None


def _read_header(data: bytes, path: Path) -> Header:
    """Read what a sealed file begins with; ``path`` names it in errors. Raises `LocalError`."""
    if len(data) != _HEADER.size:
        raise LocalError(f"{path}: is too short for a sealed file")
    magic, source, *rest = _HEADER.unpack(data)
    if magic != _MAGIC or source >= len(_SOURCES) or rest[0] > MAX_SCRYPT_LOG2_N:
        raise LocalError(f"{path}: is no sealed file of this version")
    return Header(_SOURCES[source], *rest)


def called(source: Source) -> str:
    """Return what a user calls the key that something is sealed by."""
    return {"cluster": "cluster key", "passphrase": "passphrase"}[source]


def _cipher(master: bytes, file_salt: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(_derived(master, file_salt, b"pieces", 32))


def _derived(master: bytes, file_salt: bytes, purpose: bytes, length: int) -> bytes:
    hkdf = HKDF(algorithm=hashes.SHA256(), length=length, salt=file_salt, info=b"barnraise 1 sealed " + purpose)
    return hkdf.derive(master)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")
