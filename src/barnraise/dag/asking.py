"""What peers say to each other about blobs: the headers of bulk transfers. What is not asked for is never sent.

    asker                              donor
    Ask(name, 0, 0)   no payload --->
                                 <---  Answer(name, 0, 0)       the manifest
    Ask(name, 8, 4)   no payload --->
                                 <---  Answer(name, 8, 4)       chunks 8 to 11, whole, one behind the other

A donor refuses an ask at once, as it would any transfer, where it has no such blob or enough to do. An answer is taken
if that very ask is open, and has one possible length.
"""

from typing import Annotated, Final

import msgspec

from barnraise.ids import Digest
from barnraise.swarm.manifest import CHUNK_BYTES, HASH_BYTES, manifest_bytes, num_chunks
from barnraise.swarm.records import Count, Decoder

MAX_RUN_CHUNKS: Final = 4
"""In one answer: of 4 MiB a link's round trip costs little, and a lost one is soon fetched elsewhere."""

Name = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
RunLength = Annotated[int, msgspec.Meta(ge=0, le=MAX_RUN_CHUNKS)]


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, order=True):
    """A part of a blob: some chunks in a row, or its manifest."""

    name: Name
    first: Count = 0
    count: RunLength = 0
    """0: the manifest."""

    @property
    def digest(self) -> Digest:
        """Return the blob's name."""
        return Digest(self.name)

    @property
    def is_manifest(self) -> bool:
        """Tell whether it is the manifest."""
        return not self.count

    @property
    def chunks(self) -> range:
        """Return the chunks' places."""
        return range(self.first, self.first + self.count)

    def length_bytes(self, blob_bytes: int) -> int | None:
        """Return how long it is in a blob of this size; None: it has no such part."""
        if self.is_manifest:
            return manifest_bytes(blob_bytes) if not self.first else None
        if self.first + self.count > num_chunks(blob_bytes):
            return None
        return min((self.first + self.count) * CHUNK_BYTES, blob_bytes) - self.first * CHUNK_BYTES


class Ask(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Please send this part."""

    part: Part


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Here it is."""

    part: Part


_encode = msgspec.msgpack.Encoder().encode
_decoder: Decoder[Ask | Answer] = Decoder(msgspec.msgpack.Decoder(Ask | Answer))


def encode(header: Ask | Answer) -> bytes:
    """Return a header's bytes."""
    return _encode(header)


def decode(data: bytes) -> Ask | Answer | None:
    """Return what a header says; None: it is none of ours, or malformed."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError:
        return None
