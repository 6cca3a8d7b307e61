"""What a blob's name stands for: the hash of its manifest, which holds the blob's size and the hash of each chunk.

    manifest = size in bytes (8 bytes, little-endian) || BLAKE3(chunk 0) || BLAKE3(chunk 1) || ...
    name     = BLAKE3(manifest)

A certified checkpoint names its tensors so. Whoever has such a name can check a manifest that anybody sent, and with the
manifest each chunk by itself, as it comes and from whomever: nothing unchecked is ever written, and a chunk that does
not hold convicts the one donor that sent it. Chunks and manifests are hashed in contexts of their own, so that one is
never taken for the other.
"""

from dataclasses import dataclass
from typing import Final

import blake3

from barnraise.ids import Digest

CHUNK_BYTES: Final = 1 << 20
"""As long as a transfer may be to leave without asking first (`net.transfer`); a manifest of 1 GB has 30 KB."""
HASH_BYTES: Final = 32
_SIZE_BYTES: Final = 8
_CHUNK_CONTEXT: Final = "barnraise 1 chunk"
_MANIFEST_CONTEXT: Final = "barnraise 1 blob"

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A blob's size and the hashes of its chunks."""

    size_bytes: int
    hashes: bytes
    """32 bytes a chunk, in order."""

    @property
    def num_chunks(self) -> int:
        """Return into how many chunks the blob is cut; an empty one has none."""
        return num_chunks(self.size_bytes)

    def encode(self) -> bytes:
        """Return the canonical bytes, which the blob's name is the hash of."""
        return self.size_bytes.to_bytes(_SIZE_BYTES, "little") + self.hashes

    @property
    def name(self) -> Digest:
        """Return the blob's name."""
        return Digest(blake3.blake3(self.encode(), derive_key_context=_MANIFEST_CONTEXT).digest())

    def bounds(self, index: int) -> tuple[int, int]:
        """Return a chunk's first byte and the one after its last."""
        return index * CHUNK_BYTES, min((index + 1) * CHUNK_BYTES, self.size_bytes)

    def hash_of(self, index: int) -> bytes:
        """Return what a chunk must hash to."""
        return self.hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def holds(self, index: int, chunk: Buffer) -> bool:
        """Tell whether these bytes are that chunk."""
        start, stop = self.bounds(index)
        return len(chunk) == stop - start and chunk_hash(chunk) == self.hash_of(index)

    @classmethod
    def decode(cls, data: bytes, name: Digest, size_bytes: int) -> "Manifest":
        """Return the manifest in ``data``.

        Args:
            data: what somebody sent.
            name: the blob's.
            size_bytes: the blob's, which its model fixes.

        Raises:
            ValueError: it is not the manifest of that name, or of a blob of another size.
        """
        if len(data) != manifest_bytes(size_bytes):
            raise ValueError(f"a manifest of {len(data)} bytes instead of {manifest_bytes(size_bytes)}")
        manifest = cls(size_bytes=int.from_bytes(data[:_SIZE_BYTES], "little"), hashes=data[_SIZE_BYTES:])
        if manifest.size_bytes != size_bytes:
            raise ValueError(f"the manifest of a blob of {manifest.size_bytes} bytes instead of {size_bytes}")
        if manifest.name != name:
            raise ValueError(f"the manifest of {manifest.name.hex()[:12]} instead of {name.hex()[:12]}")
        return manifest


class Hasher:
    """Takes a blob's bytes in order, in pieces of any length, and cuts chunks from them."""

    def __init__(self) -> None:
        self._size_bytes = 0
        self._hashes = bytearray()
        self._chunk = blake3.blake3(derive_key_context=_CHUNK_CONTEXT)

    def update(self, data: Buffer) -> None:
        """Take the next bytes."""
        view = memoryview(data).cast("B")
        while len(view):
            piece = view[: CHUNK_BYTES - self._size_bytes % CHUNK_BYTES]
            self._chunk.update(piece)
            self._size_bytes += len(piece)
            if self._size_bytes % CHUNK_BYTES == 0:
                self._hashes += self._chunk.digest()
                self._chunk = blake3.blake3(derive_key_context=_CHUNK_CONTEXT)
            view = view[len(piece) :]

    def manifest(self) -> Manifest:
        """Return the manifest of what came so far."""
        rest = self._chunk.digest() if self._size_bytes % CHUNK_BYTES else b""
        return Manifest(size_bytes=self._size_bytes, hashes=bytes(self._hashes) + rest)

    def name(self) -> Digest:
        """Return the name of what came so far."""
        return self.manifest().name


def num_chunks(size_bytes: int) -> int:
    """Return how many chunks a blob of this size has."""
    return -(-size_bytes // CHUNK_BYTES)


def manifest_bytes(size_bytes: int) -> int:
    """Return the length of the manifest of a blob of this size."""
    return _SIZE_BYTES + HASH_BYTES * num_chunks(size_bytes)


def chunk_hash(chunk: Buffer) -> bytes:
    """Return what a manifest holds of a chunk."""
    return blake3.blake3(chunk, derive_key_context=_CHUNK_CONTEXT).digest()


def manifest_of(data: Buffer) -> Manifest:
    """Return the manifest of a whole blob."""
    view = memoryview(data)
    pieces = (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))
    return Manifest(size_bytes=len(view), hashes=b"".join(chunk_hash(piece) for piece in pieces))
